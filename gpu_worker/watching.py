"""One start of a job's program, watched from its first breath to its exit."""

import asyncio
import math
from dataclasses import dataclass, replace
from decimal import Decimal

from gpu_worker.checkpoints import Pusher
from gpu_worker.core.bounds import Breach, judge
from gpu_worker.core.folder import State
from gpu_worker.core.model import Job
from gpu_worker.ports import Live, Running, Worker
from gpu_worker.preparing import Work
from storefront.model import TERMINAL

# More than there are checkpoints in a folder: those that are broken are passed over.
MARKS_KEPT = 4

_PLACES = Decimal("0.001")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """
    How a start ended. `state` is the last that this very program wrote, None: it wrote none.

    `is_paused`: it was stopped because the owner needs the machine.
    """

    code: int
    state: State | None
    breach: Breach | None = None
    is_paused: bool = False

    @property
    def said(self) -> str:
        if self.breach is not None:
            return self.breach.reason
        if self.state is not None and self.state.message:
            return self.state.message
        return f"killed by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"


async def watch(worker: Worker, job: Job, live: Live, work: Work, pusher: Pusher) -> Exit:
    """Start the job's program and return how it ended; what it does meanwhile is told to `live` and to the book."""
    folder = await worker.folders.path(job.job_id)
    offset = await worker.folders.end(job.job_id)
    running = await worker.programs.start(
        job, folder, threads=work.spec.threads, visible=work.visible, served=work.spec.served
    )
    exiting = asyncio.ensure_future(running.wait())
    try:
        live.running = running
        seen = _Seen(worker, job, live, running, pusher, offset)
        breach, is_paused = await _until_exit(worker, live, work, seen, exiting)
        await seen.look(is_last=True)
        return Exit(code=await exiting, state=seen.state, breach=breach, is_paused=is_paused)
    finally:
        # Whatever happened here, cancellation too: no program outlives who watches it.
        live.running = None
        await asyncio.shield(_all_gone(worker, job, running))


async def _all_gone(worker: Worker, job: Job, running: Running) -> None:
    await running.kill()
    if job.kind == "container":
        await worker.containers.remove(job.job_id)


async def _until_exit(
    worker: Worker, live: Live, work: Work, seen: "_Seen", exiting: asyncio.Future[int]
) -> tuple[Breach | None, bool]:
    """Return once the program has ended: the bound that it broke, and whether it was stopped for its owner's sake."""
    running = live.running
    assert running is not None
    while True:
        await _either(exiting, live.nudged, worker.pace.look_s)
        if exiting.done():
            return None, False
        still_s = await seen.look()
        breach = judge(await running.sample(), work.bounds, now_s=worker.clock(), still_s=still_s)
        is_paused = not worker.now.may_work.is_set()
        if live.is_cancelled or (breach is not None and not breach.is_gentle):
            await running.kill()
        elif breach is not None or is_paused or live.nudged.is_set():
            await _ask(worker, running, exiting, live)
        else:
            continue
        return breach, is_paused and breach is None


async def _either(exiting: asyncio.Future[int], nudged: asyncio.Event, timeout_s: float) -> None:
    """Wait for the first of the program's exit, a nudge and the time of the next look."""
    if nudged.is_set():
        return
    nudge = asyncio.create_task(nudged.wait())
    await asyncio.wait((exiting, nudge), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    nudge.cancel()


async def _ask(worker: Worker, running: Running, exiting: asyncio.Future[int], live: Live) -> None:
    """Let the program make its checkpoint and go; one that does not is killed, and so is one that is cancelled now."""
    live.phase = "stopping"
    running.ask_to_stop()
    deadline_s = asyncio.get_running_loop().time() + worker.pace.stop_s
    while not exiting.done() and not live.is_cancelled:
        left_s = deadline_s - asyncio.get_running_loop().time()
        if left_s <= 0:
            break
        await asyncio.wait((exiting,), timeout=min(left_s, worker.pace.look_s))
    await running.kill()


class _Seen:
    """What was last seen of a program's folder."""

    def __init__(self, worker: Worker, job: Job, live: Live, running: Running, pusher: Pusher, offset: int) -> None:
        self.state: State | None = None
        self._worker = worker
        self._job_id = job.job_id
        self._live = live
        self._pid = running.pid
        self._pusher = pusher
        self._offset = offset
        self._used_before_s = live.used_s
        self._began_s = self._moved_s = asyncio.get_running_loop().time()
        self._stored_s = -math.inf
        self._sign: tuple[object, ...] = ()
        self._stored: tuple[object, ...] = ()

    async def look(self, *, is_last: bool = False) -> float:
        """Read what is new, tell it, and return for how many seconds there was no progress."""
        now_s = asyncio.get_running_loop().time()
        await self._read_lines()
        state = await self._worker.folders.state(self._job_id)
        if state is not None and state.pid == self._pid:
            self.state = state
            self._tell(state, now_s)
        sign = (self._offset, *((state.phase, state.step, state.tokens) if state is not None else ()))
        if sign != self._sign:
            self._sign, self._moved_s = sign, now_s
        if is_last or now_s - self._stored_s >= self._worker.pace.store_s:
            await self._store(now_s)
        return now_s - self._moved_s

    def _tell(self, state: State, now_s: float) -> None:
        live = self._live
        live.step, live.steps, live.phase = max(live.step, state.step), max(live.steps, state.steps), state.phase
        # The program counts to the millisecond, and is not believed beyond the time that has passed.
        worked_s = min(state.worked_s, Decimal(repr(now_s - self._began_s)))
        live.used_s = max(live.used_s, self._used_before_s + worked_s.quantize(_PLACES))

    async def _read_lines(self) -> None:
        while True:
            lines, behind = await self._worker.folders.lines(self._job_id, self._offset)
            if behind == self._offset:
                return
            self._offset = behind
            made = [line.step for line in lines if line.kind == "checkpoint"]
            if made:
                # The state is read after the lines: these are the seconds of a moment before they were made.
                marks = {**self._live.marks, **{str(step): self._live.used_s for step in made}}
                self._live.marks = dict(sorted(marks.items(), key=lambda mark: int(mark[0]))[-MARKS_KEPT:])
                self._pusher.tell()

    async def _store(self, now_s: float) -> None:
        live = self._live
        values = (live.step, live.steps, live.used_s, live.marks)
        self._stored_s = now_s
        if values == self._stored:
            return
        self._stored = values

        def change(job: Job) -> Job:
            if job.status in TERMINAL:
                return job
            return replace(
                job, status="running", step=live.step, steps=live.steps, used_s=live.used_s, marks=live.marks
            )

        job = await self._worker.book.update_job(self._job_id, change)
        if job is not None and job.status in TERMINAL:
            # It was ended before its work began here: nobody wants it.
            live.is_cancelled = True
            live.nudged.set()
