"""
The life of this worker's slice: which layers it has, loading them, standing in pipelines, and giving them up.

Where the topology gives this worker other layers it lets its sessions go elsewhere, loads those, and is ready again;
a head's new requests wait for that.
"""

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from gpu_worker.core.errors import Bug, OwnersFault
from gpu_worker.core.inference.batch import Batch, Hop
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.seen import Seen
from gpu_worker.core.inference.step import SliceInfo
from gpu_worker.core.inference.tensor import HIDDEN
from gpu_worker.inference.head.head import Head
from gpu_worker.inference.ports import Generator, HeadStats, HeadStatus, Text, TokenRequest, TokenStream
from gpu_worker.inference.slice.around import Around
from gpu_worker.inference.slice.document import document
from gpu_worker.inference.slice.parts import Door, SliceParts, SliceState, Watched
from gpu_worker.inference.stage.drain import drain_slices
from gpu_worker.inference.stage.forward import Forward, Forwarded, ForwardService
from gpu_worker.inference.stage.service import StageService
from gpu_worker.inference.text.token_engine import TokenEngine
from gpu_worker.model_port import Tell

WAIT_S = 30.0  # what a request that comes while the head loads other layers waits for at most
LOOK_S = 0.05
AGAIN_S = 5.0
ROUTE_LOOKS = 20
STOP_S = 0.5  # what calls of the gRPC door that have had their answers need at most to end

_NO_ROUTE = HeadStatus(
    hops=(), epoch=0, groups=0, step_p50_s=0.0, step_p99_s=0.0, gap_s=0.0, is_draining=False, stats=HeadStats()
)

_LOG = logging.getLogger("livery.gpu_worker")


class Serving:
    """
    This worker's slice. It implements `Steps` for the gRPC door and `Generator` for the HTTP door.

    `progress` is what is being loaded: how many tensors, of how many. `notes` are for the owner.
    """

    key = "slice"

    def __init__(self, parts: SliceParts, tell: Tell) -> None:
        self.parts = parts
        self.door: Door | None = None
        self.state: SliceState = "waiting"
        self.progress: tuple[int, int] = (0, 0)
        self.layers = parts.layers()
        self.around = Around(parts, self.seen)
        self._tell = tell
        self._engine: Watched | None = None
        self._head: Head | None = None
        self._stage: StageService | None = None
        self._forward: ForwardService | None = None
        self._working: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._info: SliceInfo | None = None
        self._fault = ""
        place = parts.place
        place.cache = lambda: None if self._engine is None else self._engine.cache
        place.stages = self.around.seen
        place.head_url = self.around.head_url
        place.head = lambda: None if self._head is None else self._head.status()

    async def load(self) -> None:
        """Load the layers and be ready. Raises OwnersFault: they cannot be; the sentence says why."""
        self.layers = self.parts.layers()
        self.parts.place.layers = self.layers
        await self._enter("loading")
        engine, text = await self.parts.load(self.layers, self._progressed)
        self._engine = Watched(engine)
        self._info = engine.info
        service = self.parts.service
        if self.layers.is_first:
            self._head = self.parts.head(self._engine)
            self._working = asyncio.create_task(self._head.serve())
            assert text is not None
            service.engine = TokenEngine(self.parts.model, self, text, service.new_id)
        else:
            self._stage = self.parts.stage(self._engine)
            self._working = asyncio.create_task(self._stage.tend())
            service.engine = None
        self._forward = self.parts.forward(self._engine, text)
        self.parts.place.is_loaded = True
        await self._first_route()
        await self._enter("ready")
        self._ready.set()
        await self.around.look(self.layers)

    async def _first_route(self) -> None:
        """Return once the head has a route, or none is to be had as yet: who asks is told why."""
        for _ in range(ROUTE_LOOKS):
            if self._head is None or self._head.status().hops:
                return
            await asyncio.sleep(LOOK_S)

    async def keep(self) -> None:
        """Serve for ever, with other layers where the topology says so. Raises Bug: the engine is broken."""
        while True:
            # What changed while it was loading was not waited for.
            await self._follow()
            changing = asyncio.ensure_future(self.parts.registry.changed())
            assert self._engine is not None
            assert self._working is not None
            ends: tuple[asyncio.Future[Any], ...] = (self._engine.broken, self._working)
            try:
                await asyncio.wait((changing, *ends), timeout=AGAIN_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changing.cancel()
            for end in ends:
                if end.done():
                    raise Bug(f"the engine is broken: {end.exception() or end.result()}")

    async def _follow(self) -> None:
        """Have the layers that the topology gives this worker now."""
        try:
            wanted = self.parts.layers()
        except OwnersFault as fault:
            if str(fault) != self._fault:
                _LOG.warning("the layers stay %s: %s", self.layers, fault)
            self._fault = str(fault)
            wanted = self.layers
        if wanted != self.layers:
            _LOG.info("the topology gives it layers %s: it lets %s go", wanted, self.layers)
            await self._give_up()
            await self.load()
        await self.around.look(self.layers)

    async def _give_up(self) -> None:
        """Let the sessions go elsewhere and free the memory; requests that come meanwhile wait."""
        self._ready.clear()
        self.parts.place.is_loaded = False
        await self._enter("draining")
        try:
            await asyncio.wait_for(self._drained(), self.parts.drain_s)
        except TimeoutError:
            _LOG.warning("not every session went elsewhere within %g s", self.parts.drain_s)
        await self._close_slice()

    async def leave(self) -> None:
        """Take nothing new, and return once what is open has ended or gone elsewhere. Idempotent; may be cancelled."""
        self.parts.service.is_draining = True
        if self.state in ("gone", "waiting"):
            return
        await self._enter("draining")
        await self._drained()

    async def _drained(self) -> None:
        if self._stage is not None:
            await drain_slices(self._stage, self.parts.drain_s)
        if self._head is not None:
            self._head.drain()
            await self._head.drained()

    async def close(self) -> None:
        """End everything. Idempotent."""
        if self.state == "gone":
            return
        self.state, self.parts.service.is_draining = "gone", True
        if self._head is not None:
            await self._head.close()
        if self.door is not None:
            await self.door.stop(STOP_S)
        await self._close_slice()
        await self.parts.links.close()

    async def _close_slice(self) -> None:
        # The head's sessions are open on other stages, too: those give their caches back now.
        head, working, parts = self._head, self._working, (self._stage, self._forward, self._engine)
        self._head = self._stage = self._forward = self._engine = self._working = None
        if head is not None:
            await head.close()
        if working is not None:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        for part in parts:
            if part is not None:
                await part.close()
        gc.collect()  # what is loaded next needs the memory

    async def _enter(self, state: SliceState) -> None:
        self.state = state
        if state in ("loading", "ready"):
            _LOG.info("layers %s of %s are %s", self.layers, self.parts.model, state)
        if self.door is not None:
            await self.door.tell_health()

    def _progressed(self, what: str, done: int, total: int) -> None:
        self.progress = done, total
        self._tell(what, done, total)

    @property
    def hop(self) -> Hop:
        return Hop(endpoint=self.parts.endpoint(), start=self.layers.start, end=self.layers.end)

    def own_hop(self) -> Hop | None:
        """Return this stage, None while its layers are not loaded."""
        return self.hop if self._engine else None

    @property
    def loaded_info(self) -> SliceInfo | None:
        """What is loaded now, None while nothing is."""
        return self._info if self._engine is not None else None

    def seen(self) -> Seen:
        """Return what other stages are told."""
        info = self.loaded_info
        return Seen(
            endpoint=self.parts.endpoint(),
            layers=self.layers,
            model=self.parts.model,
            model_hash=self.parts.model_hash,
            is_ready=self.state == "ready",
            next=self.parts.next,
            http_url=self.parts.http_url,
            device=info.device if info else "",
            dtype=info.dtype if info else "",
            back_end=info.back_end if info else "",
            hidden_size=self.parts.hidden_size,
            wire_dtypes=HIDDEN,
        )

    def begin(self, reply: Callable[[Batch], Awaitable[None]], session_pass: str) -> None:
        self._has_stage().begin(reply, session_pass)

    async def receive(self, batch: Batch, reply: Callable[[Batch], Awaitable[None]]) -> None:
        await self._has_stage().receive(batch, reply)

    def _has_stage(self) -> StageService:
        if self._stage is None:
            why = "are the first of a pipeline" if self.layers.is_first else "are being loaded"
            raise InferenceError("not_ready", f"layers {self.layers} {why}")
        return self._stage

    def ended(self, reply: Callable[[Batch], Awaitable[None]]) -> None:
        if self._stage is not None:
            self._stage.ended(reply)

    async def forward(self, request: Forward) -> Forwarded:
        """Serve the older way through a slice. Raises InferenceError."""
        if self._forward is None:
            raise InferenceError("not_ready", f"layers {self.layers} are being loaded")
        return await self._forward.forward(request)

    def has(self, session: str) -> bool:
        return self._forward is not None and self._forward.has(session)

    @property
    def info(self) -> SliceInfo:
        assert self._info is not None
        return self._info

    async def start(self, request: TokenRequest) -> TokenStream:
        try:
            async with asyncio.timeout(request.deadline_s or WAIT_S):
                while True:
                    await self._ready.wait()
                    self.parts.service.must_be_head()
                    if (head := self._head) is None:
                        raise InferenceError("draining", "this worker is gone")
                    try:
                        return await head.start(request)
                    except InferenceError as error:
                        # Who had a route a moment ago will have one again; a new pipeline says what it lacks.
                        if error.code != "no_route" or head.status().epoch == 0:
                            raise
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise InferenceError("no_route", self._head.why_no_route() if self._head else "it loads") from None

    def speaker(self) -> tuple[Generator, Text]:
        """Return who answers with tokens, and their text. Raises InferenceError: not_head, not_ready, draining."""
        engine = self.parts.service.answering()
        assert isinstance(engine, TokenEngine)
        return engine.generator, engine.text

    def status(self) -> HeadStatus:
        return _NO_ROUTE if self._head is None else self._head.status()

    def document(self) -> dict[str, Any]:
        return document(
            self.parts,
            self.seen(),
            state=self.state,
            progress=self.progress,
            info=self._info,
            head=self.status(),
            known=self.around.known,
            hole=self.around.hole,
        )
