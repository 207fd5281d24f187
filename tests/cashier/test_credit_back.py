"""Credit goes back to who paid: once, by a transfer on the chain, whatever crashes; the counters of one house."""

import asyncio
from dataclasses import replace

import pytest

from cashier.core.credit import Deposit, Key, withdrawal
from cashier.core.errors import ChainUnavailable, CreditTooSmall, NoRefundKey, RefundTooLarge
from cashier.recover import Recovered
from cashier.wiring import Cashier
from tests.cashier.test_refund import _moved
from tests.cashier.world import PRICE_ATOMIC, Crash, Fuse, Mortal, World, says
from wire.x402 import encode_header

PART = 700_000
PAYMENT_ID = "a-payment-of-credit"


async def _put(cashier: Cashier, sale) -> dict[str, str]:
    deposit = Deposit(payment_id=sale.payment_id, account=sale.payer, amount_atomic=sale.amount.atomic)
    await cashier.credit.deposit(deposit, cashier.desk.now_s())
    return {"account": sale.payer}


async def _credited(world: World, cashier: Cashier) -> str:
    """Pay the price at the counter of credit; return the account."""
    credits = cashier.at("credit")
    headers = {"payment-signature": encode_header(world.cheque()), "idempotency-key": PAYMENT_ID}
    answer = await world.pay(credits, None, start=lambda sale: _put(credits, sale), headers=headers)
    assert answer.status == 200
    return world.payer.address.lower()


async def test_credit_is_withdrawn_by_a_transfer_to_its_payer(world: World):
    cashier = world.cashier()
    account = await _credited(world, cashier)

    amount, transaction = await cashier.withdraw(withdrawal("back-1", account, world.seller.address, PART))

    assert (amount, _moved(world, transaction)) == (PART, (world.seller.address.lower(), account, PART))
    assert await cashier.withdraw(withdrawal("back-1", account, world.seller.address, None)) == (PART, transaction)
    rest, _ = await cashier.withdraw(withdrawal("back-2", account, world.seller.address, None))
    assert (rest, world.earned()) == (PRICE_ATOMIC - PART, 0)
    with pytest.raises(CreditTooSmall):
        await cashier.withdraw(withdrawal("back-3", account, world.seller.address, None))


async def test_without_the_sellers_key_the_account_stays_as_it_is(world: World):
    account = await _credited(world, world.cashier())
    keyless = world.cashier(lambda desk: replace(desk, senders={}))

    with pytest.raises(NoRefundKey):
        await keyless.withdraw(withdrawal("back-1", account, world.seller.address, None))
    assert await keyless.pay_back(world.seller.address, 1) == 0
    assert (await keyless.credit.account(account)).available == PRICE_ATOMIC


async def test_a_payment_that_is_credit_is_not_refunded_besides(world: World):
    cashier = world.cashier()
    account = await _credited(world, cashier)

    with pytest.raises(RefundTooLarge, match="of 0 that were paid"):
        await cashier.refund(PAYMENT_ID, 1, "refund-1")
    assert (await cashier.credit.account(account)).available == PRICE_ATOMIC


async def test_who_has_no_key_is_paid_back_by_itself_once_enough_is_left(world: World):
    cashier = world.cashier()
    account = await _credited(world, cashier)

    assert await cashier.pay_back(world.seller.address, PRICE_ATOMIC + 1) == 0
    assert await cashier.pay_back(world.seller.address, PRICE_ATOMIC, idle_s=10) == 0
    assert world.earned() == PRICE_ATOMIC
    world.clock_s += 10
    assert await cashier.pay_back(world.seller.address, PRICE_ATOMIC, idle_s=10) == 0

    assert world.earned() == 0
    assert (await cashier.credit.account(account)).withdrawn == PRICE_ATOMIC
    assert await cashier.credit.owed() == []


async def test_who_has_a_key_keeps_its_credit(world: World):
    cashier = world.cashier()
    account = await _credited(world, cashier)
    await cashier.credit.add_key(Key(id="key_1", sha256="aa", account=account, made_s=1))

    await cashier.pay_back(world.seller.address, 1)

    assert world.earned() == PRICE_ATOMIC


async def test_what_could_not_be_sent_is_owed_and_sent_later(world: World):
    cashier = world.cashier()
    account = await _credited(world, cashier)
    sender = cashier.desk.senders[world.seller.address.lower()]
    await sender.broadcast(await sender.prepare(account, PRICE_ATOMIC, await sender.account_nonce()))

    with pytest.raises(ChainUnavailable):
        await cashier.withdraw(withdrawal("back-1", account, world.seller.address, None))
    assert await cashier.pay_back(world.seller.address, 1) == 1
    assert (await cashier.credit.account(account)).available == 0
    world.chain.mint(world.seller.address, PRICE_ATOMIC)

    assert await world.cashier().pay_back(world.seller.address, 1) == 0
    assert (world.earned(), await cashier.credit.owed()) == (0, [])


def _mortal(world: World, fuse: Fuse) -> Cashier:
    cashier = world.cashier(
        lambda desk: replace(
            desk,
            till=Mortal(desk.till, fuse),
            senders={address: Mortal(sender, fuse) for address, sender in desk.senders.items()},
        )
    )
    cashier.credit = Mortal(cashier.credit, fuse)
    return cashier


@pytest.mark.parametrize("last", range(1, 22))
async def test_a_withdrawal_that_crashed_anywhere_is_paid_once(world: World, last):
    account = await _credited(world, world.cashier())
    try:
        await _mortal(world, Fuse(last)).withdraw(withdrawal("back-1", account, world.seller.address, PART))
    except Crash:
        assert last <= 20

    amount, transaction = await world.cashier().withdraw(withdrawal("back-1", account, world.seller.address, PART))

    assert (amount, _moved(world, transaction)[2]) == (PART, PART)
    assert world.earned() == PRICE_ATOMIC - PART


@pytest.mark.parametrize("last", range(1, 30))
async def test_what_goes_back_by_itself_is_paid_once_whatever_crashes(world: World, last):
    account = await _credited(world, world.cashier())
    try:
        await _mortal(world, Fuse(last)).pay_back(world.seller.address, 1)
    except Crash:
        assert last <= 26

    assert await world.cashier().pay_back(world.seller.address, 1) == 0

    assert world.earned() == 0
    assert (await world.opened[0].credit.account(account)).withdrawn == PRICE_ATOMIC


async def test_refunds_of_two_counters_leave_by_one_door(world: World):
    cashier = world.cashier()
    account = await _credited(world, cashier)
    assert (await world.pay(cashier, world.cheque())).status == 200
    job = world.sales[-1].payment_id

    refund, (_, back) = await asyncio.gather(
        cashier.refund(job, PART, "refund-1"),
        world.cashier().withdraw(withdrawal("back-1", account, world.seller.address, PART)),
    )

    assert refund != back
    assert world.earned() == 2 * PRICE_ATOMIC - 2 * PART


async def test_a_counter_recovers_its_own_payments_alone(world: World):
    payment = world.cheque()
    cashier = world.cashier()
    credits = cashier.at("credit")
    world.facilitator.steps["settle"] = [says(b"garbage")]
    await world.pay(credits, payment)
    world.settle_outside(payment)

    assert await cashier.open_bodies() == []
    assert await cashier.recover(world.start) == Recovered()
    assert await credits.recover(lambda sale: _put(credits, sale)) == Recovered(served=1)
    assert (await cashier.credit.account(world.payer.address.lower())).deposited == PRICE_ATOMIC
    assert world.sales == []


async def test_open_payments_of_another_counter_take_no_room_here(world: World):
    cashier = world.cashier()
    world.facilitator.steps["settle"] = [says(b"garbage")]
    await world.pay(cashier.at("credit"), world.cheque())

    assert (await world.pay(cashier, world.cheque())).status == 200
    assert world.reserved == [0, 0]


async def test_a_cheque_is_taken_once_in_the_house(world: World):
    cashier, payment = world.cashier(), world.cheque()
    assert (await world.pay(cashier, payment)).status == 200

    answer = await world.pay(cashier.at("credit"), payment, url="http://seller.example/v1/credits")

    assert answer.status == 409


async def test_what_was_asked_for_is_not_remembered_where_nobody_may_read_it(world: World):
    cashier = world.cashier()
    payment, body = world.cheque(), b'{"prompt": "a secret thought"}'

    first = await world.pay(cashier, payment, body=body, keeps_body=False)

    assert (await world.pay(cashier, payment, body=body, keeps_body=False)) == first
    assert (await world.pay(cashier, payment, body=b"{}", keeps_body=False)).status == 409
    assert world.sales[0].body == b""
    await cashier.close()
    for part in world.database.parent.glob("till.db*"):
        assert b"secret thought" not in part.read_bytes()
