"""A device is measured by a program of its own, once, and again when what it was measured with is another."""

import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gpu_worker.config import WorkerSettings, program_environment
from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.estimate import ModelShape, eta_s, need_of
from gpu_worker.core.hardware import Device, Speed
from gpu_worker.edges.machine.measure_process import MeasureProcess
from gpu_worker.wiring.machine import device, open_hardware, open_measure
from tests.fixtures.tiny import LEARNING, Job, Tiny
from wire.jobs import params_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def told(home: Path) -> dict[str, Any]:
    """This machine's processor, measured; one thread of it."""
    return dict(_typed(home, "bench", "worker", "--json"))


@pytest.mark.row(87)
async def test_a_device_is_measured_once_and_anew_when_driver_or_threads_change(
    home: Path, told: dict[str, Any]
) -> None:
    # A machine that does less than this is none; one that does more than that does not exist.
    assert 10 < told["benchmarkTokPerSec"] < 10**6
    assert 10**8 < told["memoryBytesPerS"] < 10**12
    assert 10**9 < told["flops"] < 10**13
    assert 0 < told["layerS"] < 1
    assert 0 < told["startS"] < 120
    # The worker finds it where it was kept, and tells it in /health and in its offers: nothing is measured again.
    settings = WorkerSettings(_env_file=None, data=home / ".livery/worker", device="cpu", threads=1)
    machine = await open_hardware(settings).read()
    measure, chosen = open_measure(settings, machine), device(settings, machine)
    [kept] = (home / ".livery/worker/devices").iterdir()
    written = kept.stat().st_mtime_ns
    assert (await measure.speed(chosen)).tokens_per_s == Decimal(str(told["benchmarkTokPerSec"]))
    assert kept.stat().st_mtime_ns == written
    assert MeasureProcess(kept.parent, {}, 2).kept(chosen) is None
    assert MeasureProcess(kept.parent, {}, 1, "580.95.05").kept(chosen) is None
    kept.write_text('{"flops": 1')
    assert measure.kept(chosen) is None


def _typed(home: Path, *words: str) -> Any:
    here = {
        "HOME": str(home),
        "LIVERY_WORKER_THREADS": "1",
        "DEVICE": "cpu",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run(
        [sys.executable, "-m", "cli", *words], cwd=home, env={**os.environ, **here}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_quote_tells_the_memory_and_the_time_of_a_real_training(
    told: dict[str, Any], tiny: Tiny, trained: Job
) -> None:
    shape = ModelShape.from_config(json.loads((tiny.model / "config.json").read_text()))
    need = need_of(shape, params_of("fine_tune", {"params": LEARNING}), "cpu")
    speed = Speed(
        memory_bytes_per_s=told["memoryBytesPerS"],
        flops=told["flops"],
        tokens_per_s=Decimal(str(told["benchmarkTokPerSec"])),
        layer_s=Decimal(str(told["layerS"])),
        start_s=Decimal(str(told["startS"])),
    )
    assert (need.steps, need.tokens) == (trained.state["steps"], trained.state["tokens"])
    # Within a quarter, and never below.
    assert need.memory_bytes / 1.25 < trained.cost["peakBytes"] <= need.memory_bytes
    # In time of the processor, of which a program of one thread takes as much on a machine that is busy.
    assert 0.5 < trained.cost["processorS"] / float(eta_s(need, shape, speed)) < 2


async def test_a_device_that_is_not_there_is_told_in_one_sentence(tmp_path: Path) -> None:
    no_such = Device(kind="cuda", name="nonsense:9", gpu_type="A10", memory_bytes=1)
    with pytest.raises(OwnersFault, match=r"the device nonsense:9 cannot be measured: \w"):
        await MeasureProcess(tmp_path, program_environment(1), 1).speed(no_such)
    assert os.listdir(tmp_path) == []
