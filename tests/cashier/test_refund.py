"""Refunds: never more than was paid, once per key, one raw transaction whatever crashes."""

import asyncio
from dataclasses import replace

import pytest

from cashier.core.errors import (
    ChainUnavailable,
    NoRefundKey,
    RefundConflict,
    RefundFailed,
    RefundTooLarge,
    UnknownPayment,
)
from cashier.refund import TURNS_MAX
from cashier.wiring import Cashier
from tests.cashier.world import PRICE_ATOMIC, Crash, Fuse, Mortal, World, says
from wire.money import BASE_SEPOLIA_USDC
from wire.problems import PROBLEMS


async def _paid(world: World) -> tuple[Cashier, str]:
    cashier = world.cashier()
    assert (await world.pay(cashier, world.cheque())).status == 200
    return cashier, world.sales[-1].payment_id


def _moved(world: World, transaction: str) -> tuple[str, str, int]:
    """Return sender, receiver and value of the one Transfer in `transaction`."""
    receipt = world.chain.rpc("eth_getTransactionReceipt", transaction)
    assert receipt["status"] == "0x1"
    (log,) = receipt["logs"]
    assert log["address"].lower() == BASE_SEPOLIA_USDC.address.lower()
    sender, receiver = ("0x" + topic[-40:] for topic in log["topics"][1:])
    return sender, receiver, int(log["data"], 16)


async def test_a_refund_is_a_transfer_from_the_payee_to_the_payer(world: World):
    cashier, payment_id = await _paid(world)

    transaction = await cashier.refund(payment_id, 700_000, "refund-1")

    assert _moved(world, transaction) == (world.seller.address.lower(), world.payer.address.lower(), 700_000)
    assert world.earned() == PRICE_ATOMIC - 700_000


async def test_the_same_refund_asked_twice_is_paid_once(world: World):
    cashier, payment_id = await _paid(world)

    first = await cashier.refund(payment_id, 700_000, "refund-1")

    assert await cashier.refund(payment_id, 700_000, "refund-1") == first
    assert await world.cashier().refund(payment_id, 700_000, "refund-1") == first
    assert world.earned() == PRICE_ATOMIC - 700_000


async def test_refunds_add_up_to_what_was_paid_and_no_further(world: World):
    cashier, payment_id = await _paid(world)
    await cashier.refund(payment_id, PRICE_ATOMIC - 1, "refund-1")

    with pytest.raises(RefundTooLarge, match=f"of {PRICE_ATOMIC} that were paid 1 are left, not 2"):
        await cashier.refund(payment_id, 2, "refund-2")
    await cashier.refund(payment_id, 1, "refund-3")
    with pytest.raises(RefundTooLarge):
        await cashier.refund(payment_id, 1, "refund-4")
    assert world.earned() == 0


@pytest.mark.parametrize("amount_atomic", [0, -1])
async def test_a_refund_is_above_zero(world: World, amount_atomic):
    cashier, payment_id = await _paid(world)

    with pytest.raises(RefundTooLarge, match="a refund is above zero") as refused:
        await cashier.refund(payment_id, amount_atomic, "refund-1")
    assert refused.value.code in PROBLEMS
    assert refused.value.retryable is False


async def test_the_smallest_refund_is_one_atomic_unit(world: World):
    cashier, payment_id = await _paid(world)

    assert _moved(world, await cashier.refund(payment_id, 1, "refund-1"))[2] == 1


async def test_what_was_not_paid_is_not_refunded(world: World):
    cashier = world.cashier()
    world.facilitator.steps["settle"] = [says(b"garbage")]
    await world.pay(cashier, world.cheque())
    (row,) = await cashier.desk.till.unfinished()

    with pytest.raises(UnknownPayment, match="no settled payment has the id nothing"):
        await cashier.refund("nothing", 1, "refund-1")
    with pytest.raises(UnknownPayment):
        await cashier.refund(row.payment_id, 1, "refund-1")


async def test_a_payment_whose_work_never_started_is_refunded(world: World):
    cashier = world.cashier()

    async def fail(sale):
        world.sales.append(sale)
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - it is the one raised above
        await world.pay(cashier, world.cheque(), start=fail)

    await cashier.refund(world.sales[0].payment_id, PRICE_ATOMIC, "refund-1")
    assert world.earned() == 0


async def test_a_key_stands_for_one_refund(world: World):
    cashier, payment_id = await _paid(world)
    _, other_id = await _paid(world)
    await cashier.refund(payment_id, 5, "refund-1")

    with pytest.raises(RefundConflict, match=f"the refund refund-1 is 5 of {payment_id}"):
        await cashier.refund(payment_id, 6, "refund-1")
    with pytest.raises(RefundConflict):
        await cashier.refund(other_id, 5, "refund-1")


async def test_without_the_payees_key_there_is_no_refund(world: World):
    _, payment_id = await _paid(world)
    keyless = world.cashier(lambda desk: replace(desk, senders={}))

    with pytest.raises(NoRefundKey, match=f"there is no key of {world.seller.address}"):
        await keyless.refund(payment_id, 1, "refund-1")


async def test_refunds_at_once_from_two_processes_are_each_paid_once(world: World):
    first, payment_id = await _paid(world)
    second = world.cashier()
    asked = [(cashier, f"refund-{number}") for number in range(3) for cashier in (first, second)]

    paid = await asyncio.gather(*(cashier.refund(payment_id, 1000, key) for cashier, key in asked))

    assert paid[0::2] == paid[1::2]
    assert len(set(paid)) == 3
    assert world.earned() == PRICE_ATOMIC - 3000


async def test_a_transfer_that_paid_one_refund_pays_no_other(world: World):
    first, payment_id = await _paid(world)

    class Late:
        """Signs, and is overtaken before that is stored: the other's transfer has its very bytes."""

        def __init__(self, sender):
            self._sender, self._overtaken = sender, False

        def __getattr__(self, name):
            return getattr(self._sender, name)

        async def prepare(self, *asked):
            signed = await self._sender.prepare(*asked)
            if not self._overtaken:
                self._overtaken = True
                assert await first.refund(payment_id, 1000, "refund-1") == signed.transaction
            return signed

    late = world.cashier(lambda desk: replace(desk, senders={at: Late(one) for at, one in desk.senders.items()}))
    transaction = await late.refund(payment_id, 1000, "refund-2")

    assert transaction != await first.refund(payment_id, 1000, "refund-1")
    assert world.earned() == PRICE_ATOMIC - 2000


def _mortal(world: World, fuse: Fuse) -> Cashier:
    return world.cashier(
        lambda desk: replace(
            desk,
            till=Mortal(desk.till, fuse),
            senders={address: Mortal(sender, fuse) for address, sender in desk.senders.items()},
        )
    )


@pytest.mark.parametrize("last", range(1, 24))
async def test_a_refund_that_crashed_anywhere_is_paid_once(world: World, last):
    _, payment_id = await _paid(world)
    try:
        await _mortal(world, Fuse(last)).refund(payment_id, 700_000, "refund-1")
    except Crash:
        assert last < 23

    transaction = await world.cashier().refund(payment_id, 700_000, "refund-1")

    assert _moved(world, transaction)[2] == 700_000
    assert world.earned() == PRICE_ATOMIC - 700_000


async def _dies_signed(world: World, payment_id: str, key: str) -> str:
    """Ask for a refund and die after the signed transfer was stored, before it was sent; return its hash."""
    _ = payment_id

    class Dies:
        def __init__(self, sender):
            self._sender = sender

        def __getattr__(self, name):
            return getattr(self._sender, name)

        async def broadcast(self, transfer):
            raise Crash

    cashier = world.cashier(
        lambda desk: replace(desk, senders={address: Dies(one) for address, one in desk.senders.items()})
    )
    with pytest.raises(Crash):
        await cashier.refund(payment_id, 700_000, key)
    signed = await cashier.desk.till.signed_refund(world.seller.address.lower())
    assert (signed.key, signed.state) == (key, "signed")
    return str(signed.transaction)


async def test_the_very_transfer_that_was_signed_is_sent_after_a_crash(world: World):
    _, payment_id = await _paid(world)
    signed = await _dies_signed(world, payment_id, "refund-1")
    assert world.earned() == PRICE_ATOMIC

    assert await world.cashier().refund(payment_id, 700_000, "refund-1") == signed


async def test_a_transfer_that_was_left_goes_before_the_next(world: World):
    cashier, payment_id = await _paid(world)
    left = await _dies_signed(world, payment_id, "refund-1")

    later = await cashier.refund(payment_id, 1, "refund-2")

    assert _moved(world, left)[2] == 700_000
    assert _moved(world, later)[2] == 1
    assert world.earned() == PRICE_ATOMIC - 700_001
    assert await cashier.refund(payment_id, 700_000, "refund-1") == left


async def test_a_transfer_whose_account_nonce_was_used_elsewhere_is_signed_anew(world: World):
    cashier, payment_id = await _paid(world)
    left = await _dies_signed(world, payment_id, "refund-1")
    world.chain.rpc("eth_sendTransaction", {"from": world.seller.address, "to": world.payer.address, "value": "0x1"})

    # Until the other transaction is finalised it may be undone, and the refund that is signed may still be mined.
    with pytest.raises(ChainUnavailable):
        await cashier.refund(payment_id, 700_000, "refund-1")
    assert (await cashier.desk.till.signed_refund(world.seller.address.lower())).transaction == left
    world.chain.mine(2)
    transaction = await cashier.refund(payment_id, 700_000, "refund-1")

    assert transaction != left
    assert _moved(world, transaction)[2] == 700_000
    assert world.chain.rpc("eth_getTransactionReceipt", left) is None


async def test_a_payee_without_money_owes_the_refund_until_it_has_some(world: World):
    cashier, payment_id = await _paid(world)
    sender = cashier.desk.senders[world.seller.address.lower()]
    away = await sender.prepare(world.payer.address, PRICE_ATOMIC, await sender.account_nonce())
    await sender.broadcast(away)

    with pytest.raises(ChainUnavailable) as failed:
        await cashier.refund(payment_id, 700_000, "refund-1")
    assert (failed.value.code, failed.value.retryable) == ("chain_unavailable", True)
    world.chain.mint(world.seller.address, 700_000)
    assert _moved(world, await cashier.refund(payment_id, 700_000, "refund-1"))[2] == 700_000


async def test_a_reverted_transfer_is_owed_and_signed_again(world: World):
    cashier, payment_id = await _paid(world)
    left = await _dies_signed(world, payment_id, "refund-1")
    # The money goes away under another nonce order: the stored transfer is mined and reverts.
    world.chain.rpc("anvil_impersonateAccount", world.seller.address)
    signed = await cashier.desk.till.signed_refund(world.seller.address.lower())
    token_balance = world.earned()
    await _drain(world, token_balance)

    with pytest.raises(RefundFailed, match=f"the transfer {left} from {signed.pay_to} was reverted") as failed:
        await cashier.refund(payment_id, 700_000, "refund-1")
    assert failed.value.retryable
    assert await cashier.desk.till.signed_refund(signed.pay_to) is None
    world.chain.mint(world.seller.address, 700_000)
    again = await cashier.refund(payment_id, 700_000, "refund-1")
    assert (again != left, _moved(world, again)[2]) == (True, 700_000)


async def _drain(world: World, value_atomic: int) -> None:
    """Take the payee's tokens by a cheque of its own, which uses up none of its account nonces."""
    stranger = world.cheque(
        from_=world.seller.address, to=world.payer.address, value=str(value_atomic), signer=world.seller
    )
    world.settle_outside(stranger)


async def test_a_refund_that_is_not_mined_in_time_goes_on_later(world: World):
    _, payment_id = await _paid(world)
    hasty = world.cashier(lambda desk: replace(desk, receipt_timeout_s=0.0))
    world.chain.rpc("evm_setAutomine", False)

    with pytest.raises(ChainUnavailable, match="was not mined"):
        await hasty.refund(payment_id, 700_000, "refund-1")
    signed = await hasty.desk.till.signed_refund(world.seller.address.lower())
    world.chain.rpc("evm_setAutomine", True)
    world.chain.mine()

    assert await world.cashier().refund(payment_id, 700_000, "refund-1") == signed.transaction


async def test_a_refund_whose_turn_never_comes_says_so(world: World):
    _, payment_id = await _paid(world)

    class Busy:
        """Another process is always faster."""

        turns = 0

        def __init__(self, till):
            self._till = till

        def __getattr__(self, name):
            return getattr(self._till, name)

        async def sign_refund(self, refund):
            Busy.turns += 1
            return False

    cashier = world.cashier(lambda desk: replace(desk, till=Busy(desk.till)))

    with pytest.raises(RefundFailed, match="the refund refund-1 is still waiting for its turn"):
        await cashier.refund(payment_id, 1, "refund-1")
    assert Busy.turns == TURNS_MAX
