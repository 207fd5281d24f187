"""Runs whose planner learns: a vendor that fails is left alone, its reliability falls, and the books stay right."""

from datetime import timedelta
from decimal import Decimal

import pytest

from agent.edges.planner_ab import AbPlanner
from agent.edges.planner_bandit import BanditPlanner
from agent.edges.planner_stub import StubPlanner
from agent.vendors import Reliability, reliabilities
from tests.fixtures.world import World, replace_agent
from vendor_mock.catalogue import VendorPlan

pytestmark = pytest.mark.slow


@pytest.fixture
def plans() -> tuple[VendorPlan, ...]:
    """Three vendors, each dearer than the one before, but not so much that a failed one is waited for."""
    return tuple(
        VendorPlan(vendor_id=f"gpu_vendor_{number}", name=f"Vendor {number}", price_per_hour=Decimal(price))
        for number, price in enumerate(("1", "1.02", "1.04"), 1)
    )


@pytest.fixture
def learning(world: World) -> World:
    replace_agent(world, planner=BanditPlanner())
    return world


async def known_of(world: World, vendor_id: str) -> Reliability:
    """Return what is known of a vendor's A10s."""
    found = {vendor.vendor_id: known for vendor, known in await reliabilities(world.agent)}
    return next(one for one in found[vendor_id] if one.gpu_type == "A10")


@pytest.mark.row(12)
@pytest.mark.row(13)
@pytest.mark.row(147)
async def test_a_vendor_that_fails_is_left_for_the_next_and_its_reliability_falls(learning: World) -> None:
    vendor_ids = [vendor.vendor_id for vendor in learning.vendors]
    before = await known_of(learning, vendor_ids[0])
    for vendor_id in vendor_ids:
        learning.script(vendor_id, fail_at_epoch=1)
    run_id = await learning.start("10")
    run = await learning.until(run_id, lambda run: sum(job.status == "failed" for job in run.jobs) == 2)
    failed = [job.vendor_id for job in run.jobs]
    [last] = set(vendor_ids) - set(failed)
    learning.script(last)
    run = await learning.until_ended(run_id)
    assert run.status == "completed"
    assert [(job.vendor_id, job.status) for job in run.jobs] == [
        (failed[0], "failed"),
        (failed[1], "failed"),
        (last, "completed"),
    ]
    after = await known_of(learning, failed[0])
    assert after.mean < before.mean
    assert after.high < before.high
    assert (before.failed, after.completed, after.failed) == (0, 0, 1)
    assert after.rests_until is not None
    assert (await known_of(learning, last)).completed == 1
    # The log repeats, the bandit's wishes included.
    await learning.check_books()

    # Another run knows it too: the two rest, the third is chosen.
    next_run = await learning.until_ended(await learning.start("10"))
    assert [job.vendor_id for job in next_run.jobs] == [last]
    learning.store.ahead = timedelta(minutes=2)
    assert (await known_of(learning, failed[0])).rests_until is None


@pytest.mark.row(13)
async def test_when_all_fail_the_run_waits_between_and_gives_up_after_its_attempts(learning: World) -> None:
    learning.limit(attempts_max=4)
    for number in (1, 2, 3):
        learning.script(f"gpu_vendor_{number}", errors=1_000)
    run_id = await learning.start("10")
    run = await learning.until(run_id, lambda run: learning.messages[-1] == "Waiting")
    assert {job.vendor_id for job in run.jobs} == {"gpu_vendor_1", "gpu_vendor_2", "gpu_vendor_3"}
    line = (await learning.lines(run_id, "agent_reasoning"))[-1]
    assert line.startswith("mode: bandit · wait · every able vendor failed lately: gpu_vendor_")
    learning.store.ahead = timedelta(minutes=2)
    run = await learning.until_ended(run_id)
    assert (run.status, run.reason, len(run.jobs)) == ("failed", "attempts_exhausted", 4)
    await learning.check_books()


@pytest.mark.row(12)
async def test_a_budget_that_buys_nothing_ends_the_run(learning: World) -> None:
    run = await learning.until_ended(await learning.start("0.009"))
    assert (run.status, run.reason, run.jobs) == ("failed", "insufficient_budget", ())
    assert (await learning.lines(run.run_id, "error"))[-1].startswith("Run failed (insufficient_budget: Insufficient")


async def test_with_two_planners_both_wishes_are_stored_and_shown(world: World) -> None:
    replace_agent(world, planner=AbPlanner(BanditPlanner(), StubPlanner()))
    run = await world.until_ended(await world.start("5"))
    assert run.status == "completed"
    [decided] = [
        entry
        for entry in await world.store.read_log(run.run_id, types=["agent_reasoning"])
        if entry.data["kind"] == "decided" and entry.data["other"] is not None
    ]
    assert {decided.data["mode"], decided.data["other"]["mode"]} == {"bandit", "stub"}
    assert " · instead of mode: " in decided.content
    await world.check_books()
