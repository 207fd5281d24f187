"""
A worker's life: it looks at the machine, opens its door, measures, sells, and goes.

Rule 1: every loop of it is a task of one group: where one breaks the worker ends, and its service starts it again.
Rule 2: whatever it ends in, its entry is taken away and no program is left.
"""

import asyncio
import logging
from collections.abc import Awaitable, Collection
from dataclasses import dataclass
from decimal import Decimal

from gpu_worker import yielding
from gpu_worker.config import listed
from gpu_worker.core.errors import OwnersFault, WorkerError
from gpu_worker.core.hardware import Machine
from gpu_worker.core.lifecycle import move
from gpu_worker.core.owner import Yield
from gpu_worker.drain import drain
from gpu_worker.jobs import keep_jobs
from gpu_worker.ports import Worker
from gpu_worker.preparing import ram_bytes
from gpu_worker.status import earned_atomic, uptime_s
from storefront.model import TERMINAL
from wire.money import to_decimal
from wire.vendor import WorkerState

# How long an ended job's files are kept for its buyer.
KEPT_S = 7 * 86_400
REFUNDS_FEW = 100
WITH_MODEL = ("fine_tune", "evaluate", "generate")

_LOG = logging.getLogger("livery.gpu_worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the worker did in this life. `earned` is in the asset, of all jobs in its book that have ended."""

    jobs: int
    earned: Decimal
    uptime_s: Decimal


async def live(worker: Worker, stop: asyncio.Event) -> Report:
    """
    Live until `stop` is set, or until the owner drained the worker and its jobs are done; return what was done.

    Raises:
        OwnersFault: it cannot start here; the sentence says why.
        ExceptionGroup: a loop of it broke.
    """
    now = worker.now
    now.since_s = worker.clock()
    await worker.registry.claim()
    closing = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            door = group.create_task(worker.door.serve(closing))
            keepers: list[asyncio.Task[None]] = []
            if await _unless(stop, _rise(worker)):
                loops = [keep_jobs(worker), worker.tend(), _watch(worker, closing), _fund(worker), _sweep(worker)]
                if now.served is not None:
                    loops.append(now.served.keep())
                keepers = [group.create_task(_kept(loop)) for loop in loops]
                _enter(worker, "online")
                _tell_offer(worker)
                await _gone(worker, stop)

                async def closed() -> None:
                    closing.set()
                    await asyncio.wait((door,))

                await drain(worker, closed)
            closing.set()
            await door
            for keeper in keepers:
                keeper.cancel()
        return await _report(worker)
    except ExceptionGroup as group:
        # Why it cannot start is one sentence, whatever else was ended with it.
        if len(group.exceptions) == 1 and isinstance(group.exceptions[0], OwnersFault):
            raise group.exceptions[0] from None
        raise
    finally:
        now.state = "gone"
        if now.served is not None:
            await now.served.close()
        await worker.registry.deregister()
        await worker.close()


async def _kept(loop: Awaitable[None]) -> None:
    await loop


async def _rise(worker: Worker) -> None:
    """Bring the worker from its first look at the machine to where it can sell."""
    now, settings = worker.now, worker.settings
    now.machine = await worker.hardware.read()
    now.device = worker.choose(now.machine)
    _enter(worker, "registering")
    await _check_name(worker)
    await _funds(worker)
    entry = {"url": worker.door.local_url, "vendorId": worker.vendor.vendor_id, "name": settings.name}
    await worker.registry.register(entry)
    _enter(worker, "loading")
    await _tidy(worker)
    # What a dead worker left is ended, though the owner sells no containers any more.
    job_ids = [job.job_id for job in await worker.book.jobs() if job.kind == "container"]
    if settings.is_sold("container") or job_ids:
        memory, cpus = ram_bytes(worker), settings.threads_of(now.machine.cpu_count)
        found = await worker.containers.find(memory_bytes=memory, cpus=cpus, job_ids=job_ids)
        if found is not None and settings.is_sold("container"):
            now.container = found.model_copy(update={"visible": now.device.visible})
    if worker.open_model is not None:
        now.served = await worker.open_model()
        # Warmed up and measured as well: what a pass costs is known when it returns.
        await now.served.load()
    _enter(worker, "measuring")
    if any(settings.is_sold(kind) for kind in WITH_MODEL):
        try:
            now.speed = await worker.measure(now.machine).speed(now.device)
        except WorkerError as error:
            now.notes += (f"how fast this machine is could not be measured: {error}",)
    served = () if worker.answers is None else worker.answers.names()
    now.notes += now.machine.problems + notes_of(worker, (*await worker.models.names(), *served))
    for note in now.notes:
        _LOG.warning("%s", note)
    now.may_work.set()


async def _check_name(worker: Worker) -> None:
    """Raises OwnersFault: jobs were sold under another name, and their buyers would find neither them nor a refund."""
    unended = [job for job in await worker.book.jobs() if job.status not in TERMINAL]
    if other := next((job.vendor_id for job in unended if job.vendor_id != worker.vendor.vendor_id), None):
        raise OwnersFault(
            f"jobs that {other} sold have not ended: start with LIVERY_WORKER_NAME={other} until they have"
        )


def _enter(worker: Worker, state: WorkerState) -> None:
    worker.now.state = move(worker.now.state, state)
    _LOG.info("worker is %s", state)


def _tell_offer(worker: Worker) -> None:
    now, settings = worker.now, worker.settings
    kinds = listed(settings.kinds)
    if now.problem is None and kinds and now.device is not None:
        what, where = ", ".join(kinds), now.device.gpu_type
        _LOG.info("it sells %s on %s for %s USDC an hour", what, where, settings.price_per_hour)


def notes_of(worker: Worker, models: Collection[str]) -> tuple[str, ...]:
    """Return what the owner should know of the settings and of the models that are here, a sentence each."""
    settings, now = worker.settings, worker.now
    notes = []
    if not listed(settings.kinds) and worker.open_model is None:
        notes.append("no kind of job is sold: name some in LIVERY_WORKER_KINDS, such as fine_tune")
    if not models and any(settings.is_sold(kind) for kind in WITH_MODEL):
        notes.append(f"there is no model in {settings.models_folder}: a job names one, and it must be here before")
    if settings.is_sold("container") and now.container is None:
        notes.append("containers are not sold: neither docker nor podman answers here")
    if settings.is_sold("container") and not listed(settings.container_images):
        notes.append("no container is run: name its image in LIVERY_WORKER_CONTAINER_IMAGES")
    if settings.oracle_url is not None:
        notes.append(f"the coordinator at {settings.oracle_url} is not asked yet: this worker serves alone")
    return tuple(notes)


async def _funds(worker: Worker) -> None:
    """Look whether refunds can be paid: who cannot pay back does not sell."""
    now, before, problem = worker.now, worker.now.problem, None
    was_answered = now.refunds is not None or now.state == "registering"
    if not worker.has_key:
        problem = "there is no key to be paid with: make one with `livery wallet new --worker`, then start again"
    else:
        now.refunds = await worker.gas()
        if now.refunds == 0:
            problem = f"{worker.vendor.pay_to} has no ether: refunds are transfers and need some, send it some"
        elif now.refunds is None and was_answered:
            _LOG.warning("the chain does not answer at %s: until it does nothing can be paid", worker.settings.rpc_url)
        elif now.refunds is not None and now.refunds < REFUNDS_FEW:
            _LOG.warning("the ether of %s is enough for %d refunds", worker.vendor.pay_to, now.refunds)
    now.problem = problem
    # Who serves a model alone sells nothing in any case.
    if problem != before and (worker.settings.kinds or not worker.settings.serves_model):
        _LOG.warning("nothing is sold: %s" if problem else "it sells again%s", problem or "")


async def _fund(worker: Worker) -> None:
    while True:
        await asyncio.sleep(worker.pace.funds_s)
        await _funds(worker)


async def _tidy(worker: Worker) -> None:
    """Remove the folders that no row knows, and those of jobs that ended long ago; of ended ones only results stay."""
    # The folders first: one that is there has its row already.
    known = await worker.folders.known()
    rows = {job.job_id: job for job in await worker.book.jobs()}
    for job_id in known:
        job = rows.get(job_id)
        if job is None or (job.ended_at_s is not None and worker.clock() - job.ended_at_s > KEPT_S):
            await worker.folders.remove(job_id)
        elif job.ended_at_s is not None:
            # The worker that ended it may have died before it came to this.
            await worker.folders.trim(job_id)


async def _sweep(worker: Worker) -> None:
    while True:
        await asyncio.sleep(worker.pace.tidy_s)
        try:
            await _tidy(worker)
        except WorkerError as error:
            _LOG.warning("what is not needed any more stays: %s", error)


async def _watch(worker: Worker, stop: asyncio.Event) -> None:
    """Look after the machine: jobs rest while its owner needs it."""
    now = worker.now
    assert now.device is not None

    def sessions() -> list[int] | None:
        running = [each for each in now.jobs.values() if each.running is not None]
        # What runs in a container is no child of ours.
        if any(each.kind == "container" for each in running):
            return None
        return [each.running.pid for each in running if each.running is not None]

    def tell(machine: Machine, decided: Yield | None) -> None:
        now.machine = machine
        if decided != now.yielded:
            _LOG.info("jobs go on" if decided is None else f"jobs rest: {decided.reason}")
        now.yielded = decided
        if decided is None:
            now.may_work.set()
        else:
            now.may_work.clear()

    await yielding.watch(
        worker.hardware,
        now.device,
        worker.limits,
        own_sessions=sessions,
        local_minute=worker.local_minute,
        tell=tell,
        stop=stop,
        busy_s=worker.pace.busy_s,
        idle_s=worker.pace.idle_s,
    )


async def _gone(worker: Worker, stop: asyncio.Event) -> None:
    """Return when the worker is to go: told to, or asked to and done."""
    now = worker.now
    if not await _unless(stop, now.leaving.wait()):
        return
    now.state = move(now.state, "draining")

    async def idle() -> None:
        if now.served is not None:
            await now.served.leave()
        while now.jobs or not now.wanted.empty():
            for each in [*now.jobs.values()]:
                await each.ended.wait()

    await _unless(stop, idle())


async def _unless(stop: asyncio.Event, work: Awaitable[object]) -> bool:
    """Do `work` to its end and return True; give it up and return False where `stop` is set before."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return False
        working.result()
        return True
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


async def _report(worker: Worker) -> Report:
    ended = [job for job in await worker.book.jobs() if job.status in TERMINAL]
    earned = to_decimal(earned_atomic(ended), worker.vendor.asset)
    report = Report(jobs=len(ended), earned=earned, uptime_s=uptime_s(worker))
    _LOG.info("final report", extra={"jobs": report.jobs, "earned": str(earned), "uptime_s": str(report.uptime_s)})
    return report
