"""One session as its head knows it, and the stream of tokens that its consumer reads."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.sampling import Sampled
from gpu_worker.core.inference.step import Open
from gpu_worker.inference.ports import TokenRequest


class State(Enum):
    """`WAITING` for its turn, `OPENING` on the stages, `OPEN`: it has rows to send or waits for an answer, `ENDED`."""

    WAITING = "waiting"
    OPENING = "opening"
    OPEN = "open"
    ENDED = "ended"


class Stream:
    """`inference.ports.TokenStream` of at most `size` tokens that nobody has read yet."""

    def __init__(self, size: int, *, taken: Callable[[], None], cancelled: Callable[[], None]) -> None:
        self._size = size
        self._taken, self._cancelled = taken, cancelled
        self._tokens: deque[Sampled] = deque()
        self._news = asyncio.Event()
        self._error: InferenceError | None = None
        self.is_over = False

    @property
    def is_full(self) -> bool:
        return len(self._tokens) >= self._size

    def push(self, token: Sampled) -> None:
        self._tokens.append(token)
        self._news.set()

    def end(self, error: InferenceError | None = None) -> None:
        """Nothing comes behind what is there; `error` is raised then. Idempotent."""
        if not self.is_over:
            self.is_over, self._error = True, error
            self._news.set()

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Sampled:
        while not self._tokens:
            if self.is_over:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        was_full = self.is_full
        token = self._tokens.popleft()
        if was_full:
            self._taken()
        return token

    async def cancel(self) -> None:
        self._tokens.clear()
        self.end()
        self._cancelled()


@dataclass(slots=True, eq=False)
class HeadSession:
    """
    What its head knows of a session.

    `history` is the prompt and the tokens so far. Of their positions `sent` are on their way since `epoch` began, and
    `acked` are in the caches of all stages: the last one has answered for them. `came` and `served` are of
    `core.inference.schedule.Ask`, `came_s` is when it came. `told` is the epoch that the stages have heard of, at
    `told_s`. `until_s` is its deadline. `idle_since_s` is when a step ended without the answer that it was to bring;
    `full_since_s` when its consumer fell behind. `tries` counts replays since its last token. `was_alone`: no other
    session was open when the stages were asked to open it.
    """

    request: TokenRequest
    stream: Stream
    came: int
    until_s: float | None
    history: list[int] = field(default_factory=list)
    came_s: float = 0.0
    state: State = State.WAITING
    epoch: int = 0
    told: int = 0
    told_s: float = 0.0
    sent: int = 0
    acked: int = 0
    served: int = 0
    group: int = 0
    is_flying: bool = False
    idle_since_s: float | None = None
    full_since_s: float | None = None
    tries: int = 0
    was_alone: bool = False

    @property
    def name(self) -> str:
        return self.request.session

    @property
    def positions(self) -> int:
        return len(self.request.prompt) + self.request.tokens_max

    @property
    def tokens(self) -> int:
        return len(self.history) - len(self.request.prompt)

    @property
    def rows(self) -> int:
        """How many rows it could send now."""
        if self.state is not State.OPEN or self.is_flying or self.stream.is_full:
            return 0
        return len(self.history) - self.sent

    def begin_again(self, sent: int) -> None:
        """A new epoch begins: positions from `sent` on are sent, once it is open again."""
        self.epoch += 1
        self.sent = self.acked = sent
        self.is_flying, self.idle_since_s, self.state = False, None, State.OPENING

    def tell(self, session_pass: str, now: float) -> tuple[Open, Open]:
        """Return how stages are told of its epoch: those on the way, and the last one, which draws its tokens."""
        self.told, self.told_s = self.epoch, now
        brief = Open(session=self.name, epoch=self.epoch, positions=self.positions, session_pass=session_pass)
        full = replace(brief, sampling=self.request.sampling)
        if self.request.sampling.needs_history:
            # Nobody else is told what was asked: the last stage gets rows, as all others do.
            full = replace(full, history=tuple(self.history), prompt_len=len(self.request.prompt))
        return brief, full
