"""The way to one stage: what is sent waits in a short queue, what comes back is handed on, a break is told once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from gpu_worker.core.errors import Unavailable
from gpu_worker.core.inference.batch import Batch, LinkFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.ports import Link, Links

# Batches that may wait for a stage that is behind, and bytes of their rows; how long the next one waits for its place.
WAITING_MAX = 64
WAITING_BYTES_MAX = 64 * 1024 * 1024
BEHIND_S = 5.0

_LOG = logging.getLogger("livery.gpu_worker")


class _Waiting(asyncio.Queue[Batch]):
    """Full with so many batches, or with so many bytes of rows in them: the last one may go beyond that."""

    _bytes = 0

    def full(self) -> bool:
        return super().full() or self._bytes >= WAITING_BYTES_MAX

    def _put(self, batch: Batch) -> None:
        self._bytes += _size(batch)
        super()._put(batch)

    def _get(self) -> Batch:
        batch = super()._get()
        self._bytes -= _size(batch)
        return batch


def _size(batch: Batch) -> int:
    return 0 if batch.hidden is None else len(batch.hidden.data)


class Sender:
    """
    Sends to the stage at `endpoint`, in the order of the calls; the link is made at the first batch.

    A stage has one for each pipeline that goes on from it; a head has one to its next stage and one to the last.
    `is_broken` is for good: who wants that stage again makes a new one.
    """

    def __init__(
        self,
        links: Links,
        endpoint: str,
        *,
        back: Callable[[Batch], Awaitable[None]],
        lost: Callable[[LinkFault], Awaitable[None]],
        allow: Callable[[str], Awaitable[bool]] | None = None,
        session_pass: str = "",
        behind_s: float = BEHIND_S,
    ) -> None:
        """
        Args:
            back: is awaited with each batch that comes back, one at a time.
            lost: is awaited once, when there is no link or it broke; not after `close`.
            allow: whether this endpoint may be dialled; if not, it is lost with the code `forbidden`.
            session_pass: what the link is opened with.
            behind_s: how long a batch waits for a place among those that wait, before the stage is lost.
        """
        self.endpoint = endpoint
        self.is_broken = False
        self._links, self._back, self._lost, self._allow = links, back, lost, allow
        self._behind_s, self._session_pass = behind_s, session_pass
        self._waiting = _Waiting(WAITING_MAX)
        self._turn, self._behind = asyncio.Lock(), 0
        self._tasks = [asyncio.create_task(self._run())]

    async def send(self, batch: Batch) -> bool:
        """Return whether it is on its way; False where the way is broken, or was too far behind and is broken now."""
        if self.is_broken:
            return False
        if not self._behind and not self._waiting.full():
            self._waiting.put_nowait(batch)
            return True
        self._behind += 1
        try:
            # Whoever came before has its place first.
            async with asyncio.timeout(self._behind_s), self._turn:
                await self._waiting.put(batch)
        except TimeoutError:
            await self._break(Unavailable(f"{self.endpoint} is {self._waiting.qsize()} batches behind"))
        finally:
            self._behind -= 1
        return not self.is_broken

    async def _run(self) -> None:
        link: Link | None = None
        try:
            if self._allow is not None and not await self._allow(self.endpoint):
                raise InferenceError("forbidden", f"{self.endpoint} is no stage that is known here")
            link = await self._links.connect(self.endpoint, self._session_pass)
            self._tasks.append(asyncio.create_task(self._read(link)))
            while not self.is_broken:
                await link.send(await self._waiting.get())
                self._waiting.task_done()
        except Exception as why:
            await self._break(why)
        finally:
            if link is not None:
                await link.close()

    async def _read(self, link: Link) -> None:
        try:
            async for batch in link.batches():
                await self._back(batch)
            await self._break(Unavailable(f"{self.endpoint} has ended its stream"))
        except Exception as why:
            await self._break(why)

    async def _break(self, why: Exception) -> None:
        if not isinstance(why, Unavailable | InferenceError):
            # Ours. A link that stands still and says nothing would be worse than one that is lost.
            _LOG.error("the link to %s failed", self.endpoint, exc_info=why)
        if not self.is_broken:
            code = why.code if isinstance(why, InferenceError) else "lost_stage"
            self._stop()
            await self._lost(LinkFault(endpoint=self.endpoint, code=code, detail=str(why)))

    def _stop(self) -> None:
        self.is_broken = True
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def flush(self) -> None:
        """Return once all that waits was sent. Where the way breaks meanwhile it never does: the caller has a limit."""
        if not self.is_broken:
            await self._waiting.join()

    async def close(self) -> None:
        """End the link; what waits is not sent any more. Idempotent; also from within `back` and `lost`."""
        self._stop()
        others = [task for task in self._tasks if task is not asyncio.current_task()]
        await asyncio.gather(*others, return_exceptions=True)
