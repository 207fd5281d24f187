"""The pipelines that go through a stage: who sends to it, whom it sends to, and who is told of what went wrong."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from gpu_worker.core.errors import Unavailable
from gpu_worker.core.inference.batch import Batch, LinkFault, Route
from gpu_worker.core.inference.layers import Layers, gap
from gpu_worker.core.inference.passes import Shown
from gpu_worker.inference.ports import Links, Registry
from gpu_worker.inference.sender import Sender

# Sends on the stream that a batch came by. Raises Unavailable: who listened is gone.
Reply = Callable[[Batch], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageLimits:
    """What a stage takes from others at most. `idle_s`: how long a session may be silent. `reply_s`: for one answer."""

    pipelines: int = 64
    sessions: int = 4_096
    ring_bytes: int = 256 << 20
    idle_s: float = 300.0
    reply_s: float = 5.0


@dataclass(slots=True, kw_only=True)
class Pipeline:
    """
    A way through this stage: who sends to it, to whom the last stage answers, and how it goes on.

    `head` is whom the passes of its streams name, empty where nobody is asked for one.

    `turn` is had by who sends on, so that a batch of which something is refused is not overtaken by the next one.
    """

    route: Route
    head: str = ""
    incoming: Reply | None = None
    answers: Reply | None = None
    sender: Sender | None = None
    sessions: set[str] = field(default_factory=set)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def name(self) -> str:
        return self.route.pipeline

    @property
    def streams(self) -> tuple[Reply | None, ...]:
        return self.incoming, self.answers

    @property
    def is_last(self) -> bool:
        return self.route.index == len(self.route.hops) - 1


def _upwards(batch: Batch) -> Batch:
    """Return what of a batch may come from behind."""
    return Batch(
        pipeline=batch.pipeline,
        epoch=batch.epoch,
        number=batch.number,
        group=batch.group,
        tokens=batch.tokens,
        refusals=batch.refusals,
        faults=batch.faults,
        opened=batch.opened,
        compute_s=batch.compute_s,
    )


def _word(pipeline: Pipeline, fault: LinkFault) -> Batch:
    return Batch(pipeline=pipeline.name, epoch=pipeline.route.epoch, faults=(fault,))


class Pipelines:
    def __init__(
        self,
        *,
        layers: Layers,
        endpoint: str,
        links: Links,
        registry: Registry,
        limits: StageLimits,
    ) -> None:
        self.endpoint = endpoint
        self.all: dict[str, Pipeline] = {}
        self._layers = layers
        self._links, self._registry, self._limits = links, registry, limits
        self._streams: dict[Reply, Shown] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def begin(self, reply: Reply, shown: Shown) -> None:
        """A stream was opened; `shown` is what its pass admits."""
        self._streams[reply] = shown

    def of(self, batch: Batch, reply: Reply) -> Pipeline | LinkFault | None:
        """
        Return the pipeline of a batch that came by the stream `reply`, its route taken over, or why there is none.

        None: the batch is of a route that is gone.
        """
        shown = self._streams.get(reply)
        if shown is None:
            return self._fault("no_route", "the stream was opened to layers that are gone, or has ended")
        if shown.pipeline not in ("", batch.pipeline):
            return self._fault("forbidden", "the pass of this stream is of another pipeline")
        known = self.all.get(batch.pipeline)
        if known is not None and known.head != shown.head:
            return self._fault("forbidden", "that pipeline is of another head")
        if known is not None and batch.epoch < known.route.epoch:
            return None
        if batch.route is not None:
            return self._take(batch.route, known, reply, shown)
        if known is None or batch.epoch != known.route.epoch or reply not in known.streams:
            return self._fault("no_route", "the first batch of a stream brings its route")
        return known

    def _take(self, route: Route, known: Pipeline | None, reply: Reply, shown: Shown) -> Pipeline | LinkFault:
        why = self._flaw(route)
        if why is not None:
            return self._fault("invalid_argument", why)
        if known is None:
            if len(self.all) >= self._limits.pipelines:
                return self._fault("no_capacity", f"{self._limits.pipelines} pipelines go through this stage, no more")
            known = self.all[route.pipeline] = Pipeline(route=route, head=shown.head)
        elif route.answers and known.answers not in (None, reply) and route.epoch == known.route.epoch:
            return self._fault("forbidden", "that pipeline has its answers by another stream")
        known.route = route
        if route.answers:
            known.answers = reply
        else:
            known.incoming = reply
        if not known.is_last:
            self._lead(known, route.hops[route.index + 1].endpoint, shown.session_pass)
        return known

    def _flaw(self, route: Route) -> str | None:
        """Return why this stage cannot be on that route, None where it can."""
        try:
            slices = [Layers(hop.start, hop.end, self._layers.total) for hop in route.hops]
        except Exception as why:
            return str(why)
        if (hole := gap(slices)) is not None:
            return hole
        if not 0 < route.index < len(slices) or slices[route.index] != self._layers:
            return f"this stage has layers {self._layers}, its place on the route says otherwise"
        return None

    def _lead(self, pipeline: Pipeline, endpoint: str, session_pass: str) -> None:
        """Let the pipeline go on to `endpoint`, by the link that it has where that is whole, else with that pass."""
        old = pipeline.sender
        if old is not None and old.endpoint == endpoint and not old.is_broken:
            return
        if old is not None:
            self._close(old)

        async def back(batch: Batch) -> None:
            if batch.pipeline == pipeline.name:
                await self.up(pipeline, _upwards(batch))

        async def lost(fault: LinkFault) -> None:
            await self.up(pipeline, _word(pipeline, fault))

        pipeline.sender = Sender(
            self._links, endpoint, back=back, lost=lost, allow=self._may_dial, session_pass=session_pass
        )

    async def _may_dial(self, endpoint: str) -> bool:
        try:
            return any(hop.endpoint == endpoint for hop in await self._registry.stages())
        except Unavailable:
            return False

    def _fault(self, code: str, detail: str) -> LinkFault:
        return LinkFault(endpoint=self.endpoint, code=code, detail=detail)

    def own_word(self, pipeline: Pipeline, code: str, detail: str) -> Batch:
        """Return the batch that says to the head that this stage itself is lost to it."""
        return _word(pipeline, self._fault(code, detail))

    async def up(self, pipeline: Pipeline, batch: Batch) -> None:
        """Send towards the head by the stage before this one."""
        await self.tell(pipeline.incoming or pipeline.answers, batch)

    async def answer(self, pipeline: Pipeline, batch: Batch) -> None:
        """Send to the head by the stream that it opened to this stage, if it did."""
        await self.tell(pipeline.answers or pipeline.incoming, batch)

    async def tell(self, stream: Reply | None, batch: Batch) -> None:
        """Send by `stream`; one that is gone, or takes nothing for too long, is used no more."""
        if stream is None:
            return
        try:
            async with asyncio.timeout(self._limits.reply_s):
                await stream(batch)
        except (Unavailable, TimeoutError):
            self.ended(stream)

    async def tell_all(self, code: str, detail: str) -> None:
        """Send a fault of this stage itself by every stream of every pipeline."""
        told = [
            self.tell(stream, self.own_word(each, code, detail))
            for each in self.all.values()
            for stream in {each.incoming, each.answers}
        ]
        await asyncio.gather(*told)

    def ended(self, stream: Reply) -> None:
        """A stream is over. Its pipelines wait for another one as long as they have sessions."""
        self._streams.pop(stream, None)
        for pipeline in [*self.all.values()]:
            pipeline.incoming = None if pipeline.incoming == stream else pipeline.incoming
            pipeline.answers = None if pipeline.answers == stream else pipeline.answers
            self.drop_unused(pipeline)

    def drop_unused(self, pipeline: Pipeline) -> None:
        """Forget the pipeline where nobody sends to it and it has no session."""
        if pipeline.incoming is None and pipeline.answers is None and not pipeline.sessions:
            self._forget(pipeline)

    def _forget(self, pipeline: Pipeline) -> None:
        self.all.pop(pipeline.name, None)
        if pipeline.sender is not None:
            self._close(pipeline.sender)

    def _close(self, sender: Sender) -> None:
        task = asyncio.create_task(sender.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def flush(self) -> None:
        """Return once what goes on to other stages was sent; the caller has a limit."""
        await asyncio.gather(*(each.sender.flush() for each in self.all.values() if each.sender is not None))

    async def close(self) -> None:
        for pipeline in self.all.values():
            if pipeline.sender is not None:
                self._close(pipeline.sender)
        self.all.clear()
        await asyncio.gather(*self._closing)
