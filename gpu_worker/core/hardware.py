"""What the machine has: the values that every decision about it is made from."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

DeviceKind = Literal["cuda", "mps", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mig:
    """One slice of a GPU that is cut up (Multi-Instance GPU)."""

    uuid: str
    profile: str
    vram_total_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """
    One GPU as its driver tells of it; None is what it does not tell.

    `ecc_errors` are the uncorrected ones since the driver was loaded. `pids` use it now.
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
    pids: tuple[int, ...] = ()


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
    """What jobs run on. `name` is what torch calls it: `cpu`, `cuda:0`, `mps`; `gpu_type` what the offer calls it."""

    kind: DeviceKind
    name: str
    gpu_type: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What was measured on a device, once. `tokens_per_s` is training of the reference model."""

    memory_bytes_per_s: int
    flops: int
    tokens_per_s: Decimal
