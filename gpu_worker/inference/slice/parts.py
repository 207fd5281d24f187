"""What a worker's slice is made of, as who serves it sees its parts. `wiring/slice.py` joins the real ones."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from gpu_worker.core.errors import Bug
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.step import CacheUse, Done, SliceInfo, Step
from gpu_worker.inference.head.head import Head
from gpu_worker.inference.ports import Engine, Links, Registry, Text
from gpu_worker.inference.stage.forward import ForwardService
from gpu_worker.inference.stage.service import StageService
from gpu_worker.inference.text.service import Place, Service
from gpu_worker.model_port import Tell

SliceState = Literal["waiting", "loading", "measuring", "ready", "draining", "gone"]


class Loader(Protocol):
    """Loads slices of the one model that this worker serves."""

    async def __call__(self, layers: Layers, tell: Tell) -> tuple[Engine, Text | None]:
        """
        Return the engine of a slice that was tried once, and the tokenizer where the slice is the first.

        Cancelled, it gives up. Raises OwnersFault: it does not fit, or cannot be loaded; the sentence says why.
        """


class Door(Protocol):
    """The gRPC door."""

    async def tell_health(self) -> None: ...
    async def stop(self, grace_s: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceParts:
    """
    What a slice is made of. `layers` says which this worker is to have now; it may raise OwnersFault.

    `endpoint` is where stages reach this one, `next` the stage that it was started with. `head_url` is where the
    topology has the head's HTTP door, `http_url` is this worker's. Sessions have `drain_s` to go elsewhere.
    """

    model: str
    model_hash: str
    hidden_size: int
    endpoint: Callable[[], str]
    next: str
    http_url: str
    registry: Registry
    links: Links
    load: Loader
    head: Callable[[Engine], Head]
    stage: Callable[[Engine], StageService]
    forward: Callable[[Engine, Text | None], ForwardService]
    layers: Callable[[], Layers]
    head_url: Callable[[], str | None]
    service: Service
    drain_s: float

    @property
    def place(self) -> Place:
        """Where this worker stands in its pipeline, as its doors tell it."""
        if self.service.place is None:
            self.service.place = Place(layers=self.layers())
        return self.service.place


class Watched:
    """An engine whose breaking is known to who keeps the worker alive: `broken` has why."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def info(self) -> SliceInfo:
        return self._engine.info

    @property
    def cache(self) -> CacheUse:
        return self._engine.cache

    async def step(self, step: Step) -> Done:
        try:
            return await self._engine.step(step)
        except Bug as why:
            if not self.broken.done():
                self.broken.set_result(str(why))
            raise

    async def prepare(self, schema: str) -> None:
        await self._engine.prepare(schema)

    async def close(self) -> None:
        await self._engine.close()
