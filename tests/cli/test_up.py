"""`livery up` as processes: with what trains a worker sells, without it vendors that pretend do; a run completes."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import Livery
from tests.fixtures.tiny import Tiny

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WAIT_S = 240
# An idle world goes at once: a worker that has nothing to drain waits for nothing.
END_S = 15
# How Python itself is told that a module is not there.
BARE = "import sys; sys.modules['torch'] = None; from cli.app import main; main()"


@dataclass(frozen=True)
class Up:
    process: subprocess.Popen[bytes]
    said: str
    url: str


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Path:
    """The folder of both worlds, one after the other; the tiny model is there already."""
    folder = tmp_path_factory.mktemp("up")
    (folder / "tiny").mkdir()
    shutil.copytree(tiny.model, folder / "tiny" / tiny.model.name)
    shutil.copyfile(tiny.text, folder / "tiny" / tiny.text.name)
    return folder


@contextmanager
def up(livery: Livery, data: Path, *program: str) -> Iterator[Up]:
    """Yield a world that is ready; it is ended by Ctrl-C, and leaves nothing behind."""
    log = livery.home / "up.txt"
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, *program, "up", "--data", str(data)],
            env={**os.environ, **livery.variables},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        until_s = time.monotonic() + WAIT_S
        while "Ctrl-C ends it all" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until_s, log.read_text()
            time.sleep(0.1)
        found = re.search(r"control plane\W+(http://\S+)", log.read_text())
        assert found is not None
        yield Up(process, log.read_text(), found[1])
        began_s = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(WAIT_S) == 0
        while _members(process.pid):
            assert time.monotonic() - began_s < END_S, _members(process.pid)
            time.sleep(0.05)
        assert time.monotonic() - began_s < END_S
    finally:
        for pid in _members(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def _members(session: int) -> list[int]:
    """Return the living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of) == session and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_without_what_trains_vendors_pretend_and_one_line_says_what_brings_it(livery: Livery, data: Path) -> None:
    with up(livery, data, "-c", BARE) as world:
        (line,) = [line for line in world.said.splitlines() if "only pretend" in line]
        assert "torch" in line
        assert line.endswith("pip install 'livery[worker]'")
        started = livery(
            *("run", "start", "Fine-tune tiny-llm", "--budget", "5", "--watch", "--interval", "0.2", "--json"),
            LIVERY_URL=world.url,
        )
        assert started.code == 0, started.err
        assert vendors(livery, data) == ["gpu_vendor_1", "gpu_vendor_2"]
        second = livery("up", "--data", str(data))
        assert second.code == 1
        assert "runs already" in second.err


def test_with_it_a_worker_on_this_machine_sells_and_nobody_pretends(livery: Livery, data: Path) -> None:
    """That a run rents it and gets its files is shown by the README's own commands."""
    with up(livery, data, "-m", "cli") as world:
        assert "its switch for training (fine_tune) was turned on by you" in world.said
        assert vendors(livery, data) == ["worker"]


def test_make_demo_installs_nothing_that_trains_and_make_demo_train_does(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)

    def would_do(target: str) -> str:
        return subprocess.run(
            ["make", "--dry-run", target], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert "'.[dev]'" in would_do("demo")
    assert "worker" not in would_do("demo")
    assert "'.[dev,worker,gguf]'" in would_do("demo-train")


def vendors(livery: Livery, data: Path) -> list[str]:
    listed = livery("vendors", "list", "--json", DATABASE_URL=f"sqlite:///{data}/livery.db")
    assert listed.code == 0, listed.err
    return sorted(one["vendorId"] for one in listed.json)
