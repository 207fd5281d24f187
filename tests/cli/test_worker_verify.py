"""`livery worker verify`: an owner's worker proves what it says; whoever else answers is not believed."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

import pytest

from chain.devchain import dev_account
from tests.cli.conftest import Livery
from tests.cli.test_worker import KEY, Worker

pytestmark = pytest.mark.slow

SECRET = "the-secret-of-the-api"
ADDRESS = dev_account(8).address
SMALL = ("--size", "256", "--rounds", "4", "--deadline", "60")


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker with a key and a secret, that serves nothing."""
    secrets = {"LIVERY_WORKER_PRIVATE_KEY": KEY, "API_SECRET": SECRET}
    with Worker(tmp_path_factory.mktemp("proving"), **secrets) as running:
        running.wait_for("capability is ready")
        running.wait_for("worker is online")
        yield running


@pytest.fixture
def owner(worker: Worker, livery: Livery) -> Livery:
    return Livery(worker.home, {**livery.variables, "HOME": str(worker.home), "API_SECRET": SECRET})


@pytest.mark.row(89)
def test_a_worker_proves_itself_at_both_addresses(worker: Worker, owner: Livery) -> None:
    status = owner("worker", "status", "--json").json
    assert status["capabilityUrl"] != worker.url
    for url in (status["capabilityUrl"], worker.url):
        said = owner("worker", "verify", url, "--address", ADDRESS, "--json", *SMALL)
        assert said.code == 0, said.out + said.err
        found = said.json
        assert (found["believed"], found["faults"], found["address"]) == (True, [], ADDRESS)
        assert (found["device"], found["heldBytes"]) == ("cpu", 256 * 256)
        assert found["operationsPerS"] > 0
        assert found["report"]["model_name"] == "No models loaded"
    shown = owner("worker", "verify", worker.url, *SMALL)
    assert shown.code == 0
    assert "at least" in shown.out
    assert ADDRESS in shown.out


@pytest.mark.row(89)
def test_another_key_is_not_believed(worker: Worker, owner: Livery) -> None:
    said = owner("worker", "verify", worker.url, "--address", dev_account(2).address, "--json", *SMALL)
    assert (said.code, said.json["believed"]) == (1, False)
    assert "another one was expected" in said.json["faults"][0]


def test_who_cannot_be_asked_is_not_judged(worker: Worker, owner: Livery, livery: Livery) -> None:
    nobody = owner("worker", "verify", "http://127.0.0.1:9", "--json", *SMALL)
    assert (nobody.code, nobody.json["code"]) == (3, "not_verified")
    nowhere = owner("worker", "verify", "http://[", "--json", *SMALL)
    assert (nowhere.code, nowhere.json["code"]) == (3, "not_verified")
    stranger = livery("worker", "verify", worker.url, "--json", *SMALL)
    assert stranger.code == 3
    assert "401" in stranger.json["detail"]
    assert owner("worker", "verify", worker.url, "--size", "100").code == 2


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str | None]]]:
    """A server that is no worker; yields an address of it that is not loopback's, and what bearers it was sent."""
    bearers: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bearers.append(self.headers["authorization"])
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)  # noqa: S104 - so that it has an address besides loopback's
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://0.0.0.0:{server.server_address[1]}", bearers
    server.shutdown()
    server.server_close()


def test_a_stranger_is_not_told_the_secret_of_ones_own_worker(
    owner: Livery, listener: tuple[str, list[str | None]]
) -> None:
    url, bearers = listener
    said = owner("worker", "verify", url, "--json", *SMALL)
    assert said.code == 3
    assert "what is no answer to a challenge" in said.json["detail"]
    owner("worker", "verify", url, "--with-secret", "--json", *SMALL)
    assert bearers == [None, f"Bearer {SECRET}"]


@pytest.mark.row(88)
def test_a_worker_that_runs_is_up(worker: Worker, owner: Livery) -> None:
    url = owner("worker", "status", "--json").json["capabilityUrl"]
    with urlopen(f"{url}/health") as reply:  # noqa: S310 - an address of this machine
        assert json.load(reply)["state"] == "online"
    bearer = {"authorization": f"Bearer {SECRET}", "content-type": "application/json"}
    with urlopen(Request(f"{url}/service-uptime", headers=bearer)) as reply:  # noqa: S310
        assert json.load(reply)["total_services"] == 1


@pytest.mark.row(82)
@pytest.mark.row(83)
def test_a_worker_that_runs_answers_gpu_checks_at_both_addresses(worker: Worker, owner: Livery) -> None:
    bearer = {"authorization": f"Bearer {SECRET}", "content-type": "application/json"}
    answers = []
    for url in (owner("worker", "status", "--json").json["capabilityUrl"], worker.url):
        for path in ("gpu-check", "agent-net"):
            asked = Request(f"{url}/{path}", b'{"agent_id":"demo"}', bearer)  # noqa: S310
            with urlopen(asked) as reply:  # noqa: S310
                answers.append({**json.load(reply), "timestamp": 0})
                assert json.loads(reply.headers["x-metadata"])["agent_id"] == "demo"
    assert answers[0]["status"] == "success"
    assert all(each == answers[0] for each in answers)
