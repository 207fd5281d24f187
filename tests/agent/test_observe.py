"""What a vendor's answer to a poll becomes, and its silence: a loss on evidence alone."""

import sqlite3
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.core.events import JobLogged, JobObserved
from agent.core.log import record
from agent.core.model import Run
from agent.observe import LOG_LINES_MAX, read_status
from chain.devchain import DevAccount, DevChain
from tests.agent.core.values import a_job, a_run, at
from tests.fixtures.hostile import HostileWorld, hostile_world
from wire.vendor import JobStatus


def _status(cursor: str, *lines: str) -> JobStatus:
    return JobStatus(
        vendor_job_id="vgpu_1",
        status="running",
        progress=Decimal("0.5"),
        logs=lines,
        cursor=cursor,
        cost_so_far=Decimal(0),
    )


def _read(run: Run, status: JobStatus) -> tuple[Run, list[str]]:
    events = read_status(run, run.jobs[0], status, at(1))
    return record(run, events)[0], [event.line for event in events if isinstance(event, JobLogged)]


def test_lines_under_a_cursor_that_stands_still_were_read_before() -> None:
    run = a_run(jobs=(a_job(1, **{"status": "running", "vendor_job_id": "vgpu_1", "cursor": "1"}),))
    run, lines = _read(run, _status("2", "Epoch 1/3"))
    assert lines == ["Epoch 1/3"]
    run, lines = _read(run, _status("2", "Epoch 1/3"))
    assert lines == []
    run, lines = _read(run, _status("3", "Epoch 2/3"))
    assert lines == ["Epoch 2/3"]
    assert run.jobs[0].log_lines == 2


@pytest.mark.parametrize(("kept", "new"), [(LOG_LINES_MAX, 0), (LOG_LINES_MAX - 1, 1), (LOG_LINES_MAX - 5, 3)])
def test_a_job_that_talks_for_ever_is_cut_and_still_watched(kept: int, new: int) -> None:
    run = a_run(jobs=(a_job(1, **{"status": "running", "vendor_job_id": "vgpu_1", "cursor": "1", "log_lines": kept}),))
    events = read_status(run, run.jobs[0], _status("2", "a", "b", "c"), at(1))
    assert sum(isinstance(event, JobLogged) for event in events) == new
    assert isinstance(events[-1], JobObserved)


@pytest.fixture
def epoch_seconds() -> int:
    """How long a third of a job takes; a test with longer jobs says so."""
    return 500


@pytest.fixture
async def world(
    chain: DevChain, tmp_path: Path, payer: DevAccount, facilitator_account: DevAccount, epoch_seconds: int
) -> AsyncIterator[HostileWorld]:
    lasting = hostile_world(tmp_path, chain, payer, facilitator_account, epoch_seconds=epoch_seconds, poll_s=30)
    async with lasting as made:
        yield made


async def a_running_job(world: HostileWorld) -> str:
    run_id = await world.start("3.5")
    await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].status == "running")
    return run_id


async def polls(world: HostileWorld, run_id: str, count: int) -> Run:
    """Tick every half minute, `count` times."""
    for _ in range(count):
        await world.pass_time(30)
        run = (await world.tick(run_id)).run
    return run


@pytest.mark.parametrize("epoch_seconds", [1_195])
@pytest.mark.parametrize("seed", [1, 2])
async def test_an_hour_in_which_half_of_all_polls_fail_needs_no_second_job(world: HostileWorld, seed: int) -> None:
    run_id = await a_running_job(world)
    world.script(error_share=Decimal("0.5"), seed=seed, routes=("/job-status",))
    run = await world.drive(run_id)
    assert (run.status, len(run.jobs), len(run.payments)) == ("completed", 1, 1)
    missed = len(await world.lines(run_id, "error"))
    asked = len(world.hosts.calls("/job-status"))
    assert 0.4 < missed / asked < 0.6
    assert asked > 110
    assert await world.broken() == []


@pytest.mark.parametrize("is_flaky", [False, True])
async def test_a_job_that_its_vendor_does_not_have_is_lost_in_two_polls(
    world: HostileWorld, tmp_path: Path, is_flaky: bool
) -> None:
    run_id = await a_running_job(world)
    with sqlite3.connect(tmp_path / "vendors.db") as books:
        books.execute("DELETE FROM mock_jobs")
    if is_flaky:
        await polls(world, run_id, 1)
        world.script(errors=3, routes=("/job-status",))
        assert (await polls(world, run_id, 3)).jobs[0].polls[-4:] == "gxxx"
        run = await polls(world, run_id, 1)
    else:
        assert (await polls(world, run_id, 1)).jobs[0].status == "running"
        run = await polls(world, run_id, 1)
    assert (run.jobs[0].status, run.jobs[0].polls[-1]) == ("failed", "g")
    assert str(run.jobs[0].error_message).startswith("job_lost: no such job: ")
    assert (await world.drive(run_id)).jobs[1].status == "completed"


@pytest.mark.parametrize("status", [404, 410])
async def test_a_door_that_knows_no_route_is_not_a_vendor_that_has_no_job(world: HostileWorld, status: int) -> None:
    """A proxy before the vendor, in the middle of a deployment: everything is 404 there."""
    run_id = await a_running_job(world)
    world.hosts.meddle = lambda request, response: httpx.Response(status, text="<h1>Not Found</h1>")
    run = await polls(world, run_id, 9 * 2)
    assert (run.jobs[0].status, run.jobs[0].polls[-18:]) == ("running", "x" * 18)
    world.hosts.meddle = None
    run = await world.drive(run_id)
    assert (run.status, len(run.jobs)) == ("completed", 1)
    assert await world.broken() == []


async def test_a_job_that_is_listed_lives_though_its_status_is_not_found(world: HostileWorld) -> None:
    run_id = await a_running_job(world)
    world.hosts.meddle = lambda request, response: (
        httpx.Response(404) if request.url.path == "/job-status" else response
    )
    run = await polls(world, run_id, 25)
    assert (run.jobs[0].status, run.jobs[0].polls) == ("running", "." * 20)
    world.hosts.meddle = None
    assert (await world.drive(run_id)).status == "completed"


async def test_a_job_that_is_listed_as_ended_is_not_gone(world: HostileWorld) -> None:
    run_id = await a_running_job(world)

    def ended(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path == "/job-status":
            return httpx.Response(404)
        if request.url.path != "/jobs":
            return response
        jobs: list[dict[str, Any]] = [job | {"status": "completed"} for job in response.json()["jobs"]]
        return httpx.Response(200, json={"jobs": jobs})

    world.hosts.meddle = ended
    run = await polls(world, run_id, 3)
    assert (run.jobs[0].status, run.jobs[0].polls[-3:]) == ("running", "xxx")
    world.hosts.meddle = None
    assert (await world.drive(run_id)).status == "completed"


async def test_a_vendor_that_is_away_for_nine_minutes_loses_no_job(world: HostileWorld) -> None:
    run_id = await a_running_job(world)
    for _ in range(2):
        world.hosts.down.add("vendors")
        run = await polls(world, run_id, 9 * 2)
        assert (run.jobs[0].status, run.jobs[0].polls[-18:]) == ("running", "x" * 18)
        world.hosts.down.clear()
        assert (await polls(world, run_id, 1)).jobs[0].polls[-2:] == "x."
    run = await world.drive(run_id)
    assert (run.status, len(run.jobs)) == ("completed", 1)
    assert any("19 of the last 20" in line for line in await world.lines(run_id, "error"))
    assert await world.broken() == []


async def test_a_vendor_that_is_away_for_eleven_minutes_has_lost_it(world: HostileWorld) -> None:
    run_id = await a_running_job(world)
    world.hosts.down.add("vendors")
    run = await polls(world, run_id, 10 * 2)
    assert run.jobs[0].status == "running"
    run = await polls(world, run_id, 2)
    assert run.jobs[0].status == "failed"
    assert str(run.jobs[0].error_message).startswith("job_lost: ")
