"""Several jobs of one run: beside each other, each with its own reservation, payment and piece of the work."""

import pytest

from agent.core.model import Run
from tests.agent.plane import PLANS, open_plane
from tests.fixtures.world import World
from vendor_mock.catalogue import VendorPlan
from wire.decimal_json import loads

pytestmark = pytest.mark.slow


@pytest.fixture
def plans() -> tuple[VendorPlan, ...]:
    return PLANS


async def test_each_job_has_its_piece_its_payment_and_its_number(world: World) -> None:
    run_id = await world.start("10", job={"count": 3})
    run = await world.until_ended(run_id)
    assert run.status == "completed"
    assert [(job.slot, job.status) for job in run.jobs] == [(0, "completed"), (1, "completed"), (2, "completed")]
    assert len({paid.nonce for paid in run.payments}) == len({paid.job_id for paid in run.payments}) == 3
    assert [loads(paid.request)["jobParams"].get("index", 0) for paid in run.payments] == [0, 1, 2]
    await world.check_books()


async def test_a_payment_whose_outcome_is_not_known_does_not_hold_up_the_others(world: World) -> None:
    run_id = await world.start("10", job={"count": 2})
    # The answer to the first paid submission is lost, and so is every look for it.
    world.hosts.lose_replies("/submit-job")
    await world.tick(run_id)
    first = (await world.store.read_run(run_id)).payments[0]
    assert first.status == "completed"

    both = await world.until(run_id, lambda run: len(run.payments) == 2)
    assert {paid.nonce for paid in both.payments} == {first.nonce, both.payments[1].nonce}
    run = await world.until_ended(run_id)
    assert (run.status, len(run.payments)) == ("completed", 2)
    await world.check_books()


async def test_a_piece_that_failed_is_done_again_and_the_others_are_left_alone(world: World) -> None:
    open_plane(world)
    run_id = await world.start("10", job={"count": 2})
    world.script("gpu_vendor_1", fail_at_epoch=2)
    run = await world.until_ended(run_id)
    assert run.status == "completed"

    def of(run: Run, slot: int) -> list[str]:
        return [job.status for job in run.jobs if job.slot == slot]

    assert [of(run, slot)[-1] for slot in (0, 1)] == ["completed", "completed"]
    assert sum(job.status == "failed" for job in run.jobs) >= 1
    resumed = [job for job in run.jobs if job.checkpoint is not None]
    slots = {job.job_id: job.slot for job in run.jobs}
    assert resumed
    assert all(slots[str(job.resumes)] == job.slot for job in resumed)
    await world.check_books()
