"""What the machine has: the values that every decision about it is made from."""

from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Literal

from gpu_worker.core.errors import OwnersFault

DeviceKind = Literal["cuda", "mps", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mig:
    """One slice of a GPU that is cut up (Multi-Instance GPU)."""

    uuid: str
    profile: str
    vram_total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuUser:
    """
    A program on a GPU. `session` is its process session: one session holds a job's program and all that it started.

    `utilisation` is the percentage of the GPU that it used lately, None where the driver does not tell.
    """

    pid: int
    session: int
    is_computing: bool
    vram_bytes: int | None = None
    utilisation: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """
    One GPU as its driver tells of it; None is what it does not tell.

    `ecc_errors` are the uncorrected ones since the driver was loaded. `users` are the programs that have it open now.
    """

    index: int
    uuid: str
    name: str
    driver: str
    vram_total_bytes: int
    vram_free_bytes: int
    temperature_c: int | None = None
    power_w: Decimal | None = None
    utilisation: int | None = None
    is_throttled: bool = False
    throttle_reasons: tuple[str, ...] = ()
    ecc_errors: int | None = None
    migs: tuple[Mig, ...] = ()
    users: tuple[GpuUser, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The whole machine at one moment. `problems` are sentences for its owner; `on_battery` None: it has none."""

    ram_total_bytes: int
    ram_free_bytes: int
    cpu_count: int
    cpu_percent: Decimal
    disk_free_bytes: int
    on_battery: bool | None = None
    gpus: tuple[Gpu, ...] = ()
    problems: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """
    What jobs run on. `name` is what torch calls it: `cpu`, `cuda:0`, `mps`; `gpu_type` what the offer calls it.

    `visible` is the one GPU that a program is to see (CUDA_VISIBLE_DEVICES), None: as the machine has it.
    """

    kind: DeviceKind
    name: str
    gpu_type: str
    memory_bytes: int
    visible: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """
    What was measured on a device, once.

    `tokens_per_s` is training of the reference model; `layer_s` is what one layer of one training step costs however
    small it is; `start_s` is how long a program takes until it can begin.
    """

    memory_bytes_per_s: int
    flops: int
    tokens_per_s: Decimal
    layer_s: Decimal = Decimal(0)
    start_s: Decimal = Decimal(0)


MIB = 1024**2
# What is believed where the memory cannot be read.
RAM_MB_UNKNOWN = 16_384


def visible_of(gpus: tuple[Gpu, ...], names: str | None, *, counts_by_bus: bool = False) -> tuple[Gpu, ...]:
    """
    Return the GPUs that CUDA_VISIBLE_DEVICES leaves, None: all of them; as CUDA does, up to the first that is none.

    Raises:
        OwnersFault: a number that may be another GPU to CUDA, which counts the fastest first if it is not told to.
    """
    if names is None:
        return gpus
    found: list[Gpu] = []
    for name in names.split(","):
        one = _named(gpus, name.strip())
        if one is None:
            break
        if name.strip().isdigit() and not counts_by_bus and len({gpu.name for gpu in gpus}) > 1:
            raise OwnersFault(
                f"CUDA_VISIBLE_DEVICES is {names}, and CUDA counts different GPUs otherwise than nvidia-smi does: "
                "name them by their UUIDs (nvidia-smi -L), or set CUDA_DEVICE_ORDER=PCI_BUS_ID"
            )
        found.append(one)
    return tuple(found)


def _named(gpus: tuple[Gpu, ...], name: str) -> Gpu | None:
    """Return the GPU of a number, a UUID or the beginning of one, None where there is no such one; a slice alone."""
    if name.isdigit():
        return next((gpu for gpu in gpus if gpu.index == int(name)), None)
    slices = [replace(gpu, migs=(mig,)) for gpu in gpus for mig in gpu.migs if mig.uuid == name]
    whole = [gpu for gpu in gpus if name and gpu.uuid.startswith(name)]
    return next(iter(slices or whole), None)


def device_of(machine: Machine, wanted: str, *, has_mps: bool = False, ram_mb: int | None = None) -> Device:
    """
    Return what jobs run on: `wanted` is `cpu`, `cuda`, `mps`, or `auto`, the first there is of cuda, mps, cpu.

    Of several GPUs the one with the most memory that is whole (not cut up, no uncorrected errors) comes first.
    `ram_mb` stands for the memory of the machine where the owner says so.

    Raises:
        OwnersFault: the wanted device is not there; the sentence says what is.
    """
    gpus = sorted(machine.gpus, key=lambda gpu: (bool(gpu.ecc_errors), bool(gpu.migs), -gpu.vram_total_bytes))
    memory_bytes = ram_mb * MIB if ram_mb is not None else machine.ram_total_bytes or RAM_MB_UNKNOWN * MIB
    if wanted in ("auto", "cuda") and gpus:
        return _cuda(gpus[0])
    if wanted in ("auto", "mps") and has_mps:
        return Device(kind="mps", name="mps", gpu_type="Apple-GPU", memory_bytes=memory_bytes)
    if wanted in ("auto", "cpu"):
        return Device(kind="cpu", name="cpu", gpu_type="CPU", memory_bytes=memory_bytes)
    missing = {
        "cuda": "no NVIDIA GPU answers, or CUDA_VISIBLE_DEVICES hides it",
        "mps": "there is no Apple GPU that torch can use",
    }
    raise OwnersFault(
        f"LIVERY_WORKER_DEVICE is {wanted} but {missing.get(wanted, 'there is no such device')}: set it to auto or cpu"
    )


def _cuda(gpu: Gpu) -> Device:
    short = gpu.name.removeprefix("NVIDIA ").removeprefix("GeForce ").replace(" ", "-")
    if not gpu.migs:
        # CUDA counts GPUs in another order than the driver: a program sees one, by its UUID, and so the first.
        return Device(kind="cuda", name="cuda:0", gpu_type=short, memory_bytes=gpu.vram_total_bytes, visible=gpu.uuid)
    largest = max(gpu.migs, key=lambda mig: mig.vram_total_bytes)
    return Device(
        kind="cuda",
        name="cuda:0",
        gpu_type=f"{short}-{largest.profile}",
        memory_bytes=largest.vram_total_bytes,
        visible=largest.uuid,
    )


def hw_document(machine: Machine, device: Device, *, ram_mb: int | None = None) -> dict[str, Any]:
    """
    Return what `livery hw --json` prints: `ram_mb` is the memory that is free now, or what the owner says instead.

    `vram_mb` is all that the device has, 0 without a GPU. Megabytes are MiB, rounded down, as nvidia-smi counts them.
    """
    return {
        "ram_mb": ram_mb if ram_mb is not None else machine.ram_free_bytes // MIB or RAM_MB_UNKNOWN,
        "vram_mb": device.memory_bytes // MIB if device.kind == "cuda" else 0,
        "device": device.kind,
        "device_name": device.name,
        "gpu_type": device.gpu_type,
        **stats_document(machine),
    }


def stats_document(machine: Machine) -> dict[str, Any]:
    """Return free and total memory, load and temperature of the machine and every GPU; the first ones are sums."""
    gpus = machine.gpus
    temperatures = [gpu.temperature_c for gpu in gpus if gpu.temperature_c is not None]
    return {
        "free_vram_mb": sum(gpu.vram_free_bytes for gpu in gpus) // MIB,
        "total_vram_mb": sum(gpu.vram_total_bytes for gpu in gpus) // MIB,
        "free_ram_mb": machine.ram_free_bytes // MIB,
        "total_ram_mb": machine.ram_total_bytes // MIB,
        "cpu_percent": machine.cpu_percent,
        "cpu_count": machine.cpu_count,
        "gpu_temperature": max(temperatures, default=None),
        "free_disk_mb": machine.disk_free_bytes // MIB,
        "on_battery": machine.on_battery,
        "gpus": [_gpu_document(gpu) for gpu in gpus],
        "problems": list(machine.problems),
    }


def _gpu_document(gpu: Gpu) -> dict[str, Any]:
    return {
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "driver": gpu.driver,
        "total_vram_mb": gpu.vram_total_bytes // MIB,
        "free_vram_mb": gpu.vram_free_bytes // MIB,
        "temperature_c": gpu.temperature_c,
        "power_w": gpu.power_w,
        "utilisation_percent": gpu.utilisation,
        "throttled_by": list(gpu.throttle_reasons),
        "ecc_errors": gpu.ecc_errors,
        "migs": [
            {"uuid": mig.uuid, "profile": mig.profile, "total_vram_mb": mig.vram_total_bytes // MIB} for mig in gpu.migs
        ],
        "programs": len(gpu.users),
    }


def problems_of(gpu: Gpu) -> tuple[str, ...]:
    """Return what the owner should know of a GPU, a sentence each."""
    name = f"GPU {gpu.index} ({gpu.name})"
    found = []
    if gpu.is_throttled:
        found.append(f"{name} is slowed down: {', '.join(gpu.throttle_reasons)}")
    if gpu.ecc_errors:
        found.append(f"{name} had {gpu.ecc_errors} memory errors that could not be corrected: results may be wrong")
    if gpu.migs:
        found.append(f"{name} is cut up into {len(gpu.migs)} MIG slices: a job gets the largest, not the whole")
    return tuple(found)


def torch_problem(gpus: tuple[Gpu, ...], torch_version: str | None) -> str | None:
    """Return what to do where there is a GPU and the torch that is installed cannot use it, None where all is well."""
    if not gpus or torch_version is None or not torch_version.endswith("+cpu"):
        return None
    return (
        f"torch {torch_version} does not use the GPU: pip install --force-reinstall torch, "
        "from the index that pytorch.org names for your driver"
    )
