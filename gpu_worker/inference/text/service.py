"""The model that a worker serves over HTTP: who answers for it, and why nobody does now."""

import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.step import CacheUse
from gpu_worker.inference.ports import Generator, StageSeen, Text
from gpu_worker.inference.text.figures import Figures


class NotHead(InferenceError):
    """This stage is not the first of its pipeline; `url` is where the first one is asked, None where it is unknown."""

    def __init__(self, url: str | None) -> None:
        where = "its head is not known here" if url is None else f"ask its head at {url}"
        super().__init__("not_head", f"this worker serves a later part of the model; {where}")
        self.url = url


def _no_cache() -> CacheUse | None:
    return None


async def _no_stages() -> Sequence[StageSeen]:
    return ()


@dataclass(slots=True, kw_only=True)
class Service:
    """
    What the doors of inference stand before. Whoever loads the model sets the fields from `layers` to `is_draining`.

    `secret` is the bearer that is asked for, empty: none. Web pages of `origins` may call as programs do. `address` is
    the worker's own on the chain, empty: it has none. `generator` and `text` are None until the model is loaded, and
    stay so on a stage that is not the head; `is_loaded` says that its layers are. `head_url` tells where a stage that
    is not the head has its head's door. `cache` and `stages` are asked when somebody looks. The clocks are in seconds.
    """

    model: str
    secret: str = ""
    origins: tuple[str, ...] = ()
    address: str = ""
    layers: Layers | None = None
    generator: Generator | None = None
    text: Text | None = None
    is_loaded: bool = False
    is_draining: bool = False
    head_url: Callable[[], str | None] = lambda: None
    cache: Callable[[], CacheUse | None] = _no_cache
    stages: Callable[[], Awaitable[Sequence[StageSeen]]] = _no_stages
    figures: Figures = field(default_factory=Figures)
    monotonic: Callable[[], float] = time.monotonic
    clock: Callable[[], float] = time.time
    new_id: Callable[[], str] = lambda: secrets.token_hex(16)
    new_seed: Callable[[], int] = lambda: secrets.randbits(63)
    began_s: float = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.began_s, self.created = self.monotonic(), int(self.clock())

    @property
    def is_head(self) -> bool:
        return self.layers is None or self.layers.is_first

    @property
    def is_ready(self) -> bool:
        """Whether it does its part of requests that come now."""
        loaded = self.generator is not None and self.text is not None if self.is_head else self.is_loaded
        return loaded and not self.is_draining

    @property
    def is_served(self) -> bool:
        """Whether a request that comes now is answered: a head has, besides, a way through all layers."""
        has_route = not self.is_head or (self.generator is not None and bool(self.generator.status().hops))
        return self.is_ready and has_route

    @property
    def mode(self) -> str:
        whole = self.layers is None or (self.layers.is_first and self.layers.is_last)
        return "single" if whole else "pipeline"

    @property
    def uptime_s(self) -> float:
        return max(0.0, self.monotonic() - self.began_s)

    def must_be_head(self) -> None:
        """Raises NotHead."""
        if not self.is_head:
            raise NotHead(self.head_url())

    def speaker(self) -> tuple[Generator, Text]:
        """Return who answers, and in which tokens. Raises InferenceError: not_head, not_ready, draining."""
        self.must_be_head()
        if self.is_draining:
            raise InferenceError("draining", "this worker takes no new requests: it is about to go")
        if self.generator is None or self.text is None:
            raise InferenceError("not_ready", f"{self.model} is being loaded")
        return self.generator, self.text
