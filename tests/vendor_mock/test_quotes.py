"""Quotes cost nothing and fill no disk: the newest are kept, and those that somebody pays."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from chain.devchain import DevAccount
from storefront.book import QUOTES_MAX
from storefront.model import Template
from tests.vendor_mock.conftest import Open
from tests.vendor_mock.world import Buyer, code, new_payment_id, read

pytestmark = pytest.mark.slow


async def _flood(buyer: Buyer) -> None:
    """Ask for as many quotes as are kept; all but the last without a request."""
    client: Any = buyer.client
    store, quoted = client.app.state.shop.store, await buyer.quote()
    template = await store.find_template(quoted["vendorJobTemplateId"])
    fields = {name: getattr(template, name) for name in Template.__slots__}
    for number in range(QUOTES_MAX - 2):
        await store.add_template(Template(**fields | {"template_id": f"tmpl_{number}"}))
    await buyer.quote()


def _count(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "vendors.db")) as connection:
        return int(connection.execute("SELECT count(*) FROM templates").fetchone()[0])


async def test_the_oldest_quotes_fall_out_and_what_was_paid_is_answered_again(buyer: Buyer, tmp_path: Path) -> None:
    paid, unpaid = await buyer.order(), await buyer.order()
    headers = buyer.sign(await buyer.challenge(paid), new_payment_id())
    first = await buyer.post("/submit-job", paid, **headers)
    await _flood(buyer)
    kept = await buyer.order()

    again = await buyer.post("/submit-job", paid, **headers)

    assert first.status_code == 200
    assert (again.status_code, again.content) == (200, first.content)
    assert code(await buyer.post("/submit-job", unpaid)) == "template_not_found"
    assert (await buyer.post("/submit-job", kept)).status_code == 402
    assert _count(tmp_path) == QUOTES_MAX + 1


class _Held(httpx.AsyncBaseTransport):
    """A facilitator that is asked to settle, and takes its time."""

    def __init__(self, facilitator: FastAPI) -> None:
        self._inner = httpx.ASGITransport(facilitator)
        self.is_asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/settle"):
            self.is_asked.set()
            await self.may_answer.wait()
        return await self._inner.handle_async_request(request)


async def test_a_quote_that_is_being_paid_stays_however_long_that_takes(
    vendors: Open, payer: DevAccount, facilitator: FastAPI
) -> None:
    held = _Held(facilitator)
    buyer = Buyer(vendors(transport=held), payer)
    order = await buyer.order()
    for _ in range(3):
        await buyer.quote()
    headers = buyer.sign(await buyer.challenge(order), new_payment_id())
    paying = asyncio.create_task(buyer.post("/submit-job", order, **headers))
    await held.is_asked.wait()
    await _flood(buyer)
    await buyer.quote()
    held.may_answer.set()

    assert read(await paying)["status"] == "submitted"
