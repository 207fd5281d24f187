"""What a GGUF header says of its model, every number held against what a model can have."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpu_worker.core.quantization.catalogue import quant_in
from gpu_worker.core.quantization.header import FILE_TYPES, BadGguf, Header, Tensor, Value, shown
from gpu_worker.core.quantization.weights import Layer, Weights

# llama.cpp's own: it ends the process where there are more layers.
LAYERS_MAX = 512
EXPERTS_MAX = 1_024
CONTEXT_MAX = 2**27
HEADS_MAX = 4_096
WIDTH_MAX = 2**18
VOCABULARY_MAX = 2**23
NO_TOKEN = 2**32 - 1
_ARCHITECTURE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_OF_A_LAYER = re.compile(r"blk\.(\d{1,4})\..+")
# Mixtures with larger ends, which a header calls after what is between them.
_NAMED_ALONE = ("Q6_K_L", "Q5_K_L", "Q4_K_L", "Q3_K_XL", "Q2_K_L")
_ON_THE_HOST = ("token_embd", "position_embd", "token_types", "per_layer_token_embd")
# Of so many layers the last sees all tokens, or the first where the second says so; the others see a window.
# Source: llama.cpp's models/*.cpp. What is not here and says nothing itself is taken to see all of them.
_WINDOWS: Mapping[str, tuple[int, bool]] = {
    "gemma2": (2, False), "gemma3": (6, False), "gemma3n": (5, False), "cohere2": (4, False), "cohere2moe": (4, True),
    "llama4": (4, False), "gpt-oss": (2, False), "exaone4": (4, False), "exaone-moe": (4, False), "olmo2": (4, False),
    "afmoe": (4, False), "smallthinker": (4, True), "plamo3": (8, False), "gemma-embedding": (6, False),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Says:
    """The keys of one architecture."""

    architecture: str
    values: Mapping[str, Value]

    def number(self, name: str, most: int, *, least: int = 1, default: int | None = None) -> int:
        """Return a whole number. Raises BadGguf: it is missing where there is no default, or out of bounds."""
        value = self.values.get(f"{self.architecture}.{name}", default)
        if type(value) is not int or not least <= value <= most:
            said = "is missing" if value is None else f"is {shown(str(value)[:40])}"
            raise BadGguf(f"{self.architecture}.{name} {said}: a model has {least} to {most:,}")
        return value

    def numbers(self, name: str, count: int, most: int, *, default: int | None = None) -> tuple[int, ...]:
        """Return a number for each of `count` layers."""
        value = self.values.get(f"{self.architecture}.{name}")
        if not isinstance(value, tuple):
            return (self.number(name, most, default=default, least=0),) * count
        if len(value) < count or any(type(each) is not int or not 0 <= each <= most for each in value):
            raise BadGguf(f"{self.architecture}.{name} has not one number of 0 to {most:,} for each of {count} layers")
        return tuple(int(each) for each in value[:count])


def weights_of_header(headers: Sequence[Header], name: str) -> Weights:
    """
    Return the model of a file, or of all files that it is cut into, in order; the first one describes it.

    Raises:
        BadGguf: it is none that can be served; the sentence says which number is wrong.
    """
    values, tensors = headers[0].values, [tensor for header in headers for tensor in header.tensors]
    says = _Says(_architecture_of(values), values)
    count = says.number("block_count", LAYERS_MAX)
    vocabulary = _vocabulary_of(headers[0], says, tensors)
    by_layer, host, rest = _sorted(tensors, count)
    width = says.number("embedding_length", WIDTH_MAX)
    experts = says.number("expert_count", EXPERTS_MAX, least=0, default=0)
    asked = says.number("expert_used_count", max(1, experts), least=0, default=0) or max(1, experts)
    inners = says.numbers("feed_forward_length", count, WIDTH_MAX * 4, default=4 * width)
    expert_inner = says.number("expert_feed_forward_length", WIDTH_MAX * 4, least=0, default=0) or max(inners)
    sees = _Sees.of(says, count, width)
    layers = tuple(_layer(by_layer[index], experts, asked, sees, index) for index in range(count))
    is_tied = not any(tensor.name == "output.weight" for tensor in rest)
    table = sum(tensor.bytes for tensor in host if tensor.name == "token_embd.weight")
    named = quant_in(name) or ""
    return Weights(
        name=name,
        quant=named if named in _NAMED_ALONE else FILE_TYPES.get(_kind(values), named),
        architecture=says.architecture,
        context=says.number("context_length", CONTEXT_MAX),
        width=width,
        inner=max(max(inners), expert_inner * asked if experts else 0),
        vocabulary=vocabulary,
        layers=layers,
        input_bytes=sum(tensor.bytes for tensor in host),
        output_bytes=sum(tensor.bytes for tensor in rest) + (table if is_tied else 0),
        is_tied=is_tied,
        is_exact=True,
    )


def check_adapter(header: Header, architecture: str) -> None:
    """Raises BadGguf: the file is no LoRA adapter for models of this architecture."""
    kinds = (header.values.get("general.type"), header.values.get("adapter.type"))
    if kinds != ("adapter", "lora"):
        raise BadGguf("this GGUF file is no LoRA adapter")
    found = header.values.get("general.architecture")
    if found != architecture:
        raise BadGguf(f"this adapter is for {shown(str(found)[:40])} models, the model is {architecture}")


def _architecture_of(values: Mapping[str, Value]) -> str:
    kind = values.get("general.type", "model")
    if kind != "model":
        raise BadGguf(f"this GGUF file is no model but of the type {shown(str(kind)[:40])}")
    found = values.get("general.architecture")
    if not isinstance(found, str) or not _ARCHITECTURE.fullmatch(found):
        raise BadGguf("general.architecture is missing or is no name: this file holds no model")
    if found in ("clip", "imatrix", "mmproj"):
        raise BadGguf(f"this GGUF file is no language model but a part of one ({found})")
    return found


def _vocabulary_of(header: Header, says: _Says, tensors: Sequence[Tensor]) -> int:
    """Return how many tokens there are, which the tokenizer and the weights must agree on."""
    words = header.lengths.get("tokenizer.ggml.tokens")
    count = says.number("vocab_size", VOCABULARY_MAX, default=0, least=0) if words is None else words
    if not 0 < count <= VOCABULARY_MAX:
        raise BadGguf(f"the vocabulary has {count:,} tokens: a model has 1 to {VOCABULARY_MAX:,}")
    for name in ("scores", "token_type"):
        beside = header.lengths.get(f"tokenizer.ggml.{name}")
        if words is not None and beside not in (None, words):
            raise BadGguf(f"the tokenizer has {words:,} tokens and {beside:,} entries in {name}")
    table = next((tensor for tensor in tensors if tensor.name == "token_embd.weight"), None)
    if table is None or len(table.shape) != 2:
        raise BadGguf("the file has no token_embd.weight: it holds no whole model")
    if table.shape[1] != count:
        raise BadGguf(f"the tokenizer has {count:,} tokens, the weights are for {table.shape[1]:,}: they do not belong")
    width = says.number("embedding_length", WIDTH_MAX)
    if table.shape[0] != width:
        raise BadGguf(f"embedding_length is {width:,}, that of the weights {table.shape[0]:,}")
    for name in ("bos", "eos"):
        token = header.values.get(f"tokenizer.ggml.{name}_token_id")
        if token is not None and (type(token) is not int or not (0 <= token < count or token == NO_TOKEN)):
            raise BadGguf(f"the {name} token is {shown(str(token)[:20])}, and there are {count:,} tokens")
    return count


def _sorted(tensors: Sequence[Tensor], count: int) -> tuple[list[list[Tensor]], list[Tensor], list[Tensor]]:
    """Return the tensors of every layer, those that stay on the host, and the rest."""
    layers: list[list[Tensor]] = [[] for _ in range(count)]
    host, rest = [], []
    for tensor in tensors:
        found = _OF_A_LAYER.fullmatch(tensor.name)
        if found is not None:
            index = int(found.group(1))
            if index >= count:
                raise BadGguf(f"block_count is {count}, and there is a tensor of layer {index}")
            layers[index].append(tensor)
        elif tensor.name.startswith(_ON_THE_HOST) and not tensor.name.startswith("token_embd_norm"):
            host.append(tensor)
        else:
            rest.append(tensor)
    empty = next((index for index, layer in enumerate(layers) if not layer), None)
    if empty is not None:
        raise BadGguf(f"block_count is {count}, and layer {empty} has no tensor")
    return layers, host, rest


@dataclass(frozen=True, slots=True)
class _Sees:
    """What each layer keeps of a token, and of how many."""

    k: tuple[int, ...]
    v: tuple[int, ...]
    windows: tuple[int | None, ...]
    states: tuple[int, ...]

    @classmethod
    def of(cls, says: _Says, count: int, width: int) -> "_Sees":
        heads = says.numbers("attention.head_count", count, HEADS_MAX, default=0)
        kv_heads = says.numbers("attention.head_count_kv", count, HEADS_MAX, default=0)
        if f"{says.architecture}.attention.head_count_kv" not in says.values:
            kv_heads = heads
        if any(kv > own > 0 for kv, own in zip(kv_heads, heads, strict=True)):
            raise BadGguf(f"head_count_kv is {max(kv_heads)} and head_count {max(heads)}: it cannot be more")
        most, state = max(heads), _state_bytes(says, width)
        if not most and not state:
            raise BadGguf(f"{says.architecture}.attention.head_count is missing or 0")
        k_width = says.number("attention.key_length", WIDTH_MAX, default=max(1, width // most) if most else 1)
        v_width = says.number("attention.value_length", WIDTH_MAX, default=max(1, width // most) if most else 1)
        if most and f"{says.architecture}.attention.key_length" not in says.values and width % most:
            raise BadGguf(f"embedding_length is {width}, which {most} heads do not divide")
        # Latent attention keeps one row for keys and values together.
        is_latent = says.number("attention.key_length_mla", WIDTH_MAX, least=0, default=0) > 0
        is_recurrent = _recurrent(says, kv_heads)
        return cls(
            tuple(0 if skips else kv * k_width for kv, skips in zip(kv_heads, is_recurrent, strict=True)),
            tuple(0 if skips or is_latent else kv * v_width for kv, skips in zip(kv_heads, is_recurrent, strict=True)),
            _windows(says, count),
            tuple(state if skips or not kv else 0 for kv, skips in zip(kv_heads, is_recurrent, strict=True)),
        )


def _windows(says: _Says, count: int) -> tuple[int | None, ...]:
    window = says.number("attention.sliding_window", CONTEXT_MAX, least=0, default=0)
    told = says.values.get(f"{says.architecture}.attention.sliding_window_pattern")
    if not window:
        return (None,) * count
    if isinstance(told, tuple) and len(told) >= count:
        return tuple(window if each else None for each in told[:count])
    pattern, is_dense_first = _WINDOWS.get(says.architecture, (1, False))
    if type(told) is int and 0 < told <= LAYERS_MAX:
        pattern = told
    dense = 0 if is_dense_first else pattern - 1
    return tuple(None if index % pattern == dense else window for index in range(count))


def _recurrent(says: _Says, kv_heads: Sequence[int]) -> tuple[bool, ...]:
    """Return which layers have no attention: those without heads, or all but each n-th where the model says so."""
    every = says.number("full_attention_interval", LAYERS_MAX, least=0, default=0)
    return tuple(not kv or (every > 0 and (index + 1) % every != 0) for index, kv in enumerate(kv_heads))


def _state_bytes(says: _Says, width: int) -> int:
    """Return what a recurrent layer keeps of a session, in f32."""
    inner = says.number("ssm.inner_size", WIDTH_MAX, least=0, default=0)
    state = says.number("ssm.state_size", WIDTH_MAX, least=0, default=0)
    conv = says.number("ssm.conv_kernel", WIDTH_MAX, least=0, default=0)
    groups = says.number("ssm.group_count", WIDTH_MAX, least=0, default=0)
    head = says.number("wkv.head_size", WIDTH_MAX, least=0, default=0)
    numbers = max(0, conv - 1) * (inner + 2 * groups * state) + inner * state + (width * (2 + head) if head else 0)
    return 4 * numbers


def _layer(tensors: Sequence[Tensor], experts: int, asked: int, sees: _Sees, index: int) -> Layer:
    size = sum(tensor.bytes for tensor in tensors)
    of_experts = sum(tensor.bytes for tensor in tensors if "_exps." in tensor.name)
    unread = of_experts * (experts - asked) // experts if experts else 0
    return Layer(
        bytes=size,
        read_bytes=size - unread,
        k=sees.k[index],
        v=sees.v[index],
        window=sees.windows[index],
        state_bytes=sees.states[index],
    )


def _kind(values: Mapping[str, Value]) -> int:
    found = values.get("general.file_type")
    return found if type(found) is int else -1
