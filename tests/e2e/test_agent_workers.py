"""Workers as processes, as owners start them, and a gRPC client that knows no .proto: whole models and slices."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_worker.edges.grpc.agent_service import AGENT_SERVICE
from gpu_worker.edges.grpc.grpc_channel import SERVICE
from tests.cli.conftest import Livery
from tests.cli.test_worker import Worker
from tests.fixtures.agents import STATUS, STREAM, reflected
from tests.fixtures.authority import Authority
from tests.fixtures.tiny_gguf import TinyGguf

pytestmark = pytest.mark.slow

OURS = Authority("ours")
AGENT = "agent-1"


class Place:
    """A worker that runs. `files` are what its client shows."""

    def __init__(self, worker: Worker, files: dict[str, Path]) -> None:
        self.worker, self.files = worker, files
        # Without a name of its own in the environment `livery` finds the worker of this home.
        said = Livery(worker.home, {"HOME": str(worker.home)})("worker", "status", "--json")
        assert said.code == 0, said.err
        told = said.json
        self.endpoint = (told.get("model") or told["slice"])["endpoint"]

    async def asks(self, what: str, body: dict[str, Any] | None = None) -> list[Any]:
        return await reflected(self.endpoint, what, body, **self.files)


@pytest.fixture(scope="module")
def whole(tiny_gguf: TinyGguf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A worker that serves a GGUF file, two answers at once, to who has a certificate of ours."""
    home = tmp_path_factory.mktemp("owner")
    cert, key = OURS.issue()
    files = {name: home / f"{name}.pem" for name in ("ca", "cert", "key")}
    for name, data in (("ca", OURS.pem), ("cert", cert), ("key", key)):
        files[name].touch(mode=0o600)
        files[name].write_bytes(data)
    tls = {f"GRPC_TLS_{name.upper()}": str(path) for name, path in files.items()}
    more = {"AGENT_ID": AGENT, "MAX_CONCURRENT_JOBS": "2", "OMP_NUM_THREADS": "1", **tls}
    typed = ("--model", str(tiny_gguf.gguf()), "--grpc-port", "0")
    with Worker(home, *typed, LIVERY_WORKER_CAPABILITY_PORT="0", **more) as running:
        running.wait_for("worker is online")
        yield Place(running, files)
        assert running.stop() == 0


@pytest.fixture(scope="module")
def slices(tiny_words: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A worker that serves all layers of a model."""
    home = tmp_path_factory.mktemp("owner")
    shutil.copytree(tiny_words, home / ".livery/worker/models/tiny-words")
    typed = ("--model", "tiny-words", "--grpc-port", "0")
    with Worker(home, *typed, LIVERY_WORKER_CAPABILITY_PORT="0", OMP_NUM_THREADS="1") as running:
        running.wait_for("worker is online")
        yield Place(running, {})
        assert running.stop() == 0


@pytest.mark.row(59)
async def test_the_status_of_a_worker_that_serves_a_file(whole: Place) -> None:
    (services,) = await whole.asks("list")
    assert AGENT_SERVICE in services
    assert SERVICE not in services
    status, end = await whole.asks(STATUS, {"agent_id": AGENT})
    assert end["code"] == "OK", end
    assert (status["agent_id"], status["status"], status["max_jobs"]) == (AGENT, "healthy", 2)
    assert (status["active_sessions"], status["queued_jobs"]) == (0, 0)
    assert int(status["free_ram_mb"]) > 0
    assert status["model_loaded"].startswith("tiny-gguf")
    health, _ = await whole.asks("grpc.health.v1.Health/Check", {"service": AGENT_SERVICE})
    assert health == {"status": "SERVING"}


@pytest.mark.row(60)
async def test_a_stream_of_real_tokens_ends_with_done(whole: Place) -> None:
    asked = {"prompt": "def main(", "max_tokens": 12, "stream": True, "options": {"raw": "true", "ignore_eos": "true"}}
    *chunks, end = await whole.asks(STREAM, asked)
    assert end["code"] == "OK", end
    assert [chunk["done"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    told = chunks[-1]["metadata"]
    assert (told["completion_tokens"], told["finish_reason"]) == ("12", "length")
    text = "".join(chunk["content"] for chunk in chunks)
    # Greedy is greedy, in one message as in many.
    (again, _) = await whole.asks(STREAM, {**asked, "stream": False})
    assert again["content"] == text
    assert text


async def test_what_cannot_be_served_is_refused_and_the_next_one_served(whole: Place) -> None:
    cases = (
        ({"max_tokens": 1_000_000}, "context_length_exceeded"),
        ({"temperature": 3.5}, "invalid_argument"),
        ({"model": "another"}, "model_not_found"),
    )
    for more, code in cases:
        (end,) = await whole.asks(STREAM, {"prompt": "Hello", **more})
        assert end["trailing"]["livery-code"] == code
    *_, end = await whole.asks(STREAM, {"prompt": "Hello", "max_tokens": 4})
    assert end["code"] == "OK", end


@pytest.mark.row(77)
async def test_without_a_certificate_of_ours_nobody_is_served(whole: Place) -> None:
    for files in ({}, {"ca": whole.files["ca"]}):
        (end,) = await reflected(whole.endpoint, STATUS, **files)
        assert end["code"] == "UNAVAILABLE"


@pytest.mark.row(59)
async def test_a_worker_with_slices_has_both_services_on_one_server(slices: Place) -> None:
    (services,) = await slices.asks("list")
    assert {AGENT_SERVICE, SERVICE} <= set(services)
    ping, _ = await slices.asks(f"{SERVICE}/Ping")
    status, _ = await slices.asks(STATUS)
    assert ping["model_name"] == status["model_loaded"] == "tiny-words"
    *chunks, end = await slices.asks(STREAM, {"prompt": "w1 w2", "max_tokens": 5, "options": {"raw": "true"}})
    assert end["code"] == "OK", end
    assert int(chunks[-1]["metadata"]["completion_tokens"]) <= 5
