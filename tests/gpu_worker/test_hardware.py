"""The hardware that is told is the hardware that is there: three GPUs of a table, and this machine."""

import os
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest

from gpu_worker.config import WorkerSettings
from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.hardware import MIB, Machine, device_of, hw_document, stats_document, torch_problem
from gpu_worker.wiring.machine import device, open_hardware
from tests.fixtures.nvml_recorded import NoDriver, RecordedNvml, nvidia_smi


def settings(folder: Path, **more: Any) -> WorkerSettings:
    return WorkerSettings(_env_file=None, data=folder, **more)


async def probe(folder: Path, nvml: Any, **more: Any) -> Machine:
    return await open_hardware(settings(folder, **more), nvml).read()


@pytest.mark.row(81)
async def test_every_gpu_is_told_as_nvidia_smi_tells_it(tmp_path: Path) -> None:
    gpus = stats_document(await probe(tmp_path, RecordedNvml()))["gpus"]
    said = nvidia_smi()
    assert len(gpus) == len(said) == 3
    for ours, theirs in zip(gpus, said, strict=True):
        assert str(ours["index"]) == theirs["index"]
        assert ours["uuid"] == theirs["uuid"]
        assert ours["name"] == theirs["name"]
        assert ours["driver"] == theirs["driver_version"]
        assert str(ours["total_vram_mb"]) == theirs["memory.total"]
        assert str(ours["free_vram_mb"]) == theirs["memory.free"]
        assert str(ours["temperature_c"]) == theirs["temperature.gpu"]
        assert ours["power_w"] == Decimal(theirs["power.draw"])
        assert _told(ours["utilisation_percent"]) == theirs["utilization.gpu"]
        assert _told(ours["ecc_errors"]) == theirs["ecc.errors.uncorrected.volatile.total"]
        assert bool(ours["throttled_by"]) == (theirs["clocks_event_reasons.sw_thermal_slowdown"] == "Active")
        assert bool(ours["migs"]) == (theirs["mig.mode.current"] == "Enabled")


def _told(value: int | None) -> str:
    return "[N/A]" if value is None else str(value)


@pytest.mark.row(81)
async def test_the_sums_are_those_of_all_gpus_and_the_machine(tmp_path: Path) -> None:
    told = stats_document(await probe(tmp_path, RecordedNvml()))
    said = nvidia_smi()
    assert told["total_vram_mb"] == sum(int(gpu["memory.total"]) for gpu in said)
    assert abs(told["free_vram_mb"] - sum(int(gpu["memory.free"]) for gpu in said)) < len(said)
    assert told["gpu_temperature"] == 87
    assert 0 < told["free_ram_mb"] <= told["total_ram_mb"] <= psutil.virtual_memory().total // MIB
    assert 0 <= told["cpu_percent"] <= 100
    assert told["cpu_count"] == len(os.sched_getaffinity(0))
    assert told["free_disk_mb"] > 0


async def test_what_is_wrong_with_a_gpu_is_a_sentence_for_its_owner(tmp_path: Path) -> None:
    problems = (await probe(tmp_path, RecordedNvml())).problems
    assert problems[:3] == (
        "GPU 0 (NVIDIA GeForce RTX 4090) is slowed down: heat (by the driver)",
        "GPU 1 (NVIDIA A100-SXM4-80GB) had 7 memory errors that could not be corrected: results may be wrong",
        "GPU 2 (NVIDIA H100 80GB HBM3) is cut up into 2 MIG slices: a job gets the largest, not the whole",
    )


async def test_an_idle_gpu_that_clocks_down_is_not_throttled(tmp_path: Path) -> None:
    # Its reason is 0x1, GpuIdle.
    assert not (await probe(tmp_path, RecordedNvml())).gpus[1].is_throttled


async def test_the_slices_of_a_gpu_are_told_and_empty_places_are_not(tmp_path: Path) -> None:
    migs = (await probe(tmp_path, RecordedNvml())).gpus[2].migs
    assert [(mig.profile, mig.vram_total_bytes // MIB) for mig in migs] == [("1g.10gb", 9_984), ("3g.40gb", 40_192)]


async def test_the_programs_on_a_gpu_are_told_by_their_session_and_by_what_they_used_last(tmp_path: Path) -> None:
    nvml = RecordedNvml()
    ours, parent = os.getpid(), os.getppid()
    nvml.devices[0].update(
        compute=[{"pid": ours, "usedGpuMemory": 7}, {"pid": 2**22 + 1, "usedGpuMemory": 1}],
        graphics=[{"pid": ours, "usedGpuMemory": 7}, {"pid": parent, "usedGpuMemory": None}],
        samples=[{"pid": ours, "smUtil": 97, "timeStamp": 20}, {"pid": ours, "smUtil": 12, "timeStamp": 10}],
    )
    # This one tells of no use lately, and the third tells nothing of it.
    nvml.devices[1]["compute"] = [{"pid": ours, "usedGpuMemory": 7}]
    nvml.devices[2]["compute"] = [{"pid": ours, "usedGpuMemory": 7}]
    gpus = (await probe(tmp_path, nvml)).gpus
    assert [gpu.users[0].utilisation for gpu in gpus[1:]] == [0, None]
    users = gpus[0].users
    # A process that is not of this machine's list (a container sees the host's numbers) is left out.
    assert [(one.pid, one.is_computing, one.utilisation) for one in users] == [(ours, True, 97), (parent, False, 0)]
    assert users[0].session == os.getsid(0)


@pytest.mark.parametrize("library", [NoDriver(), None], ids=["no driver", "this machine"])
async def test_a_machine_without_a_gpu_is_told_without_one(library: Any, tmp_path: Path) -> None:
    machine = await probe(tmp_path / "not" / "there", library)
    if machine.gpus:
        return  # this machine has one
    assert machine.problems == ()
    told = stats_document(machine)
    assert (told["total_vram_mb"], told["free_vram_mb"], told["gpu_temperature"], told["gpus"]) == (0, 0, None, [])


async def test_a_driver_that_was_lost_is_told_and_opened_again_once_it_is_back(tmp_path: Path) -> None:
    nvml = RecordedNvml()
    hardware = open_hardware(settings(tmp_path), nvml)
    assert len((await hardware.read()).gpus) == 3
    await hardware.read()
    assert nvml.opened == 1
    nvml.lost = True
    lost = await hardware.read()
    assert (lost.gpus, lost.problems) == ((), ("the GPU driver does not answer: GPU is lost",))
    nvml.lost = False
    assert len((await hardware.read()).gpus) == 3
    assert nvml.opened == 2


@pytest.mark.row(58)
async def test_the_device_is_the_first_of_cuda_mps_cpu(tmp_path: Path) -> None:
    three, none = await probe(tmp_path, RecordedNvml()), await probe(tmp_path, NoDriver())
    assert device_of(three, "auto", has_mps=True).kind == "cuda"
    assert device_of(none, "auto", has_mps=True).kind == "mps"
    assert device_of(none, "auto").kind == "cpu"
    assert device_of(three, "cpu").kind == "cpu"
    for wanted in ("cuda", "mps"):
        with pytest.raises(OwnersFault, match="set it to auto or cpu"):
            device_of(none, wanted)


@pytest.mark.row(58)
async def test_the_gpu_is_the_largest_that_is_whole_and_its_memory_is_all_of_it(tmp_path: Path) -> None:
    three = await probe(tmp_path, RecordedNvml())
    chosen = device(settings(tmp_path), three)
    # The A100 had errors, the H100 is cut up.
    assert (chosen.gpu_type, chosen.visible) == ("RTX-4090", three.gpus[0].uuid)
    told = hw_document(three, chosen)
    assert (told["vram_mb"], told["device"]) == (24_564, "cuda")
    assert (told["ram_mb"], hw_document(three, chosen, ram_mb=5_000)["ram_mb"]) == (told["free_ram_mb"], 5_000)
    of_slices = device_of(replace(three, gpus=three.gpus[2:]), "auto")
    assert (of_slices.gpu_type, of_slices.visible) == ("H100-80GB-HBM3-3g.40gb", three.gpus[2].migs[1].uuid)
    assert of_slices.memory_bytes == three.gpus[2].migs[1].vram_total_bytes


@pytest.mark.parametrize(
    ("names", "gpu_type"),
    [
        ("GPU-c1d7e7a0-3f38-4a0c-b6dd-6a1be0a5f102", "A100-SXM4-80GB"),
        ("GPU-c1d7", "A100-SXM4-80GB"),
        ("MIG-3a1f6c9e-41d1-5b11-8f0c-7d6a3c2b1a00", "H100-80GB-HBM3-1g.10gb"),
        # What CUDA leaves of these is nothing: jobs run on the processor.
        ("-1", "CPU"),
        ("", "CPU"),
        ("GPU-of-another-machine,GPU-c1d7", "CPU"),
    ],
)
async def test_a_gpu_that_its_owner_hides_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, gpu_type: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    three = await probe(tmp_path, RecordedNvml())
    chosen = device(settings(tmp_path), three)
    assert chosen.gpu_type == gpu_type
    assert (chosen.visible or "").startswith(names) or gpu_type == "CPU"


async def test_a_number_that_may_be_another_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three = await probe(tmp_path, RecordedNvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(OwnersFault, match="name them by their UUIDs"):
        device(settings(tmp_path), three)
    alike = replace(three, gpus=tuple(replace(gpu, name="NVIDIA L4") for gpu in three.gpus))
    assert device(settings(tmp_path), alike).visible == three.gpus[1].uuid
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert device(settings(tmp_path), three).visible == three.gpus[1].uuid
    with pytest.raises(OwnersFault, match="CUDA_VISIBLE_DEVICES hides it"):
        device(settings(tmp_path, device="cuda", gpus="7"), three)


async def test_a_gpu_that_torch_cannot_use_is_told_with_the_command_that_mends_it(tmp_path: Path) -> None:
    gpus = (await probe(tmp_path, RecordedNvml())).gpus
    assert "pip install --force-reinstall torch" in (torch_problem(gpus, "2.13.0+cpu") or "")
    assert torch_problem(gpus, "2.13.0+cu130") is None
    assert torch_problem((), "2.13.0+cpu") is None
