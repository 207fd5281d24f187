"""How far a run is, seen from beside: the phase that a kill would meet, and what is alive to be killed."""

from dataclasses import dataclass
from typing import Any, Literal

from agent.core.model import Run
from agent.core.states import RUN_ENDS
from bench.worker_kill.place import Place, WorkerPart
from gpu_worker.core.folder import CHECKPOINTS
from gpu_worker.core.model import Job
from storefront.model import TERMINAL, is_owed

Phase = Literal["quoting", "paying", "loading", "training", "pushing", "saving", "ending", "over", "away"]
# In their order; `pushing`: it trains, and its newest checkpoint is not in the buyer's store yet. Besides, `over` is
# after all of them, and `away`: the worker that has the job is dead.
PHASES: tuple[Phase, ...] = ("quoting", "paying", "loading", "training", "pushing", "saving", "ending")
# Those in which a job's program lives.
PROGRAM_PHASES: tuple[Phase, ...] = ("loading", "training", "pushing", "saving")
ENGINE = "gpu_worker.engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """`worker` has the run's newest job, `program` does it; `program` is a psutil.Process."""

    phase: Phase
    run: Run
    worker: WorkerPart | None = None
    job: Job | None = None
    program: Any | None = None
    step: int = 0


async def look(place: Place, run_id: str) -> Sight:
    """Return how far the run is now."""
    run = await place.agent.store.read_run(run_id)
    if run.status in RUN_ENDS and run.next_tick_at is None:
        return Sight(phase="over", run=run)
    if not run.payments:
        return Sight(phase="quoting", run=run)
    paid = run.payments[-1]
    worker = place.worker(paid.vendor_id)
    book = worker.book
    job = await book.find_paid(paid.payment_id)
    await book.close()
    is_served = job is not None and job.status in TERMINAL
    if not worker.is_alive and paid.status != "failed" and not is_served:
        return Sight(phase="away", run=run, worker=worker, job=job)
    if job is None:
        # It may have been refused: then another vendor is asked next.
        return Sight(phase="quoting" if paid.status == "failed" else "paying", run=run, worker=worker)
    if job.status in TERMINAL:
        return Sight(phase="ending", run=run, worker=worker, job=job, step=job.step)
    return await _at_work(run, worker, job)


async def _at_work(run: Run, worker: WorkerPart, job: Job) -> Sight:
    program = next(iter(programs(worker)), None)
    state = await worker.folders.state(job.job_id)
    phase: Phase = "loading"
    # A state may be that of an earlier start.
    if state is not None and (state.phase == "ended" if program is None else state.pid == program.pid):
        if state.phase == "working":
            pushed = -1 if job.pushed is None else job.pushed.step
            phase = "pushing" if _newest(worker, job) > pushed else "training"
        elif state.phase != "loading":
            phase = "saving" if state.phase == "saving" else "ending"
    step = job.step if state is None or phase == "loading" else state.step
    return Sight(phase=phase, run=run, worker=worker, job=job, program=program, step=step)


def _newest(worker: WorkerPart, job: Job) -> int:
    """Return the step of the newest checkpoint on the worker's disk, whole or being written, -1 where there is none."""
    steps = (path.name.partition(".")[0] for path in (worker.data / "jobs" / job.job_id / CHECKPOINTS).glob("[0-9]*"))
    return max((int(step) for step in steps), default=-1)


def programs(worker: WorkerPart) -> list[Any]:
    """Return the living programs that the worker started."""
    import psutil

    if not worker.is_alive:
        return []
    try:
        return [child for child in psutil.Process(worker.process.pid).children() if _is_engine(child)]
    except psutil.Error:
        return []


def strays(place: Place) -> list[Any]:
    """Return every living program of a job in this place, whoever started it."""
    import psutil

    return [one for one in psutil.process_iter() if _is_engine(one, str(place.folder))]


def _is_engine(process: Any, mentions: str = "") -> bool:
    import psutil

    try:
        words = process.cmdline()
        return process.status() != psutil.STATUS_ZOMBIE and (
            any(word.startswith(ENGINE) for word in words) and any(mentions in word for word in words)
        )
    except psutil.Error:
        return False


async def is_settled(place: Place, run_id: str) -> bool:
    """Return whether nothing is left to happen: the run is over, no worker works, none owes."""
    if (await look(place, run_id)).phase != "over":
        return False
    jobs = [job for worker in place.workers for job in await worker.jobs()]
    return all(job.status in TERMINAL and not is_owed(job) for job in jobs)
