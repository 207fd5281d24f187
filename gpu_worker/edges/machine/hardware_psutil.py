"""The machine as its operating system tells of it, with its GPUs. Nothing here ever raises."""

import asyncio
import os
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from gpu_worker.core.hardware import Gpu, Machine, torch_problem

# What a control group of a container may have of memory, whatever the host has.
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_CGROUP_USED = (Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))
# How long the first reading watches the processor; later ones look back at the one before.
FIRST_S = 0.1


class MachineHardware:
    """
    This machine. `folder` is on the disk that jobs use, and need not be there yet.

    `gpus` returns them, with sentences about them; `torch_version` is the installed one.
    """

    def __init__(
        self,
        folder: Path,
        gpus: Callable[[], tuple[tuple[Gpu, ...], tuple[str, ...]]],
        torch_version: str | None = None,
    ) -> None:
        self._folder = folder
        self._gpus = gpus
        self._torch_version = torch_version
        self._has_looked = False

    async def read(self) -> Machine:
        # Off the event loop: a driver that was asleep takes its time.
        return await asyncio.to_thread(self.look)

    def look(self) -> Machine:
        """The same, for who has no event loop."""
        gpus, problems = self._gpus()
        misfit = torch_problem(gpus, self._torch_version)
        system = self._system()
        return Machine(
            ram_total_bytes=system[0],
            ram_free_bytes=system[1],
            cpu_percent=system[2],
            on_battery=system[3],
            cpu_count=_cpu_count(),
            disk_free_bytes=_disk_free(self._folder),
            gpus=gpus,
            problems=(*problems, *([misfit] if misfit else []), *system[4]),
        )

    def _system(self) -> tuple[int, int, Decimal, bool | None, tuple[str, ...]]:
        try:
            import psutil
        except ImportError:
            missing = "psutil is not installed, so load and battery are not known: pip install 'livery[worker]'"
            return (*_pages(), Decimal(0), None, (missing,))
        memory = psutil.virtual_memory()
        percent = psutil.cpu_percent(interval=None if self._has_looked else FIRST_S)
        self._has_looked = True
        total, free = _limited(int(memory.total), int(memory.available))
        return total, free, Decimal(str(percent)), _on_battery(psutil), ()


def _limited(total: int, free: int) -> tuple[int, int]:
    limit, used = _first_number(_CGROUP_LIMITS), _first_number(_CGROUP_USED)
    if limit is None or limit >= total:
        return total, free
    return limit, min(free, max(0, limit - (used or 0)))


def _first_number(paths: tuple[Path, ...]) -> int | None:
    for path in paths:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            continue  # no such group, or `max`
    return None


def _on_battery(psutil: Any) -> bool | None:
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError, RuntimeError):
        return None  # a system that does not tell
    return None if battery is None or battery.power_plugged is None else not battery.power_plugged


def _pages() -> tuple[int, int]:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        return os.sysconf("SC_PHYS_PAGES") * page, os.sysconf("SC_AVPHYS_PAGES") * page
    except (AttributeError, OSError, ValueError):
        return 0, 0


def _cpu_count() -> int:
    # Those that this process may use: fewer than the machine has, in a container.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _disk_free(folder: Path) -> int:
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue  # not made yet
    return 0
