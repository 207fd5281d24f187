"""
One step of a stage: what goes into its engine and what comes out, as values without a library's types.

A step has runs of rows. A row is one position of one session: a token id on the first stage, a hidden state of H
numbers on the others. The rows of all runs lie one behind the other, in the order of the runs, without padding.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.sampling import Sampled, Sampling


@dataclass(frozen=True, slots=True)
class Tensor:
    """Contiguous little-endian numbers in row order. `dtype` is one of `core.inference.tensor.DTYPES`."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """
    Positions [position, position + count) of a session, whose `epoch` counts the routes that it has had.

    After `samples` runs the last stage draws the token that follows; a run that only `fills` restores the cache of a
    stage that is new on the route and goes no further.
    """

    session: str
    epoch: int
    position: int
    count: int
    samples: bool = False
    fills: bool = False

    @property
    def end(self) -> int:
        return self.position + self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """
    A session begins, or begins again after a change of route.

    `positions` is the most that it will need. `sampling` and `history` (its tokens so far, prompt first) are for the
    last stage alone and empty elsewhere; `prompt_len` of them are the prompt.
    """

    session: str
    epoch: int
    positions: int
    session_pass: str = ""
    sampling: Sampling | None = None
    history: tuple[int, ...] = ()
    prompt_len: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a session asked for and does not get. `code` is a key of `core.inference.codes.CODES`."""

    session: str
    epoch: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """
    `rows` are token ids (first stage) or a [N, H] tensor; closes come before opens, opens before runs.

    `takes` are the dtypes that the next stage takes: hidden states are made in the one that the owner wishes where it
    is among them, else in the slice's own.
    """

    runs: tuple[Run, ...] = ()
    rows: tuple[int, ...] | Tensor = ()
    opens: tuple[Open, ...] = ()
    closes: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """
    What the engine made of a step.

    `runs` are those that were computed, in order; `hidden` is [N, H] of their rows, None on the last stage.
    `compute_s` is what the forward pass took.
    """

    runs: tuple[Run, ...] = ()
    hidden: Tensor | None = None
    tokens: tuple[Sampled, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUse:
    """The KV cache: `positions` are what open sessions have reserved of `positions_max`."""

    sessions: int
    positions: int
    positions_max: int
    bytes_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceInfo:
    """
    What a loaded slice is. `model_hash` is SHA-256 over config, tokenizer and weight files (`LocalModel`).

    `batching` is its family's class: rows of sessions at any positions in one pass, at equal ones only, or one session
    at a time. `cost_s` is the measured time of a pass by its number of decode rows. `context` is the longest session.
    """

    model: str
    model_hash: str
    family: str
    layers: Layers
    hidden_size: int
    vocab_size: int
    context: int
    dtype: str
    device: str
    back_end: str
    batching: str
    cost_s: Mapping[int, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
