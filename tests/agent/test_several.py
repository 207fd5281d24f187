"""Several jobs of one run: beside each other, each with its own reservation, payment and piece of the work."""

from datetime import timedelta
from typing import Any

import httpx
import pytest

from agent.core.errors import ArtifactsUnavailable
from agent.core.model import Run
from agent.core.states import JOB_ENDS
from tests.agent.plane import PLANS, open_plane
from tests.fixtures.world import World, replace_agent
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


class Other:
    """What is heard of one job of a vendor, however the vendor is: it goes on, and then it `fails`."""

    def __init__(self, vendor_job_id: str) -> None:
        self.vendor_job_id, self.fails = vendor_job_id, False
        self.told: dict[str, Any] = {}

    def __call__(self, request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path != "/job-status" or self.vendor_job_id not in str(request.url):
            return response
        self.told = response.json() if response.status_code == 200 else self.told
        return httpx.Response(200, json=self.told | {"status": "failed" if self.fails else "running"})


async def test_a_loser_that_is_not_to_be_stopped_holds_up_no_other_piece_and_ends_no_run(world: World) -> None:
    open_plane(world)
    deadline = await world.store.now() + timedelta(hours=3)
    world.script("gpu_vendor_1", vanish_at_epoch=3)
    run_id = await world.start("10", job={"count": 2}, deadline=deadline.isoformat())
    both = await world.until(run_id, lambda run: len(run.jobs) == 2)
    other = Other(str(both.jobs[1].vendor_job_id))
    world.hosts.meddle = other
    won = await world.until(run_id, lambda run: any(job.hedges and job.status == "completed" for job in run.jobs))
    assert [(job.slot, job.status) for job in won.jobs] == [(0, "running"), (1, "running"), (0, "completed")]
    other.fails = True
    again = await world.until(run_id, lambda run: len(run.jobs) == 4, ticks_max=3)
    assert [(job.slot, job.status) for job in again.jobs[::3]] == [(0, "running"), (1, "submitted")]
    # Every tick asks the loser to stop, and the run waits for it, whatever else is done.
    await world.until(run_id, lambda run: run.jobs[3].status == "completed")
    for _ in range(3):
        asked = len(world.hosts.calls("/cancel-job"))
        waiting = (await world.tick(run_id)).run
        assert (waiting.completed_at, waiting.jobs[0].status) == (None, "running")
        assert len(world.hosts.calls("/cancel-job")) > asked
    world.script("gpu_vendor_1")
    run = await world.until_ended(run_id)
    assert (run.status, run.jobs[0].status in JOB_ENDS) == ("completed", True)
    await world.check_books()


class NoDisk:
    """A place for files that is away, but for what it is asked to forget."""

    def __init__(self, inner: object) -> None:
        self.inner = inner

    async def size(self, run_id: str, job_id: str, name: str) -> int | None:
        raise ArtifactsUnavailable("the disk is away")

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


async def test_a_disk_that_is_away_starts_no_job_and_keeps_none_from_being_stopped(world: World) -> None:
    open_plane(world)
    world.script("gpu_vendor_1", fail_at_epoch=2)
    run_id = await world.start("10", job={"count": 2})
    await world.until(run_id, lambda run: len(run.jobs) == 1)
    world.script("gpu_vendor_1")
    both = await world.until(run_id, lambda run: len(run.jobs) == 2)
    world.hosts.meddle = Other(str(both.jobs[1].vendor_job_id))
    replace_agent(world, artifacts=NoDisk(world.agent.artifacts))
    await world.until(run_id, lambda run: run.jobs[0].status == "failed", ticks_max=2)
    # From where the piece would go on nobody can say: nothing is paid until somebody can.
    with pytest.raises(ArtifactsUnavailable):
        await world.tick(run_id)
    assert len((await world.store.read_run(run_id)).payments) == 2
    await world.store.request_cancel(run_id)
    run = await world.until_ended(run_id, ticks_max=3)
    assert len(world.hosts.calls("/cancel-job")) == 1
    assert (run.status, len(run.payments)) == ("cancelled", 2)
