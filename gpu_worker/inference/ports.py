"""What serving from layer slices needs of the world. Edges and the engine implement these."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gpu_worker.core.inference.batch import Batch, Hop
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.sampling import Sampled, Sampling
from gpu_worker.core.inference.step import CacheUse, Done, SliceInfo, Step


class Engine(Protocol):
    """A loaded slice on one device, with one thread and one bounded queue. Steps are done in the order they came."""

    @property
    def info(self) -> SliceInfo: ...

    @property
    def cache(self) -> CacheUse: ...

    async def step(self, step: Step) -> Done:
        """
        Return what the engine made of `step`. Refusals of single sessions are values in it.

        A run that begins before the end of its session's cache cuts it there first. Raises Bug: the engine is broken.
        """

    async def prepare(self, schema: str) -> None:
        """
        Return once sessions can be opened with a JSON schema at once; it is compiled beside the steps.

        Raises InferenceError: invalid_argument: it cannot be compiled; no_capacity: too many wait.
        """

    async def close(self) -> None: ...


class Link(Protocol):
    """One long-lived stream to a stage. What is sent arrives in order or the link breaks."""

    @property
    def endpoint(self) -> str: ...

    async def send(self, batch: Batch) -> None:
        """
        Send, waiting while the other side is behind. A send that is cancelled breaks the link.

        Raises Unavailable: the link is broken.
        """

    def batches(self) -> AsyncIterator[Batch]:
        """Yield what comes back. Raises Unavailable: the link broke; ends where it was closed."""

    async def close(self) -> None: ...


class Links(Protocol):
    async def connect(self, endpoint: str, session_pass: str = "") -> Link:
        """
        Return a link to a stage, opened with that pass.

        Raises Unavailable: there is none in time, or it is refused (its code says why).
        """

    async def describe(self, endpoint: str, timeout_s: float) -> "StageSeen":
        """Return what a stage says of itself (GetLayerInfo). Raises Unavailable."""

    async def close(self) -> None: ...


class StageSeen(Protocol):
    """A stage as it describes itself. `next` is the one it was started with, empty where it has none."""

    @property
    def hop(self) -> Hop: ...
    @property
    def layers(self) -> Layers: ...
    @property
    def model(self) -> str: ...
    @property
    def model_hash(self) -> str: ...
    @property
    def is_ready(self) -> bool: ...
    @property
    def next(self) -> str: ...
    @property
    def http_url(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def back_end(self) -> str: ...
    @property
    def wire_dtypes(self) -> Sequence[str]:
        """The dtypes of rows that it takes."""


class Registry(Protocol):
    """Who serves which layers. A file or flags now, a coordinator later."""

    async def stages(self) -> Sequence[Hop]:
        """Return every stage that is known for this model, replicas among them. Raises Unavailable."""

    async def changed(self) -> None:
        """Return when the stages are others than before."""

    def session_pass(self, session: str, layers: Sequence[tuple[int, int]]) -> str:
        """Return the signed pass of a session (DESIGN section 8), empty where nobody asks for one."""


class Text(Protocol):
    """The tokenizer of a model."""

    def encode(self, text: str) -> tuple[int, ...]: ...

    def chat(self, messages: Sequence[dict[str, Any]], **options: Any) -> tuple[int, ...]:
        """Return the tokens of a chat by the model's template. Raises BadInput: it has none, or refuses this chat."""

    def stream(self, after: Sequence[int] = (), shows: Sequence[str] = ()) -> "TextStream":
        """
        Return the decoder of an answer; `after` are the tokens before it, whose spaces it then keeps.

        Special tokens are nothing, but for those that `shows` names.
        """

    def token_bytes(self, token: int) -> bytes:
        """Return the bytes that a token stands for in the middle of a text, maybe a part of a character."""

    @property
    def template(self) -> str:
        """The chat template's own text, empty where there is none."""

    @property
    def token_chars_max(self) -> int:
        """How many characters the longest token has, or more."""

    @property
    def eos(self) -> tuple[int, ...]: ...


class TextStream(Protocol):
    """Decodes one answer piece by piece; a character is never cut in two."""

    def push(self, token: int) -> str:
        """Return the text that is whole with this token, often nothing."""

    def end(self) -> str:
        """Return what is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRequest:
    """One session: its prompt, how it goes on, and how many tokens may follow. `deadline_s` is from now."""

    session: str
    prompt: tuple[int, ...]
    tokens_max: int
    sampling: Sampling
    deadline_s: float | None = None


class TokenStream(Protocol):
    """The tokens of a session, each once and in order. It ends after `tokens_max` or the first that is_eos."""

    def __aiter__(self) -> AsyncIterator[Sampled]: ...

    async def cancel(self) -> None:
        """Stop at once; every stage hears of it with its next step. Idempotent, also after the end."""


@dataclass(slots=True, kw_only=True)
class HeadStats:
    """
    What a head has counted since it started. `running` and `waiting` are sessions of now, the rest only grows.

    `changed_kinds` are the sessions that went on over stages which compute in another way, maybe to other tokens.
    """

    running: int = 0
    waiting: int = 0
    started: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    steps: int = 0
    rows: int = 0
    failovers: int = 0
    moves: int = 0
    refilled_sessions: int = 0
    replayed_sessions: int = 0
    stale_answers: int = 0
    changed_kinds: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadStatus:
    """
    The pipeline as its head sees it. `hops` is empty while there is no route; `epoch` counts the routes so far.

    `step_p50_s` and `step_p99_s` are of the last steps, 0 before the first. `gap_s` is how long the last failover kept
    the streams waiting, from the last answer before it to the first one after it. `compute_s` is what each stage has
    computed in all, head first.
    """

    hops: tuple[Hop, ...]
    epoch: int
    groups: int
    step_p50_s: float
    step_p99_s: float
    gap_s: float
    is_draining: bool
    stats: HeadStats
    compute_s: tuple[float, ...] = ()


class Generator(Protocol):
    """A whole model that answers with tokens: a pipeline of slices, or one engine."""

    @property
    def info(self) -> SliceInfo: ...

    async def start(self, request: TokenRequest) -> TokenStream:
        """
        Return the session's stream. Its iterator may raise InferenceError later.

        Raises:
            InferenceError: it is refused: context_length_exceeded, no_capacity, no_route, draining, invalid_argument.
        """

    def status(self) -> HeadStatus: ...


class Steps(Protocol):
    """What the gRPC door hands the batches of all its `Steps` streams to; `inference.stage.StageService` is it."""

    def begin(self, reply: Callable[[Batch], Awaitable[None]], session_pass: str) -> None:
        """
        A stream is opened with that pass, empty: with none. `reply` stands for the stream in all that follows.

        Raises InferenceError: it is refused, and nothing follows: unauthenticated, not_ready.
        """

    async def receive(self, batch: Batch, reply: Callable[[Batch], Awaitable[None]]) -> None:
        """
        Take a batch, held against the wire's limits. `reply` sends back on its stream, and stands for the stream: it is
        equal for all batches of one. It raises Unavailable: the stream has ended.

        What is read ahead of it is bounded, so that a stage that is behind holds its neighbours back.

        Raises InferenceError: the stream is broken off with its code.
        """

    def ended(self, reply: Callable[[Batch], Awaitable[None]]) -> None:
        """The stream, which was begun, is over, whoever ended it. Called once, after the last `receive` of it."""
