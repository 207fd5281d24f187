"""A deadline, and a job that is silent: a second vendor goes on from the checkpoint, who is done first counts."""

from datetime import timedelta

import httpx
import pytest

from agent.core.model import Run
from agent.core.slots import spent_attempts
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


async def test_a_twin_whose_cheque_was_never_cashed_lost_its_race_and_failed_nothing(world: World) -> None:
    open_plane(world)
    world.script("gpu_vendor_1", vanish_at_epoch=2)
    deadline = await world.store.now() + timedelta(hours=5)
    run_id = await world.start(deadline=deadline.isoformat())
    await world.tick(run_id)

    def refuse(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        # It asked for its price, and is away when the cheque comes.
        if request.url.path == "/submit-job" and response.status_code == 402:
            world.script("gpu_vendor_2", errors=1_000)
        return response

    world.hosts.meddle = refuse
    both = await world.until(run_id, lambda run: len(run.payments) == 2)
    assert (both.jobs[1].vendor_job_id, both.payments[1].status) == (None, "unknown")
    world.script("gpu_vendor_1")
    sent = len(world.hosts.calls("/submit-job"))
    won = await world.until(run_id, lambda run: run.jobs[0].status == "completed")
    waiting = await world.tick(run_id)
    assert (won.completed_at, waiting.run.completed_at, waiting.run.payments[1].status) == (None, None, "unknown")
    sent_again = len(world.hosts.calls("/submit-job")) - sent
    await world.tick(run_id)
    # Nobody wants it any more: the cheque is not offered again.
    assert len(world.hosts.calls("/submit-job")) - sent == sent_again
    world.chain.increase_time(3_600)
    world.chain.mine(3)
    world.store.ahead += timedelta(hours=1)
    run = await world.until_ended(run_id)
    assert (run.status, run.payments[1].status) == ("completed", "failed")
    assert (run.jobs[1].status, run.jobs[1].error_message, spent_attempts(run)) == ("cancelled", "hedge_lost", 0)
    await world.check_books()
