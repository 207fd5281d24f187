"""POST /api/vendor-callback: a signed call advances a run, whatever it says; any other does nothing."""

import json
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from agent.callback import PAUSE_S
from agent.config import AgentSettings
from agent.ports import Agent
from agent.wiring import open_agent
from outbound.webhooks import signed_headers
from tests.api.problems import problem
from tests.contracts.store_values import a_job, a_run
from tests.fixtures.world import World, replace_agent

PATH = "/api/vendor-callback"
SECRETS = "gpu_vendor_1=old-secret,gpu_vendor_1=first-secret,gpu_vendor_2=second-secret"
BODY = b'{"type":"job.failed","data":{"vendorJobId":"vjob","status":"failed"}}'


def signed(secret: str = "first-secret", *, age_s: int = 0, body: bytes = BODY) -> dict[str, str]:
    return signed_headers([secret], "msg_1", int(time.time()) - age_s, body)


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    told = {"database_url": SecretStr(f"sqlite:///{tmp_path}/agent.db"), "vendor_secrets": SecretStr(SECRETS)}
    agent = open_agent(AgentSettings.model_validate(told))
    yield agent
    await agent.store.close()


@pytest.fixture
async def run_id(agent: Agent) -> str:
    """A run that has ended, with a job of the first vendor."""
    run = a_run(status="completed", phase="done", jobs=(a_job(status="completed"),))
    return (await agent.store.insert_run(run, (), None, "")).run_id


async def call(door: httpx.AsyncClient, run_id: str, headers: dict[str, str], body: bytes = BODY) -> httpx.Response:
    return await door.post(PATH, params={"runId": run_id}, headers=headers, content=body)


# Signed when the test runs: minutes after these lines are read, an old call and one of the future are others.
@pytest.mark.parametrize(
    "sign",
    [
        pytest.param(dict, id="unsigned"),
        pytest.param(lambda: signed() | {"webhook-signature": "v1,AAAA"}, id="a wrong signature"),
        pytest.param(lambda: signed() | {"webhook-signature": "\xff"}, id="no signature"),
        pytest.param(lambda: signed(body=BODY + b" "), id="another body"),
        pytest.param(lambda: signed(age_s=360), id="an old one"),
        pytest.param(lambda: signed(age_s=-360), id="one of the future"),
        pytest.param(lambda: signed("second-secret"), id="a vendor that sells nothing to the run"),
        pytest.param(lambda: signed() | {"x-vendor-id": "gpu_vendor_2"}, id="another name"),
        pytest.param(lambda: signed("of nobody"), id="a stranger"),
    ],
)
async def test_a_call_that_no_vendor_of_the_run_signed_now_is_refused(
    door: httpx.AsyncClient, run_id: str, sign: Callable[[], dict[str, str]]
) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in sign().items()]
    response = await door.post(PATH, params={"runId": run_id}, headers=raw, content=BODY)
    problem(response, "bad_signature")


@pytest.mark.parametrize("secret", ["first-secret", "old-secret"])
async def test_an_ended_run_thanks_for_the_call_so_that_it_does_not_come_again(
    door: httpx.AsyncClient, run_id: str, secret: str
) -> None:
    for headers in (signed(secret), signed(secret) | {"x-vendor-id": "gpu_vendor_1"}):
        response = await call(door, run_id, headers)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_a_call_for_a_run_that_is_not_there_is_404(door: httpx.AsyncClient) -> None:
    problem(await call(door, "run_unknown", signed()), "run_not_found")
    problem(await door.post(PATH, headers=signed(), content=BODY), "invalid_field")


@pytest.mark.slow
async def test_a_call_makes_the_run_look_and_what_it_says_is_not_believed(
    world: World, paid_door: httpx.AsyncClient
) -> None:
    run_id = await world.start()
    await world.tick(run_id)

    async def status() -> dict[str, Any]:
        shown: dict[str, Any] = (await paid_door.get("/api/agent-status", params={"runId": run_id})).json()
        return shown

    # "failed", says the body each time, and "completed", says the vendor when it is asked for the third time.
    seen = []
    for _ in range(4):
        world.store.ahead += timedelta(seconds=PAUSE_S)
        response = await call(paid_door, run_id, signed())
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
        seen.append((await status())["run"]["status"])
    assert seen == ["running", "running", "completed", "completed"]
    assert [(job["status"], job["progress"]) for job in (await status())["jobs"]] == [("completed", 1)]
    assert len(world.hosts.calls("/job-status")) == 3
    await world.check_books()


@pytest.mark.slow
async def test_a_call_while_a_tick_holds_the_run_is_told_to_come_again(
    world: World, paid_door: httpx.AsyncClient
) -> None:
    run_id = await world.start()
    await world.tick(run_id)
    world.store.ahead += timedelta(seconds=PAUSE_S)
    claim: Any = await world.store.claim(run_id, 30)
    response = await call(paid_door, run_id, signed())
    problem(response, "run_busy")
    assert int(response.headers["retry-after"]) > 0
    await world.store.release(run_id, claim.token, None)
    assert (await call(paid_door, run_id, signed())).status_code == 200


@pytest.mark.slow
async def test_a_vendor_that_calls_without_end_has_no_more_looks_than_time_allows(
    world: World, paid_door: httpx.AsyncClient
) -> None:
    run_id = await world.start()
    await world.tick(run_id)
    world.store.ahead += timedelta(seconds=3_600)
    responses = [await call(paid_door, run_id, signed()) for _ in range(2)]
    assert responses[0].status_code == 200
    problem(responses[1], "run_busy")
    assert responses[1].headers["retry-after"] == "1"
    assert len(world.hosts.calls("/job-status")) == 1
    # Who did not call again is looked at all the same.
    assert (await world.store.read_run(run_id)).next_tick_at is not None


@pytest.mark.slow
async def test_a_vendor_whose_job_is_over_moves_nothing_any_more(world: World, paid_door: httpx.AsyncClient) -> None:
    world.script(fail_at_epoch=1)
    run_id = await world.start()
    # The second vendor has the run now; the first has given its money back and its files.
    run = await world.until(run_id, lambda run: len(run.jobs) == 2 and run.jobs[1].status == "submitted")
    assert (run.jobs[0].status, run.payments[0].status) == ("failed", "refunded")
    seen, before = len(world.hosts.seen), await world.store.read_log(run_id)
    for _ in range(3):
        world.store.ahead += timedelta(seconds=PAUSE_S)
        response = await call(paid_door, run_id, signed())
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert len(world.hosts.seen) == seen
    assert await world.store.read_log(run_id) == before
    assert (await call(paid_door, run_id, signed("second-secret"))).status_code == 200
    assert len(world.hosts.seen) > seen


@pytest.mark.slow
async def test_the_address_to_call_is_in_the_bytes_that_are_stored_and_sent(world: World) -> None:
    run_id = await world.start()
    replace_agent(world, callback_base_url="https://plane.example")
    run = (await world.tick(run_id)).run
    sent = [json.loads(request.content) for request in world.hosts.calls("/submit-job")]
    assert {body["callbackUrl"] for body in sent} == {f"https://plane.example{PATH}?runId={run_id}"}
    assert {request.content for request in world.hosts.calls("/submit-job")} == {run.payments[0].request.encode()}
    other = await world.start()
    replace_agent(world, callback_base_url=None)
    assert "callbackUrl" not in (await world.tick(other)).run.payments[0].request
