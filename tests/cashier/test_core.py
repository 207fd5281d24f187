"""The decisions, without a world."""

import asyncio
from dataclasses import replace

import pytest

from cashier.core.claiming import Claimed, Conflict, Held, Row, Served, Unknown, decide_claim
from cashier.core.errors import CashierError, FacilitatorUnavailable, RefundRefused, Unavailable
from cashier.core.model import Answer, Lease, Taking, sale_of
from cashier.core.reading import _fingerprint
from cashier.edges.till_sqlite import SCHEMA
from cashier.ports import Locks
from storage.sqlite import Sqlite
from tests.cashier.world import request_with
from wire.money import Amount
from wire.problems import PROBLEMS

LEASE = Lease("me", 1000, 1090)
TAKING = Taking(
    payer="0xaa",
    nonce="0xbb",
    payment_id="a-payment-identifier",
    fingerprint="f1",
    pay_to="0xcc",
    amount=Amount(5, "0xdd", "eip155:84532"),
    valid_before_s=2000,
    payload={},
    url="http://seller.example/submit-job",
    body=b"{}",
)
ANSWER = Answer(status=200, headers={}, body=b"{}")
OTHER = replace(TAKING, fingerprint="f2")
SETTLING = replace(TAKING, state="settling", from_block=7)


@pytest.mark.parametrize(
    ("rows", "insert", "claim"),
    [
        ([], True, Claimed(TAKING)),
        ([], False, Unknown()),
        ([Row(OTHER, 0)], True, Conflict()),
        ([Row(OTHER, 0)], False, Conflict()),
        ([Row(TAKING, 0), Row(OTHER, 0)], True, Conflict()),
        ([Row(replace(SETTLING, answer=ANSWER), 0)], True, Served(ANSWER)),
        ([Row(replace(SETTLING, answer=ANSWER), 5000)], False, Served(ANSWER)),
        ([Row(SETTLING, 1001)], True, Held(1001)),
        ([Row(SETTLING, 1000)], True, Claimed(SETTLING)),
        ([Row(SETTLING, 0)], False, Claimed(SETTLING)),
    ],
)
def test_a_claim_is_decided_from_the_rows_that_share_its_names(rows, insert, claim):
    assert decide_claim(TAKING, rows, LEASE, insert=insert) == claim


@pytest.mark.parametrize("taking", [TAKING, SETTLING, replace(TAKING, state="settled")])
def test_what_is_not_settled_sold_nothing(taking):
    with pytest.raises(ValueError, match=f"a payment that is {taking.state} sold nothing yet"):
        sale_of(taking)


@pytest.mark.parametrize("state", ["settled", "served"])
def test_what_is_settled_is_a_sale(state):
    assert sale_of(replace(TAKING, state=state, transaction="0xee")).transaction == "0xee"


def test_a_row_begins_with_nothing_done():
    assert (TAKING.state, TAKING.from_block, TAKING.transaction, TAKING.answer) == ("claimed", 0, None, None)


def test_no_part_of_a_request_runs_into_the_next():
    prints = {
        _fingerprint(request_with(method="POST", url="http://h/a?b"), "c"),
        _fingerprint(request_with(method="POST", url="http://h/ab"), "c"),
        _fingerprint(request_with(method="POST", url="http://h/a?bc"), ""),
        _fingerprint(request_with(method="POST", url="http://h/a?b", body=b"c"), ""),
        _fingerprint(request_with(method="POST", url="http://h/a?b", body=b""), "c"),
        _fingerprint(request_with(method="POST", url="http://h/a?b", body=b""), "c", ""),
        _fingerprint(request_with(method="POST", url="http://h/a?b", body=b""), "", "c"),
    }
    assert len(prints) == 7
    assert _fingerprint(request_with(method="post"), "c") == _fingerprint(request_with(method="POST"), "c")


def test_every_error_has_a_code_of_the_table():
    kinds = [CashierError, RefundRefused, Unavailable]
    for kind in [*kinds, *(child for parent in kinds for child in parent.__subclasses__())]:
        assert kind.code in PROBLEMS
        assert kind.retryable is issubclass(kind, Unavailable)
    assert FacilitatorUnavailable.code == "facilitator_unavailable"


async def test_a_lock_is_held_by_one_and_forgotten_after_the_last():
    locks, order = Locks(), []

    async def work(name: str, key: str) -> None:
        async with locks.hold(key):
            order.append(f"{name} in")
            await asyncio.sleep(0)
            order.append(f"{name} out")

    await asyncio.gather(work("a", "one"), work("b", "one"), work("c", "two"), work("d", "one"))

    one = [entry for entry in order if not entry.startswith("c")]
    assert one == ["a in", "a out", "b in", "b out", "d in", "d out"]
    assert order.index("c in") < order.index("a out")
    assert locks._locks == {}


async def test_a_lock_survives_the_failure_of_its_holder():
    locks = Locks()
    with pytest.raises(OSError, match="broken"):
        async with locks.hold("one"):
            raise OSError("broken")
    async with locks.hold("one"):
        pass
    assert locks._locks == {}


async def test_the_tables_are_made_at_first_use_and_complete(tmp_path):
    db = Sqlite(tmp_path / "till.db", SCHEMA)
    try:
        assert await db.migrate() == 3
        assert await db.check() == []
    finally:
        await db.close()
