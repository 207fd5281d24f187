"""
An engine on a thread of its own, for an asyncio loop: `inference.ports.Engine` over an object that computes at once.

Steps wait in one bounded queue and are done in the order they came. The loop is never blocked: who finds the queue full
waits as a task.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Protocol

from gpu_worker.core.errors import Bug
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.step import CacheUse, Done, SliceInfo, Step

QUEUE_MAX = 64
# Different ones.
PREPARING_MAX = 256

_LOG = logging.getLogger("livery.gpu_worker")


class SyncEngine(Protocol):
    """What computes. Its methods are called by one thread; the properties may be read by any."""

    @property
    def info(self) -> SliceInfo: ...

    @property
    def cache(self) -> CacheUse: ...

    def step(self, step: Step) -> Done: ...

    def prepare(self, schema: str) -> None:
        """Called by another thread than the rest."""

    def close(self) -> None: ...


_Job = tuple[Step, "asyncio.Future[Done]"]


async def start_engine(open_engine: Callable[[], SyncEngine], *, queue_max: int = QUEUE_MAX) -> "EngineThread":
    """
    Return the engine that `open_engine` makes on the thread that it will be used by.

    Cancelled, the engine is closed as soon as it is there. Raises what `open_engine` raises.
    """
    thread = EngineThread(open_engine, queue_max)
    try:
        await asyncio.shield(thread.opened)
    except asyncio.CancelledError:
        thread.stop()
        raise
    return thread


class EngineThread:
    """See `start_engine`. After its engine has raised, it is broken for good: every step raises Bug."""

    def __init__(self, open_engine: Callable[[], SyncEngine], queue_max: int) -> None:
        self._loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._room = asyncio.Semaphore(queue_max)
        self._waiting: set[asyncio.Future[Done]] = set()
        self._engine: SyncEngine | None = None
        self._why: str | None = None
        # One at a time, so that they never take more than one processor from the steps.
        self._schemas = ThreadPoolExecutor(1, thread_name_prefix="schemas")
        self._preparing: dict[str, asyncio.Future[None]] = {}
        # A daemon: a process that is told to end does not wait for a step.
        self._thread = threading.Thread(target=self._run, args=(open_engine,), name="engine", daemon=True)
        self._thread.start()

    @property
    def info(self) -> SliceInfo:
        assert self._engine is not None
        return self._engine.info

    @property
    def cache(self) -> CacheUse:
        assert self._engine is not None
        return self._engine.cache

    async def step(self, step: Step) -> Done:
        """
        Return what the engine made of `step`, which is done even where who asked no longer waits.

        Raises Bug: the engine is broken or closed.
        """
        await self._room.acquire()
        if self._why is not None:
            self._room.release()
            raise Bug(self._why)
        future: asyncio.Future[Done] = self._loop.create_future()
        self._waiting.add(future)
        self._jobs.put((step, future))
        return await future

    async def prepare(self, schema: str) -> None:
        """See `inference.ports.Engine`."""
        assert self._engine is not None
        under_way = self._preparing.get(schema)
        if under_way is None:
            if len(self._preparing) >= PREPARING_MAX:
                raise InferenceError("no_capacity", f"{PREPARING_MAX} JSON schemas wait to be compiled")
            under_way = self._loop.run_in_executor(self._schemas, self._engine.prepare, schema)
            self._preparing[schema] = under_way
            under_way.add_done_callback(lambda done: self._prepared(schema, done))
        try:
            # Who asks may leave; others wait for the same one.
            await asyncio.shield(under_way)
        except asyncio.CancelledError:
            if under_way.cancelled():
                raise InferenceError("draining", "the engine is closed") from None
            raise

    def _prepared(self, schema: str, done: "asyncio.Future[None]") -> None:
        del self._preparing[schema]
        if not done.cancelled():
            done.exception()  # it is told to who still waits, if anybody does

    async def close(self) -> None:
        """End once what is queued is done. Idempotent."""
        self.stop()
        await asyncio.shield(self._ended)

    def stop(self) -> None:
        """Take nothing more; the engine closes once what is queued is done."""
        if self._why is None:
            self._why = "the engine is closed"
            self._jobs.put(None)
            self._schemas.shutdown(wait=False, cancel_futures=True)

    # --- on the engine's thread

    def _run(self, open_engine: Callable[[], SyncEngine]) -> None:
        try:
            engine = self._engine = open_engine()
        except BaseException as error:
            self._tell(self._failed_to_open, error)
            return
        self._tell(self._is_open)
        try:
            while (job := self._jobs.get()) is not None:
                step, future = job
                self._tell(self._done, future, engine.step(step))
            engine.close()
        except BaseException as error:
            _LOG.exception("the engine is broken")
            self._tell(self._broke, f"the engine is broken: {type(error).__name__}: {error}")
        else:
            self._tell(self._end)

    def _tell(self, what: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *args)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    # --- on the loop

    def _is_open(self) -> None:
        if not self.opened.done():
            self.opened.set_result(None)

    def _failed_to_open(self, error: BaseException) -> None:
        self._why = self._why or f"the engine could not be opened: {error}"
        self._end()
        if not self.opened.done():
            self.opened.set_exception(error)

    def _done(self, future: "asyncio.Future[Done]", done: Done) -> None:
        self._waiting.discard(future)
        self._room.release()
        if not future.done():
            future.set_result(done)

    def _broke(self, why: str) -> None:
        self._why = why
        for future in self._waiting:
            self._room.release()
            if not future.done():
                future.set_exception(Bug(why))
        self._end()

    def _end(self) -> None:
        self._waiting.clear()
        if not self._ended.done():
            self._ended.set_result(None)
