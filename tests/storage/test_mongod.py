"""The tests' own MongoDB: found in a known order, and gone with the tests, however they end."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fixtures.mongod import find_mongod

ROOT = Path(__file__).parents[2]

# A session that tells its server's process and then is ended from outside, or by the Ctrl-C it sends itself.
SESSION = """
import signal
from tests.fixtures.mongod import Mongod, mongod_url
import tests.fixtures.mongod as fixtures

class Told(Mongod):
    def __init__(self, **words):
        super().__init__(**words)
        print("mongod", self.process.pid, self.folder, flush=True)

fixtures.Mongod = Told

def test_that_is_interrupted(mongod_url):
    # To this thread: another one would take it for the whole process, and this one wait for ever.
    signal.raise_signal(signal.{signal})
    signal.pause()
"""


def test_a_named_binary_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MONGOD_BIN", "/somewhere/mongod")
    assert find_mongod() == Path("/somewhere/mongod")


def test_a_missing_server_is_a_failure_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MONGOD_BIN", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(FileNotFoundError, match="pip install"):
        find_mongod()


@pytest.mark.slow
@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGKILL])
def test_the_server_ends_with_the_session(tmp_path: Path, ended_by: signal.Signals) -> None:
    session = tmp_path / "test_session.py"
    session.write_text(SESSION.replace("{signal}", ended_by.name))
    environment = {name: value for name, value in os.environ.items() if name != "MONGODB_TEST_URI"}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(session)],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    words = next(line for line in ended.stdout.splitlines() if "mongod " in line).partition("mongod ")[2].split()
    pid, folder = int(words[0]), Path(words[1])
    deadline_s = time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    assert ended_by is signal.SIGKILL or not folder.exists()
    shutil.rmtree(folder, ignore_errors=True)


def is_running(pid: int) -> bool:
    """Return whether the process lives; a dead one may lie there until somebody asks how it ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
