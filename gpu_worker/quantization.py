"""Which quantisation suits this machine: `from gpu_worker.quantization import GGUFQuantizationManager`."""

import asyncio

from gpu_worker.config import WorkerSettings
from gpu_worker.core.hardware import MIB
from gpu_worker.core.quantization.catalogue import CATALOGUE, Quant, Tier, formats, tier_of
from gpu_worker.wiring.machine import device, open_hardware
from gpu_worker.wiring.quantization import memory_for

__all__ = ["CATALOGUE", "GGUFQuantizationManager", "Quant", "Tier", "formats"]


class GGUFQuantizationManager:
    """This machine's memory, and the tier that it is good for. Not to be called within an event loop."""

    def __init__(self, settings: WorkerSettings | None = None) -> None:
        self._settings = settings or WorkerSettings()

    def get_system_memory_info(self) -> tuple[int, int]:
        """Return how much memory models have here, all and free, in MB: the GPU's, without one the machine's."""
        machine = asyncio.run(open_hardware(self._settings).read())
        memory = memory_for(self._settings, machine)
        free = memory.vram_bytes if memory.has_gpu else memory.ram_bytes
        return device(self._settings, machine).memory_bytes // MIB, free // MIB

    def determine_optimal_tier(self, available_mb: float) -> Tier:
        """Return the tier of so much free memory."""
        return tier_of(available_mb)
