"""
The kinds of jobs that a worker of ours sells: what may be asked of each, all numbers bounded.

Read from `jobParams`: `params`, with `model` and `dataset` (and a container's `env`) beside it. A word that no kind
knows is refused: a typing error in a parameter would else be paid for.
"""

import hashlib
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, ValidationError, model_validator

from wire import decimal_json
from wire.decimal_json import DecimalNumber
from wire.model import Body, Entries, Many, first_error
from wire.vendor import STEPS_MAX

# What is trained where a job says neither `steps` nor `epochs`.
STEPS_DEFAULT = 60
SLOTS_MAX = 100
INPUT_PREFIX = "input:"

JobKind = Literal["fine_tune", "evaluate", "generate", "container"]
# A folder of the worker's, `owner/name` on a hub, or `name:tag` as Ollama has them; never a path.
ModelName = Annotated[
    str,
    StringConstraints(
        max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?(:[A-Za-z0-9._-]+)?$"
    ),
]
# A URL, or what was uploaded to the run's control plane, by its hash.
Dataset = Annotated[str, StringConstraints(max_length=2_048, pattern=r"^(https?://\S+|input:[0-9a-f]{64})$")]
# `text`: a record is a piece of text. `chat`: a record is `{"messages": [{"role", "content"}, ...]}`.
Form = Literal["text", "chat"]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Params(Body):
    model_config = ConfigDict(extra="forbid")

    model: ModelName | None = None


class Lora(Body):
    """
    Adapters of `rank`, their output scaled by `alpha / rank`.

    `targets` are modules by the end of their names; none named: every linear one but the head.
    """

    model_config = ConfigDict(extra="forbid")

    rank: int = Field(8, ge=1, le=512)
    alpha: DecimalNumber = Field(Decimal(16), gt=0, le=4_096)
    dropout: DecimalNumber = Field(Decimal(0), ge=0, lt=1)
    targets: Many[Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]{1,100}$")]] = ()


class FineTune(Params):
    """
    Training of a causal language model on text.

    `eval_share` of the records are held out, by their hash; the loss on them is measured at the start, at every
    checkpoint and at the end. A step is `batch_size * accumulation` sequences of `sequence_length` tokens.
    """

    dataset: Dataset | None = None
    method: Literal["full", "lora"] = "full"
    form: Form = "text"
    steps: int | None = Field(None, ge=1, le=1_000_000)
    epochs: DecimalNumber | None = Field(None, gt=0, le=1_000)
    batch_size: int = Field(4, ge=1, le=1_024)
    accumulation: int = Field(1, ge=1, le=1_024)
    sequence_length: int = Field(128, ge=8, le=131_072)
    learning_rate: DecimalNumber = Field(Decimal("0.001"), gt=0, le=1)
    warmup_steps: int = Field(0, ge=0, le=1_000_000)
    weight_decay: DecimalNumber = Field(Decimal("0.01"), ge=0, le=1)
    gradient_clip: DecimalNumber = Field(Decimal(1), gt=0, le=1_000)
    seed: Seed = 0
    checkpoint_steps: int | None = Field(None, ge=1, le=1_000_000)
    eval_share: DecimalNumber = Field(Decimal("0.1"), gt=0, le=Decimal("0.5"))
    lora: Lora = Lora()

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give `steps` or `epochs`, not both")
        return self

    def steps_of(self, sequences: int) -> int:
        """Return how many steps the job trains on a dataset that makes `sequences` sequences, at least one."""
        if self.epochs is None:
            return self.steps or STEPS_DEFAULT
        a_step = self.batch_size * self.accumulation
        return min(max(1, math.ceil(self.epochs * sequences / a_step)), STEPS_MAX)


class Evaluate(Params):
    """
    How good a model is on a dataset: perplexity of its texts, or how often it completes them exactly.

    `exact_match` takes records `{"prompt", "completion"}`. At most `records_max` are looked at, the first ones.
    """

    dataset: Dataset
    metric: Literal["perplexity", "exact_match"] = "perplexity"
    form: Form = "text"
    batch_size: int = Field(4, ge=1, le=1_024)
    sequence_length: int = Field(128, ge=8, le=131_072)
    max_new_tokens: int = Field(64, ge=1, le=8_192)
    records_max: int = Field(10_000, ge=1, le=1_000_000)


class Generate(Params):
    """
    A completion for every line of a JSONL file: `{"prompt"}` or `{"messages"}`, with an `id` that is given back.

    Temperature 0 is greedy.
    """

    dataset: Dataset
    max_new_tokens: int = Field(64, ge=1, le=8_192)
    temperature: DecimalNumber = Field(Decimal(0), ge=0, le=2)
    top_p: DecimalNumber = Field(Decimal(1), gt=0, le=1)
    seed: Seed = 0
    batch_size: int = Field(4, ge=1, le=1_024)


class Container(Params):
    """An image that is run without a network. `/input` is the dataset, read-only; `/output` becomes the artifacts."""

    image: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}$")]
    command: Many[Annotated[str, StringConstraints(max_length=4_096)]] = ()
    gpu: bool = False
    dataset: Dataset | None = None
    env: Entries[Annotated[str, StringConstraints(max_length=4_096)]] = Field(default_factory=dict)


KINDS: Mapping[str, type[Params]] = {
    "fine_tune": FineTune,
    "evaluate": Evaluate,
    "generate": Generate,
    "container": Container,
}
# What stands beside `params`, because it is the same for every kind.
_BESIDE = {"model": KINDS.keys(), "dataset": KINDS.keys(), "env": {"container"}}


def params_of(kind: str, job_params: Mapping[str, Any]) -> Params:
    """
    Return what a job of `kind` is asked to do, by its `jobParams`.

    Raises:
        ValueError: there is no such kind, or a parameter is unknown or out of bounds; one line that names it.
    """
    schema = KINDS.get(kind)
    if schema is None:
        raise ValueError(f"there are no jobs of the kind {kind[:80]!r}: there are {', '.join(KINDS)}")
    given = {} if job_params.get("params") is None else job_params["params"]
    if not isinstance(given, Mapping):
        raise ValueError("params: must be an object")
    beside = {name: job_params[name] for name, kinds in _BESIDE.items() if kind in kinds and name in job_params}
    if twice := sorted(beside.keys() & given.keys()):
        raise ValueError(f"params.{twice[0]}: stands beside `params` already")
    try:
        # Free-form numbers may have become floats on their way; here they are decimals again.
        return schema.model_validate(decimal_json.loads(decimal_json.dumps({**given, **beside})))
    except ValidationError as error:
        raise ValueError(first_error(error)) from None
    except TypeError as error:
        raise ValueError(f"params: {error}") from None


def index_of(job_params: Mapping[str, Any]) -> int:
    """Return which of the run's jobs this is, from 0 on. Raises ValueError for what is no such number."""
    index = job_params.get("index", 0)
    if type(index) is not int or not 0 <= index < SLOTS_MAX:
        raise ValueError(f"index: must be a whole number from 0 to {SLOTS_MAX - 1}")
    return index


def spec_hash(kind: str, params: Params, dataset_sha256: str | None, index: int) -> str:
    """
    Return what names the work: a checkpoint of other work is of no use.

    The model and the dataset are known by their own hashes, whatever they are called; how often a checkpoint is made
    changes nothing.
    """
    left_out = ("checkpointSteps", "dataset", "model")
    asked = {name: value for name, value in params.document().items() if name not in left_out}
    document = {"kind": kind, "params": asked, "dataset": dataset_sha256, "index": index}
    return hashlib.sha256(decimal_json.dumps(document, sort_keys=True)).hexdigest()


def input_hash(dataset: str) -> str | None:
    """Return the SHA-256 of an uploaded dataset, None where `dataset` is a URL."""
    return dataset.removeprefix(INPUT_PREFIX) if dataset.startswith(INPUT_PREFIX) else None
