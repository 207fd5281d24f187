"""The book of a shop and what the shop does by itself: it sleeps until something ended, and an old book still opens."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.ports import Watched
from cashier.core.errors import ChainUnavailable, NoRefundKey
from outbound.http import HttpClient
from storage.errors import Unavailable
from storefront.refunds import pay_back
from storefront.shop import Shop
from storefront.tending import tend
from tests.vendor_mock.conftest import Open
from vendor_mock.simulation import Job
from vendor_mock.store import SCHEMA, open_book

pytestmark = pytest.mark.slow

WAIT_S = 30
URL = "http://buyer/called"


def job(job_id: str, **more: Any) -> Job:
    fields = {"vendor_id": "gpu_vendor_1", "payment_id": f"pay-{job_id}", "gpu_type": "A10", "hours": 1}
    return Job(**{"job_id": job_id, **fields, "price_atomic": 10, "started_at_s": 0, **more})


async def put(shop: Shop[Job], made: Job) -> None:
    await shop.store.start_job(made.payment_id, made.vendor_id, lambda number: made)
    await shop.store.update_job(made.job_id, lambda stored: made)


class Till:
    """A cashier that pays refunds in words: each key's answers in turn, the last one for ever."""

    def __init__(self, **answers: list[str | Exception]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        self.paid = asyncio.Event()

    async def refund(self, payment_id: str, amount_atomic: int, key: str) -> str:
        self.asked.append(key)
        left = self.answers[key]
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        self.paid.set()
        return answer

    async def recover(self, start: Any) -> None: ...

    async def close(self) -> None: ...


@pytest.fixture
async def shop(vendors: Open) -> Shop[Job]:
    shop: Shop[Job] = vendors().app.state.shop
    await shop.cashier.close()
    return shop


@asynccontextmanager
async def going(work: Any) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_what_is_owed_is_paid_at_the_start_and_at_each_end(shop: Shop[Job]) -> None:
    till: Any = Till(refund_a=["0xaa"], refund_b=["0xbb"])
    shop.cashier = till
    await put(shop, job("a", status="failed", refund_atomic=5))
    await put(shop, job("b", status="running"))
    await put(shop, job("c", status="completed"))
    async with going(pay_back(shop, grace_s=0)):
        await asyncio.wait_for(till.paid.wait(), WAIT_S)
        till.paid.clear()
        await shop.store.update_job("b", lambda stored: replace(stored, status="cancelled", refund_atomic=3))
        await asyncio.wait_for(till.paid.wait(), WAIT_S)
        async with asyncio.timeout(WAIT_S):
            while await shop.store.to_pay_back():
                pass
    assert [found.refund_transaction for found in await shop.store.jobs()] == ["0xaa", "0xbb", None]
    assert till.asked == ["refund_a", "refund_b"]


async def test_one_that_can_never_be_paid_is_told_once_and_holds_up_no_other(
    shop: Shop[Job], caplog: pytest.LogCaptureFixture
) -> None:
    till: Any = Till(refund_a=[NoRefundKey("no key of 0x1")], refund_b=[ChainUnavailable("away"), "0xbb"])
    shop.cashier = till
    for name in ("a", "b"):
        await put(shop, job(name, status="failed", refund_atomic=5))
    async with going(pay_back(shop, grace_s=0)):
        await asyncio.wait_for(till.paid.wait(), WAIT_S)
        async with asyncio.timeout(WAIT_S):
            while len(await shop.store.to_pay_back()) > 1:
                pass
    assert till.asked.count("refund_a") == 1
    assert till.asked.count("refund_b") == 2
    assert caplog.text.count("refund of a is still owed") == 1


async def test_a_shop_without_work_reads_nothing(shop: Shop[Job]) -> None:
    reads: list[str] = []
    is_quiet = asyncio.Event()

    async def look(moment: str, method: str, call: Any) -> None:
        if moment == "after":
            reads.append(method)
            if {"to_call_back", "to_pay_back"} <= set(reads):
                is_quiet.set()

    watched: Any = Watched(shop.store, look)
    book, shop.store = shop.store, watched
    buyer = httpx.MockTransport(lambda request: httpx.Response(200))
    async with going(tend(shop, HttpClient(buyer), look_s=0, grace_s=0)):
        await asyncio.wait_for(is_quiet.wait(), WAIT_S)
        # Whatever woke by itself would read between two of these, which take a trip to a thread each.
        for _ in range(200):
            await book.find_job("nobody")
        assert sorted(reads) == ["to_call_back", "to_pay_back"]
        await put(shop, job("a", status="completed", callback_url=URL))
        async with asyncio.timeout(WAIT_S):
            while await book.to_call_back():
                pass
    assert (await book.jobs())[0].is_callback_done


async def test_a_buyer_is_not_called_before_it_is_paid_back(shop: Shop[Job]) -> None:
    till: Any = Till(refund_a=[ChainUnavailable("away"), "0xaa"])
    shop.cashier = till
    calls: list[str | None] = []
    called = asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        found = await shop.store.find_job("a")
        calls.append(None if found is None else found.refund_transaction)
        called.set()
        return httpx.Response(200)

    await put(shop, job("a", status="failed", refund_atomic=5, callback_url=URL))
    async with going(tend(shop, HttpClient(httpx.MockTransport(answer)), grace_s=0)):
        await asyncio.wait_for(called.wait(), WAIT_S)
    assert calls == ["0xaa"]


async def test_a_database_that_fails_for_a_while_does_not_end_the_loops(shop: Shop[Job]) -> None:
    failures = [Unavailable("the disk")]
    asked = asyncio.Event()

    async def look(moment: str, method: str, call: Any) -> None:
        if method == "to_call_back" and moment == "before":
            if failures:
                raise failures.pop()
            asked.set()

    watched: Any = Watched(shop.store, look)
    shop.store = watched
    async with going(tend(shop, HttpClient(httpx.MockTransport(lambda request: httpx.Response(200))), again_s=0)):
        await asyncio.wait_for(asked.wait(), WAIT_S)


async def test_the_book_of_an_older_program_opens_and_what_it_owes_is_found(tmp_path: Path) -> None:
    path = tmp_path / "vendor-mock.db"
    rows = {
        "owes": {"status": "failed", "refund_atomic": 5},
        "paid": {"status": "failed", "refund_atomic": 5, "refund_transaction": "0x1"},
        "runs": {"status": "running", "callback_url": URL},
        "told": {"status": "completed", "callback_url": URL, "is_callback_done": True},
    }
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE schema (room TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT")
        connection.execute("INSERT INTO schema VALUES ('vendor_mock', 1)")
        for statement in SCHEMA.steps[0]:
            connection.execute(statement)
        connection.execute("INSERT INTO templates VALUES ('t', 'gpu_vendor_1', 'A10', '1.5', 7)")
        for name, row in rows.items():
            fields = {"vendor_id": "v", "payment_id": name, "gpu_type": "A10", "hours": "1.50", "progress": 0}
            document = {"job_id": name, **fields, "price_atomic": 9, "started_at_s": 1, "logs": ["one"], **row}
            values = (name, "v", name, "A10", row["status"] != "running", json.dumps(document))
            connection.execute("INSERT INTO mock_jobs VALUES (?, ?, ?, ?, ?, ?)", values)
    book = open_book(path)
    template = await book.find_template("t")
    assert template is not None
    assert (template.price_atomic, template.job_type, template.terms_json) == (7, "", "{}")
    assert [found.job_id for found in await book.jobs()] == [*rows]
    assert [found.job_id for found in await book.to_pay_back()] == ["owes"]
    assert [found.job_id for found in await book.to_call_back()] == ["runs"]
    await book.close()
