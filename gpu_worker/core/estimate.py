"""
What a job needs before anything is loaded, from the model's config.json alone: memory, tokens, time.

The memory is meant to be above what is measured and not by more than a quarter; tests hold it against real runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from gpu_worker.core.errors import BadInput
from gpu_worker.core.hardware import MIB, DeviceKind, Speed
from wire.jobs import Evaluate, FineTune, Generate, Params

# What the program takes before it has a model: the interpreter with torch and transformers; on a GPU its context.
RUNTIME_BYTES: Mapping[DeviceKind, int] = {"cpu": 450 * MIB, "cuda": 700 * MIB, "mps": 450 * MIB}
# Bytes of one number that is only read or passes through: f32 on the CPU, bf16 elsewhere.
NUMBER_BYTES: Mapping[DeviceKind, int] = {"cpu": 4, "cuda": 2, "mps": 2}
# A trained number is f32 everywhere, with its gradient and two averages of AdamW beside it.
TRAINED_BYTES = 16
# A checkpoint is copied to the machine's own memory before it is written: number and averages.
COPIED_BYTES: Mapping[DeviceKind, int] = {"cpu": 12, "cuda": 0, "mps": 12}
# What is kept of each layer until its gradient is made, in numbers a token: of the width, and of the inner width.
KEPT_OF_WIDTH = 12
KEPT_OF_INNER = 4
# The scores of the vocabulary: as they are, in f32 for the loss, and their gradient.
KEPT_OF_VOCABULARY_BYTES = 12
# What the allocator adds.
SLACK = Decimal("1.05")
# About what a token and a record of a dataset have.
TOKEN_BYTES = 4
RECORD_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A causal language model by its numbers. `is_gated`: its inner layers have three matrices, else two."""

    kind: str
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_width: int
    vocabulary: int
    positions: int
    has_positions: bool
    is_gated: bool
    is_tied: bool
    has_biases: bool
    experts: int = 1
    qkv_biases: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """Return the shape that a config.json describes. Raises BadInput where it lacks a number."""
        kind = str(config.get("model_type", ""))
        old = kind in ("gpt2", "gpt_neox", "gpt_neo", "opt", "bloom", "gptj", "codegen")
        width = _number(config, "hidden_size", "n_embd", "d_model")
        heads = _number(config, "num_attention_heads", "n_head", "n_heads")
        inner = _number(config, "intermediate_size", "n_inner", "ffn_dim", "d_ff", default=4 * width)
        return cls(
            kind=kind,
            layers=_number(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers"),
            width=width,
            inner=_number(config, "moe_intermediate_size", default=inner),
            heads=heads,
            kv_heads=_number(config, "num_key_value_heads", default=heads),
            head_width=_number(config, "head_dim", default=max(1, width // heads)),
            vocabulary=_number(config, "vocab_size"),
            positions=_number(config, "max_position_embeddings", "n_positions", "n_ctx", default=2_048),
            has_positions=kind in ("gpt2", "opt", "gpt_neo"),
            is_gated=not old,
            # transformers ties them where nothing is said, but for the families that say otherwise of themselves.
            is_tied=bool(config.get("tie_word_embeddings", kind not in _UNTIED)),
            has_biases=old,
            experts=_number(config, "num_local_experts", "num_experts", "n_routed_experts", default=1),
            qkv_biases=kind.startswith("qwen2"),
        )

    @property
    def layer_parameters(self) -> int:
        q, kv = self.heads * self.head_width, self.kv_heads * self.head_width
        attention = self.width * q * 2 + self.width * kv * 2
        matrices = 3 if self.is_gated else 2
        router = self.experts * self.width if self.experts > 1 else 0
        norms = 2 * self.width * (2 if self.has_biases else 1)
        biases = 2 * self.width + q + 2 * kv + self.inner if self.has_biases else 0
        biases += q + 2 * kv if self.qkv_biases else 0
        return attention + matrices * self.width * self.inner * self.experts + router + norms + biases

    @property
    def parameters(self) -> int:
        """How many numbers the model has; a few thousandths more or fewer where its family is not known."""
        embedding = self.vocabulary * self.width
        head = 0 if self.is_tied else embedding
        positions = self.positions * self.width if self.has_positions else 0
        return self.layers * self.layer_parameters + embedding + head + positions + self.width * (1 + self.has_biases)


_UNTIED = ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gpt_neox", "phi3", "olmo")
_SIZE_MAX = 10**9


def _number(config: Mapping[str, Any], *names: str, default: int | None = None) -> int:
    for name in names:
        value = config.get(name)
        if value is not None:
            if type(value) is not int or not 0 < value <= _SIZE_MAX:
                raise BadInput("model_unknown", f"config.json: {name} is not a whole number above zero")
            return value
    if default is None:
        raise BadInput("model_unknown", f"config.json says no {names[0]}: it is of no causal language model")
    return default


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a job takes. `trained` are the numbers that change; `step_tokens` are those of one step."""

    memory_bytes: int
    trained: int
    steps: int
    step_tokens: int

    @property
    def tokens(self) -> int:
        return self.steps * self.step_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Fits:
    """`eta_s` None: the device was not measured yet, or the dataset decides."""

    memory_bytes: int
    spare_bytes: int
    eta_s: Decimal | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TooLarge:
    memory_bytes: int
    missing_bytes: int


def look(
    config: Mapping[str, Any],
    params: Params,
    device: DeviceKind,
    memory_bytes: int,
    speed: Speed | None,
    *,
    dataset_bytes: int = 0,
) -> Fits | TooLarge:
    """
    Return whether a job on the model of `config` has room in `memory_bytes`, and when it would be done.

    Of epochs, evaluations and completions nobody knows that before the dataset is known (`dataset_bytes` 0: it is not).

    Raises:
        BadInput: the config is of no model that is known, or the job's sequences are too long for it.
    """
    shape = ModelShape.from_config(config)
    need = need_of(shape, params, device, dataset_bytes=dataset_bytes)
    spare = memory_bytes - need.memory_bytes
    if spare < 0:
        return TooLarge(memory_bytes=need.memory_bytes, missing_bytes=-spare)
    is_long_known = dataset_bytes > 0 or (isinstance(params, FineTune) and params.epochs is None)
    eta = eta_s(need, shape, speed) if speed is not None and is_long_known else None
    return Fits(memory_bytes=need.memory_bytes, spare_bytes=spare, eta_s=eta)


def need_of(shape: ModelShape, params: Params, device: DeviceKind, *, dataset_bytes: int = 0) -> Need:
    """
    Return what a job of `params` takes on a device; `dataset_bytes` 0: its dataset is not known.

    Raises:
        BadInput: the job's sequences are longer than the model has positions.
    """
    match params:
        case FineTune():
            return _training(shape, params, device, dataset_bytes)
        case Evaluate():
            sequences = min(dataset_bytes // RECORD_BYTES or params.records_max, params.records_max)
            length = params.sequence_length + (params.max_new_tokens if params.metric == "exact_match" else 0)
            return _reading(shape, device, params.batch_size, length, sequences)
        case Generate():
            return _reading(
                shape, device, params.batch_size, 2 * params.max_new_tokens, dataset_bytes // RECORD_BYTES or 1
            )
    return Need(memory_bytes=0, trained=0, steps=1, step_tokens=0)


def _training(shape: ModelShape, params: FineTune, device: DeviceKind, dataset_bytes: int) -> Need:
    if params.sequence_length > shape.positions:
        raise BadInput(
            "invalid_field", f"sequenceLength is {params.sequence_length}, the model has {shape.positions} positions"
        )
    trained = shape.parameters
    if params.method == "lora":
        q, kv = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
        sides = 4 * shape.width + 2 * q + 2 * kv
        sides += (3 if shape.is_gated else 2) * (shape.width + shape.inner)
        trained = shape.layers * params.lora.rank * sides
    number = NUMBER_BYTES[device]
    still = 0 if params.method == "full" else shape.parameters * number
    tokens = params.batch_size * params.sequence_length
    kept = shape.layers * (KEPT_OF_WIDTH * shape.width + KEPT_OF_INNER * shape.inner) * number
    activations = tokens * (kept + shape.vocabulary * KEPT_OF_VOCABULARY_BYTES)
    working = (trained * (TRAINED_BYTES + COPIED_BYTES[device]) + still + activations) * SLACK
    sequences = max(1, dataset_bytes // (TOKEN_BYTES * params.sequence_length))
    return Need(
        memory_bytes=RUNTIME_BYTES[device] + int(working),
        trained=trained,
        steps=params.steps_of(sequences),
        step_tokens=tokens * params.accumulation,
    )


def _reading(shape: ModelShape, device: DeviceKind, batch: int, length: int, sequences: int) -> Need:
    number, tokens = NUMBER_BYTES[device], batch * min(length, shape.positions)
    cache = 2 * shape.layers * shape.kv_heads * shape.head_width * number
    passing = (KEPT_OF_WIDTH * shape.width + KEPT_OF_INNER * shape.inner) * number
    scores = shape.vocabulary * KEPT_OF_VOCABULARY_BYTES
    working = (shape.parameters * number + tokens * (cache + passing + scores)) * SLACK
    return Need(
        memory_bytes=RUNTIME_BYTES[device] + int(working),
        trained=0,
        steps=-(-sequences // batch),
        step_tokens=tokens,
    )


# What the speed of a device is measured with (`engine.measure`): a model like those that are trained, but small.
REFERENCE = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 2_048,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
# Training a number takes three passes of two operations; reading it one.
FLOPS_TRAINED = 6
FLOPS_READ = 2
# Bytes that AdamW moves for each trained number: it reads four and writes three, of four bytes.
ADAM_BYTES = 28


def step_s(need: Need, shape: ModelShape, speed: Speed) -> Decimal:
    """Return the seconds of one step: what is computed, what the optimizer moves, and what every layer costs anyway."""
    reference = ModelShape.from_config(REFERENCE)
    rate = max(Decimal(1), speed.tokens_per_s * FLOPS_TRAINED * reference.parameters)
    flops = FLOPS_TRAINED if need.trained else FLOPS_READ
    # An embedding is looked up, not multiplied.
    counted = shape.parameters - (0 if shape.is_tied else shape.vocabulary * shape.width)
    computed = Decimal(flops * counted * need.step_tokens) / rate
    moved = Decimal(ADAM_BYTES * need.trained) / max(1, speed.memory_bytes_per_s)
    share = Decimal(1) if need.trained else Decimal(flops) / FLOPS_TRAINED
    return computed + moved + shape.layers * speed.layer_s * share


def eta_s(need: Need, shape: ModelShape, speed: Speed) -> Decimal:
    """Return the seconds until the job is done, the start of its program included."""
    return (speed.start_s + need.steps * step_s(need, shape, speed)).quantize(Decimal("0.1"))
