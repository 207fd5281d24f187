"""The watch over the machine: what it tells, how often it looks, and that it ends at once."""

import asyncio
import os
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from gpu_worker.config import WorkerSettings
from gpu_worker.core.hardware import Device, Machine
from gpu_worker.core.owner import Limits, Yield
from gpu_worker.wiring.machine import device, open_hardware
from gpu_worker.yielding import watch
from tests.fixtures.nvml_recorded import RecordedNvml


class Scripted:
    """A machine that is otherwise at each look; after the last it stays as it was."""

    def __init__(self, machines: Iterable[Machine], stop: asyncio.Event) -> None:
        self._machines = list(machines)
        self._stop = stop

    async def read(self) -> Machine:
        if len(self._machines) == 1:
            self._stop.set()
        return self._machines.pop(0)


CPU = Device(kind="cpu", name="cpu", gpu_type="CPU", memory_bytes=1)
MACHINE = Machine(ram_total_bytes=1, ram_free_bytes=1, cpu_count=1, cpu_percent=Decimal(0), disk_free_bytes=1)


async def _told(
    machines: Iterable[Machine], device: Device, limits: Limits, own: Iterable[int] = ()
) -> list[str | None]:
    told: list[str | None] = []

    def tell(_: Machine, decided: Yield | None) -> None:
        told.append(decided.cause if decided else None)

    stop = asyncio.Event()
    await watch(
        Scripted(machines, stop),
        device,
        limits,
        own_sessions=lambda: tuple(own),
        local_minute=lambda: 0,
        tell=tell,
        stop=stop,
        busy_s=0.001,
        idle_s=0.001,
    )
    return told


async def test_jobs_rest_on_the_battery_and_go_on_off_it() -> None:
    on, off = replace(MACHINE, on_battery=True), replace(MACHINE, on_battery=False)
    assert await _told([off, on, on, off], CPU, Limits()) == [None, "battery", "battery", None]


async def test_a_hot_gpu_is_left_alone_until_it_is_some_degrees_cooler(tmp_path: Path) -> None:
    # The recorded GPU has 87 degrees.
    nvml, settings = RecordedNvml(), WorkerSettings(_env_file=None, data=tmp_path)
    hardware = open_hardware(settings, nvml)
    seen = []
    for temperature in (80, 87, 84, 81, 79):
        nvml.devices[0]["temperature"] = temperature
        seen.append(await hardware.read())
    assert await _told(seen, device(settings, seen[0]), Limits()) == [None, "hot", "hot", "hot", None]


async def test_a_gpu_that_its_owner_uses_is_given_back_after_some_quiet_looks(tmp_path: Path) -> None:
    nvml, settings = RecordedNvml(), WorkerSettings(_env_file=None, data=tmp_path)
    nvml.devices[0]["temperature"] = 50
    hardware = open_hardware(settings, nvml)
    seen = []
    for is_used in (True, False, False, True, *[False] * 6):
        # This very process plays the owner's.
        nvml.devices[0].update(
            compute=[{"pid": os.getpid(), "usedGpuMemory": 7}],
            samples=[{"pid": os.getpid(), "smUtil": 50 if is_used else 0, "timeStamp": 1}],
        )
        seen.append(await hardware.read())
    chosen = device(settings, seen[0])
    assert await _told(seen, chosen, Limits()) == ["gpu"] * 8 + [None] * 2
    assert await _told(seen, chosen, Limits(), own=[os.getsid(0)]) == [None] * 10


async def test_it_looks_seldom_while_nothing_runs_and_ends_at_once() -> None:
    looks = 0
    stop = asyncio.Event()

    class Counting:
        async def read(self) -> Machine:
            nonlocal looks
            looks += 1
            return MACHINE

    def tell(*_: object) -> None:
        asyncio.get_running_loop().call_soon(stop.set)

    async with asyncio.timeout(2):
        await watch(
            Counting(), CPU, Limits(), own_sessions=tuple, local_minute=lambda: 0, tell=tell, stop=stop, idle_s=3_600
        )
    assert looks == 1
