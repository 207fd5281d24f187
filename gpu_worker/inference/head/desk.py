"""All sessions of a head: who waits, who is open, who sends with the next step, and what an answer changes."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.sampling import Sampled
from gpu_worker.core.inference.schedule import Ask, share
from gpu_worker.core.inference.step import CacheUse, Refusal, Run
from gpu_worker.inference.head.streams import HeadSession, State, Stream
from gpu_worker.inference.ports import HeadStats, TokenRequest

_REPLAYED = frozenset({"unknown_session", "position_gap"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadLimits:
    """
    `waiting` sessions may stand behind the `sessions` that are open. A step has a row each of at most `decode_rows`
    sessions and `chunk_rows` rows of prompts. `unread` tokens may wait for a consumer, `unread_s` long.

    `step_s`: no step is late before that. `ask_s`: a stage that is asked whether it lives has so long. `route_s`: a
    session waits so long for a way through all layers, and a stage that takes no sessions more is asked again after
    `retry_s`. `replays`: a session that is begun again so often without a new token has failed.
    """

    waiting: int = 256
    sessions: int = 256
    decode_rows: int = 256
    chunk_rows: int = 256
    unread: int = 256
    unread_s: float = 60.0
    step_s: float = 2.0
    ask_s: float = 1.0
    route_s: float = 30.0
    retry_s: float = 1.0
    replays: int = 5
    ring_bytes: int = 256 << 20


class Desk:
    """`news` is set when there is something to tell the stages: sessions to open or to close."""

    def __init__(self, limits: HeadLimits, stats: HeadStats, clock: Callable[[], float]) -> None:
        self.limits, self.stats, self._clock = limits, stats, clock
        self.waiting: deque[HeadSession] = deque()
        self.open: dict[str, HeadSession] = {}
        self.news = asyncio.Event()
        # Set while there is no session at all.
        self.idle = asyncio.Event()
        self.idle.set()
        self.busy_since_s = 0.0
        self.work = asyncio.Event()
        self._closing: list[str] = []
        self._closed: deque[tuple[float, str]] = deque(maxlen=1_024)
        self._held_until_s: float | None = None
        self._came = 0
        self._steps = 0

    def admit(self, request: TokenRequest, now: float) -> Stream:
        """Return the stream of a session that waits from now on. Raises InferenceError no_capacity."""
        if request.session in self.open or any(each.name == request.session for each in self.waiting):
            raise InferenceError("invalid_argument", "a session of that name is served already")
        if len(self.waiting) >= self.limits.waiting:
            raise InferenceError("no_capacity", f"{len(self.waiting)} sessions wait already")
        self._came += 1
        until_s = None if request.deadline_s is None else now + request.deadline_s
        stream = Stream(
            self.limits.unread, taken=self.work.set, cancelled=lambda: self.end(session, "cancelled", "cancelled")
        )
        session = HeadSession(request, stream, self._came, until_s, list(request.prompt), came_s=now)
        self.waiting.append(session)
        if self.idle.is_set():
            self.busy_since_s = now
            self.idle.clear()
        self.stats.started += 1
        self.stats.prompt_tokens += len(request.prompt)
        self.news.set()
        return stream

    def next_words(self, cache: CacheUse) -> tuple[list[HeadSession], list[str]]:
        """Return the sessions to open and the names of those to close, of which the stages are told now."""
        closing = self.closings()
        reserved = cache.positions
        while self.waiting and self._held_until_s is None and len(self.open) < self.limits.sessions:
            reserved += self.waiting[0].positions
            # One is always tried, even where the cache says no: positions of those that close now are counted in it.
            if reserved > cache.positions_max and self.open:
                break
            session = self.waiting.popleft()
            session.begin_again(0)
            session.was_alone = not self.open
            self.open[session.name] = session
        return [each for each in self.open.values() if each.told != each.epoch], closing

    def closings(self) -> list[str]:
        """Return the names of the sessions to close, of which the stages are told now."""
        closing, self._closing = self._closing, []
        now = self._clock()
        self._closed.extend((now, name) for name in closing)
        return closing

    def closed_since(self, since_s: float) -> list[str]:
        """Return the sessions that the stages were told to close lately; who was lost to the head may not know."""
        return [name for at, name in self._closed if at >= since_s]

    def opening_s(self, now: float) -> float:
        """Return how long the last stage has owed the word that it has opened a session."""
        return max((now - each.told_s for each in self.open.values() if each.state is State.OPENING), default=0.0)

    def opened(self, name: str, epoch: int | None = None) -> None:
        """The last stage has the session."""
        session = self.open.get(name)
        if session is not None and session.state is State.OPENING and epoch in (None, session.epoch):
            session.state = State.OPEN
            self.work.set()

    def compose(self, group: int) -> tuple[tuple[Run, ...], tuple[int, ...]] | None:
        """Return the runs of a group's next step and their tokens, None where it has nothing to send now."""
        asks = [
            Ask(each.name, each.sent, rows, each.came, each.served)
            for each in self.open.values()
            if each.group == group and (rows := each.rows)
        ]
        shares = share(asks, decode_rows=self.limits.decode_rows, chunk_rows=self.limits.chunk_rows)
        if not shares:
            return None
        self._steps += 1
        runs: list[Run] = []
        tokens: list[int] = []
        for name, position, count in shares:
            session = self.open[name]
            end = position + count
            session.sent, session.is_flying, session.served = end, True, self._steps
            samples = end == len(session.history)
            runs.append(Run(session=name, epoch=session.epoch, position=position, count=count, samples=samples))
            tokens.extend(session.history[position:end])
        return tuple(runs), tuple(tokens)

    def take(self, tokens: Iterable[Sampled]) -> None:
        """Deliver the tokens that are awaited; what is stale, repeated or not asked for is dropped."""
        for token in tokens:
            session = self.open.get(token.session)
            if (
                session is None
                or token.epoch != session.epoch
                or token.position != len(session.history)
                or session.sent != token.position
            ):
                self.stats.stale_answers += 1
                continue
            session.history.append(token.token)
            session.acked, session.tries, session.idle_since_s = token.position, 0, None
            session.stream.push(token)
            self.stats.tokens += 1
            if session.stream.is_full:
                session.full_since_s = self._clock()
            if token.is_eos or session.tokens >= session.request.tokens_max:
                self.end(session)

    def landed(self, runs: Sequence[Run]) -> None:
        """The step of `runs` has been answered, after its tokens were taken."""
        for run in runs:
            session = self.open.get(run.session)
            if session is None or session.epoch != run.epoch:
                continue
            session.is_flying = False
            if not run.samples:
                session.acked = max(session.acked, run.end)
            elif len(session.history) == run.end:
                session.idle_since_s = self._clock()

    def refused(self, refusal: Refusal) -> None:
        session = self.open.get(refusal.session)
        if session is None or refusal.epoch != session.epoch or refusal.code == "stale_epoch":
            return
        if refusal.code in _REPLAYED:
            self.replay(session)
        elif refusal.code == "draining" or (
            refusal.code == "no_capacity" and (session.tokens or not session.was_alone)
        ):
            self._put_back(session, refusal)
        else:
            self.end(session, refusal.code, refusal.detail)

    def _put_back(self, session: HeadSession, refusal: Refusal) -> None:
        """Another stage, or another session's end, makes room for it: it stands in the line again where it stood."""
        session.tries += 1
        if session.tries * self.limits.retry_s > self.limits.route_s:
            self.end(session, refusal.code, refusal.detail)
            return
        self._give_back(session)
        session.state = State.WAITING
        self.waiting = deque(sorted((session, *self.waiting), key=lambda each: each.came))
        self._held_until_s = self._clock() + self.limits.retry_s

    def replay(self, session: HeadSession) -> None:
        """Send the session's tokens through all stages again."""
        session.tries += 1
        if session.tries > self.limits.replays:
            self.end(session, "lost_stage", f"the session was begun again {self.limits.replays} times, in vain")
            return
        self.stats.replayed_sessions += 1
        session.begin_again(0)
        self.news.set()

    def end(self, session: HeadSession, code: str | None = None, detail: str = "") -> None:
        """End the session, with an error where there is a `code`; the stages hear of it at once. Idempotent."""
        if session.state is State.ENDED:
            return
        if session.state is State.WAITING:
            self.waiting.remove(session)
        else:
            self._give_back(session)
            self._held_until_s = None
        session.state = State.ENDED
        if not self.open and not self.waiting:
            self.idle.set()
        if code is None:
            self.stats.finished += 1
        elif code == "cancelled":
            self.stats.cancelled += 1
        else:
            self.stats.failed += 1
        session.stream.end(InferenceError(code, detail) if code is not None else None)

    def _give_back(self, session: HeadSession) -> None:
        del self.open[session.name]
        self._closing.append(session.name)
        self.news.set()

    def end_all(self, code: str, detail: str) -> None:
        for session in (*self.open.values(), *self.waiting):
            self.end(session, code, detail)

    def tend(self, now: float, lost_s: float | None) -> None:
        """End who is out of time; `lost_s` is since when no route has answered. Replay who has got no answer."""
        if self._held_until_s is not None and now >= self._held_until_s:
            self._held_until_s = None
            self.news.set()
        for session in (*self.open.values(), *self.waiting):
            if session.until_s is not None and now >= session.until_s:
                code = "deadline" if lost_s is None else "lost_stage"
                self.end(session, code, f"the session's {session.request.deadline_s:g} s are over")
            elif lost_s is not None and now >= max(lost_s, session.came_s) + self.limits.route_s:
                self.end(session, "lost_stage", f"for {self.limits.route_s:g} s no stages have answered for all layers")
            elif not session.stream.is_full:
                session.full_since_s = None
            elif session.full_since_s is not None and now >= session.full_since_s + self.limits.unread_s:
                self.end(session, "cancelled", f"nobody has read the stream for {self.limits.unread_s:g} s")
            if session.idle_since_s is not None and now >= session.idle_since_s + self.limits.step_s:
                self.replay(session)
