"""Going: nothing more is sold, jobs make their last checkpoint, what is owed is paid back; then the door closes."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from gpu_worker.core.lifecycle import move
from gpu_worker.ports import Worker

# What is kept of the time for what comes after: the door, the files.
CLOSING_SHARE = 0.1

_LOG = logging.getLogger("livery.gpu_worker")


def begin_drain(worker: Worker) -> None:
    """Sell nothing more; the worker goes when its jobs are done. Idempotent."""
    worker.now.leaving.set()


async def drain(worker: Worker, close: Callable[[], Awaitable[None]]) -> None:
    """
    End every job before its time, its checkpoint brought to its buyer, its refund paid; within the settings' `drain_s`.

    What could not be done by then is done by the next worker with this data: the rows say what is owed.

    Args:
        close: returns once the door is closed and what was asked is answered; it may be given up.
    """
    now = worker.now
    if now.state != "draining":
        now.state = move(now.state, "draining")
    now.leaving.set()
    now.is_stopping = True
    limit_s = worker.settings.drain_s * (1 - CLOSING_SHARE)
    _LOG.info("draining", extra={"jobs": len(now.jobs)})
    try:
        async with asyncio.timeout(limit_s):
            async with asyncio.TaskGroup() as group:
                group.create_task(_end_all(worker))
                if now.served is not None:
                    # Streams go on until they have ended or gone elsewhere: the door closes behind them.
                    group.create_task(now.served.leave())
            await close()
            # A settlement that the door did not wait for may have come all the same.
            await _recover_all(worker)
            # Who had paid when it began to close has a job by now.
            await _end_all(worker)
    except TimeoutError:
        _LOG.warning("drained in part: what is left is done when this worker starts again")


async def _recover_all(worker: Worker) -> None:
    """Return once of no payment it is open whether it came."""
    while True:
        if await worker.recover() == 0:
            return
        await asyncio.sleep(worker.pace.retry_s)


async def _end_all(worker: Worker) -> None:
    """Return once no job is left and nothing is owed."""
    now = worker.now
    while now.jobs or not now.wanted.empty():
        jobs = [*now.jobs.values()]
        for live in jobs:
            live.nudged.set()
        for live in jobs:
            await live.ended.wait()
        await asyncio.sleep(0)
    with worker.book.listen() as rung:
        while await worker.book.to_pay_back():
            await rung.wait()
            rung.clear()
