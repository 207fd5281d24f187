"""This machine, opened: what it has, how fast it is, its models, its owner's limits, what is not as it should be."""

import importlib.util
import platform
import stat
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from gpu_worker.config import WorkerSettings, listed, program_environment
from gpu_worker.core.hardware import Device, Machine, device_of, visible_of
from gpu_worker.core.owner import Limits, parse_causes, parse_hours
from gpu_worker.edges.machine.hardware_nvml import Nvml
from gpu_worker.edges.machine.hardware_psutil import MachineHardware
from gpu_worker.edges.machine.measure_process import MeasureProcess
from gpu_worker.edges.machine.models_folder import ModelsFolder
from gpu_worker.edges.machine.models_folder import read_config as read_config
from gpu_worker.edges.machine.registry_file import read_entry
from wire.money import BASE_SEPOLIA_USDC, BASE_USDC, Asset, to_atomic

_MIB = 1024 * 1024
# What must be there before anything trains: the import, where it differs from the package.
PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "peft", "psutil")


def missing_packages() -> tuple[str, ...]:
    """Return what of `[worker]` is not installed. Imports nothing."""
    return tuple(name for name in PACKAGES if importlib.util.find_spec(name) is None)


def open_hardware(settings: WorkerSettings, nvml: Any = None) -> MachineHardware:
    """Return what reads this machine; `nvml` answers in place of the driver's library."""
    try:
        torch_version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch_version = None
    return MachineHardware(settings.folder, Nvml(nvml).read, torch_version)


def device(settings: WorkerSettings, machine: Machine) -> Device:
    """Return what jobs run on, as the settings say. Raises OwnersFault."""
    # Told without torch: it takes seconds to load, and this process never does.
    has_mps = platform.system() == "Darwin" and platform.machine() == "arm64"
    gpus = visible_of(machine.gpus, settings.visible_gpus, counts_by_bus=settings.counts_by_bus)
    return device_of(replace(machine, gpus=gpus), settings.device, has_mps=has_mps, ram_mb=settings.ram_mb)


def open_measure(settings: WorkerSettings, machine: Machine) -> MeasureProcess:
    """Return what measures a device of `machine`, or knows that it was."""
    count = settings.threads_of(machine.cpu_count)
    driver = machine.gpus[0].driver if machine.gpus else ""
    return MeasureProcess(settings.folder / "devices", program_environment(count), count, driver)


def open_models(settings: WorkerSettings) -> ModelsFolder:
    return ModelsFolder(settings.models_folder, settings.folder / "hashes.json")


def asset_of(settings: WorkerSettings) -> Asset:
    """Return the USDC that this worker is paid in."""
    return next(asset for asset in (BASE_SEPOLIA_USDC, BASE_USDC) if asset.chain_id == settings.chain_id)


def limits_of(settings: WorkerSettings) -> Limits:
    """Return the owner's limits. Raises ValueError for hours, causes or amounts that are none."""

    def size(mib: int | None) -> int | None:
        return None if mib is None else mib * _MIB

    return Limits(
        hours=parse_hours(settings.hours),
        vram_max_bytes=size(settings.vram_max_mb),
        memory_max_bytes=size(settings.memory_max_mb),
        disk_max_bytes=settings.disk_max_bytes,
        disk_reserve_bytes=settings.disk_reserve_mb * _MIB,
        temperature_max_c=settings.temperature_max_c,
        power_max_w=settings.power_max_w,
        price_min_atomic=to_atomic(settings.price_min, asset_of(settings)) if settings.price_min else 0,
        requesters=frozenset(address.lower() for address in listed(settings.requesters)),
        yield_on=parse_causes(settings.yield_on),
    )


def running_at(settings: WorkerSettings) -> str | None:
    """Return the address of the worker that runs with the settings' folder, None where none does."""
    entry = read_entry(settings.folder) or {}
    url = entry.get("url")
    return url if isinstance(url, str) else None


def loose_files(settings: WorkerSettings) -> tuple[str, ...]:
    """Return a sentence for every file with a secret in it that others on this machine can read."""
    files = {
        Path(".env"): "the settings",
        settings.folder / "worker.env": "the settings",
        settings.keystore: "the keystore",
        settings.password_file: "the keystore's password",
        settings.secret_file: "the buyers' secret",
    }
    return tuple(sentence for path, what in files.items() if (sentence := loose_file(path, what)) is not None)


def loose_file(path: Path, what: str) -> str | None:
    """Return what to do about a file that others on this machine can read, None where there is nothing to do."""
    try:
        is_loose = path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    except OSError:
        return None
    return f"{what} in {path} can be read by others on this machine: chmod 600 {path}" if is_loose else None
