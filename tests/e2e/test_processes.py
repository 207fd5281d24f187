"""The whole of it as operating-system processes: two control planes, one store, one chain."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from agent.config import AgentSettings
from agent.vendors import register
from agent.wiring import open_agent
from tests.e2e.conftest import PAYER, SECRET, WAIT_S, Server, Street
from tests.fixtures.world import check_log

pytestmark = pytest.mark.slow

VENDORS = ("gpu_vendor_1", "gpu_vendor_2", "gpu_vendor_3")
ENDED = ("completed", "failed", "cancelled")


def settings_of(environment: dict[str, str]) -> AgentSettings:
    return AgentSettings.model_validate(
        {
            "database_url": SecretStr(environment["DATABASE_URL"]),
            "database_name": environment.get("MONGODB_DB_NAME", "livery"),
            "rpc_url": environment["LIVERY_AGENT_RPC_URL"],
            "vendor_secrets": SecretStr(SECRET),
        }
    )


@pytest.fixture
async def registered(environment: dict[str, str], street: Street) -> None:
    """The vendors, registered as their own offers describe them."""
    agent = open_agent(settings_of(environment))
    for vendor_id in VENDORS:
        await register(agent, vendor_id, street.vendors_url)
    await agent.store.close()


async def ask(url: str, method: str, path: str, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=WAIT_S, trust_env=False) as client:
        return await client.request(method, url + path, **more)


async def start(url: str, budget: float = 5) -> str:
    response = await ask(url, "POST", "/api/agent-start", json={"goal": "Fine-tune tiny-llm", "budgetTotal": budget})
    return str(response.json()["_id"])


async def status(url: str, run_id: str) -> dict[str, Any]:
    document: dict[str, Any] = (await ask(url, "GET", "/api/agent-status", params={"runId": run_id})).json()
    return document


@pytest.mark.row(2)
async def test_two_processes_tick_a_run_by_turns_to_the_same_end_on_every_store(
    street: Street, environment: dict[str, str], registered: None, control_plane: Callable[[], Server]
) -> None:
    before = street.chain.balance(PAYER.address)
    urls = [control_plane().url for _ in range(2)]
    run_id = await start(urls[0])
    messages = []
    for number in range(20):
        response = await ask(urls[number % 2], "POST", "/api/agent-tick", json={"runId": run_id})
        assert response.status_code == 200, response.text
        messages.append(response.json()["message"])
        if messages[-1] == "Job completed":
            break
    waits = ["Job started", "Job still running", "Job still running"]
    assert messages == [*waits, "Job failed", *waits, "Job completed"]
    shown = await status(urls[1], run_id)
    assert shown == await status(urls[0], run_id)
    run = shown["run"]
    assert (run["status"], run["budgetSpent"], run["budgetReserved"], run["budgetRemaining"]) == (
        *("completed", 2.5, 0, 2.5),
    )
    assert [(job["vendorId"], job["status"], job["actualCost"]) for job in shown["jobs"]] == [
        ("gpu_vendor_2", "completed", 1.8),
        ("gpu_vendor_1", "failed", 0.7),
    ]
    assert [(one["status"], one["amount"], one["refunded"]) for one in shown["payments"]] == [
        ("completed", 1.8, 0),
        ("refunded", 1.4, 0.7),
    ]
    kinds = [line["type"] for line in shown["observations"]]
    assert {kind: kinds.count(kind) for kind in ("agent_reasoning", "job_log", "error")} == {
        "agent_reasoning": 3,
        "job_log": 6,
        "error": 1,
    }
    assert before - street.chain.balance(PAYER.address) == 2_500_000
    agent = open_agent(settings_of(environment))
    await check_log(agent, run_id)
    await agent.store.close()


@pytest.mark.row(5)
async def test_twenty_ticks_at_once_through_two_processes_are_one_job_and_one_payment(
    street: Street, registered: None, control_plane: Callable[[], Server]
) -> None:
    before = street.chain.balance(PAYER.address)
    urls = [control_plane().url for _ in range(2)]
    run_id = await start(urls[0])
    responses = await asyncio.gather(
        *[ask(urls[number % 2], "POST", "/api/agent-tick", json={"runId": run_id}) for number in range(20)]
    )
    answered = sorted({response.status_code for response in responses})
    assert answered == [200, 409]
    assert {response.json()["code"] for response in responses if response.status_code == 409} == {"run_busy"}
    shown = await status(urls[1], run_id)
    assert (len(shown["jobs"]), len(shown["payments"])) == (1, 1)
    assert shown["run"]["budgetSpent"] == 1.4
    assert before - street.chain.balance(PAYER.address) == 1_400_000


@pytest.mark.row(153)
@pytest.mark.parametrize("environment", ["sqlite"], indirect=True)
async def test_a_stopped_server_finishes_the_tick_it_serves_and_logs_json(
    street: Street, registered: None, control_plane: Callable[[], Server]
) -> None:
    server = control_plane()
    run_id = await start(server.url)
    # The payment waits for a block, up to a second: the signal comes while it does.
    sent = await served_while(server, run_id, lambda: server.process.send_signal(signal.SIGTERM))
    assert (sent.status_code, sent.json()["message"]) == (200, "Job started")
    assert server.process.wait(WAIT_S) == 0
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith("{")]
    assert {"control plane is ready", "control plane has stopped"} <= {line["event"] for line in lines}
    assert all({"event", "level", "timestamp"} <= set(line) for line in lines)
    # What is not JSON is the one line that tells a person the address.
    assert len(server.log.splitlines()) - len(lines) == 1
    for secret in (PAYER.key.removeprefix("0x"), SECRET):
        assert secret not in server.log
    again = control_plane()
    assert (await status(again.url, run_id))["payments"][0]["status"] == "completed"


async def served_while(server: Server, run_id: str, act: Callable[[], None]) -> httpx.Response:
    """Return the answer to a tick during which, its request having been taken, `act` was done."""
    tick = asyncio.create_task(ask(server.url, "POST", "/api/agent-tick", json={"runId": run_id}))
    async with asyncio.timeout(WAIT_S):
        while (await status(server.url, run_id))["payments"] == []:
            assert not tick.done(), (await tick).text
    act()
    return await tick


@pytest.mark.parametrize("environment", ["sqlite"], indirect=True)
async def test_an_oversized_header_is_refused_and_the_server_lives_on(control_plane: Callable[[], Server]) -> None:
    url = control_plane().url
    for size in (50_000, 200_000):
        refused = await ask(url, "GET", "/health", headers={"x-long": "x" * size})
        assert (refused.status_code, refused.json()["code"]) == (431, "header_too_large")
    # Beyond all measure the connection ends, whether or not the answer still gets through.
    with suppress(httpx.TransportError):
        assert (await ask(url, "GET", "/health", headers={"x-long": "x" * 5_000_000})).status_code == 400
    refused = await ask(url, "POST", "/api/agent-start", content=b"x" * 400_000)
    assert (refused.status_code, refused.json()["code"]) == (413, "body_too_large")
    assert (await ask(url, "GET", "/health")).status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])  # noqa: S104 - it is refused
def test_binding_to_anything_but_loopback_is_refused(host: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "cli", "serve", "--host", host, "--port", "0"],
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert ended.returncode == 1
    assert host in ended.stderr
    assert "Traceback" not in ended.stderr
