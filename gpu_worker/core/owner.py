"""
The owner's limits: when this machine stops working for others, and which jobs it never takes.

Minutes are of the owner's own clock, from midnight on.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from gpu_worker.core.hardware import MIB, Device, Gpu, GpuUser, Machine

YieldCause = Literal["gpu", "hot", "power", "battery", "hours"]
CAUSES: tuple[YieldCause, ...] = ("gpu", "hot", "power", "battery", "hours")
DAY_MINUTES = 24 * 60
# A machine that stopped for its heat or its power goes on only when it is this far below: it would else flap.
COOLER_C = 5
POWER_SHARE = Decimal("0.9")
# A program of the owner's that has the GPU open and hardly uses it needs it not: a desktop, a model that waits.
USED_PERCENT = 10

_SPAN = re.compile(r"^([01]\d|2[0-4]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)$")
Hours = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """
    What the owner allows; None is no limit.

    No `hours`: always. No `requesters`: everybody; they are addresses in lower case.
    """

    hours: Hours = ()
    vram_max_bytes: int | None = None
    memory_max_bytes: int | None = None
    disk_max_bytes: int | None = None
    disk_reserve_bytes: int = 5 * 1024 * MIB
    temperature_max_c: int = 85
    power_max_w: int | None = None
    price_min_atomic: int = 0
    requesters: frozenset[str] = frozenset()
    yield_on: frozenset[YieldCause] = frozenset(CAUSES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Yield:
    """Why jobs rest now; `reason` is one sentence for the owner."""

    cause: YieldCause
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a job is not taken; `code` is a key of `wire.problems`."""

    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a job would take: memory of the device, disk for its folder, seconds of work, and what it would bring."""

    memory_bytes: int
    disk_bytes: int
    eta_s: Decimal
    price_atomic: int


def parse_hours(text: str) -> Hours:
    """
    Return the spans of a day, in minutes: "22:00-08:00" goes over midnight; "" is always.

    Raises:
        ValueError: what is no span, in one line.
    """
    spans = []
    for word in (part.strip() for part in text.split(",") if part.strip()):
        found = _SPAN.match(word)
        if found is None:
            raise ValueError(f"{word!r} are no hours: write them as 22:00-08:00, several with commas")
        numbers = tuple(map(int, found.groups()))
        start, end = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
        if max(start, end) > DAY_MINUTES or start % DAY_MINUTES == end % DAY_MINUTES:
            raise ValueError(f"{word!r} are no hours: a day has 24 of them, and a span ends when it did not begin")
        spans.append((start, end))
    return tuple(spans)


def parse_causes(text: str) -> frozenset[YieldCause]:
    """Return what jobs rest for, by a list with commas; "none" is nothing. Raises ValueError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["none"]:
        return frozenset()
    known = {cause: cause for cause in CAUSES}
    if wrong := [name for name in names if name not in known]:
        raise ValueError(f"there is no {wrong[0]!r} to rest for: there is {', '.join(CAUSES)}, or none")
    return frozenset(known[name] for name in names)  # type: ignore[index]


def minutes_open(hours: Hours, minute: int) -> int | None:
    """Return how many minutes more the machine works, 0: it is closed now, None: it never closes."""
    if not hours:
        return None
    left = 0
    # Spans that touch are one: looked for from where the last one ended, at most a whole day.
    while left < DAY_MINUTES:
        more = max((_left_in(span, (minute + left) % DAY_MINUTES) for span in hours), default=0)
        if more == 0:
            return left
        left += more
    return None


def _left_in(span: tuple[int, int], minute: int) -> int:
    start, end = span[0] % DAY_MINUTES, span[1] % DAY_MINUTES
    length = (end - start) % DAY_MINUTES
    since = (minute - start) % DAY_MINUTES
    return length - since if since < length else 0


def opens_at(hours: Hours, minute: int) -> str:
    """Return when the machine works again, as HH:MM."""
    soonest = min(((start - minute) % DAY_MINUTES, start % DAY_MINUTES) for start, _ in hours)[1]
    return f"{soonest // 60:02}:{soonest % 60:02}"


def decide_yield(
    machine: Machine,
    device: Device,
    limits: Limits,
    *,
    own_sessions: Collection[int] | None,
    minute: int,
    now_yielding: Yield | None,
) -> Yield | None:
    """
    Return why jobs must rest, None: they may run.

    Args:
        own_sessions: the process sessions of the jobs; None: they cannot be told from the owner's programs.
        now_yielding: what was decided last, so that heat and power must fall some way before work goes on.
    """
    before = now_yielding.cause if now_yielding is not None else None
    gpus = [gpu for gpu in machine.gpus if device.kind == "cuda" and _is_used(gpu, device)]
    # What ended jobs longest is named first.
    decided = (
        _closed(limits, minute),
        Yield(cause="battery", reason="the machine runs on its battery") if machine.on_battery else None,
        _wanted(gpus, own_sessions),
        *(_hot(gpu, limits, before) for gpu in gpus),
        *(_hungry(gpu, limits, before) for gpu in gpus),
    )
    return next((one for one in decided if one is not None and one.cause in limits.yield_on), None)


def _is_used(gpu: Gpu, device: Device) -> bool:
    return device.visible in (None, gpu.uuid, *(mig.uuid for mig in gpu.migs))


def _closed(limits: Limits, minute: int) -> Yield | None:
    if minutes_open(limits.hours, minute) != 0:
        return None
    return Yield(cause="hours", reason=f"these are not its hours: it works again at {opens_at(limits.hours, minute)}")


def _wanted(gpus: Collection[Gpu], own_sessions: Collection[int] | None) -> Yield | None:
    if own_sessions is None:
        return None
    for gpu in gpus:
        for user in gpu.users:
            if user.session not in own_sessions and user.pid not in own_sessions and needs_it(user):
                return Yield(cause="gpu", reason=f"program {user.pid} of yours works on GPU {gpu.index}")
    return None


def needs_it(user: GpuUser) -> bool:
    """Return whether a program works on the GPU, and does not only have it open."""
    return user.is_computing if user.utilisation is None else user.utilisation >= USED_PERCENT


def _hot(gpu: Gpu, limits: Limits, before: YieldCause | None) -> Yield | None:
    if gpu.temperature_c is None:
        return None
    limit = limits.temperature_max_c - (COOLER_C if before == "hot" else 0)
    if gpu.temperature_c < limit:
        return None
    return Yield(cause="hot", reason=f"GPU {gpu.index} has {gpu.temperature_c} °C: it works below {limit} °C")


def _hungry(gpu: Gpu, limits: Limits, before: YieldCause | None) -> Yield | None:
    if gpu.power_w is None or limits.power_max_w is None:
        return None
    limit = limits.power_max_w * (POWER_SHARE if before == "power" else 1)
    if gpu.power_w <= limit:
        return None
    return Yield(cause="power", reason=f"GPU {gpu.index} draws {gpu.power_w:.0f} W: it works up to {limit:.0f} W")


def admits(payer: str, limits: Limits) -> str | None:
    """Return why nothing is sold to the address `payer`, None: it may buy."""
    if not limits.requesters or payer.lower() in limits.requesters:
        return None
    return f"this machine works for those whom its owner names, and {payer} is not one of them"


def may_take(asked: Asked, machine: Machine, device: Device, limits: Limits, minute: int) -> Refusal | None:
    """Return why a job is not taken, None: it is."""
    left_min = minutes_open(limits.hours, minute)
    if left_min is not None and left_min * 60 < asked.eta_s:
        when = f"for {left_min} minutes more" if left_min else f"again at {opens_at(limits.hours, minute)}"
        return Refusal(code="not_selling", reason=f"this machine works {when}, the job needs {asked.eta_s / 60:.0f}")
    if asked.price_atomic < limits.price_min_atomic:
        return Refusal(code="not_selling", reason="a job is not sold below the smallest price that the owner set")
    missing = asked.memory_bytes - memory_bytes(machine, device, limits)
    if missing > 0:
        where = "GPU memory" if device.kind == "cuda" else "memory"
        reason = f"{asked.memory_bytes} bytes of {where} are needed and {missing} bytes are missing"
        return Refusal(code="model_too_large", reason=reason)
    room = disk_bytes(machine, limits)
    if room == 0:
        return Refusal(code="not_selling", reason="the disk is full up to the reserve that the owner keeps")
    if asked.disk_bytes > room:
        return Refusal(code="not_selling", reason=f"{asked.disk_bytes - room} bytes of disk are missing for the job")
    return None


def memory_bytes(machine: Machine, device: Device, limits: Limits) -> int:
    """
    Return how much memory of `device` a job may have.

    Of a GPU all of it, unless the owner says less: what uses it now rests or ends. Of the machine half of what is
    free, unless the owner names an amount.
    """
    if device.kind == "cuda":
        return min(limits.vram_max_bytes or device.memory_bytes, device.memory_bytes)
    return min(limits.memory_max_bytes or machine.ram_free_bytes // 2, device.memory_bytes)


def memory_share(bytes_max: int, total_bytes: int) -> float:
    """Return the share of a GPU's memory that a program is held to: 1 is all of it."""
    return min(1.0, bytes_max / total_bytes)


def disk_bytes(machine: Machine, limits: Limits) -> int:
    """Return how much of the disk new jobs may take: the reserve stays free."""
    room = max(0, machine.disk_free_bytes - limits.disk_reserve_bytes)
    return room if limits.disk_max_bytes is None else min(limits.disk_max_bytes, room)
