"""A vendor is lost in the middle: the next one goes on from the last checkpoint, and is paid for the rest."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from agent.checkpoints import folder_of
from agent.core.errors import ArtifactsUnavailable, RunFinished
from agent.core.explain import explain
from agent.inputs import once_through
from agent.ports import ArtifactStore
from agent.status import status
from agent.sweep import sweep
from agent.tick import tick
from tests.agent.killing import Lapsing
from tests.agent.plane import PLANS, open_plane, paid_and_back
from tests.fixtures.world import World, replace_agent
from vendor_mock.catalogue import VendorPlan
from wire.decimal_json import loads

pytestmark = pytest.mark.slow


@pytest.fixture
def plans() -> tuple[VendorPlan, ...]:
    return PLANS


async def lose(world: World, run_id: str) -> None:
    """Tick until the run's first job is lost."""
    world.limit(misses_max=2, missed_s_max=600)
    await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].polls.endswith("xx"))
    world.store.ahead += timedelta(seconds=601)
    lost = await world.until(run_id, lambda run: run.jobs[0].status == "failed", ticks_max=2)
    assert str(lost.jobs[0].error_message).startswith("job_lost: ")


async def test_a_lost_job_goes_on_elsewhere_from_its_checkpoint_and_the_rest_alone_is_paid(world: World) -> None:
    open_plane(world)
    world.script("gpu_vendor_1", vanish_at_epoch=3)
    run_id = await world.start()
    await lose(world, run_id)
    run = await world.until_ended(run_id)
    assert (run.status, [job.vendor_id for job in run.jobs]) == ("completed", ["gpu_vendor_1", "gpu_vendor_2"])
    first, second = run.jobs
    assert (second.slot, second.resumes, second.hedges) == (0, first.job_id, None)
    assert second.checkpoint is not None
    assert (second.checkpoint.job_id, second.checkpoint.step, second.checkpoint.steps) == (first.job_id, 2, 3)
    # A third of an hour, and the room to start in, at 1.8 an hour.
    assert second.hours == Decimal("0.36")
    assert paid_and_back(run) == [("gpu_vendor_1", 1_400_000, 0), ("gpu_vendor_2", 648_000, 0)]
    assert "Goes on from epoch 2/3" in await world.lines(run_id, "job_log")
    # What was promised was stored with the bytes that were sent: where the files are, and what is gone on from.
    sent = loads(run.payments[1].request)
    assert sent["resume"]["url"] == f"http://plane/api/agent-files/{run_id}/{first.job_id}"
    assert sent["files"]["url"].endswith(second.job_id)
    assert sent["resume"]["manifestSha256"] == second.checkpoint.sha256
    await world.check_books()
    for job in run.jobs:
        assert (await world.agent.artifacts.usage(run_id, folder_of(job.job_id))).files == 0

    shown = (await status(world.agent, run_id)).run
    assert [(cost.slot, cost.vendor_id, cost.step, cost.to_step) for cost in shown.costs] == [
        (0, "gpu_vendor_1", 0, 2),
        (0, "gpu_vendor_2", 2, 3),
    ]
    assert sum(cost.paid - cost.refunded for cost in shown.costs) == shown.budget_spent
    story = [line for part in explain(await world.store.read_log(run_id)) for line in part.sentences]
    assert "It goes on from step 2 of 3, which gpu_vendor_1 had come to." in story
    said = "The work cost 2.048 USDC: gpu_vendor_1 1.4 USDC to step 2, gpu_vendor_2 0.648 USDC from step 2 to step 3."
    assert said in story


class Stuck:
    """A place for files in which no job's are closed: it is away, or who asks for it is dead by then."""

    def __init__(self, inner: ArtifactStore, is_away: bool) -> None:
        self._inner, self._is_away = inner, is_away
        self.asked = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def sweep(self, run_id: str, job_id: str, stays: Callable[[str], bool], *, closing: bool = False) -> None:
        self.asked.set()
        if self._is_away:
            raise ArtifactsUnavailable("the disk is away")
        await asyncio.Event().wait()


@pytest.mark.parametrize("is_away", [True, False])
async def test_files_that_nobody_could_close_at_the_runs_end_are_closed_by_a_later_sweep(
    world: World, is_away: bool
) -> None:
    open_plane(world)
    # Nobody waits for the dead.
    replace_agent(world, store=Lapsing(world.agent.store))
    run_id = await world.start(job={"model": "tiny-llm"})
    await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].progress > 0)
    stuck = Stuck(world.agent.artifacts, is_away)
    theirs = replace(world.agent, artifacts=stuck)

    async def until_stuck() -> None:
        while not stuck.asked.is_set():
            await tick(theirs, run_id)

    ticking = asyncio.create_task(until_stuck())
    await asyncio.wait_for(stuck.asked.wait(), 30)
    if is_away:
        await ticking
    run = await world.store.read_run(run_id)
    (job,) = run.jobs
    assert (run.status, run.next_tick_at is None) == ("completed", False)
    assert (await world.agent.artifacts.usage(run_id, folder_of(job.job_id))).files > 0

    # It stays due, whoever looks at it meanwhile and dies.
    with pytest.raises(RunFinished):
        await tick(world.agent, run_id)
    assert (await world.store.read_run(run_id)).next_tick_at == run.next_tick_at
    world.store.ahead += timedelta(seconds=61)
    await sweep(world.agent)
    assert (await world.agent.artifacts.usage(run_id, folder_of(job.job_id))).files == 0
    assert (await world.store.read_run(run_id)).next_tick_at is None
    # What comes back from the dead changes nothing.
    ticking.cancel()
    await asyncio.wait([ticking])
    assert (await world.store.read_run(run_id)).next_tick_at is None


async def test_a_job_that_no_file_of_ours_reaches_cannot_move_and_begins_anew(world: World) -> None:
    world.script("gpu_vendor_1", vanish_at_epoch=3)
    run_id = await world.start()
    await lose(world, run_id)
    run = await world.until_ended(run_id)
    assert [job.moves for job in run.jobs] == [False, False]
    assert run.jobs[1].checkpoint is None
    assert [job.hours for job in run.jobs] == [1, 1]
    assert all("files" not in loads(paid.request) for paid in run.payments)
    story = [line for part in explain(await world.store.read_log(run_id)) for line in part.sentences]
    assert "It says that the work cannot go on elsewhere." in story
    await world.check_books()


async def test_a_checkpoint_that_the_next_vendor_refuses_is_left_and_the_work_begins_anew(world: World) -> None:
    open_plane(world)
    world.script("gpu_vendor_1", vanish_at_epoch=2)
    run_id = await world.start("5", job={"model": "tiny-llm"})
    await lose(world, run_id)
    # The manifest is of another model than the run's: nobody can go on from it.
    job_id = f"{run_id}-job-1"
    kept = world.agent.artifacts.open(run_id, f"{job_id}-files", "checkpoint.json")
    content = b"".join([part async for part in kept])
    other = content.replace(loads(content)["modelHash"].encode(), b"ee" * 32)
    await world.agent.artifacts.put(run_id, f"{job_id}-files", "checkpoint.json", once_through(other))
    run = await world.until_ended(run_id)
    assert run.status == "completed"
    refused = run.jobs[1]
    assert (refused.status, refused.resumes, refused.vendor_job_id) == ("failed", job_id, None)
    assert str(refused.error_message).startswith("checkpoint_refused: ")
    assert all(job.checkpoint is None for job in run.jobs[2:])
    assert run.jobs[2].hours == 1
    # A vendor that says so is not held at fault.
    assert all(one.failed == 0 for one in await world.store.standings() if one.vendor_id == refused.vendor_id)
    await world.check_books()


async def test_the_first_vendor_that_comes_back_is_told_to_stop(world: World) -> None:
    open_plane(world)
    world.script("gpu_vendor_1", vanish_at_epoch=2)
    run_id = await world.start()
    await lose(world, run_id)
    await world.until_ended(run_id)
    world.script("gpu_vendor_1")
    world.store.ahead += timedelta(seconds=600)
    done = await sweep(world.agent)
    assert done.orphans is not None
    assert [one.why for one in done.orphans.cancelled] == ["job_failed"]
    for _ in range(3):
        world.store.ahead += timedelta(seconds=200)
        await sweep(world.agent)
    run = (await world.check_books())[0]
    # What the first one did not use came back, late, and counts.
    assert run.payments[0].status == "refunded"
