"""Refunds and the sweep: what comes back is counted once the chain shows it, after the run's end too."""

from datetime import timedelta
from itertools import pairwise
from typing import Any

import httpx
import pytest

from agent.edges.chain_evm import EvmChain
from agent.sweep import sweep
from chain.rpc import Rpc
from chain.token import TokenReader
from outbound.http import HttpClient
from tests.fixtures.world import World, replace_agent
from wire.money import BASE_SEPOLIA_USDC

pytestmark = pytest.mark.slow


# What the announced refund says instead of the truth: half of 1.4 USDC, in the transaction that sent it.
LIES: dict[str, dict[str, Any]] = {
    "another amount": {"amount": 0.8},
    "more than was paid": {"amount": 1.5},
    "another asset": {"asset": "0x" + "ab" * 20},
    "another network": {"network": "eip155:1"},
    "no hash": {"transaction": "0xabc"},
    "a transaction that is not there": {"transaction": "0x" + "ab" * 32},
}


@pytest.mark.parametrize("lie", [*LIES, "our own payment"])
async def test_a_refund_that_the_chain_does_not_show_is_not_counted(world: World, lie: str) -> None:
    world.script(fail_at_epoch=1)
    world.limit(refund_wait_s=0)

    def falsify(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path != "/job-status" or request.headers["x-vendor-id"] != "gpu_vendor_1":
            return response
        document: dict[str, Any] = response.json()
        document["refund"] |= LIES.get(lie) or {"transaction": world.store.saved[-1].payments[0].transaction}
        return httpx.Response(200, json=document)

    world.hosts.meddle = falsify
    for vendor in world.vendors[1:]:
        await world.store.remove_vendor(vendor.vendor_id)
    run = await world.until_ended(await world.start())
    assert run.reason == "no_vendor_left"
    assert run.payments[0].status == "completed"
    assert run.payments[0].refunded_atomic == 0
    assert run.budget.spent_atomic == 1_400_000
    # The vendor did send half: what it misreports is its gift.
    assert world.balances()["payer"] - world.before["payer"] == -1_400_000 + 700_000


async def test_a_refund_that_comes_after_the_runs_end_is_counted_by_the_sweep(world: World) -> None:
    world.script(fail_at_epoch=1)
    world.limit(refund_wait_s=0)
    held = world.agent.chain
    replace_agent(world, chain=LateRefunds(held))
    run_id = await world.start("3.5")
    run = await world.until_ended(run_id)
    assert (run.status, run.payments[0].status) == ("completed", "completed")
    assert run.budget.spent_atomic == 3_200_000
    replace_agent(world, chain=held)
    world.store.ahead = timedelta(hours=1)
    assert [(one.run_id, one.message) for one in (await sweep(world.agent)).swept] == [(run_id, "Refund received")]
    run = await world.store.read_run(run_id)
    assert (run.status, run.payments[0].status) == ("completed", "refunded")
    assert run.budget.spent_atomic == 2_500_000
    assert run.next_tick_at is None
    assert (await sweep(world.agent)).swept == ()
    await world.check_books()


async def test_a_chain_that_is_away_does_not_keep_the_sweep_from_other_runs(world: World) -> None:
    world.script(fail_at_epoch=1)
    world.limit(refund_wait_s=0)
    there = world.agent.chain
    replace_agent(world, chain=LateRefunds(there))
    ended = await world.start("3.5")
    await world.until_ended(ended)
    waiting = await world.start(deadline=await world.store.now())
    world.store.ahead = timedelta(hours=1)
    replace_agent(world, chain=EvmChain(TokenReader(Rpc("http://127.0.0.1:9", HttpClient()), BASE_SEPOLIA_USDC)))
    swept = {swept.run_id: swept.message for swept in (await sweep(world.agent)).swept}
    assert swept[ended].startswith("chain_unavailable")
    assert swept[waiting] == "Run aborted"


async def test_the_sweep_serves_due_runs_and_one_runs_trouble_does_not_stop_the_others(world: World) -> None:
    first, second = await world.start(), await world.start()
    claim = await world.store.claim(first, 60)
    swept = {swept.run_id: swept.message for swept in (await sweep(world.agent)).swept}
    assert swept == {first: "Served by another", second: "Job started"}
    await world.store.release(first, claim.token, claim.now)
    # The second has nothing to do for a while.
    assert [swept.run_id for swept in (await sweep(world.agent)).swept] == [first]
    world.store.ahead = timedelta(minutes=1)
    for _ in range(4):
        await sweep(world.agent)
        world.store.ahead += timedelta(minutes=1)
    assert {run.status for run in await world.check_books()} == {"completed"}


async def test_a_refund_that_never_comes_is_looked_for_ever_more_rarely_and_at_last_no_more(world: World) -> None:
    world.script(fail_at_epoch=1)
    world.limit(refund_wait_s=60, refund_days_max=1)
    replace_agent(world, chain=LateRefunds(world.agent.chain))
    run_id = await world.start("1.4")
    await world.tick(run_id)
    ticked = await world.tick(run_id)
    assert ticked.message == "Job failed"
    world.store.ahead = timedelta(seconds=61)
    assert (await world.until_ended(run_id)).status == "failed"
    looks = []
    while (due := (await world.store.read_run(run_id)).next_tick_at) is not None:
        looks.append(due)
        world.store.ahead += due - await world.store.now() + timedelta(seconds=1)
        assert [swept.message for swept in (await sweep(world.agent)).swept] == ["Waiting for a refund"]
    gaps = [later - sooner for sooner, later in pairwise(looks)]
    assert len(gaps) < 20
    assert all(later > 1.9 * sooner for sooner, later in pairwise(gaps))
    assert sum(gaps, timedelta()) < timedelta(days=2)
    run = await world.store.read_run(run_id)
    assert (run.payments[0].status, run.budget.spent_atomic) == ("completed", 1_400_000)


class LateRefunds:
    """A chain on which no refund has arrived yet."""

    def __init__(self, chain: Any) -> None:
        self._chain = chain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chain, name)

    async def transfers(self, *_: Any) -> list[Any]:
        return []


async def test_what_a_completed_job_did_not_use_comes_back_though_it_comes_late(world: World) -> None:
    world.limit(refund_wait_s=0)
    run_id = await world.start()
    back: list[str] = []

    def by_use(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path != "/job-status" or response.json()["status"] != "completed":
            return response
        document = {**response.json(), "costSoFar": 0.9}
        if back:
            asset = BASE_SEPOLIA_USDC
            document["refund"] = {
                "amount": 0.5,
                "asset": asset.address,
                "network": asset.network,
                "transaction": back[0],
            }
        return httpx.Response(200, json=document)

    world.hosts.meddle = by_use
    run = await world.until_ended(run_id)
    assert (run.status, run.budget.spent_atomic) == ("completed", 1_400_000)
    assert run.next_tick_at is not None
    cashier = world.vendor_app.state.shop.cashier
    back.append(await cashier.refund(run.payments[0].payment_id, 500_000, "unused"))
    world.store.ahead += timedelta(hours=1)
    await sweep(world.agent)
    after = await world.store.read_run(run_id)
    assert (after.payments[0].status, after.budget.spent_atomic) == ("refunded", 900_000)
    await world.check_books()
