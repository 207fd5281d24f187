"""
Every NVIDIA GPU of the machine, as the driver's library (NVML) tells of it.

What one GPU does not tell is None; where no driver answers there is no GPU. Nothing here ever raises.
"""

import os
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, TypeVar

from gpu_worker.core.hardware import Gpu, GpuUser, Mig, problems_of

T = TypeVar("T")

LATELY_S = 5.0

# Bits of nvmlDeviceGetCurrentClocksEventReasons that slow a GPU down against its will. Source: NVML's nvml.h.
THROTTLES = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "heat (by the driver)",
    0x40: "heat (by the hardware)",
    0x80: "power brake",
}


class Nvml:
    """
    The driver's library; `library` is `pynvml` or what answers like it, None: this machine's, if there is one.

    It is opened once and kept open: opening it costs more than all that is asked.
    """

    def __init__(self, library: Any = None) -> None:
        self._library = library
        self._is_open = False

    def read(self) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
        """Return the GPUs, and sentences for the owner about them."""
        try:
            library = self._opened()
        except ImportError:
            return (), ()
        except Exception as error:
            return (), _why_closed(error)
        try:
            driver = _text(library.nvmlSystemGetDriverVersion())
            gpus = tuple(_gpu(library, driver, index) for index in range(library.nvmlDeviceGetCount()))
        except library.NVMLError as error:
            # A driver that was updated or a GPU that was lost: the next reading opens it anew.
            self._is_open = False
            return (), (f"the GPU driver does not answer: {error}",)
        return gpus, tuple(problem for gpu in gpus for problem in problems_of(gpu))

    def _opened(self) -> Any:
        if self._library is None:
            import pynvml

            self._library = pynvml
        if not self._is_open:
            self._library.nvmlInit()
            self._is_open = True
        return self._library


def _why_closed(error: Exception) -> tuple[str, ...]:
    # No library or no driver is a machine without a GPU; everything else is a GPU that does not work.
    absent = ("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded")
    return () if type(error).__name__ in absent else (f"the GPU driver cannot be used: {error}",)


def _gpu(library: Any, driver: str, index: int) -> Gpu:
    handle = library.nvmlDeviceGetHandleByIndex(index)
    memory = library.nvmlDeviceGetMemoryInfo(handle)
    reasons = _reasons(library, handle)
    power_mw = _asked(library, lambda: library.nvmlDeviceGetPowerUsage(handle))
    rates = _asked(library, lambda: library.nvmlDeviceGetUtilizationRates(handle))
    uncorrected = library.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, library.NVML_VOLATILE_ECC
    return Gpu(
        index=index,
        uuid=_text(library.nvmlDeviceGetUUID(handle)),
        name=_text(library.nvmlDeviceGetName(handle)),
        driver=driver,
        vram_total_bytes=int(memory.total),
        vram_free_bytes=int(memory.free),
        temperature_c=_asked(library, lambda: library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU)),
        power_w=None if power_mw is None else (Decimal(power_mw) / 1_000).quantize(Decimal("0.01")),
        utilisation=None if rates is None else int(rates.gpu),
        is_throttled=bool(reasons),
        throttle_reasons=reasons,
        ecc_errors=_asked(library, lambda: library.nvmlDeviceGetTotalEccErrors(handle, *uncorrected)),
        migs=tuple(_migs(library, handle)),
        users=tuple(_users(library, handle)),
    )


def _asked(library: Any, ask: Callable[[], T]) -> T | None:
    """Return an answer, None where this GPU has none to give."""
    try:
        return ask()
    except library.NVMLError:
        return None


def _reasons(library: Any, handle: Any) -> tuple[str, ...]:
    bits = _asked(library, lambda: library.nvmlDeviceGetCurrentClocksEventReasons(handle)) or 0
    return tuple(words for bit, words in THROTTLES.items() if bits & bit)


def _migs(library: Any, handle: Any) -> Iterator[Mig]:
    mode = _asked(library, lambda: library.nvmlDeviceGetMigMode(handle))
    if mode is None or mode[0] != library.NVML_DEVICE_MIG_ENABLE:
        return
    for place in range(_asked(library, lambda: library.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0):
        part = _asked(library, lambda at=place: library.nvmlDeviceGetMigDeviceHandleByIndex(handle, at))  # type: ignore[misc]
        if part is None:
            continue  # a place where no slice was made
        name = _text(library.nvmlDeviceGetName(part))
        yield Mig(
            uuid=_text(library.nvmlDeviceGetUUID(part)),
            profile=name.rpartition("MIG ")[2],
            vram_total_bytes=int(library.nvmlDeviceGetMemoryInfo(part).total),
        )


def _users(library: Any, handle: Any) -> Iterator[GpuUser]:
    computing = _asked(library, lambda: library.nvmlDeviceGetComputeRunningProcesses(handle)) or []
    drawing = _asked(library, lambda: library.nvmlDeviceGetGraphicsRunningProcesses(handle)) or []
    used = _used(library, handle)
    seen: set[int] = set()
    for process, is_computing in (*((one, True) for one in computing), *((one, False) for one in drawing)):
        session = session_of(process.pid)
        if process.pid in seen or session is None:
            continue
        seen.add(process.pid)
        memory = process.usedGpuMemory
        yield GpuUser(
            pid=process.pid,
            session=session,
            is_computing=is_computing,
            vram_bytes=None if memory is None else int(memory),
            # Whoever is in no sample has not used it.
            utilisation=None if used is None else used.get(process.pid, 0),
        )


def _used(library: Any, handle: Any) -> dict[int, int] | None:
    """Return the percentage that each program used lately, None where this GPU does not tell."""
    since_us = int((time.time() - LATELY_S) * 1_000_000)
    try:
        samples = library.nvmlDeviceGetProcessUtilization(handle, since_us)
    except library.NVMLError as error:
        return {} if getattr(error, "value", None) == library.NVML_ERROR_NOT_FOUND else None
    return {one.pid: int(one.smUtil) for one in sorted(samples, key=lambda one: int(one.timeStamp))}


def session_of(pid: int) -> int | None:
    """Return the session of a process, None where there is none such: in a container the driver names the host's."""
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None
    except (AttributeError, PermissionError):
        return pid


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
