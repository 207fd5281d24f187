"""One round of the search for orphans, when something goes wrong in it: what can be done is done, and told."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.core.errors import IllegalMove, StoreUnavailable
from agent.orphans import CANCELS_MAX, Orphans, cancel_orphans
from agent.sweep import sweep, sweep_reply
from chain.devchain import DevAccount, DevChain
from tests.fixtures.hostile import HostileWorld, hostile_world
from tests.fixtures.world import replace_agent

FIRST, SECOND = "gpu_vendor_1", "gpu_vendor_2"


@pytest.fixture
async def world(
    chain: DevChain, tmp_path: Path, payer: DevAccount, facilitator_account: DevAccount
) -> AsyncIterator[HostileWorld]:
    """Yield a world whose jobs take 45 minutes."""
    async with hostile_world(tmp_path, chain, payer, facilitator_account, epoch_seconds=900, poll_s=60) as made:
        yield made


async def an_orphan(world: HostileWorld) -> str:
    """Return a run that was cancelled, and whose vendor goes on with its job; it would cancel it by now."""
    run_id = await world.start("1.4")
    await world.until(run_id, lambda run: any(job.vendor_job_id for job in run.jobs))
    await world.store.request_cancel(run_id)
    world.script(errors=10_000, routes=("/cancel-job",))
    await world.tick(run_id)
    await world.pass_time(601)
    await world.until_ended(run_id)
    await world.pass_time(world.agent.limits.orphan_grace_s)
    world.script()
    world.hosts.seen.clear()
    return run_id


def haunt(world: HostileWorld, run_id: str, ghosts: int, status: int, vendor_id: str = FIRST) -> None:
    """Let a vendor list as many jobs that it will not cancel before its own: it says `status` of each."""
    listed = [
        {"vendorJobId": f"ghost-{number}", "status": "running", "paymentId": f"{run_id}-payment-9"}
        for number in range(ghosts)
    ]

    def meddle(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.headers.get("x-vendor-id") != vendor_id:
            return response
        if request.url.path == "/jobs":
            return httpx.Response(200, json={"jobs": listed + response.json()["jobs"]})
        if request.url.path == "/cancel-job" and b"ghost" in request.content:
            return httpx.Response(status, json={"title": "no"})
        return response

    world.hosts.meddle = meddle


@pytest.mark.row(6)
@pytest.mark.parametrize("status", [404, 409, 422, 200])
async def test_jobs_that_a_vendor_will_not_cancel_do_not_keep_the_others_alive(
    world: HostileWorld, status: int
) -> None:
    run_id = await an_orphan(world)
    haunt(world, run_id, CANCELS_MAX + 1, status)
    found = await cancel_orphans(world.agent)
    assert [one.run_id for one in found.cancelled] == [run_id]
    assert (found.left, found.bugs) == (CANCELS_MAX + 1, ())
    assert len(world.hosts.calls("/cancel-job")) == CANCELS_MAX + 2


@pytest.mark.parametrize("status", [401, 500])
async def test_a_vendor_that_refuses_us_or_is_away_is_asked_for_one_job_a_round_and_never_for_the_same_first(
    world: HostileWorld, status: int
) -> None:
    run_id = await an_orphan(world)
    haunt(world, run_id, 3, status)
    asked = []
    for _ in range(40):
        found = await cancel_orphans(world.agent)
        asked.append({request.content for request in world.hosts.calls("/cancel-job")})
        if found.cancelled:
            break
        assert (len(asked[-1]), found.left) == (1, 4)
        world.hosts.seen.clear()
        await world.pass_time(1)
    assert [one.run_id for one in found.cancelled] == [run_id]


async def test_a_job_listed_under_another_vendors_payment_is_no_reason_to_cancel_what_was_bought(
    world: HostileWorld,
) -> None:
    run_id = await world.start("1.4")
    run = await world.until(run_id, lambda run: any(job.vendor_job_id for job in run.jobs))
    await world.pass_time(world.agent.limits.orphan_grace_s)
    bought = {"status": "running", "paymentId": run.payments[0].payment_id}

    def claim(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.headers.get("x-vendor-id") != SECOND or request.url.path != "/jobs":
            return response
        mine, its = {"vendorJobId": "another", **bought}, {"vendorJobId": run.jobs[0].vendor_job_id, **bought}
        return httpx.Response(200, json={"jobs": [mine, its]})

    world.hosts.meddle = claim
    await world.pass_time(world.agent.limits.orphan_grace_s)
    found = await cancel_orphans(world.agent)
    assert (found.cancelled, found.left) == ((), 1)
    [asked] = world.hosts.calls("/cancel-job")
    assert (asked.headers["x-vendor-id"], b"another" in asked.content) == (SECOND, True)
    world.hosts.meddle = None
    assert (await world.drive(run_id)).status == "completed"
    assert await world.broken() == []


class Failing:
    """A port that raises, or hangs, in one verb for the second vendor."""

    def __init__(self, inner: Any, verb: str, error: BaseException | None) -> None:
        self._inner, self._verb, self._error = inner, verb, error

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._inner, name)
        if name != self._verb:
            return verb

        async def failing(first: Any, *more: Any, **named: Any) -> Any:
            if getattr(first, "vendor_id", SECOND) != SECOND:
                return await verb(first, *more, **named)
            if self._error is None:
                await asyncio.Event().wait()
            else:
                raise self._error

        return failing


@pytest.mark.parametrize("error", [KeyError("a field"), IllegalMove("there is no move")])
async def test_a_bug_at_one_vendor_is_told_and_stops_no_other(
    world: HostileWorld, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = await an_orphan(world)
    replace_agent(world, vendors=Failing(world.agent.vendors, "live_jobs", error))
    done = await sweep(world.agent)
    assert done.orphans is not None
    assert [one.run_id for one in done.orphans.cancelled] == [run_id]
    assert done.bugs == (f"orphans at {SECOND}: {error!r}",)
    [told] = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert (told.getMessage(), told.exc_info is not None) == ("a bug in the search for orphans", True)
    # It is ours, and told to nobody outside.
    reply = sweep_reply(done).document()
    assert (reply["orphans"]["cancelled"], str(error) in str(reply)) == (1, False)


async def test_a_search_that_cannot_begin_for_a_bug_is_told(world: HostileWorld) -> None:
    replace_agent(world, store=Failing(world.agent.store, "take_turn", KeyError("turn")))
    done = await sweep(world.agent)
    assert (done.orphans, done.bugs) == (None, ("orphans: KeyError('turn')",))


async def test_what_was_cancelled_is_told_though_the_store_went_away_after_it(world: HostileWorld) -> None:
    run_id = await an_orphan(world)
    replace_agent(world, store=Failing(world.agent.store, "claim", StoreUnavailable("away")))
    found = await cancel_orphans(world.agent)
    assert [one.run_id for one in found.cancelled] == [run_id]
    assert (found.left, found.bugs) == (0, ())


async def test_what_was_cancelled_is_told_though_the_time_ran_out(world: HostileWorld) -> None:
    run_id = await an_orphan(world)
    replace_agent(world, vendors=Failing(world.agent.vendors, "live_jobs", None))
    found = await cancel_orphans(world.agent, 2.0)
    assert [one.run_id for one in found.cancelled] == [run_id]


@pytest.mark.parametrize("error", [KeyError("a field"), IllegalMove("there is no move")])
async def test_a_bug_in_a_tick_is_told_and_stops_no_other(
    world: HostileWorld, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = await world.start("1.4")
    replace_agent(world, planner=Failing(world.agent.planner, "propose", error))
    done = await sweep(world.agent)
    assert [(one.run_id, one.message) for one in done.swept] == [(run_id, f"internal: {type(error).__name__}")]
    assert done.bugs == (f"{run_id}: {error!r}",)
    assert done.orphans == Orphans()
    [told] = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert (told.getMessage(), told.exc_info is not None) == (f"a bug in the tick of {run_id}", True)
