"""Going: nothing more is sold, jobs make their last checkpoint, what is owed is paid back; then the door closes."""

import asyncio
import logging
from contextlib import suppress

from gpu_worker.core.lifecycle import move
from gpu_worker.ports import Worker

# What is kept of the time for what comes after: the door, the files.
CLOSING_SHARE = 0.1

_LOG = logging.getLogger("livery.gpu_worker")


def begin_drain(worker: Worker) -> None:
    """Sell nothing more; the worker goes when its jobs are done. Idempotent."""
    worker.now.leaving.set()


async def drain(worker: Worker) -> None:
    """
    End every job before its time, its checkpoint brought to its buyer, its refund paid; within the settings' `drain_s`.

    What could not be done by then is done by the next worker with this data: the rows say what is owed.
    """
    now = worker.now
    if now.state != "draining":
        now.state = move(now.state, "draining")
    now.leaving.set()
    now.is_stopping = True
    limit_s = worker.settings.drain_s * (1 - CLOSING_SHARE)
    _LOG.info("draining", extra={"jobs": len(now.jobs)})
    with suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            while jobs := [*now.jobs.values()]:
                for live in jobs:
                    live.nudged.set()
                await jobs[0].ended.wait()
            with worker.book.listen() as rung:
                while await worker.book.to_pay_back():
                    await rung.wait()
                    rung.clear()
            return
    _LOG.warning("drained in part: what is left is done when this worker starts again")
