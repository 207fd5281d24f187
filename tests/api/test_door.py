"""The other routes: ticking, reading, listing, cancelling, health; and what every path and method answers."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.edges.chain_evm import EvmChain
from agent.edges.store_sqlite import SqliteStore
from agent.ports import Agent
from chain.rpc import Rpc
from chain.token import TokenReader
from outbound.http import HttpClient
from tests.api.conftest import door_of
from tests.api.problems import problem
from tests.fixtures.world import World
from wire.money import BASE_SEPOLIA_USDC

NO_IDS = [
    "bad",
    "run_" + "0" * 32,
    "",
    "a" * 5_000,
    "\u202e\U0001f40e",
    "$where",
    '{"$gt":""}',
    "../../etc/passwd",
    "%00",
]
ROUTES = {
    "agent-start": "POST",
    "agent-tick": "POST",
    "agent-status": "GET",
    "agent-runs": "GET",
    "agent-cancel": "POST",
    "agent-sweep": "GET, POST",
    "agent-artifact": "GET",
    "agent-events": "GET",
    "vendor-callback": "POST",
}


async def start(door: httpx.AsyncClient, budget: float = 5) -> str:
    response = await door.post("/api/agent-start", json={"goal": "Fine-tune tiny-llm", "budgetTotal": budget})
    return str(response.json()["_id"])


async def tick(door: httpx.AsyncClient, run_id: str) -> dict[str, Any]:
    response = await door.post("/api/agent-tick", json={"runId": run_id})
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


@pytest.mark.row(2)
async def test_two_servers_serve_alternate_ticks_of_one_run_to_its_end(world: World) -> None:
    async with door_of(world.agent) as one, door_of(replace(world.agent)) as other:
        run_id = await start(one)
        world.run_ids.append(run_id)
        first = await tick(one, run_id)
        assert first["message"] == "Job started"
        assert first["action"] == {
            "action": "start_job",
            "vendorId": "gpu_vendor_1",
            "maxHours": 1,
            "reason": "gpu_vendor_1 is the first registered vendor that has not failed in this run",
        }
        assert first["nextTickAt"].endswith("Z")
        assert [await tick(door, run_id) | {"nextTickAt": None} for door in (other, one)] == [
            {"message": "Job still running", "action": None, "nextTickAt": None}
        ] * 2
        # The run is named in the query as well.
        last = (await other.post("/api/agent-tick", params={"runId": run_id})).json()
        assert last == {"message": "Job completed", "action": None}
        shown = [(await door.get("/api/agent-status", params={"runId": run_id})).json() for door in (one, other)]
        assert shown[0] == shown[1]
        assert shown[0]["run"]["status"] == "completed"
        assert shown[0]["run"]["phase"] == "done"
    await world.check_books()


async def test_a_wish_that_was_not_to_act_is_shown_too(world: World, paid_door: httpx.AsyncClient) -> None:
    broke = await tick(paid_door, await start(paid_door, 0.01))
    assert broke["message"] == "Run aborted"
    assert broke["action"]["action"] == "abort"
    for vendor in world.vendors:
        await world.store.remove_vendor(vendor.vendor_id)
    alone = await tick(paid_door, await start(paid_door))
    assert (alone["message"], alone["action"]["action"]) == ("No vendors available", "wait")


async def test_the_query_names_the_run_where_the_body_does_not(world: World, paid_door: httpx.AsyncClient) -> None:
    run_id = await start(paid_door)
    response = await paid_door.post("/api/agent-tick", params={"runId": run_id}, json={})
    assert response.json()["message"] == "Job started"
    response = await paid_door.post("/api/agent-tick", params={"runId": "run_unknown"}, json={"runId": run_id})
    assert response.json()["message"] == "Job still running"


@pytest.mark.row(3)
async def test_the_status_has_all_parts_newest_first(world: World, paid_door: httpx.AsyncClient) -> None:
    world.script(fail_at_epoch=1)
    run_id = await start(paid_door)
    messages = [(await tick(paid_door, run_id))["message"] for _ in range(6)]
    assert (messages[1], messages[-1]) == ("Job failed", "Job completed")
    for path in ("/api/agent-status", "/agent-status"):
        shown = (await paid_door.get(path, params={"runId": run_id})).json()
        assert set(shown) == {"run", "jobs", "payments", "observations"}
        assert [job["vendorId"] for job in shown["jobs"]] == ["gpu_vendor_2", "gpu_vendor_1"]
        assert [payment["vendorId"] for payment in shown["payments"]] == ["gpu_vendor_2", "gpu_vendor_1"]
        assert 0 < len(shown["observations"]) <= 50
        seqs = [line["seq"] for line in shown["observations"]]
        assert seqs == sorted(seqs, reverse=True)
    completed, refunded = shown["payments"]
    assert (completed["amount"], completed["status"], completed["refunded"]) == (1.8, "completed", 0)
    assert (refunded["amount"], refunded["status"], refunded["refunded"]) == (1.4, "refunded", 0.7)
    assert completed["x402TxId"].startswith("0x")
    assert refunded["refundTxId"].startswith("0x")


@pytest.mark.row(3)
@pytest.mark.parametrize("run_id", NO_IDS, ids=lambda text: repr(text[:20]))
async def test_an_id_that_no_run_has_is_404_everywhere(door: httpx.AsyncClient, run_id: str) -> None:
    problem(await door.get("/api/agent-status", params={"runId": run_id}), "run_not_found")
    problem(await door.post("/api/agent-tick", params={"runId": run_id}), "run_not_found")
    problem(await door.post("/api/agent-tick", json={"runId": run_id}), "run_not_found")
    problem(await door.post("/api/agent-cancel", json={"runId": run_id}), "run_not_found")


@pytest.mark.parametrize("body", [b'{"runId": 7}', b'{"runId": null}', b'{"runId": {"$gt": ""}}', b"{}", b""])
async def test_a_tick_of_no_run_is_told_which_field_is_missing(door: httpx.AsyncClient, body: bytes) -> None:
    for path in ("/api/agent-tick", "/api/agent-cancel"):
        response = await door.post(path, content=body)
        detail = problem(response, "invalid_field")["detail"]
        assert detail.startswith(("runId: ", "body: ") if not body else "runId: "), detail
    response = await door.get("/api/agent-status")
    assert problem(response, "invalid_field")["detail"].startswith("query.runId: ")


async def test_a_finished_run_refuses_ticks_and_cancels(world: World, paid_door: httpx.AsyncClient) -> None:
    run_id = await start(paid_door, 0.01)
    await tick(paid_door, run_id)
    for path in ("/api/agent-tick", "/api/agent-cancel"):
        response = await paid_door.post(path, json={"runId": run_id})
        assert problem(response, "run_finished")["detail"] == "Run already failed"


@pytest.mark.row(5)
async def test_twenty_ticks_at_once_are_one_job_and_the_others_are_told_when_to_come(
    world: World, paid_door: httpx.AsyncClient
) -> None:
    run_id = await start(paid_door)
    world.run_ids.append(run_id)
    responses = await asyncio.gather(*[paid_door.post("/api/agent-tick", json={"runId": run_id}) for _ in range(20)])
    busy = [response for response in responses if response.status_code != 200]
    assert busy
    for response in busy:
        document = problem(response, "run_busy")
        assert response.headers["retry-after"] == str(document["retryAfter"])
        assert 1 <= document["retryAfter"] <= 30
    shown = (await paid_door.get("/api/agent-status", params={"runId": run_id})).json()
    assert (len(shown["jobs"]), len(shown["payments"])) == (1, 1)
    await world.check_books()


async def test_a_run_is_cancelled_over_http(world: World, paid_door: httpx.AsyncClient) -> None:
    run_id = await start(paid_door)
    world.run_ids.append(run_id)
    await tick(paid_door, run_id)
    response = await paid_door.post("/api/agent-cancel", json={"runId": run_id})
    assert response.status_code == 200
    assert response.json()["status"] == "running"
    assert response.json()["cancelRequestedAt"].endswith("Z")
    # Asking twice changes nothing.
    assert (await paid_door.post("/api/agent-cancel", json={"runId": run_id})).json() == response.json()
    assert (await tick(paid_door, run_id))["message"] == "Job cancelled"
    assert (await tick(paid_door, run_id))["message"] == "Run cancelled"
    shown = (await paid_door.get("/api/agent-status", params={"runId": run_id})).json()
    assert (shown["run"]["status"], shown["jobs"][0]["status"]) == ("cancelled", "cancelled")
    await world.check_books()


@pytest.mark.row(24)
async def test_a_tick_that_would_have_to_pay_without_a_key_is_503(world: World) -> None:
    async with door_of(replace(world.agent, wallet=None)) as door:
        assert (await door.get("/health")).json()["payments"] == "off"
        run_id = await start(door)
        problem(await door.post("/api/agent-tick", json={"runId": run_id}), "no_signer")
        shown = (await door.get("/api/agent-status", params={"runId": run_id})).json()
        assert (shown["jobs"], shown["payments"]) == ([], [])
        assert shown["run"]["budgetRemaining"] == 5
        assert (await door.get("/api/agent-runs")).json()["runs"][0]["_id"] == run_id
    assert world.hosts.calls("/submit-job") == []


async def test_runs_are_listed_a_page_at_a_time(door: httpx.AsyncClient) -> None:
    wanted = [await start(door) for _ in range(53)][::-1]
    first = (await door.get("/api/agent-runs")).json()
    second = (await door.get("/api/agent-runs", params={"cursor": first["cursor"]})).json()
    assert len(first["runs"]) == 50
    assert "cursor" not in second
    assert [run["_id"] for run in first["runs"] + second["runs"]] == wanted
    # As a form sends what was left empty.
    assert (await door.get("/api/agent-runs?status=&cursor=")).json() == first
    assert (await door.get("/api/agent-runs", params={"cursor": "nonsense"})).json() == first


async def test_runs_are_listed_by_status(agent: Agent, door: httpx.AsyncClient) -> None:
    kept, ended = await start(door), await start(door, 1)
    await door.post("/api/agent-cancel", json={"runId": ended})
    await tick(door, ended)
    for status, run_ids in (("running", [kept]), ("cancelled", [ended]), ("completed", [])):
        shown = (await door.get("/api/agent-runs", params={"status": status})).json()
        assert [run["_id"] for run in shown["runs"]] == run_ids
    response = await door.get("/api/agent-runs", params={"status": "exploded"})
    assert problem(response, "invalid_field")["detail"].startswith("query.status: ")


async def test_health_says_who_plans_where_things_are_kept_and_whether_it_pays(door: httpx.AsyncClient) -> None:
    for path in ("/health", "/api/health"):
        shown = (await door.get(path)).json()
        told = [shown[name] for name in ("status", "store", "payments", "planner")]
        assert told == ["ok", "sqlite", "on", "bandit"]
        assert shown["version"]


@pytest.mark.row(1)
@pytest.mark.parametrize("prefix", ["/api/", "/"])
@pytest.mark.parametrize("route", [*ROUTES, "health"])
async def test_every_route_stands_with_and_without_its_prefix_and_names_its_method(
    door: httpx.AsyncClient, route: str, prefix: str
) -> None:
    allowed = ROUTES.get(route, "GET")
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
        response = await door.request(method, prefix + route)
        if method in allowed.split(", "):
            # A sweep by GET is refused where there is no secret.
            assert response.status_code in (200, 422, 503), response.text
        else:
            problem(response, "method_not_allowed")
            assert response.headers["allow"] == allowed


@pytest.mark.parametrize(
    "path", ["/", "/api", "/api/agent-start/", "/api/agent-nothing", "/api/api/health", "/%00", "/a" * 900]
)
async def test_a_path_that_is_none_is_404(door: httpx.AsyncClient, path: str) -> None:
    problem(await door.get(path), "not_found")


async def test_a_body_too_large_is_refused_however_it_is_sent(door: httpx.AsyncClient) -> None:
    huge = b'{"goal": "' + b"x" * 300_000 + b'", "budgetTotal": 5}'

    async def pieces() -> Any:
        for start in range(0, len(huge), 10_000):
            yield huge[start : start + 10_000]

    problem(await door.post("/api/agent-start", content=huge), "body_too_large")
    problem(await door.post("/api/agent-start", content=pieces()), "body_too_large")
    assert (await door.get("/api/agent-runs")).json() == {"runs": []}


async def test_an_oversized_header_is_refused(door: httpx.AsyncClient) -> None:
    problem(await door.get("/api/health", headers={"x-long": "x" * 50_000}), "header_too_large")
    problem(await door.get("/api/health", headers={f"x-{n}": "x" * 100 for n in range(500)}), "header_too_large")


async def test_a_store_that_is_away_is_503(agent: Agent, tmp_path: Path) -> None:
    away = SqliteStore(tmp_path)
    async with door_of(replace(agent, store=away)) as door:
        problem(await door.get("/health"), "store_unavailable")
        problem(await door.post("/api/agent-tick", json={"runId": "run_x"}), "store_unavailable")
        problem(await door.post("/api/agent-start", json={"goal": "x", "budgetTotal": 5}), "store_unavailable")
    await away.close()


async def test_a_chain_that_is_away_is_503_and_nothing_is_lost(world: World) -> None:
    away = EvmChain(TokenReader(Rpc("http://127.0.0.1:9", HttpClient()), BASE_SEPOLIA_USDC))
    async with door_of(replace(world.agent, chain=away)) as door, door_of(world.agent) as sound:
        run_id = await start(door)
        world.run_ids.append(run_id)
        problem(await door.post("/api/agent-tick", json={"runId": run_id}), "chain_unavailable")
        assert (await tick(sound, run_id))["message"] == "Job started"
    await world.check_books()


async def test_a_bug_of_ours_is_a_problem_too_and_tells_no_secret(agent: Agent) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("the key is 0xdeadbeef")

    async with door_of(replace(agent, store=Broken())) as door:  # type: ignore[arg-type]
        response = await door.get("/health")
        assert problem(response, "internal")["detail"] == "RuntimeError"
        assert "deadbeef" not in response.text
