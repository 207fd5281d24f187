"""A tick that is killed at any moment: the next one, of another process, ends with one payment and one job."""

import hashlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from fastapi import FastAPI

from agent.config import AgentSettings
from agent.tick import tick
from agent.wiring import open_agent
from chain.devchain import DevAccount, DevChain
from tests.agent.killing import Steps, counting, tick_and_die
from tests.fixtures.chain import serving
from tests.fixtures.mongod import MongoPlace
from tests.fixtures.world import Hosts, WatchedStore, World, agent_settings, balances, register_all

pytestmark = [pytest.mark.slow, pytest.mark.row(6)]

KILLED = -9


@pytest.fixture
def vendors_url(vendor_app: FastAPI) -> Iterator[str]:
    """The vendors on a real socket, where other processes find them."""
    with serving(vendor_app) as url:
        yield url


@pytest.fixture(params=["sqlite", "mongo"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, chain: DevChain, payer: DevAccount) -> AgentSettings:
    if request.param == "sqlite":
        return agent_settings(f"sqlite:///{tmp_path}/agent.db", chain, payer)
    place: MongoPlace = request.getfixturevalue("mongo_place")
    return agent_settings(place.url, chain, payer, database_name=place.database)


@pytest.fixture
async def shared(
    settings: AgentSettings, chain: DevChain, payer: DevAccount, hosts: Hosts, vendor_app: FastAPI, vendors_url: str
) -> AsyncIterator[World]:
    """A world whose store and vendors other processes can reach."""
    agent = open_agent(settings)
    store = WatchedStore(agent.store)
    vendors = await register_all(store, vendor_app, vendors_url)
    before = balances(chain, payer, vendors)
    yield World(replace(agent, store=store), store, chain, payer, hosts, vendor_app, vendors, before)
    await store.close()


async def steps_of(world: World, run_id: str) -> list[str]:
    """Return the moments of the run's next tick, having ticked it alive."""
    steps = Steps()
    await tick(counting(world.agent, steps), run_id)
    return steps.taken


def moments(settings: AgentSettings, steps: list[str]) -> range:
    """Return which steps to die at: all of them; some on MongoDB, where each costs more."""
    on_sqlite = settings.database_url.get_secret_value().startswith("sqlite")
    return range(1, len(steps) + 1, 1 if on_sqlite else 7)


async def test_a_payment_killed_at_any_moment_is_made_once(shared: World, settings: AgentSettings) -> None:
    first = await shared.start()
    steps = await steps_of(shared, first)
    await shared.until_ended(first)
    assert {"after vendors.quote", "after wallet.sign", "before vendors.submit", "after vendors.submit"} < set(steps)
    assert steps.count("after store.save") == 4
    for deadly in moments(settings, steps):
        run_id = await shared.start()
        assert tick_and_die(settings, run_id, deadly) == KILLED, steps[deadly - 1]
        run = await shared.until_ended(run_id)
        assert (run.status, len(run.jobs), len(run.payments)) == ("completed", 1, 1), steps[deadly - 1]
        assert run.budget.spent_atomic == 1_400_000, steps[deadly - 1]
        assert len(await shared.lines(run_id, "job_log")) == 3, steps[deadly - 1]
    await shared.check_books()


async def test_a_refund_whose_tick_is_killed_at_any_moment_is_counted_once(
    shared: World, settings: AgentSettings
) -> None:
    shared.script(fail_at_epoch=1)
    # Nobody to go on with: the run ends after its refund.
    for vendor in shared.vendors[1:]:
        await shared.store.remove_vendor(vendor.vendor_id)
    first = await shared.start()
    await shared.tick(first)
    steps = await steps_of(shared, first)
    await shared.until_ended(first)
    assert {"after vendors.job_status", "after chain.transfers", "after store.is_refund_taken"} < set(steps)
    for deadly in moments(settings, steps):
        run_id = await shared.start()
        await shared.tick(run_id)
        assert tick_and_die(settings, run_id, deadly) == KILLED, steps[deadly - 1]
        run = await shared.until_ended(run_id)
        assert (run.reason, run.payments[0].status) == ("no_vendor_left", "refunded"), steps[deadly - 1]
        assert run.budget.spent_atomic == 700_000, steps[deadly - 1]
        assert len(await shared.lines(run_id, "job_log")) == 1, steps[deadly - 1]
    await shared.check_books()


async def test_files_whose_tick_is_killed_at_any_moment_are_kept_once(shared: World, settings: AgentSettings) -> None:
    first = await shared.start()
    await shared.until(first, lambda run: bool(run.jobs) and run.jobs[0].progress > Decimal("0.6"))
    steps = await steps_of(shared, first)
    assert steps.count("after artifacts.put") == 2
    # From the question which files there are to their record; the moments around are those of any tick.
    begin = steps.index("before vendors.artifacts") + 1
    record = steps.index("after store.save", begin) + 1
    for deadly in (step for step in moments(settings, steps) if begin <= step <= record):
        run_id = await shared.start()
        await shared.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].progress > Decimal("0.6"))
        assert tick_and_die(settings, run_id, deadly) == KILLED, steps[deadly - 1]
        run = await shared.until_ended(run_id)
        names = [artifact.name for artifact in run.jobs[0].artifacts]
        assert (run.status, names) == ("completed", ["model.json", "training.log"]), steps[deadly - 1]
        assert [line.partition(":")[0] for line in await shared.lines(run_id, "metric")] == [
            "Job at gpu_vendor_1 completed",
            "Kept of the job at gpu_vendor_1",
            "Run completed",
        ], steps[deadly - 1]
        for artifact in run.jobs[0].artifacts:
            kept = shared.agent.artifacts.open(run_id, run.jobs[0].job_id, artifact.name)
            content = b"".join([chunk async for chunk in kept])
            assert hashlib.sha256(content).hexdigest() == artifact.sha256
    await shared.check_books()
