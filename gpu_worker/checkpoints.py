"""Bringing a job's newest checkpoint to the buyer's store, while the job goes on."""

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime

from gpu_worker.core.errors import BadInput, WorkerError
from gpu_worker.core.model import Job
from gpu_worker.core.pricing import first_step
from gpu_worker.ports import Worker
from wire.vendor import CheckpointSeen

_LOG = logging.getLogger("livery.gpu_worker")


class Pusher:
    """Pushes one job's checkpoints: always the newest, one at a time; a store that refuses is not asked again."""

    def __init__(self, worker: Worker, job: Job) -> None:
        self._worker = worker
        self._job = job
        self._fresh = asyncio.Event()
        self._lock = asyncio.Lock()
        # What the job began from is in the buyer's store already, as another job's.
        self._pushed_step = first_step(job) if job.pushed is None else job.pushed.step
        self._is_refused = job.files is None

    def tell(self) -> None:
        """There is a new checkpoint."""
        self._fresh.set()

    async def run(self) -> None:
        """Push what is told, for ever; what cannot be pushed now is tried again."""
        while not self._is_refused:
            await self._fresh.wait()
            self._fresh.clear()
            if not await self.push():
                await asyncio.sleep(self._worker.pace.retry_s)
                self._fresh.set()

    async def push(self) -> bool:
        """Push the newest checkpoint; return False where that must be tried again."""
        async with self._lock:
            if self._is_refused:
                return True
            try:
                await self._push()
            except BadInput as error:
                self._is_refused = True
                _LOG.warning("the buyer's store refuses the checkpoints of %s: %s", self._job.job_id, error)
            except WorkerError as error:
                _LOG.info("a checkpoint of %s cannot be pushed now: %s", self._job.job_id, error)
                return False
            return True

    async def _push(self) -> None:
        newest = await self._worker.folders.checkpoint(self._job.job_id)
        assert self._job.files is not None
        if newest is None or newest[0].step <= self._pushed_step:
            return
        manifest, folder = newest
        pushed = await self._worker.checkpoints.push(self._job.files, manifest, folder)
        at = datetime.fromtimestamp(self._worker.clock(), UTC)
        seen = CheckpointSeen(**dict(pushed.description()), at=at)
        await self._worker.book.update_job(self._job.job_id, lambda stored: replace(stored, pushed=seen))
        # Last: who is cancelled before the row has it leaves it to the last push.
        self._pushed_step = pushed.step
