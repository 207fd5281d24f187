"""The paid door in order: what is asked, what is refused, what is taken once."""

import asyncio
import base64
import json
from dataclasses import replace

import pytest

from cashier.core.model import Sale
from cashier.core.reading import mismatch, read_cheque
from chain.devchain import dev_account
from tests.cashier.world import (
    BODY,
    PRICE_ATOMIC,
    URL,
    World,
    code,
    detail,
    request_with,
    settlement,
)
from wire.money import BASE_SEPOLIA_USDC, Amount
from wire.x402 import (
    PAYMENT_IDENTIFIER,
    PaymentPayload,
    PaymentRequired,
    declare_payment_identifier,
    decode_header,
    encode_header,
    with_payment_identifier,
)

IDENTIFIER = "payment-number-one"


async def test_an_unpaid_request_is_told_what_to_sign(world: World):
    answer = await world.pay(world.cashier(), None)

    assert (answer.status, code(answer)) == (402, "payment_required")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert detail(answer) == f"one job costs {PRICE_ATOMIC} atomic units of {BASE_SEPOLIA_USDC.address}"
    challenge = decode_header(PaymentRequired, answer.headers["payment-required"])
    assert challenge.accepts == (world.asked(),)
    assert challenge.error == "payment_required"
    assert challenge.resource.document() == {"url": URL, "description": "one job", "mimeType": "application/json"}
    assert challenge.extensions == declare_payment_identifier()
    assert len(answer.headers["payment-required"]) < 3_000
    assert world.reserved == []


async def test_the_official_package_reads_the_challenge(world: World):
    from x402.http.utils import decode_payment_required_header

    answer = await world.pay(world.cashier(), None)

    challenge = decode_payment_required_header(answer.headers["payment-required"])
    assert challenge.x402_version == 2
    assert challenge.accepts[0].extra["paymentFlow"] == "upfront"


async def test_a_paid_request_settles_then_starts_the_work(world: World):
    payment = world.cheque()

    answer = await world.pay(world.cashier(), payment)

    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert world.earned() == PRICE_ATOMIC
    (sale,) = world.sales
    said = settlement(answer)
    receipt = world.chain.rpc("eth_getTransactionReceipt", said.transaction)
    assert receipt["status"] == "0x1"
    assert said.document() == {
        "success": True,
        "payer": world.payer.address.lower(),
        "transaction": sale.transaction,
        "network": "eip155:84532",
        "amount": str(PRICE_ATOMIC),
    }
    assert sale == Sale(
        payment_id=sale.payment_id,
        payer=world.payer.address.lower(),
        pay_to=world.seller.address,
        amount=Amount(PRICE_ATOMIC, BASE_SEPOLIA_USDC.address, BASE_SEPOLIA_USDC.network),
        transaction=said.transaction,
        url=URL,
        body=BODY,
    )
    assert json.loads(answer.body) == {"job": world.jobs[sale.payment_id]}
    assert world.facilitator.calls == ["verify", "settle"]


async def test_a_repeat_gets_the_same_answer_even_after_the_price_moved(world: World):
    payment = world.cheque()
    first = await world.pay(world.cashier(), payment)
    dearer = replace(world.price, amount=replace(world.price.amount, atomic=PRICE_ATOMIC * 2))

    again = await world.pay(world.cashier(), payment, price=dearer)

    assert again == first
    assert len(world.sales) == 1
    assert world.facilitator.calls == ["verify", "settle"]


@pytest.mark.parametrize(
    "change",
    [
        {"body": b'{"job": 2}'},
        {"method": "PUT"},
        {"url": "http://seller.example/other"},
        {"url": URL + "?a=1"},
    ],
    ids=["body", "method", "path", "query"],
)
async def test_another_request_under_the_same_payment_is_a_conflict(world: World, change):
    payment = world.cheque()
    await world.pay(world.cashier(), payment)

    answer = await world.pay(world.cashier(), payment, **change)

    assert (answer.status, code(answer)) == (409, "payment_conflict")
    assert detail(answer) == "this payment or its id came with another request before"
    assert len(world.sales) == 1


async def test_the_host_that_was_asked_is_no_part_of_the_request(world: World):
    payment = world.cheque()
    first = await world.pay(world.cashier(), payment)

    assert await world.pay(world.cashier(), payment, url="http://127.0.0.1:4001/submit-job") == first


async def test_a_header_rebuilt_from_public_calldata_is_a_conflict(world: World):
    payment = world.cheque()
    extensions = with_payment_identifier(declare_payment_identifier(), IDENTIFIER)
    await world.pay(world.cashier(), payment.model_copy(update={"extensions": extensions}))

    assert world.sales[0].payment_id == IDENTIFIER
    assert code(await world.pay(world.cashier(), payment)) == "payment_conflict"


async def test_a_payment_id_buys_one_thing_whatever_is_signed_under_it(world: World):
    headers = [{"payment-signature": encode_header(world.cheque()), "idempotency-key": IDENTIFIER} for _ in "ab"]
    first, second = [await world.pay(world.cashier(), None, headers=one) for one in headers]

    assert first.status == 200
    assert world.sales[0].payment_id == IDENTIFIER
    assert code(second) == "payment_conflict"
    assert world.earned() == PRICE_ATOMIC


def _raw(document: object) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


def _header(payment: PaymentPayload) -> dict[str, str]:
    return {"payment-signature": encode_header(payment)}


def _with(world: World, **extra: str) -> dict[str, str]:
    return {"payment-signature": encode_header(world.cheque()), **extra}


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        (lambda w: {"payment-signature": "A" * 20_000}, "larger than"),
        (lambda w: {"payment-signature": "???"}, "not base64"),
        (lambda w: {"payment-signature": base64.b64encode(b"hello").decode()}, "not JSON"),
        (lambda w: {"payment-signature": _raw({"x402Version": 1})}, "x402Version"),
        (lambda w: {"payment-signature": encode_header(w.cheque(valid_before="4611686018427387905"))}, "validBefore"),
        (lambda w: _with(w, **{"idempotency-key": "short"}), "Idempotency-Key: a payment id is 16-128"),
        (lambda w: _with(w, **{"idempotency-key": IDENTIFIER + "\n"}), "Idempotency-Key"),
        (
            lambda w: {
                "payment-signature": _raw(
                    {**w.cheque().document(), "extensions": {PAYMENT_IDENTIFIER: {"info": {"id": "no"}}}}
                )
            },
            "payment-identifier",
        ),
        (
            lambda w: {
                "idempotency-key": "payment-number-two",
                "payment-signature": _raw(
                    {**w.cheque().document(), "extensions": {PAYMENT_IDENTIFIER: {"info": {"id": IDENTIFIER}}}}
                ),
            },
            "name two payments",
        ),
    ],
)
async def test_a_header_that_cannot_be_read_is_malformed(world: World, headers, said):
    answer = await world.pay(world.cashier(), None, headers=headers(world))

    assert (answer.status, code(answer)) == (400, "payment_malformed")
    assert said in detail(answer)
    assert world.facilitator.calls == []
    assert await world.opened[0].desk.till.unfinished() == []


async def test_the_latest_validity_that_can_be_read_is_read(world: World):
    answer = await world.pay(world.cashier(), world.cheque(valid_before=str(2**62)))

    assert answer.status == 200


async def test_two_names_for_the_same_payment_are_one(world: World):
    extensions = with_payment_identifier(declare_payment_identifier(), IDENTIFIER)
    payment = world.cheque().model_copy(update={"extensions": extensions})
    headers = {"payment-signature": encode_header(payment), "idempotency-key": IDENTIFIER}

    assert (await world.pay(world.cashier(), None, headers=headers)).status == 200


OTHER = "0x" + "11" * 20


@pytest.mark.parametrize(
    ("accepted", "authorization", "named"),
    [
        ({"scheme": "upto"}, {}, "accepted.scheme is upto, asked was exact"),
        ({"network": "eip155:8453"}, {}, "accepted.network is eip155:8453, asked was eip155:84532"),
        ({"asset": OTHER}, {}, f"accepted.asset is {OTHER}, asked was"),
        ({"amount": "1"}, {}, f"accepted.amount is 1, asked was {PRICE_ATOMIC}"),
        ({"pay_to": OTHER}, {}, f"accepted.payTo is {OTHER}, asked was"),
        ({}, {"to": OTHER}, f"authorization.to is {OTHER}, asked was"),
        ({}, {"value": "1399999"}, "authorization.value is 1399999, asked was"),
        ({"scheme": "x" * 100}, {}, f"accepted.scheme is {'x' * 80}, asked was"),
    ],
)
async def test_a_cheque_for_something_else_is_refused_unseen(world: World, accepted, authorization, named):
    payment = world.cheque(**authorization)
    payment = payment.model_copy(update={"accepted": payment.accepted.model_copy(update=accepted)})

    answer = await world.pay(world.cashier(), payment)

    assert (answer.status, code(answer)) == (402, "payment_invalid")
    assert named in detail(answer)
    assert decode_header(PaymentRequired, answer.headers["payment-required"]).accepts == (world.asked(),)
    assert decode_header(PaymentRequired, answer.headers["payment-required"]).error == detail(answer)
    refused = settlement(answer)
    assert (refused.success, refused.error_reason, refused.network) == (False, detail(answer), "eip155:84532")
    assert world.facilitator.calls == []
    assert await world.opened[0].desk.till.unfinished() == []


async def test_addresses_are_the_same_in_any_case(world: World):
    # `authorization.to` too, but the official facilitator reads that one in checksum case alone.
    lower = {"asset": BASE_SEPOLIA_USDC.address.lower(), "pay_to": world.seller.address.lower()}
    payment = world.cheque()
    payment = payment.model_copy(update={"accepted": payment.accepted.model_copy(update=lower)})

    assert (await world.pay(world.cashier(), payment)).status == 200
    desk = world.cashier().desk
    lowest = request_with(headers=_header(world.cheque(to=world.seller.address.lower())))
    assert mismatch(read_cheque(desk.ask(lowest, world.price), desk.dialects.values()), world.asked()) is None


async def test_a_full_seller_charges_nothing_and_the_same_payment_is_good_later(world: World):
    payment, world.room = world.cheque(), 0
    cashier = world.cashier()

    answer = await world.pay(cashier, payment)

    assert (answer.status, code(answer)) == (503, "no_capacity")
    assert detail(answer) == "not charged: there is no room for one more"
    assert world.facilitator.calls == []
    assert await cashier.desk.till.unfinished() == []
    world.room = 1
    assert (await world.pay(cashier, payment)).status == 200


async def test_two_buyers_at_once_cannot_both_have_the_last_place(world: World):
    world.room = 1
    cashier = world.cashier()

    answers = await asyncio.gather(*(world.pay(cashier, world.cheque()) for _ in range(4)))

    assert sorted(answer.status for answer in answers) == [200, 503, 503, 503]
    assert world.earned() == PRICE_ATOMIC
    # Once served, nothing is reserved any more: only the job itself counts.
    world.reserved.clear()
    await world.pay(cashier, world.cheque())
    assert world.reserved == [0]


async def test_the_same_payment_ten_times_at_once_is_one_settlement_and_one_start(world: World):
    payment, cashier = world.cheque(), world.cashier()
    before = world.chain.rpc("eth_blockNumber")

    answers = await asyncio.gather(*(world.pay(cashier, payment) for _ in range(10)))

    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert len(world.sales) == 1
    assert world.earned() == PRICE_ATOMIC
    assert int(world.chain.rpc("eth_blockNumber"), 16) == int(before, 16) + 1


@pytest.mark.parametrize("wrong", ["signature", "funds"])
async def test_what_the_facilitator_refuses_is_refused_and_forgotten(world: World, wrong):
    poor = dev_account(8)
    payment = world.cheque(from_=poor.address, signer=poor) if wrong == "funds" else world.cheque(signer=poor)
    cashier = world.cashier()

    answer = await world.pay(cashier, payment)

    assert (answer.status, code(answer)) == (402, "payment_invalid")
    assert wrong in detail(answer) or "insufficient_balance" in detail(answer)
    assert world.facilitator.calls == ["verify"]
    assert await cashier.desk.till.unfinished() == []
    assert world.sales == []


async def test_work_that_does_not_start_is_owed_until_it_does(world: World):
    payment, cashier = world.cheque(), world.cashier()

    async def fail(sale: Sale) -> dict[str, str]:
        raise OSError("the GPU is gone")

    with pytest.raises(OSError, match="the GPU is gone"):
        await world.pay(cashier, payment, start=fail)

    assert (await world.pay(cashier, payment)).status == 200
    assert world.earned() == PRICE_ATOMIC
    assert world.facilitator.calls == ["verify", "settle"]


async def test_the_locks_of_a_quiet_door_take_no_room(world: World):
    cashier = world.cashier()
    payments = [world.cheque() for _ in range(3)]
    await asyncio.gather(*(world.pay(cashier, payment) for payment in payments * 2))

    assert cashier.desk.locks._locks == {}
