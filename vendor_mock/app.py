"""The vendors' HTTP door, wired: `create_app` for tests and for the CLI."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Request
from starlette.responses import HTMLResponse, Response

from outbound.http import HttpClient
from storefront.door import create_vendor_app
from storefront.errors import VendorApiError
from storefront.model import Vendor
from storefront.ports import Clock
from storefront.routes import Around, Handle
from storefront.tending import tend
from vendor_mock.catalogue import VendorPlan
from vendor_mock.config import VendorMockSettings
from vendor_mock.faults import FaultBoard
from vendor_mock.shop import MockShop, open_shop

_BAD_GATEWAY = 502
_HTML = "<!doctype html><title>Maintenance</title><h1>We will be back soon</h1>"


def create_app(
    settings: VendorMockSettings,
    *,
    plans: tuple[VendorPlan, ...] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    clock: Clock = time.time,
    files: httpx.AsyncBaseTransport | None = None,
) -> FastAPI:
    """
    Return the vendors' app; `app.state.shop.faults` scripts faults while it runs.

    It opens itself at the first request, so it also serves where no lifespan is run (`httpx.ASGITransport`).

    Args:
        plans: the vendors; None reads the vendors file or takes the default three.
        transport: what carries requests to the facilitator instead of the network.
        clock: Unix seconds.
        files: what carries checkpoints to buyers' stores instead of the network.

    Raises:
        SetupError: a vendor has no secret, key or price.
    """
    facilitator = None if transport is None else HttpClient(transport)
    shop = open_shop(settings, plans, facilitator, clock, HttpClient(files))
    return create_vendor_app(shop, around=_with_faults(shop.faults), lifespan=_lifespan)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    shop: MockShop = app.state.shop
    await shop.open()
    tending = asyncio.create_task(tend(shop, HttpClient()))
    yield
    tending.cancel()
    await asyncio.wait({tending})
    await shop.close()


def _with_faults(board: FaultBoard) -> Around:
    async def around(request: Request, vendor: Vendor, handle: Handle) -> Response:
        if vendor.vendor_id in board.vanished:
            return _gone()
        faults = board.of(vendor.vendor_id)
        if not faults.apply_to(request.url.path):
            return await _heard(request, vendor, handle)
        if faults.slow_seconds:
            await asyncio.sleep(float(faults.slow_seconds))
        if board.take_error(vendor.vendor_id):
            words = faults.words or (f"{vendor.vendor_id} was told to fail here",)
            raise VendorApiError("vendor_fault", words[0])
        response = HTMLResponse(_HTML) if faults.answer_html else await _heard(request, vendor, handle)
        if faults.header_bytes:
            response.headers["x-padding"] = "x" * faults.header_bytes
        return response

    async def _heard(request: Request, vendor: Vendor, handle: Handle) -> Response:
        """Return the answer, but for one of a job that was started and is never told, and of who is gone."""
        response = await handle(request)
        if vendor.vendor_id in board.vanished:
            return _gone()
        is_paid = request.url.path == "/submit-job" and response.status_code == 200
        if is_paid and board.take_timeout(vendor.vendor_id):
            # Until the caller has gone it hears nothing.
            while (await request.receive())["type"] != "http.disconnect":
                pass
        return response

    return around


def _gone() -> Response:
    """Return what a proxy says of a server that is not there."""
    return Response(b"", _BAD_GATEWAY)
