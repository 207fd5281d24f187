"""A node of another chain, or of another token, than a payment was made in: it knows nothing, and proves nothing."""

from dataclasses import replace

import pytest

from agent.core.errors import ChainUnavailable
from agent.release import release
from agent.sweep import sweep
from agent.tick import watch_refunds
from tests.fixtures.world import World, replace_agent
from wire.money import BASE_SEPOLIA_USDC, BASE_USDC, Asset

pytestmark = pytest.mark.slow

ANOTHER_TOKEN = replace(BASE_SEPOLIA_USDC, address="0x" + "ab" * 20)


def pay_in(world: World, asset: Asset) -> None:
    """Configure the agent for another asset. To its node, as to an honest one over there, each nonce is unused."""
    replace_agent(world, policy=replace(world.agent.policy, asset=asset))


async def unknown(world: World) -> str:
    """Return a run whose one cheque is in its vendor's hand, and nothing is known of it."""
    world.hosts.down.add("facilitator")
    run_id = await world.start()
    assert (await world.tick(run_id)).run.payments[0].status == "unknown"
    return run_id


@pytest.mark.row(21)
@pytest.mark.parametrize("asset", [BASE_USDC, ANOTHER_TOKEN], ids=["network", "token"])
async def test_a_cheque_that_another_chain_shows_unused_is_not_given_back(world: World, asset: Asset) -> None:
    world.limit(poll_interval_s=0)
    run_id = await unknown(world)
    world.chain.increase_time(3_600)
    world.chain.mine(3)
    pay_in(world, asset)
    with pytest.raises(ChainUnavailable, match=r"-payment-1: it was paid in 0x\w+ on eip155:84532, this node serves"):
        await world.tick(run_id)
    run = await world.store.read_run(run_id)
    assert (run.payments[0].status, run.budget.reserved_atomic) == ("unknown", 1_400_000)
    done = await sweep(world.agent)
    assert [one.message.split(":")[0] for one in done.swept] == ["chain_unavailable"]
    assert done.bugs == ()
    pay_in(world, BASE_SEPOLIA_USDC)
    assert (await world.tick(run_id)).run.payments[0].status == "failed"
    await world.check_books()


async def test_nor_is_it_cancelled_there(world: World) -> None:
    run_id = await unknown(world)
    pay_in(world, BASE_USDC)
    [released] = await release(world.agent, run_id)
    assert (released.outcome, released.payment.status) == ("cannot", "unknown")
    assert released.why.startswith("it was paid in 0x")
    assert (await world.store.read_run(run_id)).payments[0].revoked_in is None
    pay_in(world, BASE_SEPOLIA_USDC)
    [released] = await release(world.agent, run_id)
    assert released.outcome == "revoked"


async def test_a_refund_is_counted_on_the_chain_that_was_paid_on_alone(world: World) -> None:
    world.script(fail_at_epoch=1)
    world.limit(refund_wait_s=0, attempts_max=1)
    run_id = await world.start()
    await world.until(run_id, lambda run: any(job.vendor_job_id for job in run.jobs))
    pay_in(world, BASE_USDC)
    run = await world.until_ended(run_id)
    [payment] = run.payments
    assert payment.refund is not None
    assert (run.status, payment.status, run.budget.spent_atomic) == ("failed", "completed", 1_400_000)
    assert not await watch_refunds(world.agent, run_id)
    pay_in(world, BASE_SEPOLIA_USDC)
    assert await watch_refunds(world.agent, run_id)
    assert (await world.store.read_run(run_id)).budget.spent_atomic == 700_000
    await world.check_books()
