"""
The sessions that are open on a stage: what a batch may do with them, and what is known of them after it.

Which epoch counts, what is a repeat and who is idle is decided here, for pipelines. `engine.slice.sessions` refuses
only what would break its cache all the same, and closes what is left open by callers that do not come back.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from gpu_worker.core.inference.batch import Batch, Hop
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.passes import Shown
from gpu_worker.core.inference.ring import Ring
from gpu_worker.core.inference.rows import pick
from gpu_worker.core.inference.sampling import Sampled
from gpu_worker.core.inference.step import Done, Open, Refusal, Run, SliceInfo, Step, Tensor
from gpu_worker.core.inference.steps import Known, Verdict, after, judge
from gpu_worker.core.inference.tensor import may_send
from gpu_worker.inference.stage.pipelines import Pipeline, StageLimits


class Passes(Protocol):
    """The session passes that others signed (DESIGN section 8)."""

    def check(self, session_pass: str, session: str, hop: Hop) -> str:
        """
        Return the head that `session_pass` admits with `session` to the stage `hop`.

        Raises InferenceError unauthenticated: it does not.
        """

    def check_stream(self, session_pass: str, hop: Hop) -> Shown:
        """Return what a stream that is opened to `hop` with `session_pass` may carry. Raises InferenceError."""


class NoPasses:
    """Nobody is asked for a pass."""

    def check(self, session_pass: str, session: str, hop: Hop) -> str:
        return ""

    def check_stream(self, session_pass: str, hop: Hop) -> Shown:
        return Shown(session_pass=session_pass)


@dataclass(slots=True)
class StageSession:
    """
    `opened` is the epoch of its newest open, `known.epoch` that of its newest run.

    `answer` is the last token that was drawn for it, for who asks again.
    """

    pipeline: Pipeline
    opened: int
    known: Known
    positions: int
    used_s: float
    answer: Sampled | None = None


@dataclass(slots=True)
class Decided:
    """
    What is to be done with a batch.

    The engine gets `closes`, `opens` and `runs`. `begun` are the opens that go on to the next stages, `fresh` the
    sessions that were not known before; `again` are runs that were done once and their rows; `tokens` were drawn once.
    """

    closes: list[str] = field(default_factory=list)
    opens: list[Open] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    begun: list[Open] = field(default_factory=list)
    fresh: set[str] = field(default_factory=set)
    again: list[tuple[Run, Tensor]] = field(default_factory=list)
    tokens: list[Sampled] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    def refuse(self, what: Open | Run, code: str, detail: str) -> None:
        self.refusals.append(Refusal(session=what.session, epoch=what.epoch, code=code, detail=detail))

    def step(self, batch: Batch, takes: tuple[str, ...]) -> Step | None:
        """Return what the engine is to do for a next stage that `takes` those dtypes, None where there is nothing."""
        if not (self.runs or self.opens or self.closes):
            return None
        rows = pick(batch.hidden, batch.runs, self.runs) if batch.hidden is not None and self.runs else ()
        opens, closes = tuple(self.opens), tuple(self.closes)
        return Step(runs=tuple(self.runs), rows=rows, opens=opens, closes=closes, takes=takes)


class StageSessions:
    def __init__(
        self, *, info: SliceInfo, hop: Hop, ring: Ring, passes: Passes, limits: StageLimits, clock: Callable[[], float]
    ) -> None:
        self.is_draining = False
        self._info, self._hop, self._ring, self._passes, self._limits = info, hop, ring, passes, limits
        self._clock = clock
        self._all: dict[str, StageSession] = {}
        # Set while no session is open.
        self.gone = asyncio.Event()
        self.gone.set()

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, name: str) -> bool:
        return name in self._all

    def decide(self, pipeline: Pipeline, batch: Batch) -> Decided:
        """Return what is to be done; the sessions are then known as if it had been."""
        decided = Decided()
        now = self._clock()
        for name in batch.closes:
            self._close(decided, pipeline, name)
        if batch.opens:
            # Their room is given to who comes.
            for name in self.silent():
                decided.closes.append(name)
                self.forget(name)
        for each in batch.opens:
            self._open(decided, pipeline, each, now)
        for run in batch.runs:
            session = self._all.get(run.session)
            if session is None or session.pipeline is not pipeline:
                decided.refuse(run, "unknown_session", "the session is not open here")
                continue
            session.used_s = now
            self._run(decided, session, run)
        return decided

    def _close(self, decided: Decided, pipeline: Pipeline, name: str) -> None:
        session = self._all.get(name)
        if session is not None and session.pipeline is pipeline:
            decided.closes.append(name)
            self.forget(name)

    def forget(self, name: str) -> None:
        session = self._all.pop(name)
        session.pipeline.sessions.discard(name)
        self._ring.drop(name)
        if not self._all:
            self.gone.set()

    def _open(self, decided: Decided, pipeline: Pipeline, new: Open, now: float) -> None:
        old = self._all.get(new.session)
        if old is not None and old.pipeline is pipeline:
            if new.epoch < old.opened:
                return
            if new.epoch == old.opened:
                decided.begun.append(new)
                return
        if pipeline.is_last and pipeline.route.index > 1 and new.sampling is None:
            # The head itself opens its sessions here, with what the stages between are not told.
            return
        try:
            self._admit(pipeline, new, old)
        except InferenceError as why:
            decided.refuse(new, why.code, str(why))
            return
        if old is None:
            decided.fresh.add(new.session)
            pipeline.sessions.add(new.session)
            self.gone.clear()
            self._all[new.session] = StageSession(pipeline, new.epoch, Known(new.epoch, 0), new.positions, now)
        else:
            # Its first run says where it goes on: what is in the cache until then may be of use.
            old.opened, old.positions, old.used_s = new.epoch, new.positions, now
        decided.opens.append(new)
        decided.begun.append(new)

    def admits(self, pipeline: Pipeline, new: Open) -> bool:
        """Return whether a session would be served here, were it opened now."""
        try:
            self._admit(pipeline, new, self._all.get(new.session))
        except InferenceError:
            return False
        return True

    def _admit(self, pipeline: Pipeline, new: Open, old: StageSession | None) -> None:
        """Raises InferenceError: the session is not served here."""
        if old is not None and old.pipeline is not pipeline:
            raise InferenceError("forbidden", "another pipeline has opened that session")
        if old is None and self.is_draining:
            raise InferenceError("draining", "this stage takes no new sessions, it is about to go")
        if not 0 < new.positions <= self._info.context:
            raise InferenceError("context_length_exceeded", f"a session has at most {self._info.context} positions")
        if self._passes.check(new.session_pass, new.session, self._hop) != pipeline.head:
            raise InferenceError("unauthenticated", "the session pass is of another head than its stream's")
        if old is None and len(self._all) >= self._limits.sessions:
            raise InferenceError("no_capacity", f"{self._limits.sessions} sessions are open here, no more")

    def _run(self, decided: Decided, session: StageSession, run: Run) -> None:
        known, verdict = session.known, judge(session.known, run)
        if verdict is Verdict.STALE or run.epoch < session.opened:
            return
        if verdict is Verdict.REPEAT:
            if self._repeat(decided, session, run):
                return
            # Its rows are no longer kept. Those at the end can be made again; what is behind others would be lost.
            verdict = Verdict.CUT if run.end == known.length else Verdict.GAP
        if verdict is Verdict.GAP:
            why = f"the run begins at position {run.position}, the cache ends at {known.length}"
            decided.refuse(run, "position_gap", why)
        elif run.end > session.positions:
            decided.refuse(run, "context_length_exceeded", f"the session was opened for {session.positions} positions")
            return
        else:
            decided.runs.append(run)
        session.known = after(known, run, verdict)

    def _repeat(self, decided: Decided, session: StageSession, run: Run) -> bool:
        """Return whether what the run asks for is known: its token on the last stage, its rows on the others."""
        if run.fills:
            return True
        if session.pipeline.is_last:
            answer = session.answer
            if run.samples and answer is not None and answer.position == run.end:
                decided.tokens.append(answer)
            return True
        rows = self._ring.rows(run.session, run.position, run.end)
        if rows is None or not may_send(rows.dtype, self._info.dtype, session.pipeline.route.takes):
            return False
        decided.again.append((run, rows))
        return True

    def settle(self, decided: Decided, done: Done) -> None:
        """Take over what the engine made of the decided: its tokens, and that what it refused was not done."""
        for token in done.tokens:
            session = self._all.get(token.session)
            if session is not None:
                session.answer = token
        starts = {run.session: run.position for run in decided.runs} if done.refusals else {}
        for refusal in done.refusals:
            session = self._all.get(refusal.session)
            if session is None:
                continue
            if refusal.session in decided.fresh:
                self.forget(refusal.session)
            elif refusal.session in starts:
                length = min(session.known.length, starts[refusal.session])
                session.known = session.known._replace(length=length)

    def silent(self) -> list[str]:
        """Return the sessions that nobody has used for longer than the limit."""
        since = self._clock() - self._limits.idle_s
        return [name for name, session in self._all.items() if session.used_s < since]
