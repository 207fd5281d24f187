"""The life of the whole models that this worker serves: opening their engine, keeping it, draining it."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.text.engine import WholeEngine
from gpu_worker.inference.text.report import metrics_reply
from gpu_worker.inference.text.service import Service
from gpu_worker.model_port import Tell

State = Literal["waiting", "loading", "ready", "draining", "gone"]
STOP_S = 0.5  # what calls of the gRPC door that have had their answers need at most to end

_LOG = logging.getLogger("livery.gpu_worker")


class Door(Protocol):
    """The gRPC door."""

    async def tell_health(self) -> None: ...
    async def stop(self, grace_s: float) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeParts:
    """`endpoint` is the address of the gRPC door. `measure` returns tokens per second of one answer, 0: not known."""

    service: Service
    engine: WholeEngine
    door: Door
    endpoint: str
    measure: Callable[[Service], Awaitable[float]]


class WholeServing:
    """Implements `model_port.Serving`."""

    key = "model"

    def __init__(self, parts: WholeParts, tell: Tell) -> None:
        self.parts = parts
        self.state: State = "waiting"
        self._tell = tell

    async def load(self) -> None:
        await self._enter("loading")
        service, engine = self.parts.service, self.parts.engine
        await engine.open(self._tell)
        cards = engine.cards()
        if cards and service.model not in {card.name for card in cards}:
            service.model = cards[0].name
        # What the owner says wins over what the engine found; a name of his may stand for one of those.
        owners = {alias: engine.names.get(name, name) for alias, name in service.aliases.items()}
        service.aliases = {**engine.names, **owners}
        known = {card.name for card in cards}
        for alias, name in owners.items():
            if cards and name not in known:
                _LOG.warning("%s stands for %s, which is not served here", alias, name)
        service.engine = engine
        service.tokens_per_s = await self.parts.measure(service)
        await self._enter("ready")

    async def keep(self) -> None:
        await self.parts.engine.keep()

    async def leave(self) -> None:
        service = self.parts.service
        service.is_draining = True
        if self.state in ("gone", "waiting"):
            return
        await self._enter("draining")
        service.turns.dismiss(InferenceError("draining", "this worker takes no new requests: it is about to go"))
        await service.turns.emptied()

    async def close(self) -> None:
        if self.state == "gone":
            return
        self.state, self.parts.service.is_draining = "gone", True
        await self.parts.door.stop(STOP_S)
        await self.parts.engine.close()

    async def _enter(self, state: State) -> None:
        self.state = state
        _LOG.info("%s is %s", self.parts.service.model, state)
        await self.parts.door.tell_health()

    def document(self) -> dict[str, Any]:
        service, engine = self.parts.service, self.parts.engine
        figures, load, counts, turns = metrics_reply(service), engine.load(), engine.counts, service.turns
        return {
            "engine": engine.kind,
            "model": service.model,
            "state": self.state,
            "endpoint": self.parts.endpoint,
            "models": [asdict(card) for card in service.cards()],
            "aliases": dict(service.aliases),
            "slots": turns.slots,
            "running": turns.running,
            "waiting": turns.waiting + load.waiting,
            "requests": figures.total_requests,
            "tokens": figures.total_tokens_processed,
            "avgLatencyMs": figures.avg_latency_ms,
            "tokensPerS": figures.tokens_per_second,
            "benchmarkTokPerSec": round(service.tokens_per_s, 2),
            "restarts": counts.restarts,
        }
