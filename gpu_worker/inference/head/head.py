"""The head of a pipeline: takes requests, leads the steps through all stages, finds another way when one breaks."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gpu_worker.core.inference.batch import Hop, LinkFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.deadlines import StepTimes
from gpu_worker.core.inference.ring import Ring
from gpu_worker.core.inference.step import SliceInfo
from gpu_worker.inference.head.desk import Desk, HeadLimits
from gpu_worker.inference.head.finder import Finder, Kind
from gpu_worker.inference.head.lanes import Lanes
from gpu_worker.inference.head.parts import HeadParts
from gpu_worker.inference.head.recovery import Left, blame, farewell, left, resume
from gpu_worker.inference.head.shape import Shape
from gpu_worker.inference.head.watch import Break
from gpu_worker.inference.ports import Engine, HeadStats, HeadStatus, Links, Registry, TokenRequest, TokenStream

_LOG = logging.getLogger("livery.gpu_worker")
_TEND_S = 0.1
_PAUSE_S = 0.05
_DOUBLED_MAX = 16
CLOSE_S = 5.0


class Head:
    """
    `inference.ports.Generator` over the slices of several workers, the first of them its own, or over its own alone.

    `serve` leads its pipeline, until `close` or for the life of the worker. `endpoint` is this worker's own.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        links: Links,
        registry: Registry,
        endpoint: str,
        limits: HeadLimits | None = None,
        name: str | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.limits = limits or HeadLimits()
        self.stats = HeadStats()
        self.hops: tuple[Hop, ...] = ()
        self.is_draining = False
        self._info = engine.info
        self._registry = registry
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._desk = Desk(self.limits, self.stats, self._clock)
        own = Hop(endpoint=endpoint, start=self._info.layers.start, end=self._info.layers.end)
        self.finder = Finder(
            info=self._info, own=own, links=links, registry=registry, ask_s=self.limits.ask_s, clock=self._clock
        )
        self._parts = HeadParts(
            name=name or f"{endpoint}/{secrets.token_hex(8)}", engine=engine, links=links, registry=registry,
            desk=self._desk, ring=Ring(self.limits.ring_bytes), times=StepTimes(), shape=Shape(self._info.cost_s),
            clock=self._clock, leaving=self._leaving, answered=self._answered,
        )  # fmt: skip
        self._pipeline: Lanes | None = None
        self._epoch = 0
        self._next: tuple[Hop, ...] | None = None
        # How each layer was computed for the sessions that are open.
        self._like: tuple[Kind | None, ...] = ()
        self._reconsider = asyncio.Event()
        # Since when no step was answered after a break, and how many routes were of no use since then.
        self._lost_s: float | None = None
        self._vain = 0
        self._answered_s = 0.0
        self._broken_at_s: float | None = None
        self._gap_s = 0.0
        self._is_closed = False
        self._closing = asyncio.Event()
        self._left: list[Left] = []
        self._farewells: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._ended.set()

    @property
    def info(self) -> SliceInfo:
        return self._info

    async def start(self, request: TokenRequest) -> TokenStream:
        """Return the session's stream. Raises InferenceError: see `inference.ports.Generator`."""
        try:
            self._check(request)
            if request.sampling.schema is not None:
                await self._parts.engine.prepare(request.sampling.schema)
                self._check(request)
            return self._desk.admit(request, self._clock())
        except InferenceError:
            self.stats.refused += 1
            raise

    def _check(self, request: TokenRequest) -> None:
        """Raises InferenceError: the request cannot be served, whoever else is."""
        count, needed = len(request.prompt), len(request.prompt) + request.tokens_max
        if needed > self._info.context:
            why = f"a prompt of {count} tokens and {request.tokens_max} more pass the context of {self._info.context}"
            raise InferenceError("context_length_exceeded", why)
        if count == 0:
            raise InferenceError("invalid_argument", "the prompt is empty")
        if request.tokens_max < 1:
            raise InferenceError("invalid_argument", "at least one token must be asked for")
        if not all(0 <= token < self._info.vocab_size for token in request.prompt):
            raise InferenceError("invalid_argument", f"the prompt has a token that is none of {self._info.vocab_size}")
        if needed > self._parts.engine.cache.positions_max:
            raise InferenceError("no_capacity", f"the cache has no {needed} positions")
        if self.is_draining:
            raise InferenceError("draining", "this worker takes no new sessions, it is about to go")
        if not self.hops and not self._desk.open:
            raise InferenceError("no_route", self.why_no_route())

    def why_no_route(self) -> str:
        """Return in one sentence why there is no route."""
        said = "; ".join(f"{endpoint}: {why}" for endpoint, why in self.finder.refused.items())
        return f"no stages cover all {self._info.layers.total} layers" + (f" ({said})" if said else "")

    def drain(self) -> None:
        """Take no new sessions; those that are there go on to their end, which `drained` waits for."""
        self.is_draining = True

    async def drained(self) -> None:
        await self._desk.idle.wait()

    async def close(self) -> None:
        """End all sessions, here and on the other stages; `serve` returns then. Idempotent."""
        self.is_draining = self._is_closed = True
        self._desk.end_all("draining", "this worker is gone")
        if self._pipeline is not None:
            self._pipeline.stop(is_over=True)
        self._closing.set()
        await self._ended.wait()

    def status(self) -> HeadStatus:
        self.stats.running, self.stats.waiting = len(self._desk.open), len(self._desk.waiting)
        times = self._parts.times
        return HeadStatus(
            hops=self.hops,
            epoch=self._epoch,
            groups=self._pipeline.groups if self._pipeline else 0,
            step_p50_s=times.percentile_s(0.5),
            step_p99_s=times.percentile_s(0.99),
            gap_s=self._gap_s,
            is_draining=self.is_draining,
            stats=replace(self.stats),
            compute_s=tuple(self._parts.shape.total_s.get(hop.endpoint, 0.0) for hop in self.hops),
        )

    async def serve(self) -> None:
        """Lead the pipeline until closed or cancelled. Raises Bug: the engine is broken; all streams end with that."""
        self._ended.clear()
        why = ("internal", "the engine of this worker is broken")
        others = [asyncio.create_task(each) for each in (self._tend(), self._watch(), self._improve())]
        leading = asyncio.create_task(self._lead())
        closing: asyncio.Task[Any] = asyncio.create_task(self._closing.wait())
        try:
            await asyncio.wait((leading, closing, *others), return_when=asyncio.FIRST_COMPLETED)
            if closing.done() and self._pipeline is not None:
                await asyncio.wait((leading,), timeout=CLOSE_S)
            for task in (leading, *others):
                if task.done():
                    task.result()
        except asyncio.CancelledError:
            why = ("draining", "this worker is gone")
            raise
        finally:
            tasks = (leading, closing, *others, *self._farewells)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._desk.end_all(*why)
            self._ended.set()

    async def _lead(self) -> None:
        settled: tuple[Hop, ...] = ()
        last, why = settled, Break()
        while not self._is_closed:
            hops = self._next or await self._find(last)
            if self._closing.is_set():
                return
            self._next = None
            self._left += left(last, self._epoch, hops, why, tuple(self._desk.open))
            self._epoch += 1
            pipeline = self._pipeline = Lanes(self._parts, hops, self._epoch)
            try:
                self._compare(hops)
                places = resume(self._desk, self._parts.ring, settled, hops, self._info.dtype)
                await pipeline.begin(places, tuple(self._desk.open.values()))
                self.hops = hops
                why = await pipeline.run()
            finally:
                self._pipeline = None
                await pipeline.close()
            # Until a step went through, nobody knows what the new stages have; the old ones have what they had.
            settled = hops if pipeline.is_proven or not settled else settled
            last, self._vain = hops, 0 if pipeline.is_proven else self._vain + 1
            if not self._is_closed:
                await self._after(why)

    def _compare(self, hops: tuple[Hop, ...]) -> None:
        """Tell of it where open sessions go on over stages that compute in another way."""
        strange = [hop.endpoint for hop in hops if self.finder.is_strange(hop, self._like)]
        if strange and self._desk.open:
            _LOG.warning("%s compute in another way than those before: tokens may change", ", ".join(strange))
            self.stats.changed_kinds += len(self._desk.open)
        self._like = self.finder.kinds(hops)

    async def _after(self, why: Break) -> None:
        if not why.lost and not why.suspect:
            self.stats.moves += 1
            return
        _LOG.warning("the route is broken (%s): lost %s", why.detail, ", ".join(sorted(why.lost)) or "nobody")
        self.stats.failovers += 1
        # Forgotten when a step is answered: a stage that says it is there and computes nothing is found ever again.
        self._lost_s = self._clock() if self._lost_s is None else self._lost_s
        if self._desk.open and self._broken_at_s is None:
            self._broken_at_s = max(self._answered_s, self._desk.busy_since_s)
        blame(self.finder, why)
        if self._vain > 1:
            await asyncio.sleep(min(self.limits.retry_s, _PAUSE_S * 2 ** min(self._vain, _DOUBLED_MAX)))

    async def _find(self, now: tuple[Hop, ...]) -> tuple[Hop, ...]:
        """Return a route, as soon as there is one."""
        while (hops := await self.finder.find(now, self._like if self._desk.open else ())) is None:
            self.hops, self._lost_s = (), self._clock() if self._lost_s is None else self._lost_s
            try:
                async with asyncio.timeout(self.limits.retry_s):
                    await self._registry.changed()
            except TimeoutError:
                pass
        return hops

    async def _watch(self) -> None:
        while True:
            await self._registry.changed()
            self._reconsider.set()

    def _leaving(self, fault: LinkFault) -> None:
        self.finder.leaving(fault.endpoint)
        self._reconsider.set()

    async def _improve(self) -> None:
        """
        Move the sessions, at a step's border, when the stages are others than before and a better route is there.

        Where a stage is about to go, or was not ready, it is looked for again and again: no registry tells of that.
        """
        while True:
            try:
                async with asyncio.timeout(self.limits.retry_s):
                    await self._reconsider.wait()
            except TimeoutError:
                pass
            pipeline, is_told = self._pipeline, self._reconsider.is_set()
            self._reconsider.clear()
            if pipeline is None or not (is_told or self.finder.refused or self.finder.is_leaving(pipeline.hops)):
                continue
            like = self._like if self._desk.open else ()
            better = await self.finder.find(pipeline.hops, like)
            if better is None or better == pipeline.hops or pipeline is not self._pipeline:
                continue
            is_strange = self._desk.open and any(self.finder.is_strange(hop, self._like) for hop in better)
            if not is_strange or self.finder.is_leaving(pipeline.hops):
                self._next = better
                pipeline.stop()

    async def _tend(self) -> None:
        while True:
            await asyncio.sleep(_TEND_S)
            now = self._clock()
            if self.hops and self._desk.idle.is_set():
                self._lost_s = None
            # The first route after a break has as long as its steps need: what is refilled may be long.
            self._desk.tend(now, self._lost_s if self._vain or not self.hops else None)
            if self._pipeline is not None:
                self._pipeline.tend(now)
                if self._left and (self._pipeline.is_proven or not self._desk.open):
                    self._say_farewell(self._pipeline)

    def _say_farewell(self, pipeline: Lanes) -> None:
        for each in self._left:
            if each.hops[each.index] not in pipeline.hops:
                task = asyncio.create_task(farewell(self._parts, each))
                self._farewells.add(task)
                task.add_done_callback(self._farewells.discard)
        self._left.clear()

    def _answered(self, now: float) -> None:
        self._answered_s, self._lost_s = now, None
        if self._broken_at_s is not None:
            self._gap_s, self._broken_at_s = now - self._broken_at_s, None
