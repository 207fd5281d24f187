"""
One job from its sale to its end: its program is started, watched, started again, and what it ends with is written down.

Rule 1: the row is the truth; a job that has not ended is begun again by whatever worker comes next.
Rule 2: what is ended is stored as ended before anything of it is thrown away.
Rule 3: a program may do what it likes; it is asked, then killed, and takes nobody with it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from gpu_worker.checkpoints import Pusher
from gpu_worker.core import pricing
from gpu_worker.core.errors import Fault, Unavailable, WorkerError
from gpu_worker.core.folder import EXIT_BAD_INPUT, EXIT_COMPLETED, State
from gpu_worker.core.model import Job
from gpu_worker.ports import Live, Worker
from gpu_worker.preparing import Work, prepare
from gpu_worker.watching import Exit, watch
from storefront.model import TERMINAL
from wire.vendor import VendorJobStatus

# Starts of a program that made no new checkpoint, before the job is given up.
ATTEMPTS_MAX = 3
# How often something that cannot be had now is asked for before a job is begun.
TRIES_MAX = 3
PAGE = 100

_LOG = logging.getLogger("livery.gpu_worker")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    status: VendorJobStatus
    fault: Fault | None = None
    message: str | None = None


class _Nudged(Exception):
    """The job is to end before its time."""


async def keep_jobs(worker: Worker) -> None:
    """Give every job that has not ended its supervisor, those of earlier workers first; for ever."""
    now = worker.now
    for job in await unended(worker):
        now.wanted.put_nowait(job.job_id)
    async with asyncio.TaskGroup() as group:
        while True:
            job_id = await now.wanted.get()
            if job_id not in now.jobs:
                live = now.jobs[job_id] = Live(job_id)
                group.create_task(_supervised(worker, live))


async def unended(worker: Worker) -> list[Job]:
    """Return every job that has not ended."""
    found: list[Job] = []
    while page := await worker.book.list_active(worker.vendor.vendor_id, found[-1].job_id if found else "", PAGE):
        found += page
    return found


async def _supervised(worker: Worker, live: Live) -> None:
    try:
        await supervise(worker, live)
    finally:
        worker.now.jobs.pop(live.job_id, None)
        live.ended.set()


async def supervise(worker: Worker, live: Live) -> None:
    """Bring the job to its end, and store it."""
    job = await worker.book.find_job(live.job_id)
    if job is None or job.status in TERMINAL:
        return
    live.kind, live.step, live.steps = job.kind, job.step, job.steps
    live.used_s, live.marks = job.used_s, dict(job.marks)
    if worker.now.is_stopping:
        live.nudged.set()
    pusher = Pusher(worker, job)
    pushing = asyncio.create_task(pusher.run())
    # The worker before may have died with a checkpoint half pushed: it is pushed whole, and nothing of it lies about.
    pusher.tell()
    try:
        end = await _worked(worker, job, live, pusher)
    except _Nudged:
        end = _before_time(worker, live)
    except WorkerError as error:
        end = End(status="failed", fault=error.fault, message=str(error))
    except Exception:
        # Ours; the buyer shall not pay for it, and the worker goes on with its other jobs.
        _LOG.exception("the job %s cannot be gone on with", live.job_id)
        end = End(status="failed", fault="owner", message="the worker failed")
    finally:
        pushing.cancel()
    if end.status != "completed" and not live.is_cancelled:
        await _last_push(worker, pusher)
    await finish(worker, live, end)


async def _worked(worker: Worker, job: Job, live: Live, pusher: Pusher) -> End:
    """Return how the job's work ended, by itself or at its bounds. Raises _Nudged, WorkerError."""
    left = await _left_behind(worker, job)
    if left is not None and (end := _told(left)) is not None:
        # It was done with everything but being written down.
        live.step, live.steps = left.step, left.steps
        return end
    work = await _unless_nudged(live, _prepared(worker, job))
    attempts = job.attempts
    while True:
        live.phase = "paused" if not worker.now.may_work.is_set() else "starting"
        await _unless_nudged(live, _may_work(worker, job))
        if job.ends_by_s is not None and worker.clock() >= job.ends_by_s:
            return End(status="cancelled", message="its hours are over")
        began_at = await _begin(worker, live, work)
        ended = await watch(worker, job, live, work, pusher)
        if (end := _end_of(ended, live)) is not None:
            return end
        if live.nudged.is_set():
            raise _Nudged
        newest = await worker.folders.checkpoint(job.job_id)
        if ended.is_paused:
            continue
        attempts = 1 if newest is not None and newest[0].step > began_at else attempts + 1
        await worker.book.update_job(job.job_id, partial(replace, attempts=attempts))
        _LOG.warning("the program of %s ended: %s", job.job_id, ended.said)
        if attempts >= ATTEMPTS_MAX:
            return End(status="failed", fault="owner", message=f"the program ended {attempts} times: {ended.said}")


async def _prepared(worker: Worker, job: Job) -> Work:
    for _ in range(TRIES_MAX - 1):
        try:
            return await prepare(worker, job)
        except Unavailable as error:
            _LOG.info("the job %s cannot begin yet: %s", job.job_id, error)
            await asyncio.sleep(worker.pace.retry_s)
    return await prepare(worker, job)


async def _left_behind(worker: Worker, job: Job) -> State | None:
    """Wait until no program of an earlier worker is left on the job; return what the last one said."""
    folder = await worker.folders.path(job.job_id)
    left = await worker.programs.find(job, folder)
    if left is not None:
        left.ask_to_stop()
        try:
            async with asyncio.timeout(worker.pace.stop_s):
                await left.wait()
        except TimeoutError:
            await left.kill()
    return await worker.folders.state(job.job_id)


async def _may_work(worker: Worker, job: Job) -> None:
    """Wait while the owner needs the machine, at most until the job's hours are over."""
    if job.ends_by_s is None:
        await worker.now.may_work.wait()
        return
    try:
        async with asyncio.timeout(max(0.0, job.ends_by_s - worker.clock())):
            await worker.now.may_work.wait()
    except TimeoutError:
        return


async def _begin(worker: Worker, live: Live, work: Work) -> int:
    """
    Write the spec of the next start, from the newest whole checkpoint on, and return that one's step.

    The clock goes back to it: what broke off was the owner's, and the buyer does not pay for the same steps twice.
    """
    newest = await worker.folders.checkpoint(live.job_id)
    step = None if newest is None else newest[0].step
    kept_s = pricing.kept_s(live.marks, live.used_s, live.step, step)
    if kept_s != live.used_s:
        live.used_s = kept_s
        await worker.book.update_job(live.job_id, lambda stored: replace(stored, used_s=kept_s))
    await worker.folders.make(live.job_id, work.spec.model_copy(update={"resume_step": step}))
    return step or 0


def _told(state: State) -> End | None:
    """Return the end that the program itself told, None where it was stopped or broke off."""
    if state.phase != "ended":
        return None
    if state.code is None and state.artifact is not None:
        return End(status="completed")
    if state.code is not None and state.fault == "buyer":
        return End(status="failed", fault="buyer", message=state.message)
    return None


def _end_of(ended: Exit, live: Live) -> End | None:
    """Return how a program's end ends its job, None where the job may go on."""
    state = ended.state
    if ended.code == EXIT_COMPLETED and state is not None and state.phase == "ended":
        live.step = live.steps = max(state.step, state.steps)
        return End(status="completed")
    if ended.code == EXIT_BAD_INPUT:
        said = None if state is None else state.message
        return End(status="failed", fault="buyer", message=said or "the program could not use what it was given")
    if ended.breach is not None and ended.breach.is_final:
        status: VendorJobStatus = "cancelled" if ended.breach.fault is None else "failed"
        return End(status=status, fault=ended.breach.fault, message=ended.breach.reason)
    return None


def _before_time(worker: Worker, live: Live) -> End:
    if live.is_cancelled:
        return End(status="cancelled")
    return End(status="failed", fault="owner", message="interrupted: the worker shuts down")


async def _last_push(worker: Worker, pusher: Pusher) -> None:
    """Bring what there is to the buyer's store: it is all that the next vendor can go on from."""
    try:
        async with asyncio.timeout(worker.pace.push_s):
            await pusher.push()
    except TimeoutError:
        _LOG.warning("the last checkpoint could not be pushed in time")


async def finish(worker: Worker, live: Live, end: End) -> None:
    """Store the end of the job; its refund and its callback follow from the row."""
    try:
        await worker.folders.seal(live.job_id)
    except Exception:
        # Its files are worth less than its refund, whatever is wrong with them.
        _LOG.exception("the result of %s is not whole", live.job_id)
    stored = await worker.book.update_job(live.job_id, ended(live, end, int(worker.clock())))
    if stored is not None:
        _LOG.info("job %s", stored.status, extra={"job_id": live.job_id, "used_s": str(stored.used_s)})
    try:
        await worker.folders.trim(live.job_id)
    except WorkerError as error:
        _LOG.warning("%s", error)


def ended(live: Live, end: End, now_s: int) -> Callable[[Job], Job]:
    """Return the change that ends a job; one that has ended stays as it is."""

    def change(job: Job) -> Job:
        if job.status in TERMINAL:
            return job
        done = replace(
            job,
            status=end.status,
            fault=end.fault,
            error_message=end.message,
            ended_at_s=now_s,
            step=max(job.step, live.step),
            steps=max(job.steps, live.steps),
            used_s=max(job.used_s, live.used_s),
        )
        return replace(done, refund_atomic=pricing.refund_atomic(done))

    return change


async def cancel(worker: Worker, job: Job) -> Callable[[Job], Job]:
    """Stop the job's work and return the change that ends its row; it is ended by then, or nobody works on it."""
    live = worker.now.jobs.get(job.job_id)
    if live is None:
        return ended(Live(job.job_id), End(status="cancelled"), int(worker.clock()))
    live.is_cancelled = True
    live.nudged.set()
    await live.ended.wait()
    return ended(live, End(status="cancelled"), int(worker.clock()))


async def _unless_nudged(live: Live, work: Awaitable[ResultT]) -> ResultT:
    """Return what `work` does. Raises _Nudged where the job is to end before it is done; `work` is given up then."""
    working = asyncio.ensure_future(work)
    nudged = asyncio.create_task(live.nudged.wait())
    try:
        await asyncio.wait((working, nudged), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _Nudged
        return working.result()
    finally:
        for task in (working, nudged):
            task.cancel()
        await asyncio.gather(working, nudged, return_exceptions=True)
