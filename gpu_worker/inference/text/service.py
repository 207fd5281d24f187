"""The models that a worker serves, as its doors see them: who answers for them, and why nobody does now."""

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.step import CacheUse
from gpu_worker.inference.ports import HeadStatus, StageSeen
from gpu_worker.inference.text.admission import Admission
from gpu_worker.inference.text.engine import ModelCard, TextEngine
from gpu_worker.inference.text.figures import Figures
from gpu_worker.inference.text.paying import Billing
from gpu_worker.inference.text.turns import Turns
from wire.openai import Overflow

UNBOUNDED = 2**31  # turns where the engine itself says how many sessions it takes


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
class Place:
    """
    Where a worker that serves layers stands in its pipeline. `is_loaded` says that its layers are.

    `head_url` tells where a stage that is not the head has its head's door. `cache`, `stages` and `head` are asked when
    somebody looks; `head` is None on a stage that is not the head, and while nothing is loaded.
    """

    layers: Layers
    is_loaded: bool = False
    head_url: Callable[[], str | None] = lambda: None
    cache: Callable[[], CacheUse | None] = _no_cache
    stages: Callable[[], Awaitable[Sequence[StageSeen]]] = _no_stages
    head: Callable[[], HeadStatus | None] = lambda: None


@dataclass(slots=True, kw_only=True)
class Service:
    """
    What the doors of inference stand before. Whoever loads the model sets `engine`, `place` and `is_draining`.

    `model` is the default one, `aliases` are other names of models. `admission` says who may ask. Web pages
    of `origins` may call as programs do. `address` is the worker's own on the chain, empty: it has
    none. `engine` is None until the model is loaded, and stays so on a stage that is not the head; `place` is None
    where whole models are served. `tokens_per_s` was measured at the start, 0: it was not. The clocks are in seconds.
    """

    model: str
    aliases: Mapping[str, str] = field(default_factory=dict)
    admission: Admission = field(default_factory=Admission)
    origins: tuple[str, ...] = ()
    address: str = ""
    engine: TextEngine | None = None
    place: Place | None = None
    is_draining: bool = False
    tokens_per_s: float = 0.0
    billing: Billing | None = None
    context_overflow: Overflow = "error"
    turns: Turns = field(default_factory=lambda: Turns(UNBOUNDED, 0, 1.0))
    figures: Figures = field(default_factory=Figures)
    monotonic: Callable[[], float] = time.monotonic
    clock: Callable[[], float] = time.time
    new_id: Callable[[], str] = lambda: secrets.token_hex(16)
    began_s: float = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.began_s, self.created = self.monotonic(), int(self.clock())

    @property
    def layers(self) -> Layers | None:
        return None if self.place is None else self.place.layers

    @property
    def is_head(self) -> bool:
        return self.layers is None or self.layers.is_first

    @property
    def is_ready(self) -> bool:
        """Whether it does its part of requests that come now."""
        loaded = self.engine is not None if self.is_head else self.place is not None and self.place.is_loaded
        return loaded and not self.is_draining

    @property
    def is_served(self) -> bool:
        """
        Whether a request that comes now is answered: a head has, besides, a way through all layers, and of whole models
        what computes them is there.
        """
        if self.place is None:
            return self.is_ready and self.engine is not None and self.engine.load().is_there
        if not self.is_head:
            return self.is_ready
        head = self.place.head()
        return self.is_ready and head is not None and bool(head.hops)

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
            raise NotHead(None if self.place is None else self.place.head_url())

    def answering(self, *, is_sold: bool = False) -> TextEngine:
        """
        Return who answers; what `is_sold` already is answered while it drains, too.

        Raises:
            InferenceError: not_head, not_ready, draining.
        """
        self.must_be_head()
        if self.is_draining and not is_sold:
            raise InferenceError("draining", "this worker takes no new requests: it is about to go")
        if self.engine is None:
            raise InferenceError("not_ready", f"{self.model} is being loaded")
        return self.engine

    def cards(self) -> tuple[ModelCard, ...]:
        """Return the models that can be asked for, the default one first; before it is loaded that one alone."""
        return tuple(self.engine.cards()) if self.engine is not None else (ModelCard(name=self.model, is_loaded=False),)

    def card(self, name: str | None) -> ModelCard:
        """Return the model that a request calls `name`, None: the default. Raises InferenceError: model_not_found."""
        cards = self.cards()
        if name is None:
            return next((card for card in cards if card.name == self.model), cards[0])
        wanted = self.aliases.get(name, name)
        found = next((card for card in cards if card.name == wanted), None)
        if found is None:
            raise InferenceError("model_not_found", f"The model {name[:200]!r} does not exist here", "model")
        return found

    def resolve(self, name: str | None) -> str:
        """Return the name that the engine knows. Raises InferenceError: model_not_found."""
        return self.card(name).name
