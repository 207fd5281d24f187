"""The owner's limits, as a table: when jobs rest, when they go on, what is never taken."""

from dataclasses import replace
from decimal import Decimal

import pytest

from gpu_worker.core.hardware import MIB, Device, Gpu, GpuUser, Machine, Mig
from gpu_worker.core.owner import (
    Asked,
    Limits,
    Yield,
    admits,
    decide_yield,
    disk_bytes,
    may_take,
    memory_bytes,
    memory_share,
    minutes_open,
    opens_at,
    parse_causes,
    parse_hours,
)

GIB = 1024 * MIB
GPU = Gpu(
    index=0,
    uuid="GPU-1",
    name="RTX 4090",
    driver="580",
    vram_total_bytes=24 * GIB,
    vram_free_bytes=20 * GIB,
    temperature_c=60,
    power_w=Decimal(200),
)
MACHINE = Machine(
    ram_total_bytes=64 * GIB,
    ram_free_bytes=32 * GIB,
    cpu_count=16,
    cpu_percent=Decimal(5),
    disk_free_bytes=100 * GIB,
    gpus=(GPU,),
)
CUDA = Device(kind="cuda", name="cuda:0", gpu_type="RTX-4090", memory_bytes=24 * GIB, visible="GPU-1")
CPU = Device(kind="cpu", name="cpu", gpu_type="CPU", memory_bytes=64 * GIB)
LIMITS = Limits(power_max_w=300)
NOON = 12 * 60
OURS, THEIRS = 100, 200


def user(session: int, **more: object) -> GpuUser:
    return GpuUser(**{"pid": session, "session": session, "is_computing": True, **more})


def with_gpu(**more: object) -> Machine:
    return replace(MACHINE, gpus=(replace(GPU, **more),))


def decided(
    machine: Machine, limits: Limits = LIMITS, device: Device = CUDA, minute: int = NOON, before=None, own=(OURS,)
):
    found = decide_yield(machine, device, limits, own_sessions=own, minute=minute, now_yielding=before)
    return found.cause if found else None


HOT, HUNGRY = Yield(cause="hot", reason=""), Yield(cause="power", reason="")


@pytest.mark.parametrize(
    ("machine", "before", "cause"),
    [
        (MACHINE, None, None),
        (replace(MACHINE, on_battery=True), None, "battery"),
        (replace(MACHINE, on_battery=False), None, None),
        (with_gpu(users=(user(OURS),)), None, None),
        (with_gpu(users=(user(THEIRS),)), None, "gpu"),
        # Open and hardly used: a desktop, a model that waits for questions.
        (with_gpu(users=(user(THEIRS, is_computing=False),)), None, None),
        (with_gpu(users=(user(THEIRS, utilisation=3),)), None, None),
        # A game draws, and draws a lot.
        (with_gpu(users=(user(THEIRS, is_computing=False, utilisation=70),)), None, "gpu"),
        # What a job's program started is of its session.
        (with_gpu(users=(user(OURS, pid=4_711, utilisation=99),)), None, None),
        (with_gpu(temperature_c=84), None, None),
        (with_gpu(temperature_c=85), None, "hot"),
        # Cooler by one degree is not cool.
        (with_gpu(temperature_c=84), HOT, "hot"),
        (with_gpu(temperature_c=79), HOT, None),
        (with_gpu(temperature_c=None), HOT, None),
        (with_gpu(power_w=Decimal("300.5")), None, "power"),
        (with_gpu(power_w=Decimal(280)), HUNGRY, "power"),
        (with_gpu(power_w=Decimal(265)), HUNGRY, None),
        (with_gpu(power_w=None), None, None),
    ],
)
def test_jobs_rest_for_their_owner(machine: Machine, before: Yield | None, cause: str | None) -> None:
    assert decided(machine, before=before) == cause


def test_a_gpu_that_no_job_uses_is_not_looked_at() -> None:
    busy = replace(GPU, index=1, uuid="GPU-2", temperature_c=99, users=(user(THEIRS),))
    assert decided(replace(MACHINE, gpus=(GPU, busy))) is None
    assert decided(replace(MACHINE, gpus=(busy,)), device=CPU) is None
    slice_ = Mig(uuid="MIG-1", profile="1g.10gb", vram_total_bytes=10 * GIB)
    of_slice = replace(CUDA, visible="MIG-1")
    assert decided(replace(MACHINE, gpus=(replace(busy, migs=(slice_,)),)), device=of_slice) == "gpu"


def test_where_programs_cannot_be_told_apart_none_of_them_stops_a_job() -> None:
    assert decided(with_gpu(users=(user(THEIRS),)), own=None) is None


def test_the_owner_says_what_jobs_rest_for() -> None:
    hot = with_gpu(temperature_c=99)
    assert decided(hot, replace(LIMITS, yield_on=parse_causes("battery,gpu"))) is None
    assert decided(hot, replace(LIMITS, yield_on=parse_causes("none"))) is None
    assert decided(hot, replace(LIMITS, yield_on=parse_causes("hot"))) == "hot"
    with pytest.raises(ValueError, match="'heat'"):
        parse_causes("heat")


@pytest.mark.parametrize(
    ("hours", "minute", "left"),
    [
        ("", NOON, None),
        ("22:00-08:00", 23 * 60, 9 * 60),
        ("22:00-08:00", 0, 8 * 60),
        ("22:00-08:00", 8 * 60, 0),
        ("22:00-08:00", NOON, 0),
        ("22:00-24:00,00:00-08:00", 23 * 60, 9 * 60),
        ("12:00-13:00,22:00-08:00", NOON + 15, 45),
        ("00:00-12:00,12:00-24:00", NOON, None),
    ],
)
def test_hours_go_over_midnight_and_join(hours: str, minute: int, left: int | None) -> None:
    assert minutes_open(parse_hours(hours), minute) == left


@pytest.mark.parametrize(
    "text", ["8-22", "22:00", "25:00-08:00", "22:60-08:00", "24:30-08:00", "08:00-08:00", "00:00-24:00", "x"]
)
def test_what_are_no_hours_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="are no hours"):
        parse_hours(text)


def test_outside_its_hours_the_machine_rests_and_says_when_it_works_again() -> None:
    night = replace(LIMITS, hours=parse_hours("22:00-08:00,12:30-13:00"))
    found = decide_yield(MACHINE, CUDA, night, own_sessions=(), minute=NOON, now_yielding=None)
    assert found == Yield(cause="hours", reason="these are not its hours: it works again at 12:30")
    assert opens_at(night.hours, 14 * 60) == "22:00"
    assert decided(MACHINE, night, minute=23 * 60) is None


ASKED = Asked(memory_bytes=8 * GIB, disk_bytes=GIB, eta_s=Decimal(3_600), price_atomic=500_000)


@pytest.mark.parametrize(
    ("asked", "limits", "code", "words"),
    [
        ({}, {}, None, ""),
        ({"memory_bytes": 25 * GIB}, {}, "model_too_large", f"{GIB} bytes are missing"),
        ({}, {"vram_max_bytes": 7 * GIB}, "model_too_large", f"{GIB} bytes are missing"),
        ({"disk_bytes": 96 * GIB}, {}, "not_selling", f"{GIB} bytes of disk are missing"),
        ({"disk_bytes": 3 * GIB}, {"disk_max_bytes": 2 * GIB}, "not_selling", f"{GIB} bytes of disk are missing"),
        ({}, {"price_min_atomic": 500_001}, "not_selling", "smallest price"),
        ({}, {"price_min_atomic": 500_000}, None, ""),
        ({}, {"hours": parse_hours("08:00-12:30")}, "not_selling", "for 30 minutes more, the job needs 60"),
        ({}, {"hours": parse_hours("08:00-13:00")}, None, ""),
        ({}, {"hours": parse_hours("22:00-08:00")}, "not_selling", "again at 22:00"),
    ],
)
def test_a_job_that_breaks_a_limit_is_not_taken(asked: dict, limits: dict, code: str | None, words: str) -> None:
    refusal = may_take(replace(ASKED, **asked), MACHINE, CUDA, replace(LIMITS, **limits), NOON)
    assert (refusal.code if refusal else None) == code
    assert words in (refusal.reason if refusal else "")


def test_nothing_is_sold_while_the_disk_is_full_up_to_its_reserve() -> None:
    full = replace(MACHINE, disk_free_bytes=LIMITS.disk_reserve_bytes)
    refusal = may_take(replace(ASKED, disk_bytes=0), full, CUDA, LIMITS, NOON)
    assert refusal is not None
    assert "reserve" in refusal.reason


def test_on_the_cpu_a_job_has_half_of_what_is_free_or_what_the_owner_says() -> None:
    assert memory_bytes(MACHINE, CPU, LIMITS) == 16 * GIB
    assert memory_bytes(MACHINE, CPU, replace(LIMITS, memory_max_bytes=GIB)) == GIB
    assert memory_bytes(MACHINE, CPU, replace(LIMITS, memory_max_bytes=999 * GIB)) == 64 * GIB
    assert disk_bytes(replace(MACHINE, disk_free_bytes=GIB), LIMITS) == 0


@pytest.mark.parametrize(("bytes_max", "share"), [(6 * GIB, 0.25), (24 * GIB, 1.0), (999 * GIB, 1.0)])
def test_a_program_is_held_to_the_owners_share_of_a_gpu(bytes_max: int, share: float) -> None:
    assert memory_share(bytes_max, 24 * GIB) == share


def test_only_payers_whom_the_owner_names_may_buy() -> None:
    payer = "0xAbCdef0000000000000000000000000000000001"
    assert admits(payer, LIMITS) is None
    assert admits(payer, replace(LIMITS, requesters=frozenset({payer.lower()}))) is None
    assert payer in (admits(payer, replace(LIMITS, requesters=frozenset({"0x1"}))) or "")
