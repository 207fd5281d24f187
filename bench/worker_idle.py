"""
What a worker costs that has nothing to do: its share of one processor, and its memory. `python -m bench.worker_idle`

It is a real one: a process of its own with a key, a door and a kind of job for sale, watched from outside.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.records import add_arguments, record
from chain.devchain import dev_account

CPU_PERCENT_MAX = 1.0
RSS_MB_MAX = 150.0
READY_S = 240.0


def main() -> int:
    """Watch a worker; 1 where it costs more than it may."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--seconds", type=float, default=60.0, help="how long it is watched, once it is online")
    add_arguments(reader)
    options = reader.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        document = _watched(Path(folder), options.seconds)
    is_cheap = document["cpuPercent"] < CPU_PERCENT_MAX and document["rssMb"] < RSS_MB_MAX and not document["hasTorch"]
    page = Table("an idle worker", "costs", "may cost", header_style="bold", box=None, pad_edge=False)
    page.add_row("processor", f"{document['cpuPercent']:.2f} % of one", f"{CPU_PERCENT_MAX} %")
    page.add_row("memory (RSS)", f"{document['rssMb']:.0f} MB", f"{RSS_MB_MAX:.0f} MB")
    page.add_row("torch", "loaded" if document["hasTorch"] else "not loaded", "not loaded")
    Console().print(page)
    if options.record:
        record("worker_idle", document)
    print(json.dumps(document))
    return 0 if is_cheap else 1


def _watched(folder: Path, seconds: float) -> dict[str, Any]:
    import psutil

    log = folder / "worker.log"
    settings = folder / "settings.env"
    settings.touch(mode=0o600)
    settings.write_text(f"LIVERY_WORKER_PRIVATE_KEY={dev_account(8).key}\n")
    # Nobody answers at that node: it is asked now and then and is no part of what idling costs.
    typed = ["--data", str(folder / "data"), "--kinds", "fine_tune", "--port", "0", "--rpc-url", "http://127.0.0.1:9"]
    command = [sys.executable, "-m", "cli", "worker", "start", "--env-file", str(settings), *typed]
    with log.open("w") as stream:
        program = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        _wait_until_online(program, log)
        process = psutil.Process(program.pid)
        began_s, before = time.monotonic(), process.cpu_times()
        program_ended = False
        try:
            program.wait(seconds)
            program_ended = True
        except subprocess.TimeoutExpired:
            pass  # as it should: it lives on
        assert not program_ended, log.read_text()
        after, took_s = process.cpu_times(), time.monotonic() - began_s
        worked_s = after.user + after.system - before.user - before.system
        maps = Path(f"/proc/{program.pid}/maps")
        return {
            "seconds": round(took_s, 1),
            "cpuPercent": round(100 * worked_s / took_s, 3),
            "rssMb": round(process.memory_info().rss / 1e6, 1),
            "threads": process.num_threads(),
            "hasTorch": maps.exists() and "libtorch" in maps.read_text(),
        }
    finally:
        program.send_signal(signal.SIGTERM)
        program.wait(60)


def _wait_until_online(program: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline_s = time.monotonic() + READY_S
    while "worker is online" not in log.read_text():
        assert program.poll() is None, log.read_text()
        assert time.monotonic() < deadline_s, log.read_text()
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
