"""Reserved money comes back by proof alone: a cheque lapsed, or cancelled, in blocks that nothing undoes."""

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest

from agent.core.events import JobQuoted, PaymentReserved
from agent.core.model import Payment, Run
from agent.edges.revoker_evm import EvmRevoker
from agent.edges.wallet_evm import EvmWallet, account_from_key
from agent.ports import Claim
from agent.release import Released, release
from agent.turn import Turn
from agent.wiring import open_wallet
from chain.devchain import dev_account
from chain.rpc import Rpc
from outbound.http import HttpClient
from tests.chain.signing import settle_data
from tests.fixtures.world import World, agent_settings, replace_agent
from wire.money import BASE_SEPOLIA_USDC
from wire.x402 import PaymentPayload, decode_header

pytestmark = pytest.mark.slow

USDC = BASE_SEPOLIA_USDC.address


async def unknown(world: World) -> str:
    """Return a run whose one cheque is in its vendor's hand, and nothing is known of it."""
    world.hosts.down.add("facilitator")
    run_id = await world.start()
    ticked = await world.tick(run_id)
    assert (ticked.run.payments[0].status, ticked.run.budget.reserved_atomic) == ("unknown", 1_400_000)
    return run_id


def cash(world: World, payment: Payment) -> None:
    """Settle the cheque as its vendor could, by any facilitator. Raises RpcRefused where the chain will not."""
    sent = decode_header(PaymentPayload, payment.header)
    world.chain.transact(USDC, settle_data(sent.payload.authorization, sent.payload.signature))


async def read(world: World, run_id: str) -> Run:
    return await world.store.read_run(run_id)


async def only(world: World, run_id: str) -> Released:
    [released] = await release(world.agent, run_id)
    return released


@pytest.mark.row(21)
async def test_a_cheque_cancelled_on_the_chain_is_not_paid_once_that_is_final_and_not_before(world: World) -> None:
    run_id = await unknown(world)
    released = await only(world, run_id)
    assert released.outcome == "revoked"
    assert released.payment.revoked_in is not None
    assert world.chain.receipt(released.payment.revoked_in)["status"] == "0x1"
    # Mined, and still nothing is given back: the block is not final.
    assert (await world.tick(run_id)).run.payments[0].status == "unknown"
    world.chain.mine(2)
    ticked = await world.tick(run_id)
    [payment] = ticked.run.payments
    assert (payment.status, ticked.run.budget.available_atomic) == ("failed", 5_000_000)
    assert payment.error_message == f"the cheque was cancelled in {released.payment.revoked_in}"
    # Long before it would have lapsed.
    assert (await world.store.now()).timestamp() < payment.valid_before_s
    assert await world.lines(run_id, "error") == []
    await world.check_books()
    # The run goes on with another vendor, and the first is not held guilty.
    world.hosts.down.clear()
    run = await world.until_ended(run_id)
    assert (run.status, [job.status for job in run.jobs]) == ("completed", ["failed", "completed"])
    assert str(run.jobs[0].error_message).startswith("payment_refused: the cheque was cancelled in 0x")
    assert [(one.completed, one.failed) for one in await world.store.standings()] == [(1, 0)]
    await world.check_books()


async def test_a_cancelled_run_with_its_cheque_revoked_ends_without_waiting_for_the_cheque_to_lapse(
    world: World,
) -> None:
    from agent.cancel import cancel

    run_id = await unknown(world)
    await cancel(world.agent, run_id)
    await only(world, run_id)
    world.chain.mine(2)
    run = await world.until_ended(run_id)
    assert (run.status, run.payments[0].status, run.budget.spent_atomic) == ("cancelled", "failed", 0)
    await world.check_books()


async def test_a_vendor_that_settles_first_is_paid_and_the_cancellation_is_refused(world: World) -> None:
    run_id = await unknown(world)
    [payment] = (await read(world, run_id)).payments
    cash(world, payment)
    released = await only(world, run_id)
    assert (released.outcome, released.payment.status) == ("paid", "completed")
    assert released.payment.revoked_in is None
    assert (await read(world, run_id)).budget.spent_atomic == 1_400_000
    await world.check_books()


async def test_a_vendor_that_settles_while_the_cancellation_waits_to_be_mined_is_paid(world: World) -> None:
    run_id = await unknown(world)
    [payment] = (await read(world, run_id)).payments
    world.chain.rpc("evm_setAutomine", False)
    # Both wait for a block, the cancellation sent first; the vendor pays more for its place.
    released = await only(world, run_id)
    assert released.outcome == "revoked"
    sent = decode_header(PaymentPayload, payment.header)
    call: dict[str, Any] = {
        "from": dev_account(0).address,
        "to": USDC,
        "data": settle_data(sent.payload.authorization, sent.payload.signature),
        "maxFeePerGas": hex(10**12),
        "maxPriorityFeePerGas": hex(10**11),
    }
    settling = world.chain.rpc("eth_sendTransaction", call)
    world.chain.mine(3)
    world.chain.rpc("evm_setAutomine", True)
    assert world.chain.receipt(settling)["status"] == "0x1"
    assert world.chain.receipt(str(released.payment.revoked_in))["status"] == "0x0"
    ticked = await world.tick(run_id)
    assert (ticked.run.payments[0].status, ticked.run.payments[0].transaction) == ("completed", settling)
    await world.check_books()


async def test_a_vendor_that_comes_after_the_cancellation_gets_nothing(world: World) -> None:
    run_id = await unknown(world)
    released = await only(world, run_id)
    world.hosts.down.clear()
    before = world.balances()
    for _ in range(2):
        assert (await world.tick(run_id)).run.payments[0].status == "unknown"
    # A revoked cheque is not offered again, and who holds it cannot cash it.
    assert len([one for one in world.hosts.calls("/submit-job") if "payment-signature" in one.headers]) == 1
    with pytest.raises(Exception, match="authorization is used or canceled"):
        cash(world, released.payment)
    assert world.balances() == before
    world.chain.mine(2)
    assert (await world.tick(run_id)).run.payments[0].status == "failed"
    await world.check_books()


async def test_a_cancellation_that_a_reorganisation_undoes_gives_nothing_back_and_the_settlement_is_paid(
    world: World,
) -> None:
    run_id = await unknown(world)
    fork = world.chain.snapshot()
    released = await only(world, run_id)
    assert (await world.tick(run_id)).run.payments[0].status == "unknown"
    # On the other branch the vendor was first.
    world.chain.revert(fork)
    cash(world, released.payment)
    world.chain.mine(3)
    ticked = await world.tick(run_id)
    assert ticked.run.payments[0].status == "completed"
    assert ticked.run.budget.spent_atomic == 1_400_000
    await world.check_books()


async def test_asking_again_before_it_is_final_sends_no_second_cancellation(world: World) -> None:
    run_id = await unknown(world)
    first, second = await only(world, run_id), await only(world, run_id)
    assert (second.outcome, second.payment.revoked_in) == ("revoked", first.payment.revoked_in)
    world.chain.mine(2)
    assert (await only(world, run_id)).outcome == "not_paid"
    assert await release(world.agent, run_id) == ()
    await world.check_books()


async def test_an_agent_that_dies_after_sending_the_cancellation_finds_it_on_the_chain(world: World) -> None:
    run_id = await unknown(world)

    class Dies:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        async def revoke(self, payer: str, nonce: str) -> str:
            await self._inner.revoke(payer, nonce)
            raise KeyboardInterrupt

    alive = world.agent
    replace_agent(world, revoker=Dies(alive.revoker))
    with pytest.raises(KeyboardInterrupt):
        await release(world.agent, run_id)
    world.agent = alive
    assert (await read(world, run_id)).payments[0].revoked_in is None
    world.chain.mine(2)
    assert (await world.tick(run_id)).run.payments[0].status == "failed"
    await world.check_books()


async def test_a_cheque_whose_job_is_being_worked_on_stays_in_the_vendors_hand(world: World) -> None:
    def unsettled(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        return response

    world.hosts.meddle = unsettled
    run_id = await world.start()
    held = world.agent.chain

    class Unseen:
        """A node that is behind: it does not know of the settlement."""

        def __getattr__(self, name: str) -> Any:
            return getattr(held, name)

        async def is_nonce_used(self, payer: str, nonce: str) -> bool:
            return False

    replace_agent(world, chain=Unseen())
    ticked = await world.tick(run_id)
    assert (ticked.run.payments[0].status, ticked.run.jobs[0].status) == ("pending", "submitted")
    assert (await only(world, run_id)).outcome == "kept"
    replace_agent(world, chain=held)
    assert (await world.until_ended(run_id)).status == "completed"
    await world.check_books()


async def test_a_wallet_without_a_coin_for_the_fee_says_so_and_the_money_stays_reserved(world: World) -> None:
    run_id = await unknown(world)
    world.chain.fund(world.payer.address, 0)
    released = await only(world, run_id)
    assert released.outcome == "cannot"
    assert re.match(r"the chain refuses: .*[Ii]nsufficient funds", released.why)
    run = await read(world, run_id)
    assert (run.payments[0].status, run.payments[0].revoked_in) == ("unknown", None)
    assert run.budget.reserved_atomic == 1_400_000


async def test_a_wallet_that_only_signs_documents_or_another_key_cannot_cancel(world: World) -> None:
    run_id = await unknown(world)
    settings = agent_settings(
        "sqlite:///x.db",
        world.chain,
        world.payer,
        private_key=None,
        cdp_api_key_id="id",
        cdp_api_key_secret="secret",
        cdp_wallet_secret="secret",
    )
    from agent.wiring import open_revoker

    custody = open_wallet(settings)
    assert open_revoker(settings, custody, HttpClient()) is None
    replace_agent(world, revoker=None)
    assert await cannot(world, run_id) == "a CDP wallet cannot cancel: wait for the cheque to lapse"
    replace_agent(world, revoker=another_key(world))
    assert (await cannot(world, run_id)).startswith("the cheque is of 0x")
    replace_agent(world, wallet=None)
    assert (await cannot(world, run_id)).endswith("takes the key that signed it, and none is configured")
    assert (await read(world, run_id)).payments[0].status == "unknown"


async def cannot(world: World, run_id: str) -> str:
    released = await only(world, run_id)
    assert released.outcome == "cannot"
    return released.why


def another_key(world: World) -> EvmRevoker:
    other = EvmWallet(lambda: account_from_key(dev_account(5).key))
    return EvmRevoker(other, Rpc(world.chain.url, HttpClient()), BASE_SEPOLIA_USDC)


async def test_a_cheque_that_cannot_be_cancelled_hides_nothing_of_the_others(world: World) -> None:
    """A run whose wallet was changed between two cheques: the first is of a key that is not here any more."""
    run_id = await unknown(world)
    replace_agent(world, revoker=another_key(world))
    claim = await world.store.claim(run_id, 30)
    assert isinstance(claim, Claim)
    turn, [first], [job] = Turn.of(world.agent, claim), claim.run.payments, claim.run.jobs
    second = replace(first, payment_id=f"{run_id}-payment-2", job_id="second", nonce="0x" + "5e" * 32, status="pending")
    ours = replace(second, payer=dev_account(5).address)
    await turn.save(
        JobQuoted(at=turn.now, job=replace(job, job_id="second")), PaymentReserved(at=turn.now, payment=ours)
    )
    await world.store.release(run_id, claim.token, turn.now)

    released = await release(world.agent, run_id)
    assert [(one.payment.payment_id, one.outcome) for one in released] == [
        (first.payment_id, "cannot"),
        (second.payment_id, "revoked"),
    ]
    world.chain.mine(2)
    assert [one.outcome for one in await release(world.agent, run_id)] == ["cannot", "not_paid"]


async def test_a_vendor_that_was_faster_than_a_refused_cancellation_is_paid(world: World) -> None:
    run_id = await unknown(world)
    [payment] = (await read(world, run_id)).payments
    revoker = world.agent.revoker
    assert revoker is not None

    class Slower:
        async def revoke(self, payer: str, nonce: str) -> str:
            cash(world, payment)
            return await revoker.revoke(payer, nonce)

    replace_agent(world, revoker=Slower())
    released = await only(world, run_id)
    assert (released.outcome, released.why, released.payment.status) == ("paid", "", "completed")
    await world.check_books()


async def test_a_run_that_has_ended_stays_watched_for_its_refund(world: World) -> None:
    world.script(fail_at_epoch=1)
    world.limit(attempts_max=1, refund_wait_s=0)
    # The vendor has not told of it yet.
    world.hosts.change_json("/job-status", {"refund": None})
    run_id = await world.start()
    run = await world.until_ended(run_id)
    assert (run.status, run.payments[0].status) == ("failed", "completed")
    due = (await read(world, run_id)).next_tick_at
    assert due is not None
    assert await release(world.agent, run_id) == ()
    assert (await read(world, run_id)).next_tick_at == due


@pytest.mark.row(21)
async def test_neither_our_clock_nor_the_newest_block_proves_that_nothing_was_paid(world: World) -> None:
    run_id = await unknown(world)
    # A week by our own clock, none by the chain's.
    world.store.ahead = timedelta(days=7)
    assert (await world.tick(run_id)).run.payments[0].status == "unknown"
    world.store.ahead = timedelta(0)
    # A second short of the cheque's last one, in a final block: it could be cashed in the next.
    [payment] = (await read(world, run_id)).payments
    world.chain.rpc("evm_setNextBlockTimestamp", payment.valid_before_s - 1)
    world.chain.mine(1)
    world.chain.rpc("evm_setNextBlockTimestamp", payment.valid_before_s)
    world.chain.mine(1)
    world.chain.rpc("evm_setNextBlockTimestamp", payment.valid_before_s + 1)
    world.chain.mine(1)
    assert (await world.tick(run_id)).run.payments[0].status == "unknown"
    # The newest block is past it and may be undone; then the final one is.
    world.chain.mine(1)
    assert (await world.tick(run_id)).run.payments[0].status == "unknown"
    world.chain.mine(1)
    ticked = await world.tick(run_id)
    assert ticked.run.payments[0].status == "failed"
    assert ticked.run.budget.reserved_atomic == 0
    await world.check_books()


@pytest.mark.row(21)
async def test_a_reorganisation_that_brings_a_settlement_in_before_it_was_final_that_there_is_none_is_paid(
    world: World,
) -> None:
    run_id = await unknown(world)
    [payment] = (await read(world, run_id)).payments
    fork = world.chain.snapshot()
    # On this branch time passes and nobody cashes; its newest blocks are past the cheque and not final.
    world.chain.increase_time(3_600)
    assert (await world.tick(run_id)).run.payments[0].status == "unknown"
    world.chain.revert(fork)
    cash(world, payment)
    world.chain.mine(3)
    assert (await world.tick(run_id)).run.payments[0].status == "completed"
    await world.check_books()


async def test_a_used_nonce_that_is_neither_settled_nor_cancelled_here_stays_unknown(world: World) -> None:
    """A node that hides its logs: the nonce is used, and nothing shows what for."""
    run_id = await unknown(world)
    [payment] = (await read(world, run_id)).payments
    cash(world, payment)
    world.chain.mine(3)
    held = world.agent.chain

    class Hiding:
        def __getattr__(self, name: str) -> Any:
            return getattr(held, name)

        async def settlement(self, *_: Any) -> None:
            return None

    replace_agent(world, chain=Hiding())
    for _ in range(2):
        assert (await world.tick(run_id)).run.payments[0].status == "unknown"
    world.agent = replace(world.agent, chain=held)
    assert (await world.tick(run_id)).run.payments[0].status == "completed"
    await world.check_books()
