"""A device is measured by a program of its own, once, and again when what it was measured with is another."""

import asyncio
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
from gpu_worker.core.hardware import Device
from gpu_worker.edges.measure_process import MeasureProcess
from gpu_worker.machine import device, open_hardware, open_measure

pytestmark = pytest.mark.slow


@pytest.mark.row(87)
async def test_a_device_is_measured_once_and_anew_when_driver_or_threads_change(tmp_path: Path) -> None:
    told = await asyncio.to_thread(_typed, tmp_path, "bench", "worker", "--json")
    # A machine that does less than this is none; one that does more than that does not exist.
    assert 10 < told["benchmarkTokPerSec"] < 10**6
    assert 10**8 < told["memoryBytesPerS"] < 10**12
    assert 10**9 < told["flops"] < 10**13
    assert 0 < told["layerS"] < 1
    assert 0 < told["startS"] < 120
    # The worker finds it where it was kept, and tells it in /health and in its offers: nothing is measured again.
    settings = WorkerSettings(_env_file=None, data=tmp_path / ".livery/worker", device="cpu", threads=1)
    machine = await open_hardware(settings).read()
    measure, chosen = open_measure(settings, machine), device(settings, machine)
    [kept] = (tmp_path / ".livery/worker/devices").iterdir()
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


async def test_a_device_that_is_not_there_is_told_in_one_sentence(tmp_path: Path) -> None:
    no_such = Device(kind="cuda", name="nonsense:9", gpu_type="A10", memory_bytes=1)
    with pytest.raises(OwnersFault, match=r"the device nonsense:9 cannot be measured: \w"):
        await MeasureProcess(tmp_path, program_environment(1), 1).speed(no_such)
    assert os.listdir(tmp_path) == []
