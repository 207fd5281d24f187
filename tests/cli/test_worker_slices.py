"""`livery worker` where it serves layers, and `livery proto`: what an owner types and reads."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import typer
from rich.console import Console

from cli import worker_slices, worker_watch
from cli.hw import worker_settings
from cli.worker_owner import NoWorker
from tests.cli.conftest import Livery
from tests.cli.test_worker import Worker
from tests.fixtures.server import WAIT_S

pytestmark = pytest.mark.slow

SECRET = "the-secret-of-the-api"
SLICE = {
    "model": "tiny",
    "mode": "pipeline",
    "layers": {"start": 0, "end": 2, "total": 6},
    "state": "ready",
    "progress": {"done": 3, "total": 3},
    "endpoint": "127.0.0.1:50051",
    "isHead": True,
    "head": None,
    "cache": {"sessions": 3, "positions": 800, "positionsMax": 1_000, "bytesMax": 3 * 1024**2},
    "route": [
        {"endpoint": "127.0.0.1:50051", "start": 0, "end": 2, "isUsed": True},
        {"endpoint": "10.0.0.2:50051", "start": 2, "end": 6, "isUsed": True},
        {"endpoint": "10.0.0.3:50051", "start": 2, "end": 6, "isUsed": False},
    ],
    "requests": 1,
    "tokens": 12,
    "avgLatencyMs": 80.5,
    "tokensPerS": 9.1,
    "family": "llama",
    "dtype": "float32",
    "backEnd": "lean",
    "device": "cpu",
}
STATUS = {
    "name": "worker",
    "state": "online",
    "url": "http://127.0.0.1:31331",
    "notes": ["mind the gap"],
    "slice": SLICE,
}


def shown(what: Any) -> str:
    console = Console(width=120)
    with console.capture() as said:
        console.print(what)
    return said.get()


def test_the_page_tells_model_layers_sessions_and_the_route() -> None:
    said = shown(worker_slices.page(STATUS))

    for words in (
        "tiny (llama, float32, lean on cpu)",
        "a stage of a pipeline",
        "0:2 of 6",
        "OPENAI_BASE_URL=http://127.0.0.1:31331/v1",
        "3 open, 800 of 1,000 positions reserved (3.0 MiB)",
        "1 request, 12 tokens",
        "80.5 ms a request",
    ):
        assert words in said
    lines = said.splitlines()
    assert [line.split()[-2:] for line in lines if "10.0.0." in line] == [
        ["2:6", "10.0.0.2:50051"],
        ["in", "reserve"],
    ]
    tail = {**STATUS, "slice": {**SLICE, "isHead": False, "head": "http://10.0.0.1:31331", "route": []}}
    assert "ask its head: http://10.0.0.1:31331/v1" in shown(worker_slices.page(tail))


def test_the_view_has_tokens_a_second_and_how_full_the_cache_is() -> None:
    said = shown(worker_watch.view(STATUS, [0.0, 82.5, 41.25]))

    assert "tokens/s" in said
    assert "41.2" in said
    assert " █▄" in said
    assert "3 open" in said
    assert "80.0 %" in said
    assert "800 of 1,000 positions" in said
    assert "! mind the gap" in said
    assert "in reserve" in said
    loading = {**SLICE, "state": "loading", "progress": {"done": 1, "total": 4}, "cache": None, "route": []}
    assert "loading, 25 %" in shown(worker_watch.view({**STATUS, "slice": loading}, []))
    # Only a head counts requests; of another stage the view says where they are asked.
    tail = {**SLICE, "isHead": False, "head": "http://10.0.0.1:31331", "waiting": 0}
    said = shown(worker_watch.view({**STATUS, "slice": tail}, [0.0]))
    assert "ask its head: http://10.0.0.1:31331/v1" in said
    assert "tokens/s" not in said
    queued = shown(worker_watch.view({**STATUS, "slice": {**SLICE, "waiting": 2, "failovers": 1}}, []))
    assert "3 open, 2 waiting, stages lost so far: 1" in queued
    assert "serves no model" in shown(worker_watch.view({**STATUS, "slice": None}, []))


def test_who_watches_is_told_that_the_worker_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    said = iter([STATUS])

    def ask() -> dict[str, Any]:
        for found in said:
            return found
        raise NoWorker("no worker answers at http://127.0.0.1:31331")

    with pytest.raises(typer.Exit) as ended:
        worker_watch.watch(ask, interval_s=0.0)
    assert ended.value.exit_code == 1
    assert "no worker answers" in capsys.readouterr().err


def test_a_model_that_is_typed_is_served_unless_jobs_are_sold() -> None:
    assert worker_slices.serving(worker_settings(False, default_model="tiny")).served_model == "tiny"
    assert worker_slices.serving(worker_settings(False, default_model="tiny", kinds="fine_tune")).served_model is None
    assert worker_slices.serving(worker_settings(False)).served_model is None


def test_the_options_are_explained_with_examples(livery: Livery) -> None:
    said = livery("worker", "start", "--help")
    assert said.code == 0
    for words in ("--layers", "--next", "--topology", "--quant", "--kv-max-mb", "--tls-cert", "--model-hash"):
        assert words in said.out
    assert "livery worker start --model ~/models/llama --layers 0:16 --next 10.0.0.2:50051" in said.out


@pytest.mark.row(154)
def test_the_stubs_are_those_of_the_proto(livery: Livery) -> None:
    said = livery("proto", "check")
    assert said.code == 0, said.err
    assert "inference.proto" in said.out
    assert livery("proto", "check", "--json").json["isCurrent"] is True


@pytest.fixture(scope="module")
def worker(tiny_words: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker that serves a whole model, found by its name, and asks for a secret."""
    home = tmp_path_factory.mktemp("owner")
    shutil.copytree(tiny_words, home / ".livery/worker/models/tiny-words")
    typed = ("--model", "tiny-words", "--grpc-port", "0")
    with Worker(home, *typed, API_SECRET=SECRET, OMP_NUM_THREADS="1") as running:
        running.wait_for("worker is online")
        yield running
        assert running.stop() == 0


@pytest.fixture
def owner(worker: Worker) -> Livery:
    return Livery(worker.home, {"HOME": str(worker.home), "COLUMNS": "200"})


class Proxy(BaseHTTPRequestHandler):
    """What stands before a worker that is elsewhere: it tells for whom it asks."""

    worker_url = ""

    def do_GET(self) -> None:
        asked = {"x-forwarded-for": "203.0.113.9"}
        if "authorization" in self.headers:
            asked["authorization"] = self.headers["authorization"]
        try:
            with urlopen(Request(self.worker_url + self.path, headers=asked), timeout=WAIT_S) as reply:  # noqa: S310
                status, content = reply.status, reply.read()
        except HTTPError as error:
            status, content = error.code, error.read()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def elsewhere(worker: Worker) -> Iterator[str]:
    """The worker's address as it is reached from another machine."""
    handler = type("OfWorker", (Proxy,), {"worker_url": worker.url})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.row(149)
def test_the_owner_is_shown_the_model_and_where_its_clients_come_in(owner: Livery, worker: Worker) -> None:
    said = owner("worker", "status")
    assert said.code == 0, said.err
    for words in ("tiny-words (llama", "0:6 of 6", "the whole model, alone", f"OPENAI_BASE_URL={worker.url}/v1"):
        assert words in said.out
    assert owner("worker", "status", "--json").json["slice"]["state"] == "ready"
    assert any("parts" in str(event["event"]) and "100 %" in str(event["event"]) for event in worker.events)
    assert SECRET not in worker.log


@pytest.mark.row(149)
def test_from_elsewhere_the_status_is_told_to_who_has_the_secret(owner: Livery, elsewhere: str) -> None:
    asked = ("worker", "status", "--api-url", elsewhere)
    said = owner(*asked, API_SECRET=SECRET)
    assert said.code == 0, said.err
    for words in ("status", "tiny-words", "single", "0:6 of 6", "the whole model", "requests", "tokens", "throughput"):
        assert words in said.out
    for secret in ("", "another-secret"):
        refused = owner(*asked, API_SECRET=secret)
        assert refused.code == 1
        assert "asks for its API_SECRET" in refused.err
    assert json.loads(owner(*asked, "--json", API_SECRET=SECRET).out)["health"]["mode"] == "single"


@pytest.mark.row(149)
def test_the_status_of_a_port_where_nobody_is_fails(livery: Livery) -> None:
    refused = livery("worker", "status", "--api-url", "http://127.0.0.1:9")
    assert refused.code == 1
    assert "no worker answers at http://127.0.0.1:9" in refused.err
    assert livery("worker", "status", "--watch", "--api-url", "http://127.0.0.1:9").code == 1
