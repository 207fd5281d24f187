"""Sessions of the last stage that are opened once their JSON schema is compiled; the steps of all others go on."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

from gpu_worker.core.errors import Bug
from gpu_worker.core.inference.batch import Batch
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.step import Open, Refusal
from gpu_worker.inference.ports import Engine
from gpu_worker.inference.stage.pipelines import Pipeline, Pipelines, Reply
from gpu_worker.inference.stage.sessions import StageSessions

_LOG = logging.getLogger("livery.gpu_worker")


def _refused(new: Open, code: str, detail: str) -> Refusal:
    return Refusal(session=new.session, epoch=new.epoch, code=code, detail=detail)


def _schema_of(new: Open) -> str:
    return (new.sampling and new.sampling.schema) or ""


class Compiling:
    """At most `most` wait. `serve` does what a batch asks for once it can be done."""

    def __init__(
        self,
        engine: Engine,
        pipelines: Pipelines,
        sessions: StageSessions,
        *,
        most: int,
        serve: Callable[[Pipeline, Batch], Awaitable[None]],
    ) -> None:
        self._engine, self._pipelines, self._sessions = engine, pipelines, sessions
        self._most, self._serve = most, serve
        self._waiting: dict[tuple[str, str], Open] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def put_off(self, pipeline: Pipeline, batch: Batch, reply: Reply) -> Batch:
        """Return the batch without the opens that are done later, each once its JSON schema is compiled."""
        refusals = []
        for name in batch.closes:
            if (new := self._waiting.pop((batch.pipeline, name), None)) is not None:
                # Closes come by the stages between, opens straight from the head: it may have been said before.
                refusals.append(_refused(new, "unknown_session", "the session was closed before it was open"))
        later = [each for each in batch.opens if _schema_of(each) and self._sessions.admits(pipeline, each)]
        for new in later:
            if len(self._waiting) >= self._most:
                refusals.append(_refused(new, "no_capacity", f"{len(self._waiting)} sessions wait for their schema"))
                continue
            self._waiting[batch.pipeline, new.session] = new
            only = Batch(pipeline=batch.pipeline, epoch=batch.epoch, opens=(new,))
            task = asyncio.create_task(self._open_later(only, reply))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if refusals:
            word = Batch(pipeline=batch.pipeline, epoch=batch.epoch, refusals=tuple(refusals))
            await self._pipelines.answer(pipeline, word)
        return replace(batch, opens=tuple(each for each in batch.opens if each not in later)) if later else batch

    async def _open_later(self, batch: Batch, reply: Reply) -> None:
        """Open a session of the last stage; the steps of all others go on meanwhile."""
        (new,), refusal = batch.opens, None
        try:
            await self._engine.prepare(_schema_of(new))
        except InferenceError as why:
            refusal = _refused(new, why.code, str(why))
        except Exception:
            _LOG.exception("a JSON schema could not be compiled")
            refusal = _refused(new, "internal", "the schema could not be compiled here")
        key = batch.pipeline, new.session
        # It may have been closed meanwhile, and another session of its name may wait.
        if self._waiting.get(key) is not new:
            return
        del self._waiting[key]
        pipeline = self._pipelines.of(batch, reply)
        if not isinstance(pipeline, Pipeline):
            return
        if refusal is not None:
            word = Batch(pipeline=batch.pipeline, epoch=batch.epoch, refusals=(refusal,))
            await self._pipelines.answer(pipeline, word)
            return
        with suppress(Bug):  # all heads have been told
            await self._serve(pipeline, batch)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
