"""The mock vendors call their buyers: signed, when a job has ended by time, again until it is accepted."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from outbound.http import HttpClient
from storefront.callbacks import call_back
from storefront.shop import Shop
from tests.vendor_mock.conftest import Open
from vendor_mock.simulation import Job

pytestmark = pytest.mark.slow

URL = "http://buyer/api/vendor-callback?runId=run_1"


class Buyer(httpx.AsyncBaseTransport):
    """Answers calls with `answers`, the last one for ever; `called` is set at the `calls_max`-th."""

    def __init__(self, *answers: int | Exception, calls_max: int | None = None) -> None:
        self.answers = list(answers)
        self.calls_max = calls_max or len(answers)
        self.requests: list[httpx.Request] = []
        self.called = asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if len(self.requests) == self.calls_max:
            self.called.set()
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer)


@pytest.fixture
async def shop(vendors: Open) -> Shop:
    """A shop in which a job that began at second 0 has ended by now, and nobody asked for it."""
    shop: Shop = vendors(epoch_seconds=1, clock=lambda: 10).app.state.shop
    await sell(shop, "vgpu_1", URL)
    return shop


async def sell(shop: Shop, job_id: str, callback_url: str | None, **more: Any) -> None:
    job = Job(
        **{"job_id": job_id, "vendor_id": "gpu_vendor_1", "payment_id": f"pay-{job_id}", "gpu_type": "A10"},
        **{"hours": 1, "price_atomic": 1, "started_at_s": 0, "callback_url": callback_url, **more},
    )
    await shop.store.start_job(job.payment_id, job.vendor_id, lambda number: job)


@asynccontextmanager
async def calling(shop: Shop, buyer: Buyer) -> AsyncIterator[None]:
    caller = asyncio.create_task(call_back(shop, HttpClient(buyer), look_s=0, retries_s=(0, 0, 0)))
    try:
        yield
    finally:
        caller.cancel()
        await asyncio.wait({caller})


async def until_done(shop: Shop, left: int = 0) -> None:
    async with asyncio.timeout(30):
        while len(await shop.store.to_call_back()) > left:
            pass


async def test_a_job_that_ended_by_time_is_told_signed_and_again_until_it_is_accepted(shop: Shop) -> None:
    buyer = Buyer(409, httpx.ConnectError("nobody there"), 200)
    async with calling(shop, buyer):
        await until_done(shop)
    assert len(buyer.requests) == 3
    for request in buyer.requests:
        assert str(request.url) == URL
        assert request.headers["webhook-id"] == "msg_vgpu_1"
        assert request.headers["x-vendor-id"] == "gpu_vendor_1"
        told = Webhook(b"secret-1").verify(request.content, dict(request.headers))
        assert told["type"] == "job.completed"
        assert told["data"] == {"vendorJobId": "vgpu_1", "status": "completed"}


async def test_a_buyer_that_never_accepts_is_given_up(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    buyer = Buyer(500)
    async with calling(shop, buyer):
        await until_done(shop)
    assert len(buyer.requests) == 4
    assert "given up" in caplog.messages[-1]


async def test_a_run_that_is_not_there_is_not_called_again(shop: Shop) -> None:
    buyer = Buyer(404)
    async with calling(shop, buyer):
        await until_done(shop)
    assert len(buyer.requests) == 1


async def test_a_vendor_that_is_started_again_calls_who_was_not_called(shop: Shop) -> None:
    async with calling(shop, deaf := Buyer(500, calls_max=1)):
        await asyncio.wait_for(deaf.called.wait(), 30)
    assert await shop.store.to_call_back()
    async with calling(shop, buyer := Buyer(200)):
        await until_done(shop)
    assert len(buyer.requests) == 1


async def test_who_gave_no_address_and_whose_job_runs_is_not_called(vendors: Open) -> None:
    shop: Shop = vendors(epoch_seconds=1, clock=lambda: 10).app.state.shop
    await sell(shop, "vgpu_quiet", None)
    await sell(shop, "vgpu_running", URL, started_at_s=9)
    await sell(shop, "vgpu_ended", URL)
    buyer = Buyer(200)
    async with calling(shop, buyer):
        await asyncio.wait_for(buyer.called.wait(), 30)
        await until_done(shop, left=1)
    assert [request.headers["webhook-id"] for request in buyer.requests] == ["msg_vgpu_ended"]
    assert [job.job_id for job in await shop.store.to_call_back()] == ["vgpu_running"]
