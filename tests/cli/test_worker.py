"""`livery worker` and `livery hw` as an owner meets them: processes, their words, their exit codes."""

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import psutil
import pytest

from chain.devchain import dev_account
from tests.cli.conftest import Livery
from tests.fixtures.server import WAIT_S, Server

pytestmark = pytest.mark.slow

KEY = dev_account(8).key
TOKEN = "hf_thisIsAToken"
SECRET = "the-secret-of-the-buyers"


def _environment(home: Path, **more: str) -> dict[str, str]:
    # Nothing answers at port 9.
    return {"HOME": str(home), "LIVERY_WORKER_RPC_URL": "http://127.0.0.1:9", "COLUMNS": "160", **more}


def _typed(home: Path, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli", *words],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **_environment(home, **more)},
        capture_output=True,
        text=True,
        timeout=4 * WAIT_S,
    )


class Worker:
    """A worker as a process of its own."""

    def __init__(self, home: Path, *words: str, **more: str) -> None:
        self.home = home
        self._server = Server(
            home / "worker.log", "cli", "worker", "start", "--port", "0", *words, **_environment(home, **more)
        )
        self.pid = self._server.process.pid
        self.url = self._server.url

    @property
    def log(self) -> str:
        return self._server.log

    @property
    def events(self) -> list[Mapping[str, object]]:
        return [json.loads(line) for line in self.log.splitlines()]

    def wait_for(self, event: str) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while event not in self.log:
            assert self._server.process.poll() is None, self.log
            assert time.monotonic() < deadline_s, self.log
            time.sleep(0.02)

    def stop(self) -> int:
        return self._server.stop()

    def wait(self) -> int:
        return self._server.process.wait(WAIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server.process.poll() is None:
            self._server.process.kill()
            self._server.process.wait()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker that sells nothing yet: it has no key and no kind."""
    with Worker(tmp_path_factory.mktemp("owner")) as running:
        running.wait_for("worker is online")
        yield running
        assert running.stop() == 0
    assert running.events[-1]["event"] == "final report"


@pytest.fixture
def owner(worker: Worker) -> Livery:
    """`livery` typed beside that worker."""
    return Livery(worker.home, {**_environment(worker.home), "COLUMNS": "200"})


@pytest.mark.row(58)
def test_the_hardware_is_told_as_json(livery: Livery) -> None:
    said = livery("hw", "--json", DEVICE="cpu", RAM_MB="4321")
    assert said.code == 0, said.err
    found = said.json
    assert (found["ram_mb"], found["vram_mb"], found["device"]) == (4_321, 0, "cpu")
    measured = livery("hw", "--json").json
    assert abs(measured["ram_mb"] * 1024**2 - psutil.virtual_memory().available) < 2 * 1024**3
    assert measured["device"] in ("cpu", "cuda", "mps")


@pytest.mark.row(58)
def test_a_device_that_is_not_there_is_said_in_a_sentence(livery: Livery) -> None:
    refused = livery("hw", "--json", DEVICE="mps")
    assert (refused.code, refused.json["code"]) == (1, "no_device")
    assert "set it to auto or cpu" in refused.json["detail"]
    assert "LIVERY_WORKER_DEVICE: Input should be" in livery("hw", DEVICE="tpu").err


@pytest.mark.row(81)
def test_the_stats_are_told_as_json_under_both_names(livery: Livery) -> None:
    said = livery("stats", "--json")
    assert said.code == 0, said.err
    found = said.json
    system = ("free_vram_mb", "total_vram_mb", "free_ram_mb", "total_ram_mb", "cpu_percent", "gpu_temperature")
    assert [name for name in system if name not in found] == []
    assert 0 < found["free_ram_mb"] <= found["total_ram_mb"]
    again = livery("worker", "stats", "--json").json
    assert again.keys() == found.keys()
    assert again["total_ram_mb"] == found["total_ram_mb"]


@pytest.mark.parametrize(
    ("option", "typed", "instead"),
    [("--private-key", KEY, "livery wallet new --worker"), ("--hf-token", TOKEN, "HF_TOKEN")],
    ids=["key", "token"],
)
def test_a_secret_is_not_taken_from_a_command_line(livery: Livery, option: str, typed: str, instead: str) -> None:
    said = livery("worker", "start", option, typed)
    assert said.code == 2
    words = " ".join(said.err.replace("│", " ").split())
    assert "a secret is not taken from a command line" in words
    assert instead in words
    assert typed not in said.out + said.err
    assert not (livery.home / ".livery").exists()


@pytest.mark.row(80)
def test_files_that_others_can_read_are_named_with_what_mends_them(
    livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(livery.home)
    data = livery.home / "data"
    data.mkdir()
    files = [livery.home / ".env", data / "wallet.json", data / "wallet-password"]
    for file in files:
        file.write_text("")
        file.chmod(0o644)
    # It warns first and then ends, because the keystore is none: nothing waits for a port here.
    loose = livery("worker", "start", "--data", str(data))
    for file in files:
        path = file.name if file.name == ".env" else str(file)
        warnings = [line for line in loose.err.splitlines() if f"chmod 600 {path}" in line]
        assert len(warnings) == 1, loose.err
        assert json.loads(warnings[0])["level"] == "warning"
        file.chmod(0o600)
    strict = livery("worker", "start", "--data", str(data))
    assert "chmod" not in strict.err
    assert strict.code == loose.code == 1
    assert "does not open with this password" in strict.err


@pytest.mark.row(80)
@pytest.mark.row(153)
def test_no_secret_reaches_a_log_a_program_or_a_status(home: Path) -> None:
    secrets = {"LIVERY_WORKER_PRIVATE_KEY": KEY, "HF_TOKEN": TOKEN, "LIVERY_WORKER_SECRET": SECRET}
    with Worker(home, "--kinds", "fine_tune", "--verbose", **secrets) as running:
        # What measures the device is started as every job's program is, with the same environment.
        [program] = _children(running.pid)
        environment = program.environ()
        status = _typed(home, "worker", "status", "--json", "--api-url", running.url)
        code = running.stop()
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["address"] == dev_account(8).address
    assert environment["HF_HUB_OFFLINE"] == "1"
    everything = running.log + status.stdout + status.stderr + repr(environment)
    assert [secret for secret in (KEY, KEY[2:], TOKEN, SECRET) if secret in everything] == []
    assert code == 0
    assert not program.is_running()
    assert not (home / ".livery/worker/running.json").exists()
    assert running.events[-1]["event"] == "final report"


def _children(pid: int) -> list[psutil.Process]:
    """Return the programs of a worker, once there is one: before it is itself, a process is a copy of its parent."""
    worker, deadline_s = psutil.Process(pid), time.monotonic() + WAIT_S
    while not (found := [child for child in worker.children() if "gpu_worker.engine.measure" in child.cmdline()]):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return found


def test_the_first_start_says_how_a_buyer_registers_it_and_what_is_missing(worker: Worker) -> None:
    folder = worker.home / ".livery/worker"
    said = [str(event["event"]) for event in worker.events]
    assert f"a buyer registers it with: livery vendors add worker {worker.url}" in said
    assert f"its secret is in {folder}/secret: the buyer's GPU_VENDOR_SECRET is worker=SECRET" in said
    assert any(line.startswith("only this machine reaches it") for line in said)
    assert any("nothing is sold: there is no key" in line and "livery wallet new --worker" in line for line in said)
    assert any("no kind of job is sold" in line for line in said)
    assert (folder / "secret").read_text() not in worker.log
    assert [path.stat().st_mode & 0o777 for path in (folder, folder / "secret")] == [0o700, 0o600]


def test_the_owner_sees_the_worker_and_how_buyers_reach_it(owner: Livery, worker: Worker) -> None:
    shown = owner("worker", "status")
    assert shown.code == 0, shown.err
    assert f"livery vendors add worker {worker.url}" in shown.out
    assert "nothing: turn a kind on" in shown.out
    assert "nothing yet: livery wallet new --worker makes a key" in shown.out
    assert f"{worker.home}/.livery/worker/secret" in shown.out
    told = owner("worker", "status", "--json").json
    assert (told["state"], told["url"], told["jobs"]) == ("online", worker.url, [])


def test_the_worker_says_why_it_is_idle_and_what_to_type(owner: Livery) -> None:
    reasons = {one["code"]: one["remedy"] for one in owner("worker", "why", "--json").json}
    assert list(reasons)[:2] == ["no_key", "no_kind"]
    assert reasons["no_key"] == "livery wallet new --worker"
    assert "No kind of job is turned on" in owner("worker", "why").out


def test_a_worker_that_does_not_run_is_said_with_what_starts_it(livery: Livery) -> None:
    for command in ("status", "drain"):
        refused = livery("worker", command)
        assert (refused.code, "livery worker start" in refused.err) == (1, True)
    assert livery("worker", "why", "--json").json[0]["code"] == "not_running"
    elsewhere = livery("worker", "status", "--api-url", "http://127.0.0.1:9", "--json")
    assert elsewhere.json["detail"] == "no worker answers at http://127.0.0.1:9"
    assert (
        "no worker answers at http://127.0.0.1:9" in livery("worker", "status", AGENT_API_URL="http://127.0.0.1:9").err
    )


def test_a_worker_with_another_address_for_buyers_obeys_its_owner_and_drained_it_ends(home: Path) -> None:
    typed = ("--public-url", "https://gpu.example")
    with Worker(home, *typed) as running:
        running.wait_for("worker is online")
        livery = Livery(home, {**_environment(home), "COLUMNS": "200"})
        shown = livery("worker", "status")
        drained = livery("worker", "drain")
        code = running.wait()
    assert shown.code == 0, shown.err
    assert "livery vendors add worker https://gpu.example" in shown.out
    assert "only this machine reaches it" not in running.log
    assert drained.code == 0, drained.err
    assert "sells nothing more" in drained.out
    assert code == 0
    assert running.events[-1]["event"] == "final report"


def test_two_workers_of_one_folder_are_one_too_many(owner: Livery, worker: Worker) -> None:
    second = _typed(worker.home, "worker", "start", "--port", "0")
    assert second.returncode == 1
    assert "another worker runs with" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--price", "free"), "price_per_hour: "),
        (("--kinds", "mining"), "there are no jobs of the kind 'mining'"),
        (("--env-file", "/no/such/file"), "there is no file /no/such/file"),
        (("--layer-start", "3"), "LAYER_START and LAYER_END come together"),
        (("--layer-end", "3"), "LAYER_START and LAYER_END come together"),
        (("--layers", "first"), "write layers as 0:12, 12 not included"),
        (("--layers", "0:4"), "which model?"),
        (("--topology", "/no/such/file"), "the topology /no/such/file cannot be read"),
        (("--next", "127.0.0.1:1", "--topology", "who.toml"), "NEXT and TOPOLOGY are two ways"),
        (("--tls-cert", "cert.pem"), "GRPC_TLS_CERT and GRPC_TLS_KEY come together"),
        (("--node-endpoint", "https://gpu.example", "--price", "free"), "price_per_hour: "),
    ],
)
def test_a_wrong_setting_is_one_sentence(livery: Livery, words: tuple[str, ...], said: str) -> None:
    refused = livery("worker", "start", *words)
    assert refused.code == 1
    assert said in refused.err
    assert "Traceback" not in refused.err


def test_a_key_is_made_once_in_the_workers_own_folder(livery: Livery) -> None:
    made = livery("wallet", "new", "--worker", "--json")
    assert made.code == 0, made.err
    keystore = livery.home / ".livery/worker/wallet.json"
    assert made.json["keystore"] == str(keystore)
    assert keystore.stat().st_mode & 0o777 == 0o600
    before = keystore.read_bytes()
    again = livery("wallet", "new", "--worker")
    assert (again.code, keystore.read_bytes()) == (1, before)
    assert not (livery.home / ".livery/wallet.json").exists()


def test_models_and_what_is_wrong_with_them_are_listed(livery: Livery) -> None:
    models = livery.home / ".livery/worker/models"
    assert str(models) in livery("worker", "models").out
    for name, config in (("tiny", {}), ("odd", {"auto_map": {}})):
        (models / name).mkdir(parents=True)
        (models / name / "config.json").write_text(json.dumps(config))
        (models / name / "model.safetensors").write_bytes(b"12345")
    odd, tiny = livery("worker", "models", "--json").json
    assert (tiny["name"], tiny["bytes"], tiny["problem"]) == ("tiny", 7, None)
    assert "needs code of its own" in odd["problem"]


GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024, "vocab_size": 50257}


def test_a_forecast_needs_the_config_of_a_model_alone(livery: Livery, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    found = livery(
        "worker", "forecast", str(tmp_path), "--json", RAM_MB="4096", LIVERY_WORKER_MEMORY_MAX_MB="2048"
    ).json
    assert found["parameters"] == 124_439_808
    by_work = {row["work"]: row for row in found["rows"]}
    assert by_work["full"]["missing_bytes"] == by_work["full"]["memory_bytes"] - 2 * 1024**3 > 0
    assert by_work["generate"]["missing_bytes"] == 0
    assert (found["per_hour"], found["currency"]) == (0.5, "USDC")
    shown = livery("worker", "forecast", str(tmp_path))
    assert "124,439,808 parameters" in shown.out
    refused = livery("worker", "forecast", "nobody/nothing")
    assert (refused.code, "--hub" in refused.err) == (1, True)


def test_earnings_of_a_new_worker_are_none_and_the_table_has_its_names(livery: Livery) -> None:
    assert "nothing was earned yet" in livery("worker", "earnings").out
    told = livery("worker", "earnings", "--json").json
    assert (told["jobs"], told["earned"], told["perHourOfWork"], told["hours"]) == (0, 0, None, [])
    assert list(csv.DictReader(livery("worker", "earnings", "--csv").out.splitlines())) == []


def test_the_unit_is_printed_or_written_and_nothing_is_started(livery: Livery) -> None:
    printed = livery("worker", "install", "--print").out
    assert f"WorkingDirectory={livery.home}/.livery/worker" in printed
    assert "worker start" in printed
    assert not (livery.home / ".config").exists()
    written = livery("worker", "install")
    unit = livery.home / ".config/systemd/user/livery-worker.service"
    assert unit.read_text() == printed
    assert "systemctl --user enable --now livery-worker" in written.out
    assert (livery.home / ".livery/worker/worker.env").stat().st_mode & 0o777 == 0o600
    assert "User=" in livery("worker", "install", "--system").out
