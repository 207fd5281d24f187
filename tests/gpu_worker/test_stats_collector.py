"""The machine's figures in three lines of Python, under the names that they had elsewhere."""

import json
import subprocess
import sys

import psutil
import pytest

from gpu_worker.stats_collector import StatsCollector
from tests.fixtures.nvml_recorded import NoDriver, RecordedNvml, nvidia_smi

SNIPPET = """
import json, sys
from dataclasses import asdict
from gpu_worker.stats_collector import StatsCollector
print(json.dumps(asdict(StatsCollector().collect())))
print(*(name for name in ("torch", "grpc", "fastapi", "transformers") if name in sys.modules), file=sys.stderr)
"""


@pytest.mark.row(156)
def test_the_snippet_prints_what_the_machine_has_and_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", SNIPPET], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    names = ("free_vram_mb", "total_vram_mb", "free_ram_mb", "total_ram_mb", "cpu_percent", "gpu_temperature")
    assert tuple(found) == names
    assert 0 < found["free_ram_mb"] <= found["total_ram_mb"] <= psutil.virtual_memory().total // 1024**2
    assert 0 <= found["cpu_percent"] <= 100
    assert done.stderr.strip() == ""


@pytest.mark.row(156)
def test_all_gpus_are_counted_and_none_is_no_fault() -> None:
    stats = StatsCollector(RecordedNvml()).collect()
    assert stats.total_vram_mb == sum(int(gpu["memory.total"]) for gpu in nvidia_smi())
    assert stats.gpu_temperature == max(int(gpu["temperature.gpu"]) for gpu in nvidia_smi())
    none = StatsCollector(NoDriver()).collect()
    assert (none.free_vram_mb, none.total_vram_mb, none.gpu_temperature) == (0, 0, None)
