"""Several ticks of one run, at once or by turns, whoever serves them: one payment, one job."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agent.core.errors import RunBusy
from agent.ports import Agent
from agent.tick import Ticked, tick
from tests.fixtures.world import World

pytestmark = pytest.mark.slow


@pytest.mark.row(5)
async def test_twenty_ticks_at_once_start_one_job_and_spend_once(world: World) -> None:
    run_id = await world.start()
    outcomes = await asyncio.gather(*[tick(world.agent, run_id) for _ in range(20)], return_exceptions=True)
    served = [outcome for outcome in outcomes if isinstance(outcome, Ticked)]
    busy = [outcome for outcome in outcomes if isinstance(outcome, RunBusy)]
    assert len(served) + len(busy) == 20
    assert len(served) >= 1
    assert all(1 <= outcome.retry_after_s <= 30 for outcome in busy)
    run = await world.store.read_run(run_id)
    assert (len(run.jobs), len(run.payments)) == (1, 1)
    assert run.budget.spent_atomic == 1_400_000
    await world.check_books()


class Paused:
    """A part of the agent that stops at one method until it is told to go on."""

    def __init__(self, inner: Any, method: str) -> None:
        self._inner, self._method = inner, method
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name != self._method or self.reached.is_set():
            return found

        async def paused(*args: Any, **more: Any) -> Any:
            self.reached.set()
            await self.go_on.wait()
            return await found(*args, **more)

        return paused


# Where a tick may be slow for longer than its lease: before its quote, before it signs, before and after it pays.
SLOW: dict[str, Callable[[Agent], tuple[str, Paused]]] = {
    "quote": lambda agent: ("vendors", Paused(agent.vendors, "quote")),
    "challenge": lambda agent: ("vendors", Paused(agent.vendors, "challenge")),
    "sign": lambda agent: ("wallet", Paused(agent.wallet, "sign")),
    "submit": lambda agent: ("vendors", Paused(agent.vendors, "submit")),
    "settle": lambda agent: ("chain", Paused(agent.chain, "is_nonce_used")),
}


@pytest.mark.parametrize("place", SLOW)
async def test_a_tick_slower_than_its_lease_is_overtaken_and_its_save_refused(world: World, place: str) -> None:
    run_id = await world.start()
    part, paused = SLOW[place](world.agent)
    # A lease that has lapsed the moment it is given.
    slow = replace(world.agent, limits=replace(world.agent.limits, lease_s=0), **{part: paused})
    late = asyncio.create_task(tick(slow, run_id))
    await paused.reached.wait()

    overtaken = await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].status == "running")
    paused.go_on.set()
    with pytest.raises(RunBusy):
        await late
    assert (await world.store.read_run(run_id)).jobs == overtaken.jobs

    run = await world.until_ended(run_id)
    assert (run.status, len(run.jobs), len(run.payments)) == ("completed", 1, 1)
    await world.check_books()


async def test_a_tick_that_ends_late_does_not_give_back_another_ticks_lease(world: World) -> None:
    run_id = await world.start()
    paused = Paused(world.agent.vendors, "quote")
    slow = replace(world.agent, limits=replace(world.agent.limits, lease_s=0), vendors=paused)
    late = asyncio.create_task(tick(slow, run_id))
    await paused.reached.wait()
    held = await world.store.claim(run_id, 60)
    paused.go_on.set()
    with pytest.raises(RunBusy):
        await late
    with pytest.raises(RunBusy):
        await world.tick(run_id)
    await world.store.release(run_id, held.token, None)
    assert (await world.until_ended(run_id)).status == "completed"
    await world.check_books()


async def test_many_runs_at_once_pay_once_each(world: World) -> None:
    run_ids = [await world.start() for _ in range(4)]
    await asyncio.gather(*[world.until_ended(run_id) for run_id in run_ids])
    runs = await world.check_books()
    assert [(run.status, len(run.payments)) for run in runs] == [("completed", 1)] * 4


async def test_runs_at_once_never_pass_the_wallets_day(world: World) -> None:
    world.cap(wallet_day_atomic_max=3_000_000)
    for vendor in world.vendors[1:]:
        await world.store.remove_vendor(vendor.vendor_id)
    run_ids = [await world.start() for _ in range(4)]
    await asyncio.gather(*[world.until_ended(run_id) for run_id in run_ids])
    runs = await world.check_books()
    assert sorted(run.status for run in runs) == ["completed", "completed", "failed", "failed"]
    assert sum(run.budget.spent_atomic for run in runs) == 2_800_000
