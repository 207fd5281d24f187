"""
This machine's figures at once, for a program of a few lines:

    from gpu_worker.stats_collector import StatsCollector
    print(StatsCollector().collect().free_ram_mb)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_worker.core.hardware import stats_document
from gpu_worker.edges.machine.hardware_nvml import Nvml
from gpu_worker.edges.machine.hardware_psutil import MachineHardware


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemStats:
    """Memory in MiB, that of all GPUs summed up, 0 without one; `gpu_temperature` is the hottest one's in Celsius."""

    free_vram_mb: int
    total_vram_mb: int
    free_ram_mb: int
    total_ram_mb: int
    cpu_percent: float
    gpu_temperature: int | None


class StatsCollector:
    """`nvml` answers in place of the driver's library."""

    def __init__(self, nvml: Any = None) -> None:
        self._hardware = MachineHardware(Path(), Nvml(nvml).read)

    def collect(self) -> SystemStats:
        """Return how the machine is now; what cannot be read is 0 or None, never an error."""
        told = stats_document(self._hardware.look())
        return SystemStats(
            free_vram_mb=told["free_vram_mb"],
            total_vram_mb=told["total_vram_mb"],
            free_ram_mb=told["free_ram_mb"],
            total_ram_mb=told["total_ram_mb"],
            cpu_percent=float(told["cpu_percent"]),
            gpu_temperature=told["gpu_temperature"],
        )
