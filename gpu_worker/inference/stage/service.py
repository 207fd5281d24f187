"""What every stage but the head does with a step: check it, compute it, send it on, or answer it from the last one."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from gpu_worker.core.errors import Bug
from gpu_worker.core.inference.batch import Batch, Hop, LinkFault, Refill
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.ring import Ring
from gpu_worker.core.inference.rows import flaw, join, pick
from gpu_worker.core.inference.step import CacheUse, Done, Refusal, Run, SliceInfo, Step, Tensor
from gpu_worker.core.inference.tensor import may_send
from gpu_worker.inference.ports import Engine, Links, Registry
from gpu_worker.inference.stage.compiling import Compiling
from gpu_worker.inference.stage.pipelines import Pipeline, Pipelines, Reply, StageLimits
from gpu_worker.inference.stage.sessions import Decided, NoPasses, Passes, StageSessions

CLOSE_S = 1.0
LEAVING = "this stage is about to go"
_NOTHING = Done()


def _unkept(refill: Refill, why: str) -> Refusal:
    return Refusal(session=refill.session, epoch=refill.epoch, code="position_gap", detail=why)


class StageService:
    """
    One stage for all heads whose pipelines go through it.

    What a batch asks for is decided before anything is awaited, so calls of `receive` may overlap: the engine takes
    the steps in the order of the calls, and they are sent on in that order.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        links: Links,
        registry: Registry,
        endpoint: str,
        passes: Passes | None = None,
        limits: StageLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.info: SliceInfo = engine.info
        self.limits = limits or StageLimits()
        self.ring = Ring(self.limits.ring_bytes)
        layers = self.info.layers
        self.pipelines = Pipelines(
            layers=layers,
            endpoint=endpoint,
            links=links,
            registry=registry,
            limits=self.limits,
        )
        self._hop = Hop(endpoint=endpoint, start=layers.start, end=layers.end)
        self._passes = passes or NoPasses()
        self.sessions = StageSessions(
            info=self.info, hop=self._hop, ring=self.ring, passes=self._passes, limits=self.limits, clock=clock
        )
        self._engine = engine
        self._compiling = Compiling(engine, self.pipelines, self.sessions, most=self.limits.sessions, serve=self._serve)
        self._under_way = 0
        self._still = asyncio.Event()
        self._still.set()

    @property
    def cache(self) -> CacheUse:
        return self._engine.cache

    def begin(self, reply: Reply, session_pass: str) -> None:
        """A stream is opened. Raises InferenceError unauthenticated: its pass does not admit it here."""
        self.pipelines.begin(reply, self._passes.check_stream(session_pass, self._hop))

    async def receive(self, batch: Batch, reply: Reply) -> None:
        """
        Do what a batch asks for that came by the stream `reply`; answer it or send it on.

        Raises:
            InferenceError: the batch is malformed: the stream is to be ended with that code. Nothing was done, other
                streams are untouched.
            Bug: the engine is broken. All heads have been told.
        """
        self._under_way += 1
        self._still.clear()
        try:
            await self._receive(batch, reply)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._still.set()

    async def _receive(self, batch: Batch, reply: Reply) -> None:
        why = flaw(batch, self.info)
        if why is not None:
            raise InferenceError("invalid_tensor", why)
        pipeline = self.pipelines.of(batch, reply)
        if isinstance(pipeline, LinkFault):
            if pipeline.code == "forbidden":
                raise InferenceError(pipeline.code, pipeline.detail)
            await self.pipelines.tell(reply, Batch(pipeline=batch.pipeline, epoch=batch.epoch, faults=(pipeline,)))
            return
        if pipeline is None:
            # Of a route that is gone. Its closes are dropped, too: a session that moved is closed on the stages which
            # it has left, and those pass it on by their old route to stages that it still has.
            return
        if self.sessions.is_draining and batch.route is not None:
            await self.pipelines.tell(reply, self.pipelines.own_word(pipeline, "draining", LEAVING))
        await self._serve(
            pipeline, await self._compiling.put_off(pipeline, batch, reply) if pipeline.is_last else batch
        )

    async def _serve(self, pipeline: Pipeline, batch: Batch) -> None:
        decided = self.sessions.decide(pipeline, batch)
        done = await self._compute(decided.step(batch, pipeline.route.takes))
        self.sessions.settle(decided, done)
        if pipeline.is_last:
            await self._answer(pipeline, batch, decided, done)
        else:
            async with pipeline.turn:
                await self._send_on(pipeline, batch, decided, done)

    async def _compute(self, step: Step | None) -> Done:
        if step is None:
            return _NOTHING
        try:
            # Its stream may end meanwhile: what is planned is done all the same, a close above all.
            return await asyncio.shield(asyncio.ensure_future(self._engine.step(step)))
        except Bug as why:
            await self.pipelines.tell_all("internal", str(why))
            raise

    async def _answer(self, pipeline: Pipeline, batch: Batch, decided: Decided, done: Done) -> None:
        no_next = (_unkept(each, "the last stage has none to fill") for each in batch.refills)
        refusals = (*decided.refusals, *done.refusals, *no_next)
        refused = {each.session for each in refusals}
        answer = Batch(
            pipeline=batch.pipeline,
            epoch=batch.epoch,
            number=batch.number,
            group=batch.group,
            tokens=(*done.tokens, *decided.tokens),
            refusals=refusals,
            opened=tuple(each.session for each in decided.begun if each.session not in refused),
            compute_s=(*batch.compute_s, done.compute_s),
        )
        await self.pipelines.answer(pipeline, answer)

    async def _send_on(self, pipeline: Pipeline, batch: Batch, decided: Decided, done: Done) -> None:
        runs, hidden, unlike = self._rows(decided, done)
        refusals = (*decided.refusals, *done.refusals, *unlike)
        if refusals:
            # Before the rest goes on, so that the head hears of them before the answer to it.
            word = Batch(pipeline=batch.pipeline, epoch=batch.epoch, number=batch.number, refusals=refusals)
            await self.pipelines.up(pipeline, word)
        if batch.runs and all(run.fills for run in batch.runs):
            return
        refused = {each.session for each in refusals}
        on = Batch(
            pipeline=batch.pipeline,
            epoch=batch.epoch,
            number=batch.number,
            group=batch.group,
            route=None if batch.route is None else replace(batch.route, index=batch.route.index + 1),
            closes=batch.closes,
            opens=tuple(each for each in decided.begun if each.session not in refused),
            runs=runs,
            hidden=hidden,
            refills=batch.refills,
            compute_s=(*batch.compute_s, done.compute_s),
        )
        mine = tuple(each for each in batch.refills if each.index == pipeline.route.index)
        if mine:
            on = await self._refill(pipeline, on, mine)
        if pipeline.sender is not None:
            await pipeline.sender.send(on)

    def _rows(self, decided: Decided, done: Done) -> tuple[tuple[Run, ...], Tensor | None, tuple[Refusal, ...]]:
        """
        Return the runs that go on, and their rows; what was computed is kept.

        Refused are repeated runs whose rows were kept in another dtype than the others': one message has one.
        """
        runs: tuple[Run, ...] = ()
        hidden: Tensor | None = None
        if done.hidden is not None and done.runs:
            self.ring.keep(done.runs, done.hidden)
            for run in done.runs:
                if run.session not in self.sessions:
                    self.ring.drop(run.session)  # closed in the meantime
            runs = tuple(run for run in done.runs if not run.fills)
            hidden = pick(done.hidden, done.runs, runs) if runs else None
        dtype = next((rows.dtype for rows in (hidden, *(rows for _, rows in decided.again)) if rows is not None), "")
        again = [(run, rows) for run, rows in decided.again if rows.dtype == dtype]
        unlike = tuple(
            Refusal(session=run.session, epoch=run.epoch, code="position_gap", detail=f"its rows are {rows.dtype}")
            for run, rows in decided.again
            if rows.dtype != dtype
        )
        runs += tuple(run for run, _ in again)
        return runs, join((hidden, *(rows for _, rows in again))), unlike

    async def _refill(self, pipeline: Pipeline, on: Batch, mine: tuple[Refill, ...]) -> Batch:
        """Fill the next stage's cache from the ring. Returns what of `on` is still to be sent."""
        assert pipeline.sender is not None
        first = Batch(pipeline=on.pipeline, epoch=on.epoch, route=on.route, closes=on.closes, opens=on.opens)
        await pipeline.sender.send(first)
        for refill in mine:
            is_kept = refill.session in pipeline.sessions and self.ring.length(refill.session) >= refill.length
            if not is_kept or not may_send(self.ring.dtype(refill.session), self.info.dtype, pipeline.route.takes):
                no = _unkept(refill, "its rows are no longer kept")
                await self.pipelines.up(pipeline, Batch(pipeline=on.pipeline, epoch=on.epoch, refusals=(no,)))
                continue
            for run, rows in self.ring.fills(refill):
                await pipeline.sender.send(Batch(pipeline=on.pipeline, epoch=on.epoch, runs=(run,), hidden=rows))
        others = tuple(each for each in on.refills if each not in mine)
        return replace(on, route=None, closes=(), opens=(), refills=others)

    def ended(self, reply: Reply) -> None:
        """The stream is over. Its sessions stay until they are silent for too long: the head may come back for them."""
        self.pipelines.ended(reply)
        if self.sessions.is_draining:
            self.leave()

    def leave(self) -> None:
        """Take no new sessions. Those that nobody can send to any more have moved, and are forgotten. Idempotent."""
        self.sessions.is_draining = True
        for pipeline in [*self.pipelines.all.values()]:
            if pipeline.incoming is None and pipeline.answers is None:
                for name in [*pipeline.sessions]:
                    self.sessions.forget(name)
                self.pipelines.drop_unused(pipeline)

    async def tidy(self) -> int:
        """Close the sessions that are silent for too long. Returns how many."""
        silent = self.sessions.silent()
        for name in silent:
            self.sessions.forget(name)
        if silent:
            await self._compute(Step(closes=tuple(silent)))
        for pipeline in [*self.pipelines.all.values()]:
            self.pipelines.drop_unused(pipeline)
        return len(silent)

    async def tend(self) -> None:
        """Tidy for ever."""
        while True:
            await asyncio.sleep(self.limits.idle_s / 4)
            await self.tidy()

    async def close(self) -> None:
        """End all links. What came before is sent on first: a close that is lost is a cache that nobody gives back."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self._still.wait()
                await self.pipelines.flush()
        self._compiling.close()
        await self.pipelines.close()
