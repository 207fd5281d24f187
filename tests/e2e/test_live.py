"""What comes by itself, between real processes: a vendor's signed call ends a run, and its events are streamed."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from agent.config import AgentSettings
from agent.vendors import register
from agent.wiring import open_agent
from inbound.serve import bound_socket
from tests.e2e.conftest import SECRET, WAIT_S, Server, Street
from tests.fixtures.world import check_log

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("environment", ["sqlite"], indirect=True)]

VENDOR = "gpu_vendor_2"


@pytest.fixture
def vendors(street: Street, tmp_path: Path) -> Iterator[Server]:
    """Vendors whose jobs move by time, not by polls, so that nobody has to ask for them to end."""
    server = Server(
        tmp_path / "vendors.log",
        *("cli", "vendor-mock", "--port", "0"),
        GPU_VENDOR_SECRET=SECRET,
        EPOCH_SECONDS="0.3",
        LIVERY_VENDOR_MOCK_RPC_URL=street.chain.url,
        LIVERY_VENDOR_MOCK_FACILITATOR_URL=street.facilitator_url,
        LIVERY_VENDOR_MOCK_DATABASE=str(tmp_path / "vendors.db"),
    )
    yield server
    server.stop()


@pytest.fixture
def plane(environment: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    """A control plane that vendors know the address of, and that ticks nothing by itself."""
    free = bound_socket("127.0.0.1", 0, chosen=False)
    port = str(free.getsockname()[1])
    free.close()
    callback = {"LIVERY_AGENT_CALLBACK_URL": f"http://127.0.0.1:{port}"}
    server = Server(tmp_path / "plane.log", "cli", "serve", "--port", port, **environment, **callback)
    yield server
    if server.process.poll() is None:
        server.stop()


def settings_of(environment: dict[str, str]) -> AgentSettings:
    told = {"database_url": environment["DATABASE_URL"], "vendor_secrets": SECRET}
    return AgentSettings.model_validate({name: SecretStr(value) for name, value in told.items()})


@contextmanager
def curl(url: str, run_id: str) -> Iterator[subprocess.Popen[str]]:
    command = ["curl", "-sN", f"{url}/api/agent-events?runId={run_id}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        try:
            yield watcher
        finally:
            watcher.kill()


async def start(url: str) -> str:
    async with httpx.AsyncClient(base_url=url, timeout=WAIT_S, trust_env=False) as client:
        asked = {"goal": "Fine-tune tiny-llm", "budgetTotal": 5}
        return str((await client.post("/api/agent-start", json=asked)).json()["_id"])


@pytest.mark.row(8)
@pytest.mark.row(38)
async def test_a_vendors_call_completes_a_run_that_nobody_polls_while_curl_shows_its_events(
    environment: dict[str, str], vendors: Server, plane: Server
) -> None:
    agent = open_agent(settings_of(environment))
    await register(agent, VENDOR, vendors.url)
    run_id = await start(plane.url)
    with curl(plane.url, run_id) as watcher:
        async with httpx.AsyncClient(base_url=plane.url, timeout=WAIT_S, trust_env=False) as client:
            ticked = (await client.post("/api/agent-tick", json={"runId": run_id})).json()
        assert ticked["message"] == "Job started"
        # From here on only the vendor speaks. The stream closes by itself when the run has ended.
        shown, _ = watcher.communicate(timeout=WAIT_S)
    names = [line.removeprefix("event: ") for line in shown.splitlines() if line.startswith("event: ")]
    assert names[0] == "agent_reasoning"
    assert names[-1] == "completed"
    assert names.count("job_log") == 3
    # Two ticks were made in all: the one that started the job, and the one that the call made.
    assert len(await agent.store.read_log(run_id, types=["tick"])) == 2
    assert (await agent.store.read_run(run_id)).status == "completed"
    await check_log(agent, run_id)
    await agent.store.close()


async def test_a_server_that_is_stopped_does_not_wait_for_streams(plane: Server) -> None:
    with curl(plane.url, await start(plane.url)) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "retry: 2000\n"
        began_s = time.monotonic()
        plane.process.send_signal(signal.SIGTERM)
        assert plane.process.wait(WAIT_S) == 0
        # Its requests in flight would have 25 s to finish.
        assert time.monotonic() - began_s < 15
        assert watcher.wait(WAIT_S) == 0
