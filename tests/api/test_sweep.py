"""The sweep over HTTP, with a host's deadline behind it, and the server that drives runs by itself."""

import asyncio
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from pydantic import SecretStr

from agent.edges.store_sqlite import SqliteStore
from agent.ports import Agent, Busy, Claim, Store
from agent.start import start
from agent.sweep import TICK_ROOM_S, TICKS_AT_ONCE, drive, sweep
from api.config import ApiSettings
from api.door import create_app
from tests.api.problems import problem
from tests.fixtures.world import World
from wire.control import StartRequest

ASKED = StartRequest.model_validate({"goal": "x", "budgetTotal": 5})


class Context:
    """What Lambda gives with an invocation."""

    def __init__(self, seconds_left: float) -> None:
        self._seconds_left = seconds_left

    def get_remaining_time_in_millis(self) -> int:
        return int(self._seconds_left * 1_000)


async def test_due_runs_are_ticked_and_what_became_of_each_is_told(agent: Agent, door: httpx.AsyncClient) -> None:
    run_ids = [(await start(agent, ASKED)).run_id for _ in range(3)]
    response = await door.post("/api/agent-sweep", params={"limit": 2})
    assert response.headers["cache-control"] == "no-store"
    first = response.json()
    assert first["more"] is True
    second = (await door.post("/agent-sweep")).json()
    assert second["more"] is False
    swept = first["swept"] + second["swept"]
    assert {one["runId"] for one in swept} == set(run_ids)
    assert {one["message"] for one in swept} == {"No vendors available"}
    assert (await door.post("/agent-sweep")).json() == {"swept": [], "more": False}


@pytest.mark.parametrize("limit", ["0", "101", "-1", "x", ""])
async def test_a_batch_is_of_1_to_100_runs(door: httpx.AsyncClient, limit: str) -> None:
    problem(await door.post("/api/agent-sweep", params={"limit": limit}), "invalid_field")


async def test_no_tick_is_begun_when_the_hosts_deadline_nears(agent: Agent) -> None:
    run = await start(agent, ASKED)
    late = await sweep(agent, seconds_left=TICK_ROOM_S)
    assert (late.swept, late.more) == ((), True)
    app = create_app(lambda: agent)

    async def on_lambda(seconds_left: float) -> dict[str, object]:
        async def invoked(scope, receive, send):
            await app(scope | {"aws.context": Context(seconds_left)}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(invoked), base_url="http://localhost") as client:
            document: dict[str, object] = (await client.post("/agent-sweep")).json()
            return document

    assert await on_lambda(TICK_ROOM_S - 1) == {"swept": [], "more": True}
    assert await on_lambda(TICK_ROOM_S + 50) == {
        "swept": [{"runId": run.run_id, "message": "No vendors available"}],
        "more": False,
    }


async def test_on_vercel_a_request_has_the_time_that_vercel_gives_it(agent: Agent) -> None:
    await start(agent, ASKED)
    for request_s, swept in ((1, 0), (60, 1)):
        settings = ApiSettings(vercel=True, vercel_request_s=request_s, secret=SecretStr("s"))
        transport = httpx.ASGITransport(create_app(lambda: agent, settings=settings))
        async with httpx.AsyncClient(transport=transport, base_url="https://plane.vercel.app") as door:
            response = await door.get("/api/agent-sweep", headers={"authorization": "Bearer s"})
        assert len(response.json()["swept"]) == swept


class Cursed:
    """A store that cannot read one of its runs, and knows how many it serves at once."""

    def __init__(self, store: Store) -> None:
        self._inner = store
        self.cursed = ""
        self.at_once = self.at_once_max = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def claim(self, run_id: str, lease_s: int, **more: Any) -> Claim | Busy:
        if run_id == self.cursed:
            raise KeyError(run_id)
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        return await self._inner.claim(run_id, lease_s, **more)

    async def release(self, run_id: str, token: int, next_tick_at: datetime | None) -> None:
        await self._inner.release(run_id, token, next_tick_at)
        self.at_once -= 1


async def test_one_runs_trouble_does_not_stop_the_others_and_few_are_served_at_once(agent: Agent) -> None:
    store = Cursed(agent.store)
    runs = [(await start(agent, ASKED)).run_id for _ in range(9)]
    store.cursed = runs[4]
    done = await sweep(replace(agent, store=store))
    assert {one.run_id: one.message for one in done.swept} == {
        run_id: "internal: KeyError" if run_id == store.cursed else "No vendors available" for run_id in runs
    }
    assert 2 <= store.at_once_max <= TICKS_AT_ONCE


class Overtaken:
    """A store whose due runs are served by another sweep before they are known here."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent.store, name)

    async def due_runs(self, now: datetime, limit: int) -> list[str]:
        due = await self._agent.store.due_runs(now, limit)
        assert [one.message for one in (await sweep(self._agent)).swept] == ["No vendors available"]
        return due


async def test_two_sweeps_that_saw_the_same_run_due_tick_it_once(agent: Agent) -> None:
    run = await start(agent, ASKED)
    done = await sweep(replace(agent, store=Overtaken(agent)))
    assert [one.message for one in done.swept] == ["Served by another"]
    assert len(await agent.store.read_log(run.run_id, types=["tick"])) == 1


@pytest.mark.row(7)
async def test_a_server_that_ticks_drives_a_run_to_its_end_and_stops_cleanly(world: World) -> None:
    agent = replace(world.agent, limits=replace(world.agent.limits, poll_interval_s=0))
    app = create_app(lambda: agent, settings=ApiSettings(tick=True))
    transport = httpx.ASGITransport(app)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as door,
        app.router.lifespan_context(app),
        asyncio.timeout(30),
    ):
        run_id = (await door.post("/agent-start", json={"goal": "x", "budgetTotal": 5})).json()["_id"]
        world.run_ids.append(run_id)
        status = "pending"
        while status != "completed":
            assert status in ("pending", "running")
            await asyncio.sleep(0.05)
            status = (await door.get("/agent-status", params={"runId": run_id})).json()["run"]["status"]
    assert len(asyncio.all_tasks()) == 1
    await world.check_books()


async def test_a_tick_that_does_not_end_keeps_no_server_from_stopping(agent: Agent) -> None:
    begun = asyncio.Event()

    class Stuck:
        def __getattr__(self, name: str) -> Any:
            return getattr(agent.store, name)

        async def due_runs(self, *_: Any) -> Any:
            begun.set()
            await asyncio.Event().wait()

    app = create_app(lambda: replace(agent, store=cast(Store, Stuck())), settings=ApiSettings(tick=True, drain_s=0))
    async with asyncio.timeout(20):
        async with app.router.lifespan_context(app):
            await begun.wait()
    assert len(asyncio.all_tasks()) == 1


async def test_a_server_does_not_tick_unless_it_is_told_to_and_never_on_a_host(agent: Agent) -> None:
    for settings in (ApiSettings(), ApiSettings(tick=True, vercel=True, secret=SecretStr("s"))):
        app = create_app(lambda: agent, settings=settings)
        async with app.router.lifespan_context(app):
            assert len(asyncio.all_tasks()) == 1


async def test_the_driver_goes_on_trying_while_the_store_is_away(
    agent: Agent, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop = asyncio.Event()
    driver = asyncio.create_task(drive(replace(agent, store=SqliteStore(tmp_path)), stop))
    async with asyncio.timeout(10):
        while not any("no sweep" in line for line in caplog.messages):
            assert not driver.done()
            await asyncio.sleep(0.01)
        stop.set()
        await driver
