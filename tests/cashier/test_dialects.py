"""One door, three dialects: whichever the payer speaks, the same rules hold and the answer comes in it."""

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest
from mpp import Challenge, Receipt
from x402.schemas.v1 import PaymentRequiredV1 as OfficialRequired

from cashier.core.dialects import X402
from cashier.edges import credit_sqlite
from cashier.edges.till_sqlite import SCHEMA
from cashier.recover import Recovered
from tests.cashier.speaking import CONFIRMATIONS, DIALECTS, in_dialect, in_mpp, in_v1
from tests.cashier.test_crash import _crash
from tests.cashier.test_open_settlements import PENDING
from tests.cashier.world import BODY, PRICE_ATOMIC, URL, World, code, detail, says, settlement
from tests.house.tree import ROOT
from wire.money import BASE_SEPOLIA_USDC, Amount
from wire.x402 import declare_payment_identifier, decode_header, encode_header, with_payment_identifier
from wire.x402_v1 import PaymentRequiredV1, SettleResponseV1, payment_v1

every_dialect = pytest.mark.parametrize("dialect", DIALECTS)


def confirmed(answer) -> set[str]:
    """The dialects in which an answer tells of a settlement."""
    return {dialect for dialect, header in CONFIRMATIONS.items() if header in answer.headers}


@pytest.mark.row(15)
async def test_one_402_speaks_every_dialect(world: World):
    answer = await world.pay(world.cashier(), None)

    assert (answer.status, code(answer)) == (402, "payment_required")
    assert "payment-required" in answer.headers
    body = json.loads(answer.body)
    official = OfficialRequired.model_validate(body)
    assert (official.x402_version, official.error) == (1, "payment_required")
    (offer,) = PaymentRequiredV1.from_json(answer.body).accepts
    assert offer.document() == {
        "scheme": "exact",
        "network": "base-sepolia",
        "maxAmountRequired": str(PRICE_ATOMIC),
        "resource": URL,
        "description": "one job",
        "mimeType": "application/json",
        "payTo": world.seller.address,
        "maxTimeoutSeconds": 300,
        "asset": BASE_SEPOLIA_USDC.address,
        "extra": {"name": "USDC", "version": "2", "paymentFlow": "upfront"},
    }
    challenge = Challenge.from_www_authenticate(answer.headers["www-authenticate"])
    assert (challenge.method, challenge.intent, challenge.realm) == ("evm", "charge", "seller.example")
    assert challenge.credential_header == "Payment-Authorization"
    assert challenge.request == {
        "amount": str(PRICE_ATOMIC),
        "currency": BASE_SEPOLIA_USDC.address,
        "recipient": world.seller.address,
        "methodDetails": {"chainId": 84532, "credentialTypes": ["authorization"], "decimals": 6},
    }


async def test_a_chain_that_a_dialect_cannot_name_is_not_asked_for_in_it(world: World):
    elsewhere = replace(world.price, amount=Amount(PRICE_ATOMIC, BASE_SEPOLIA_USDC.address, "eip155:1"))

    answer = await world.pay(world.cashier(), None, price=elsewhere)

    assert "payment-required" in answer.headers
    assert "www-authenticate" not in answer.headers
    assert "accepts" not in json.loads(answer.body)


@pytest.mark.row(15)
@every_dialect
async def test_a_payment_settles_once_and_is_confirmed_in_its_own_dialect(world: World, dialect):
    cashier = world.cashier()
    headers = await in_dialect(world, cashier, dialect)

    answer = await world.pay(cashier, None, headers=headers)

    assert answer.status == 200, answer.body
    assert confirmed(answer) == {dialect}
    assert world.earned() == PRICE_ATOMIC
    (sale,) = world.sales
    assert world.chain.rpc("eth_getTransactionReceipt", sale.transaction)["status"] == "0x1"
    assert (sale.payer, sale.body) == (world.payer.address.lower(), BODY)
    match dialect:
        case "x402-v2":
            assert settlement(answer).transaction == sale.transaction
        case "x402-v1":
            told = decode_header(SettleResponseV1, answer.headers["x-payment-response"])
            assert told.document() == {
                "success": True,
                "transaction": sale.transaction,
                "network": "base-sepolia",
                "payer": world.payer.address.lower(),
            }
        case "mpp":
            receipt = Receipt.from_payment_receipt(answer.headers["payment-receipt"])
            assert (receipt.status, receipt.method, receipt.reference) == ("success", "evm", sale.transaction)
            assert receipt.timestamp.timestamp() == world.clock_s


@every_dialect
async def test_the_same_request_gets_the_same_answer_whatever_was_minted_since(world: World, dialect):
    cashier = world.cashier()
    headers = await in_dialect(world, cashier, dialect)
    first = await world.pay(cashier, None, headers=headers)
    world.clock_s += 10_000
    dearer = replace(world.price, amount=replace(world.price.amount, atomic=PRICE_ATOMIC * 2))

    assert await world.pay(world.cashier(), None, headers=headers, price=dearer) == first
    assert len(world.sales) == 1
    assert world.facilitator.calls == ["verify", "settle"]


@every_dialect
async def test_another_body_under_the_same_payment_is_a_conflict(world: World, dialect):
    cashier = world.cashier()
    headers = await in_dialect(world, cashier, dialect)
    await world.pay(cashier, None, headers=headers)

    answer = await world.pay(cashier, None, headers=headers, body=b'{"job": 2}')

    assert (answer.status, code(answer)) == (409, "payment_conflict")
    assert len(world.sales) == 1


async def test_one_cheque_in_two_dialects_buys_one_thing(world: World):
    payment, cashier = world.cheque(), world.cashier()
    await world.pay(cashier, payment)

    assert code(await world.pay(cashier, None, headers=in_v1(payment))) == "payment_conflict"
    assert world.earned() == PRICE_ATOMIC


@every_dialect
async def test_a_pending_settlement_is_202_and_a_silent_facilitator_503(world: World, dialect):
    cashier = world.cashier()
    headers = await in_dialect(world, cashier, dialect)
    world.facilitator.steps["verify"] = [says(b"", 500)]
    world.facilitator.steps["settle"] = [says(PENDING)]

    silent = await world.pay(cashier, None, headers=headers)
    waiting = await world.pay(cashier, None, headers=headers)

    assert (silent.status, code(silent)) == (503, "facilitator_unavailable")
    assert (waiting.status, code(waiting)) == (202, "settlement_pending")
    assert confirmed(silent) == confirmed(waiting) == set()
    assert (await world.pay(cashier, None, headers=headers)).status == 200
    assert world.earned() == PRICE_ATOMIC


@every_dialect
@pytest.mark.parametrize("last", [9, 11, 13])
async def test_a_crash_is_recovered_and_confirmed_in_the_dialect_of_the_payment(world: World, dialect, last):
    headers = await in_dialect(world, world.cashier(), dialect)
    assert await _crash(world, None, last, headers=headers)

    recovered = await world.cashier().recover(world.start)

    assert recovered.served == (1 if world.earned() else 0)
    answer = await world.pay(world.cashier(), None, headers=headers)
    assert (answer.status, confirmed(answer)) == (200, {dialect})
    assert world.earned() == PRICE_ATOMIC
    assert len(world.jobs) == 1


async def test_a_full_seller_charges_nobody_in_any_dialect(world: World):
    cashier, world.room = world.cashier(), 0

    answers = [await world.pay(cashier, None, headers=await in_dialect(world, cashier, name)) for name in DIALECTS]

    assert [code(answer) for answer in answers] == ["no_capacity"] * 3
    assert world.facilitator.calls == []


@pytest.mark.parametrize(
    "pair", [("x402-v2", "x402-v1"), ("x402-v1", "mpp"), ("x402-v2", "mpp")], ids=lambda pair: " ".join(pair)
)
async def test_two_payments_in_one_request_are_malformed(world: World, pair):
    cashier = world.cashier()
    first, second = [await in_dialect(world, cashier, dialect) for dialect in pair]

    answer = await world.pay(cashier, None, headers={**first, **second})

    assert (answer.status, code(answer)) == (400, "payment_malformed")
    assert detail(answer) == f"{' and '.join([*first, *second])}: one request has one payment"
    assert world.facilitator.calls == []


async def test_what_the_facilitator_refuses_is_refused_in_the_payers_dialect(world: World):
    cashier = world.cashier()
    world.facilitator.steps["verify"] = [says({"isValid": False, "invalidReason": "insufficient_funds"})] * 2

    in_one = await world.pay(cashier, None, headers=in_v1(world.cheque()))
    in_other = await world.pay(cashier, None, headers=await in_mpp(world, cashier))

    refused = decode_header(SettleResponseV1, in_one.headers["x-payment-response"])
    assert (refused.success, refused.error_reason, refused.network) == (False, "insufficient_funds", "base-sepolia")
    assert PaymentRequiredV1.from_json(in_one.body).error == "insufficient_funds"
    assert (in_other.status, code(in_other), confirmed(in_other)) == (402, "payment_invalid", set())
    assert detail(in_other) == "insufficient_funds"
    assert "www-authenticate" in in_other.headers


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scheme": "upto"}, "accepted.scheme is upto, asked was exact"),
        ({"network": "base"}, "accepted.network is eip155:8453, asked was eip155:84532"),
        ({"network": "moon"}, "accepted.network is moon, asked was eip155:84532"),
    ],
)
async def test_a_version_1_payment_for_something_else_is_refused_with_its_reason(world: World, changes, said):
    payment = payment_v1(world.cheque()).model_copy(update=changes)

    answer = await world.pay(world.cashier(), None, headers={"x-payment": encode_header(payment)})

    assert (answer.status, code(answer), detail(answer)) == (402, "payment_invalid", said)
    assert decode_header(SettleResponseV1, answer.headers["x-payment-response"]).error_reason == said
    assert world.facilitator.calls == []


async def test_a_version_1_payment_of_another_amount_or_to_another_is_refused_with_its_reason(world: World):
    other = "0x" + "11" * 20
    cheap, misled = [in_v1(world.cheque(**wrong)) for wrong in ({"value": "1"}, {"to": other})]

    answers = [await world.pay(world.cashier(), None, headers=headers) for headers in (cheap, misled)]

    assert detail(answers[0]) == f"authorization.value is 1, asked was {PRICE_ATOMIC}"
    assert detail(answers[1]) == f"authorization.to is {other}, asked was {world.seller.address.lower()}"
    assert world.facilitator.calls == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A" * 20_000, "larger than"),
        ("???", "not base64"),
        ("aGVsbG8=", "not JSON"),
        ("e30=", "scheme"),
        ("eyJ4NDAyVmVyc2lvbiI6Mn0=", "x402Version"),
    ],
)
async def test_a_version_1_header_that_cannot_be_read_is_malformed(world: World, text, said):
    answer = await world.pay(world.cashier(), None, headers={"x-payment": text})

    assert (answer.status, code(answer)) == (400, "payment_malformed")
    assert said in detail(answer)


async def test_version_1_and_mpp_name_their_payment_by_the_idempotency_key(world: World):
    cashier = world.cashier()
    key = {"idempotency-key": "payment-number-one"}
    await world.pay(cashier, None, headers={**in_v1(world.cheque()), **key})

    answer = await world.pay(cashier, None, headers={**await in_mpp(world, cashier), **key})

    assert world.sales[0].payment_id == "payment-number-one"
    assert code(answer) == "payment_conflict"


@pytest.mark.parametrize("dialect", ["x402-v1", "mpp"])
@pytest.mark.parametrize("key", ["payment-number-two", None])
async def test_who_rebuilds_a_header_from_the_chain_without_its_key_is_not_given_the_answer(world: World, dialect, key):
    cashier = world.cashier()
    headers = await in_dialect(world, cashier, dialect)
    mine = {**headers, "idempotency-key": "payment-number-one"}
    first = await world.pay(cashier, None, headers=mine)

    answer = await world.pay(cashier, None, headers=headers if key is None else {**headers, "idempotency-key": key})

    assert (first.status, answer.status, code(answer)) == (200, 409, "payment_conflict")
    assert await world.pay(cashier, None, headers=mine) == first


async def test_version_2_names_its_payment_in_its_header_and_needs_no_key(world: World):
    cashier = world.cashier()
    payment = world.cheque()
    extensions = with_payment_identifier(declare_payment_identifier(), "payment-number-one")
    headers = {"payment-signature": encode_header(payment.model_copy(update={"extensions": extensions}))}
    first = await world.pay(cashier, None, headers={**headers, "idempotency-key": "payment-number-one"})

    assert first.status == 200
    assert await world.pay(cashier, None, headers=headers) == first


async def test_a_till_of_before_knows_its_rows_as_version_2(world: World):
    payment = world.cheque()
    world.facilitator.steps["settle"] = [says(PENDING)]
    cashier = world.cashier()
    await world.pay(cashier, payment)
    await cashier.close()
    with sqlite3.connect(world.database) as file:
        for column in ("dialect", "counter"):
            file.execute(f"ALTER TABLE payments_taken DROP COLUMN {column}")
        for table in credit_sqlite.TABLES:
            file.execute(f"DROP TABLE {table}")
        file.execute("UPDATE schema SET version = 1 WHERE room = ?", (SCHEMA.room,))

    later = world.cashier()

    assert [row.dialect for row in await later.desk.till.unfinished()] == ["x402-v2"]
    assert confirmed(await world.pay(later, payment)) == {"x402-v2"}


async def test_a_door_without_mpp_serves_what_was_paid_in_it_before(world: World):
    headers = await in_mpp(world, world.cashier())
    world.facilitator.steps["settle"] = [says(b"garbage")]
    await world.pay(world.cashier(), None, headers=headers)
    (row,) = await world.opened[0].desk.till.unfinished()
    world.facilitator.steps["settle"] = []
    transaction = await world.opened[0].desk.facilitator.settle(row.payload, world.asked())
    bare = world.cashier(lambda desk: replace(desk, dialects=X402))

    assert await bare.recover(world.start) == Recovered(served=1)
    assert world.sales[0].transaction == transaction.transaction
    assert (await world.pay(bare, None, headers=headers)).status == 402
    served = await world.pay(world.cashier(), None, headers=headers)
    assert (served.status, confirmed(served)) == (200, set())


# A process of its own: what is imported once stays.
ASK_A_DOOR = """
import asyncio, logging, sys
from pathlib import Path
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s", level=logging.INFO)
from cashier.core.model import PaidRequest, Price
from cashier.wiring import open_cashier
from wire.money import BASE_SEPOLIA_USDC as USDC, Amount
till = Path(sys.argv[1], "till.db")
cashier = open_cashier(asset=USDC, database=till, facilitator_url="http://f.example", rpc_url="http://r.example")
print("open", "mpp" in sys.modules)
price = Price(amount=Amount(1, USDC.address, USDC.network), pay_to="0x" + "22" * 20, description="one job")
request = PaidRequest(method="POST", url="http://v.example/submit-job", headers={}, body=b"{}")
answer = asyncio.run(cashier.charge(request, price, None, None))
print(answer.status, "payment-required" in answer.headers, "www-authenticate" in answer.headers)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "said"),
    [
        (None, ["open True", "402 True True"]),
        (
            "raise ImportError('half of it', name='mpp')",
            ["WARNING no payments in MPP: half of it", "open False", "402 True False"],
        ),
        (
            "raise ModuleNotFoundError('no mpp', name='mpp')",
            ["INFO no payments in MPP: no mpp", "open False", "402 True False"],
        ),
    ],
    ids=["whole", "broken", "missing"],
)
def test_a_door_opens_with_mpps_codec_or_without_it_and_asks_in_x402_all_the_same(tmp_path, module, said):
    if module is not None:
        (tmp_path / "mpp.py").write_text(module)

    done = subprocess.run(
        [sys.executable, "-c", ASK_A_DOOR, tmp_path],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout.splitlines() == said, done.stderr
