"""What a worker tells at its door for GPU checks: its GPUs and models now, and how long its services were up."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from gpu_worker.attesting import Attestor
from gpu_worker.core.hardware import MIB, Gpu, Machine
from gpu_worker.core.uptime import UPTIME_MIN, UptimeRecord
from gpu_worker.inference.text.admission import Admission
from gpu_worker.inference.text.engine import ModelCard
from wire.capability import (
    NOBODY,
    GpuCheck,
    GpuReport,
    ModelHere,
    ModelsHere,
    ServiceStatus,
    ServiceUp,
    ServiceUptime,
)

# However many ask, the driver is asked once in this time.
FRESH_S = 1.0
LOOK_S = 1.0
NO_MODEL = "No models loaded"
_HUNDREDTH, _MILLI = Decimal("0.01"), Decimal("0.001")


@dataclass(slots=True, kw_only=True)
class Capability:
    """
    What the door stands before. `source` is the kind of the engine, empty: none; `cards` are the models that it serves.

    `names` returns those that lie in the models' folder, `states` which services are up, by their names, `metrics` what
    Prometheus reads. `clock` is Unix time, `monotonic` never goes back; both in seconds.
    """

    read: Callable[[], Awaitable[Machine]]
    names: Callable[[], Awaitable[Collection[str]]]
    cards: Callable[[], Sequence[ModelCard]]
    source: Callable[[], str]
    states: Callable[[], Mapping[str, bool]]
    metrics: Callable[[Machine], bytes]
    admission: Admission
    clock: Callable[[], float]
    monotonic: Callable[[], float]
    attestor: Attestor | None = None
    record: UptimeRecord = field(default_factory=UptimeRecord)
    _machine: Machine | None = field(init=False, default=None)
    _read_s: float = field(init=False, default=0.0)
    _reading: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)
    _began_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._began_s = self.monotonic()

    async def machine(self) -> Machine:
        """Return the machine as it was at most FRESH_S ago."""
        async with self._reading:
            if self._machine is None or self.monotonic() - self._read_s > FRESH_S:
                self._machine = await self.read()
                self._read_s = self.monotonic()
            return self._machine

    async def gpu_check(self, agent_id: str = NOBODY) -> GpuCheck:
        machine, models = await self.machine(), await self.models()
        return gpu_check(machine, models, agent_id, self._now())

    async def models(self) -> ModelsHere:
        return models_here(self.cards(), await self.names())

    def status(self) -> ServiceStatus:
        found = self.record.tell(self.monotonic())
        return ServiceStatus(
            services=tuple(
                ServiceUp(
                    name=name,
                    up=each.is_up,
                    uptime_percentage=_percent(each.window),
                    uptime_percentage_always=_percent(each.always),
                )
                for name, each in found.items()
            ),
            timestamp=self._now(),
        )

    def uptime(self) -> ServiceUptime:
        now_s = self.monotonic()
        found = self.record.tell(now_s)
        up = sum(each.is_up for each in found.values())
        overall = sum(each.window for each in found.values()) / len(found) if found else 0.0
        return ServiceUptime(
            overall_uptime_percentage=_percent(overall),
            services_up=up,
            services_down=len(found) - up,
            total_services=len(found),
            eligible_for_payment=100 * overall >= UPTIME_MIN,
            min_uptime_required=_percent(UPTIME_MIN / 100),
            window_seconds=int(self.record.window_s),
            uptime_seconds=int(now_s - self._began_s),
        )

    def look(self) -> None:
        """Look once whether the services are up."""
        self.record.saw(self.monotonic(), self.states())

    async def keep_looking(self) -> None:
        """Look for ever."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def _now(self) -> Decimal:
        return Decimal(repr(self.clock())).quantize(_MILLI)


def gpu_check(machine: Machine, models: ModelsHere, agent_id: str, timestamp: Decimal) -> GpuCheck:
    """Return what a check is answered; an engine that does not say what its models take leaves it to the driver."""
    gpus = tuple(_report(gpu) for gpu in machine.gpus)
    taken = sum(model.vram_bytes for model in models.models if model.loaded)
    if not taken:
        taken = sum(gpu.vram_total_bytes - gpu.vram_free_bytes for gpu in machine.gpus)
    return GpuCheck(
        agent_id=agent_id,
        model_name=models.loaded[0] if models.loaded else NO_MODEL,
        vram_usage_mb=(Decimal(taken) / MIB).quantize(_HUNDREDTH),
        total_models=models.total_models,
        timestamp=timestamp,
        gpu_count=len(gpus),
        loaded_models=models.loaded_models,
        gpus=gpus,
    )


def models_here(cards: Sequence[ModelCard], names: Collection[str]) -> ModelsHere:
    """Return the models that an engine has, and behind them those of the folder that it does not serve."""
    served = [
        ModelHere(
            name=card.name,
            loaded=card.is_loaded,
            quant=card.quant,
            bytes=card.bytes,
            vram_bytes=card.vram_bytes,
            context=card.context,
            model_hash=card.model_hash,
        )
        for card in cards
    ]
    known = {model.name for model in served}
    idle = [
        ModelHere(name=name, loaded=False, quant="", bytes=0, vram_bytes=0, context=None, model_hash="")
        for name in sorted(names)
        if name not in known
    ]
    loaded = tuple(model.name for model in served if model.loaded)
    return ModelsHere(
        models=(*served, *idle), loaded=loaded, total_models=len(served) + len(idle), loaded_models=len(loaded)
    )


def _report(gpu: Gpu) -> GpuReport:
    return GpuReport(
        index=gpu.index,
        name=gpu.name,
        vram_total_mb=gpu.vram_total_bytes // MIB,
        vram_used_mb=(gpu.vram_total_bytes - gpu.vram_free_bytes) // MIB,
        vram_free_mb=gpu.vram_free_bytes // MIB,
        temperature_c=gpu.temperature_c,
        power_w=gpu.power_w,
        utilisation_percent=gpu.utilisation,
    )


def _percent(share: float) -> Decimal:
    return Decimal(repr(100 * share)).quantize(_HUNDREDTH)
