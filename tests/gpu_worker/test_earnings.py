"""What was earned is what came in and did not go back: in the book, in the till and on the chain."""

import csv
import io
import sqlite3
from contextlib import closing
from decimal import Decimal

import pytest

from gpu_worker.core.earnings import csv_text, per_hour, total
from gpu_worker.earnings import earned
from gpu_worker.wiring.worker import open_book
from tests.gpu_worker.world import Place
from wire.money import BASE_SEPOLIA_USDC

pytestmark = pytest.mark.slow

PRICE = 10**6


async def test_what_was_earned_is_the_till_less_the_refunds_and_what_the_chain_has(place: Place) -> None:
    before = place.paid()
    async with place.lives() as buyer:
        done = await place.ended(await buyer.buy("1", steps=20))
        place.script(crash_at=5)
        failed = await place.ended(await buyer.buy("1", steps=20))
    book = open_book(place.settings())
    try:
        found = await earned(book)
        later = await earned(book, since_s=max(one.ended_at_s for one in found) + 1)
    finally:
        await book.close()
    whole = total(found)

    assert [one.job_id for one in found] == [done.job_id, failed.job_id]
    # The crash was the owner's fault: all of it went back.
    assert found[1].kept_atomic == 0 < found[0].kept_atomic < PRICE
    assert all(one.is_refund_sent for one in found)
    taken, sent_back = _till(place)
    assert (taken, sent_back) == (2 * PRICE, whole.refunded_atomic)
    assert whole.kept_atomic == taken - sent_back == place.paid() - before
    assert whole.kept_atomic == sum(hour.kept_atomic for hour in per_hour(found))
    lines = list(csv.DictReader(io.StringIO(csv_text(found, BASE_SEPOLIA_USDC))))
    assert sum(Decimal(line["earned"]) for line in lines) == Decimal(whole.kept_atomic) / PRICE
    assert lines[0]["payer"].lower() == place.payer.address.lower()
    assert lines[0]["refund_transaction"] == done.refund_transaction
    assert later == ()


def _till(place: Place) -> tuple[int, int]:
    """Return what was taken and what was sent back, as the cashier has it."""
    with closing(sqlite3.connect(place.settings().database)) as till:
        [(taken,)] = till.execute("SELECT sum(amount_atomic) FROM payments_taken")
        [(sent_back,)] = till.execute("SELECT sum(amount_atomic) FROM refunds_made WHERE state = 'paid'")
        return taken, sent_back
