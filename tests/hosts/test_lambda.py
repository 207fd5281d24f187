"""The control plane on AWS Lambda: AWS's own runtime client calls it, a real MongoDB and real vendors behind it."""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.ports import Agent, Claim
from agent.wiring import open_agent
from tests.e2e.test_processes import settings_of
from tests.fixtures.mongod import Mongod
from tests.hosts.conftest import BEARER
from tests.hosts.runtime_api import WAIT_S, Failed, RuntimeApi, http, runtime_api, sqs
from tests.house.tree import ROOT

pytestmark = pytest.mark.slow

FROZEN_S = 3.0


@dataclass(frozen=True)
class Function:
    """One execution environment: a process that serves one invocation after the other."""

    api: RuntimeApi
    process: subprocess.Popen[bytes]
    environment: dict[str, str]

    def ask(self, method: str, path: str, body: Any = None, *, status: int = 200, **more: Any) -> Any:
        """Return the JSON that a request is answered with."""
        reply = self.api.invoke(http(method, path, body, **{"headers": BEARER, **more}))
        assert reply["statusCode"] == status, reply
        return json.loads(base64.b64decode(reply["body"]) if reply["isBase64Encoded"] else reply["body"])

    def start(self, budget: float = 0.01) -> str:
        """Start a run; the default budget buys nothing, so that its first tick ends it."""
        return str(self.ask("POST", "/api/agent-start", {"goal": "x", "budgetTotal": budget})["_id"])

    def queue(self, *bodies: Any, fifo: bool = False) -> list[str]:
        """Return the messages of a batch that are to come again."""
        texts = [body if isinstance(body, str) else json.dumps(body) for body in bodies]
        return [one["itemIdentifier"] for one in self.api.invoke(sqs(*texts, fifo=fifo))["batchItemFailures"]]

    def state(self, run_id: str) -> str:
        return str(self.ask("GET", "/agent-status", query=f"runId={run_id}")["run"]["status"])

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the process, as Lambda does between invocations, for as long as the context lasts."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def running(environment: dict[str, str], log: Path) -> Iterator[Function]:
    told = {
        **os.environ,
        **environment,
        "AWS_LAMBDA_FUNCTION_NAME": "plane",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
        "LAMBDA_TASK_ROOT": str(ROOT),
    }
    with runtime_api() as api, log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "awslambdaric", "api.aws.handler"],
            cwd=ROOT,
            env={**told, "AWS_LAMBDA_RUNTIME_API": api.address},
            stdout=stream,
            stderr=stream,
        )
        try:
            yield Function(api, process, environment)
        finally:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def function(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Function]:
    marked = {**environment, "DATABASE_URL": f"{environment['DATABASE_URL']}&appName=on-lambda"}
    with running(marked, tmp_path_factory.mktemp("lambda") / "log") as started:
        yield started


def connections(environment: dict[str, str]) -> set[str]:
    """Return the function's connections, as MongoDB sees them."""
    from pymongo import MongoClient

    with MongoClient(environment["DATABASE_URL"]) as client:
        stages = [{"$currentOp": {"allUsers": True, "idleConnections": True}}, {"$match": {"appName": "on-lambda"}}]
        return {one["client"] for one in client.admin.aggregate(stages) if "client" in one}


def with_store(environment: dict[str, str], use: Any) -> Any:
    async def used() -> Any:
        agent = open_agent(settings_of(environment))
        try:
            return await use(agent)
        finally:
            await agent.store.close()

    return asyncio.run(used())


def test_three_invocations_in_a_row_start_tick_and_read_a_paid_run_over_the_same_connections(
    function: Function, environment: dict[str, str]
) -> None:
    run_id = function.start(5)
    # The function's address and an HTTP API's, with the prefix and without.
    assert function.ask("POST", "/agent-tick", {"runId": run_id}, url=True)["message"] == "Job started"
    before = connections(environment)
    shown = function.ask("GET", "/api/agent-status", query=f"runId={run_id}")
    assert [payment["status"] for payment in shown["payments"]] == ["completed"]
    # A queue ticks it to its end.
    for _ in range(20):
        if function.state(run_id) == "completed":
            break
        assert function.queue({"runId": run_id}) == []
    assert function.state(run_id) == "completed"
    assert before
    assert before <= connections(environment)


def test_a_batch_fails_in_parts(function: Function) -> None:
    ended, other = function.start(), function.start()
    unread = ["not json", "{}", '{"runId": 7}', "[]", ""]
    bodies = [{"runId": ended}, *unread, {"runId": "run_unknown"}, {"runId": ended}, {"runId": other}]
    assert function.queue(*bodies) == ["m-1", "m-2", "m-3", "m-4", "m-5"]
    assert (function.state(ended), function.state(other)) == ("failed", "failed")
    # What has ended asks for nothing more.
    assert function.queue({"runId": ended}) == []


def test_a_queue_with_an_order_stops_at_its_first_failure(function: Function) -> None:
    first, last = function.start(), function.start()
    assert function.queue({"runId": first}, "not json", {"runId": last}, fifo=True) == ["m-1", "m-2"]
    assert (function.state(first), function.state(last)) == ("failed", "running")


def test_a_run_that_another_holds_is_left_to_the_sweep(function: Function, environment: dict[str, str]) -> None:
    run_id = function.start()

    async def hold(agent: Agent) -> Claim:
        claim = await agent.store.claim(run_id, 60)
        assert isinstance(claim, Claim)
        return claim

    async def give_back(agent: Agent) -> None:
        await agent.store.release(run_id, claim.token, claim.now)

    claim = with_store(environment, hold)
    assert function.queue({"runId": run_id}) == []
    assert function.state(run_id) == "running"
    with_store(environment, give_back)
    assert {"runId": run_id, "message": "Run aborted"} in function.api.invoke({"agent": "sweep"})["swept"]


@pytest.mark.parametrize(
    "event",
    [
        {"agent": "sweep"},
        {"version": "0", "source": "aws.events", "detail-type": "Scheduled Event", "detail": {}, "resources": []},
    ],
    ids=["scheduler", "rule"],
)
def test_a_schedule_sweeps(function: Function, event: dict[str, Any]) -> None:
    run_id = function.start()
    swept = function.api.invoke(event)["swept"]
    assert {"runId": run_id, "message": "Run aborted"} in swept


def test_what_is_left_of_an_invocation_bounds_what_is_begun(function: Function) -> None:
    run_id = function.start()
    function.api.left_s = 5
    try:
        assert function.queue({"runId": run_id}, {"runId": "run_unknown"}) == ["m-0", "m-1"]
        assert function.api.invoke({"agent": "sweep"}) == {"swept": [], "more": True}
        assert function.ask("POST", "/agent-sweep") == {"swept": [], "more": True}
    finally:
        function.api.left_s = 30
    assert function.state(run_id) == "running"


def test_strangers_are_refused(function: Function) -> None:
    assert function.ask("GET", "/health", headers={})["store"] == "mongo"
    assert function.ask("GET", "/agent-runs", headers={}, status=401)["code"] == "unauthorized"
    wrong = {"authorization": "Bearer wrong"}
    assert function.ask("GET", "/agent-runs", headers=wrong, url=True, status=403)["code"] == "forbidden"
    assert function.ask("GET", "/nothing", status=404)["code"] == "not_found"


@pytest.mark.parametrize(
    "event", [{"hello": "world"}, {"Records": []}, {"Records": [{"eventSource": "aws:s3"}]}, [], 7]
)
def test_an_event_of_no_known_kind_is_an_error_and_the_next_is_served(function: Function, event: Any) -> None:
    with pytest.raises(Failed):
        function.api.invoke(event)
    assert function.ask("GET", "/agent-runs", query="status=completed")["runs"] is not None


def test_a_frozen_function_goes_on_where_it_was(function: Function) -> None:
    run_id = function.start()
    pid = function.process.pid
    with function.frozen():
        time.sleep(FROZEN_S)
    assert function.ask("POST", "/agent-tick", {"runId": run_id})["message"] == "Run aborted"
    assert (function.process.pid, function.process.poll()) == (pid, None)


def test_a_database_that_was_restarted_meanwhile_is_found_again(environment: dict[str, str], tmp_path: Path) -> None:
    server = Mongod(replica_set=True)
    try:
        with running({**environment, "DATABASE_URL": server.url}, tmp_path / "log") as function:
            run_id = function.start()
            with function.frozen():
                server.process.terminate()
                server.process.wait(WAIT_S)
                server.process = subprocess.Popen(server.process.args, stdout=subprocess.DEVNULL)
            for _ in range(3):
                assert function.state(run_id) == "running"
    finally:
        server.stop()


def test_a_function_without_a_secret_answers_nothing_but_health(tmp_path: Path) -> None:
    with running({"DATABASE_URL": f"sqlite:///{tmp_path}/livery.db"}, tmp_path / "log") as function:
        assert function.ask("GET", "/health", headers={})["status"] == "ok"
        assert function.ask("GET", "/agent-runs", status=503)["code"] == "no_api_secret"
        assert function.ask("POST", "/api/agent-sweep", status=503)["code"] == "no_api_secret"
