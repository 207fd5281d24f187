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


def test_a_control_plane_with_a_secret_is_served_to_strangers_and_ticks_by_itself(livery: Livery) -> None:
    told = {"LIVERY_API_SECRET": "the-secret", "LIVERY_AGENT_POLL_INTERVAL_S": "1"}
    anywhere = "0.0.0.0"  # noqa: S104 - the secret keeps strangers out
    process, url = _started(livery, "serve", "--host", anywhere, "--port", "0", "--tick", **told)
    called = {"LIVERY_URL": url.replace(anywhere, "127.0.0.1"), "LIVERY_CLI_SECRET": "the-secret"}
    assert "asks for its secret" in livery("run", "list", **called | {"LIVERY_CLI_SECRET": ""}).err
    assert "secret is wrong" in livery("run", "list", **called | {"LIVERY_CLI_SECRET": "another"}).err
    run_id = livery("run", "start", "x", "--budget", "5", "--json", **called).json["_id"]
    assert livery("run", "cancel", run_id, **called).code == 0
    deadline = time.monotonic() + 60
    while livery("run", "status", run_id, "--json", **called).json["run"]["status"] != "cancelled":
        assert time.monotonic() < deadline
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "the-secret" not in said


def test_a_run_without_a_server_needs_no_secret_whatever_the_environment_has(livery: Livery) -> None:
    told = {"LIVERY_API_SECRET": "the-secret", "LIVERY_CLI_SECRET": "another", "VERCEL": "1"}
    shown = livery("run", "list", "--local", "--json", **told)
    assert (shown.code, shown.json["runs"]) == (0, []), shown.err


@pytest.mark.row(150)
def test_a_taken_default_port_is_replaced_and_a_chosen_one_is_an_error(livery: Livery) -> None:
    # The command line wins over the environment.
    first, url = _started(livery, "vendor-mock", "--port", "0", GPU_VENDOR_SECRET="s", PORT="65535")
    port = url.rpartition(":")[2]
    assert port != "65535"
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
