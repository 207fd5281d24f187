"""The servers as processes: ready, stopped by a signal, and the whole demo."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.cli.conftest import Livery

pytestmark = pytest.mark.slow


def _started(livery: Livery, *arguments: str, **more: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", *arguments],
        env={**os.environ, **livery.variables, **more},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r'"url": "(http://[^"]+)"', line):
            return process, found[1]
    raise AssertionError(f"{arguments} said no address and ended with {process.wait()}")


@pytest.mark.row(153)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_control_plane_drains_and_exits_with_0(livery: Livery, number: signal.Signals) -> None:
    process, url = _started(livery, "serve", "--port", "0")
    assert httpx.get(f"{url}/health", timeout=20).json()["payments"] == "off"
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    last = json.loads(said.strip().splitlines()[-1])
    assert last["event"] == "control plane has stopped"


def test_a_taken_default_port_is_replaced_and_a_chosen_one_is_an_error(livery: Livery) -> None:
    first, url = _started(livery, "vendor-mock", "--port", "0", GPU_VENDOR_SECRET="s")
    port = url.rpartition(":")[2]
    refused = livery("vendor-mock", "--port", port, GPU_VENDOR_SECRET="s")
    assert refused.code == 1
    assert "cannot be bound" in refused.err
    first.terminate()
    first.communicate(timeout=20)
    assert first.returncode == 0


def _children(pid: int) -> set[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    direct = {int(child) for child in listed.read_text().split()} if listed.exists() else set()
    return direct.union(*(_children(child) for child in direct)) if direct else direct


def _is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def test_up_that_is_stopped_while_it_starts_leaves_nothing_running(livery: Livery, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "up", "--data", str(tmp_path / "data")],
        env={**os.environ, **livery.variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while len(started := _children(process.pid)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.terminate()
    assert process.wait(30) == 0
    while any(map(_is_alive, started)):
        assert time.monotonic() < deadline, [pid for pid in started if _is_alive(pid)]


@pytest.mark.row(155)
def test_the_demo_ends_with_books_and_chain_equal(livery: Livery) -> None:
    shown = livery("demo", "--json")
    assert shown.code == 0, shown.err
    document = shown.json
    assert document["agree"] is True
    assert [one["status"] for one in document["status"]["jobs"]] == ["completed", "failed"]
    assert [(one["vendorId"], one["amount"], one["refunded"]) for one in document["status"]["payments"]] == [
        ("gpu_vendor_2", 1.8, 0),
        ("gpu_vendor_1", 1.4, 0.7),
    ]
    assert document["status"]["run"]["budgetRemaining"] == 2.5
