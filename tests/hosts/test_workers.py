"""The control plane under an ASGI server that is not ours to start: uvicorn, two worker processes behind one socket."""

import itertools
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import WAIT_S, Server
from tests.hosts.conftest import BEARER

pytestmark = pytest.mark.slow

# Which process served which request is told by the server's log.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(process)d %(name)s %(message)s"}},
    "handlers": {"all": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "loggers": {
        "uvicorn.error": {"handlers": ["all"], "level": "INFO"},
        "uvicorn.access": {"handlers": ["all"], "level": "INFO"},
    },
}


@pytest.fixture
def server(environment: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "logging.json").write_text(json.dumps(LOGGING))
    started = Server(
        tmp_path / "log",
        *("uvicorn", "api.app:app", "--workers", "2", "--port", "0", "--log-config", str(tmp_path / "logging.json")),
        # One that is stopped for a moment is not dead.
        *("--timeout-worker-healthcheck", "60"),
        **environment,
    )
    yield started
    if started.process.poll() is None:
        started.stop()


def workers(server: Server) -> list[int]:
    """Return the processes that serve, once both do."""
    deadline_s = time.monotonic() + WAIT_S
    while len(found := re.findall(r"^(\d+) uvicorn\.error Application startup complete", server.log, re.M)) < 2:
        assert time.monotonic() < deadline_s, server.log
        time.sleep(0.05)
    return [int(pid) for pid in found]


def served_by(server: Server, request: str) -> set[int]:
    """Return the processes that served such requests so far."""
    return {int(pid) for pid in re.findall(rf"^(\d+) uvicorn\.access .*{request}", server.log, re.M)}


def ask(server: Server, method: str, path: str, **more: Any) -> Any:
    """Return the JSON that a request is answered with, which comes over a connection of its own."""
    response = httpx.request(method, server.url + path, headers=BEARER, timeout=WAIT_S, trust_env=False, **more)
    assert response.status_code == 200, response.text
    return response.json()


@contextmanager
def resting(pid: int) -> Iterator[None]:
    """Stop a process for as long as the context lasts: the other one takes what comes."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.row(152)
def test_two_workers_serve_one_run_by_turns_to_its_end(server: Server) -> None:
    both = set(workers(server))
    deadline_s = time.monotonic() + WAIT_S
    while served_by(server, "GET /health") != both:
        assert time.monotonic() < deadline_s, server.log
        ask(server, "GET", "/health")

    turns = itertools.cycle(both)
    messages: list[str] = []
    with resting(next(turns)):
        run_id = ask(server, "POST", "/api/agent-start", json={"goal": "Fine-tune tiny-llm", "budgetTotal": 5})["_id"]
    while "Job completed" not in messages:
        assert len(messages) < 20, messages
        with resting(next(turns)):
            messages.append(ask(server, "POST", "/api/agent-tick", json={"runId": run_id})["message"])
    served = re.findall(r"^(\d+) uvicorn\.access .*POST /api/agent-", server.log, re.M)
    assert served_by(server, "POST /api/agent-tick") == both
    assert all(one != other for one, other in itertools.pairwise(served))
    shown = {json.dumps(ask(server, "GET", "/agent-status", params={"runId": run_id})) for _ in range(4)}
    assert len(shown) == 1
    (seen,) = map(json.loads, shown)
    assert (seen["run"]["status"], [job["status"] for job in seen["jobs"]]) == ("completed", ["completed", "failed"])
    server.stop()
    assert not any(Path(f"/proc/{pid}").exists() for pid in both)
