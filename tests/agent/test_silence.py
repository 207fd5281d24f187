"""A vendor or a chain that cannot be reached: waited for, not given up at once, and nothing lost."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agent.core.errors import ChainUnavailable
from agent.edges.chain_evm import EvmChain
from agent.wiring import open_agent
from chain.rpc import Rpc
from chain.token import TokenReader
from outbound.http import HttpClient
from tests.fixtures.world import World, agent_settings, replace_agent
from wire.money import BASE_SEPOLIA_USDC

pytestmark = pytest.mark.slow


async def test_a_chain_that_is_away_stops_the_tick_and_loses_nothing(world: World) -> None:
    run_id = await world.start()
    there = world.agent.chain
    away = EvmChain(TokenReader(Rpc("http://127.0.0.1:9", HttpClient()), BASE_SEPOLIA_USDC))
    replace_agent(world, chain=away)
    for _ in range(2):
        with pytest.raises(ChainUnavailable):
            await world.tick(run_id)
    assert (await world.store.read_run(run_id)).payments == ()
    assert not any("payment-signature" in request.headers for request in world.hosts.seen)

    replace_agent(world, chain=there)
    run = await world.until_ended(run_id)
    assert (run.status, len(run.jobs), len(run.payments)) == ("completed", 1, 1)
    await world.check_books()


async def test_a_silent_vendor_is_not_a_failed_job_before_k_polls_over_time(world: World) -> None:
    world.limit(misses_max=3, missed_s_max=600)
    run_id = await world.start("3.5")
    await world.tick(run_id)
    world.hosts.down.add("vendors")
    # Many polls in no time: still not failed.
    for _ in range(4):
        ticked = await world.tick(run_id)
        assert ticked.message == "Job still running"
        assert ticked.run.jobs[0].status == "submitted"
    world.store.ahead = timedelta(seconds=601)
    ticked = await world.tick(run_id)
    assert ticked.message == "Job failed"
    assert str(ticked.run.jobs[0].error_message).startswith("job_lost: ")
    world.hosts.down.clear()
    run = await world.until_ended(run_id)
    assert (run.status, run.jobs[1].vendor_id) == ("completed", "gpu_vendor_2")
    assert run.budget.spent_atomic == 3_200_000
    await world.check_books()


async def test_a_vendor_that_answers_again_is_forgiven_its_silence(world: World) -> None:
    world.limit(misses_max=2, missed_s_max=600)
    run_id = await world.start()
    await world.tick(run_id)
    world.hosts.down.add("vendors")
    await world.tick(run_id)
    world.hosts.down.clear()
    await world.tick(run_id)
    world.store.ahead = timedelta(seconds=700)
    world.hosts.down.add("vendors")
    assert (await world.tick(run_id)).run.jobs[0].polls == "x.x"
    world.hosts.down.clear()
    assert (await world.until_ended(run_id)).status == "completed"
    await world.check_books()


async def test_a_vendor_removed_while_its_job_runs_is_waited_for(world: World) -> None:
    run_id = await world.start()
    await world.tick(run_id)
    await world.store.remove_vendor("gpu_vendor_1")
    ticked = await world.tick(run_id)
    assert ticked.run.jobs[0].status == "submitted"
    assert any("missing vendor configuration" in line for line in await world.lines(run_id, "error"))
    await world.store.put_vendor(world.vendors[0], replace=False)
    run = await world.until_ended(run_id)
    assert (run.status, len(run.jobs)) == ("completed", 1)
    await world.check_books()


async def test_a_vendor_removed_while_its_payment_is_open_does_not_hide_what_was_paid(world: World) -> None:
    world.hosts.lose_replies("/submit-job")
    run_id = await world.start()
    await world.tick(run_id)
    await world.store.remove_vendor("gpu_vendor_1")
    ticked = await world.tick(run_id)
    assert ticked.run.payments[0].status == "completed"
    assert len(ticked.run.jobs) == 1
    await world.store.put_vendor(world.vendors[0], replace=False)
    run = await world.until_ended(run_id)
    assert (run.status, len(run.payments)) == ("completed", 1)
    await world.check_books()


@pytest.mark.parametrize("call", ["is_nonce_used", "settlement"])
async def test_a_chain_that_goes_away_after_the_submission_costs_no_second_one(world: World, call: str) -> None:
    run_id = await world.start()
    there = world.agent.chain
    replace_agent(world, chain=Without(there, call))
    with pytest.raises(ChainUnavailable):
        await world.tick(run_id)
    assert (await world.store.read_run(run_id)).budget.reserved_atomic == 1_400_000
    replace_agent(world, chain=there)
    run = await world.until_ended(run_id)
    assert (run.status, len(run.jobs), len(run.payments)) == ("completed", 1, 1)
    assert len([request for request in world.hosts.seen if "payment-signature" in request.headers]) == 1
    await world.check_books()


class Without:
    """A chain that does not answer one question."""

    def __init__(self, chain: Any, call: str) -> None:
        self._chain, self._call = chain, call

    def __getattr__(self, name: str) -> Any:
        if name == self._call:
            raise ChainUnavailable("the node does not answer")
        return getattr(self._chain, name)


@pytest.mark.parametrize(
    ("polls", "after_s", "silent_s", "lost"), [("3", "6", 7, True), ("4", "6", 7, False), ("3", "60", 7, False)]
)
async def test_how_long_a_silence_is_borne_is_a_setting(
    world: World, polls: str, after_s: str, silent_s: int, lost: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LIVERY_AGENT_LOST_POLLS", polls)
    monkeypatch.setenv("LIVERY_AGENT_LOST_AFTER_S", after_s)
    again = open_agent(agent_settings(f"sqlite:///{tmp_path}/agent.db", world.chain, world.payer))
    replace_agent(world, limits=again.limits)
    await again.store.close()
    run_id = await world.start("3.5")
    await world.tick(run_id)
    world.hosts.down.add("vendors")
    for _ in range(2):
        await world.tick(run_id)
    world.store.ahead = timedelta(seconds=silent_s)
    job = (await world.tick(run_id)).run.jobs[0]
    assert (job.polls, job.status) == ("xxx", "failed" if lost else "submitted")
