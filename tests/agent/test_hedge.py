"""A deadline, and a job that is silent: a second vendor goes on from the checkpoint, who is done first counts."""

from datetime import timedelta

import pytest

from agent.core.model import Run
from tests.agent.plane import PLANS, open_plane
from tests.fixtures.world import World
from vendor_mock.catalogue import VendorPlan

pytestmark = pytest.mark.slow


@pytest.fixture
def plans() -> tuple[VendorPlan, ...]:
    return PLANS


async def start_with_twin(world: World, epochs: int = 1) -> tuple[str, Run]:
    """Return a run whose first job is silent after so many of three epochs, and has a twin by now."""
    open_plane(world)
    world.script("gpu_vendor_1", vanish_at_epoch=epochs + 1)
    deadline = await world.store.now() + timedelta(hours=2)
    run_id = await world.start(deadline=deadline.isoformat())
    return run_id, await world.until(run_id, lambda run: len(run.jobs) == 2 and run.jobs[1].vendor_job_id is not None)


async def test_the_twin_that_is_done_first_ends_the_run_and_the_other_is_stopped(world: World) -> None:
    run_id, both = await start_with_twin(world)
    first, twin = both.jobs
    assert (first.status, first.polls.count("x")) == ("running", 3)
    assert (twin.vendor_id, twin.slot, twin.hedges, twin.resumes) == ("gpu_vendor_2", 0, first.job_id, first.job_id)
    won = await world.until(run_id, lambda run: run.jobs[1].status == "completed")
    assert won.completed_at is None
    # It is asked to stop as long as it does not answer; then it does.
    assert [call.url.path for call in world.hosts.seen[-3:]].count("/cancel-job") >= 1
    world.script("gpu_vendor_1")
    run = await world.until_ended(run_id)
    assert (run.status, run.jobs[0].status, len(run.jobs)) == ("completed", "cancelled", 2)
    assert run.payments[0].status == "refunded"
    # It lost a race: that is no fault of its.
    assert all(one.failed == 0 for one in await world.store.standings())
    await world.check_books()


async def test_two_that_are_both_done_count_once_and_are_both_paid(world: World) -> None:
    run_id, _ = await start_with_twin(world, epochs=2)
    await world.until(run_id, lambda run: run.jobs[1].status == "completed")
    world.script("gpu_vendor_1")
    run = await world.until_ended(run_id)
    assert [job.status for job in run.jobs] == ["completed", "completed"]
    assert run.budget.spent_atomic == sum(paid.amount_atomic - paid.refunded_atomic for paid in run.payments)
    await world.check_books()


async def test_the_first_that_comes_back_may_win_and_the_twin_is_stopped(world: World) -> None:
    run_id, _ = await start_with_twin(world, epochs=2)
    world.script("gpu_vendor_1")
    world.script("gpu_vendor_2", errors=1_000, routes=("/job-status",))
    won = await world.until(run_id, lambda run: run.jobs[0].status == "completed")
    assert won.jobs[1].status != "completed"
    run = await world.until_ended(run_id)
    assert (run.status, run.jobs[1].status) == ("completed", "cancelled")
    await world.check_books()


async def test_without_a_deadline_there_is_no_twin(world: World) -> None:
    open_plane(world)
    world.script("gpu_vendor_1", vanish_at_epoch=3)
    run_id = await world.start()
    run = await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].polls.count("x") == 5)
    assert len(run.jobs) == 1
