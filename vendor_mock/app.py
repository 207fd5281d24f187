"""The vendors' HTTP door, wired: `create_app` for tests and for the CLI."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from inbound.web import create_door
from outbound.http import HttpClient
from vendor_mock.callbacks import call_back
from vendor_mock.catalogue import VendorPlan
from vendor_mock.config import VendorMockSettings
from vendor_mock.errors import ERRORS, problem_of
from vendor_mock.routes import free, router
from vendor_mock.shop import Clock, Shop, open_shop

_ABOUT = "How somebody who rents GPUs talks to somebody who sells them. /submit-job takes x402 and MPP, money is USDC."


def create_app(
    settings: VendorMockSettings,
    *,
    plans: tuple[VendorPlan, ...] | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    clock: Clock = time.time,
) -> FastAPI:
    """
    Return the vendors' app; `app.state.shop.faults` scripts faults while it runs.

    It opens itself at the first request, so it also serves where no lifespan is run (`httpx.ASGITransport`).

    Args:
        plans: the vendors; None reads the vendors file or takes the default three.
        transport: what carries requests to the facilitator instead of the network.
        clock: Unix seconds.

    Raises:
        SetupError: a vendor has no secret, key or price.
    """
    shop = open_shop(settings, plans, None if transport is None else HttpClient(transport), clock)
    app = create_door(
        title="Livery vendor API",
        version="1",
        description=_ABOUT,
        errors=ERRORS,
        translate=problem_of,
        lifespan=_lifespan,
    )
    app.state.shop = shop
    app.include_router(router)
    app.include_router(free)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    shop: Shop = app.state.shop
    await shop.open()
    caller = asyncio.create_task(call_back(shop, HttpClient()))
    yield
    caller.cancel()
    await asyncio.wait({caller})
    await shop.close()


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, kept after the first time."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=_ABOUT, routes=app.routes)
        for framework_made in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(framework_made, None)
        document["components"]["securitySchemes"] = {"vendorSecret": {"type": "http", "scheme": "bearer"}}
        _describe(document["paths"])
        app.openapi_schema = document
    return app.openapi_schema


_VENDOR_ID = {
    "name": "x-vendor-id",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "The vendor that is meant, where one address serves several; absent: the first.",
}
_PAYMENT = {
    "name": "PAYMENT-SIGNATURE",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "Base64 of an x402 v2 PaymentPayload; without a payment the answer is a 402 that says what to sign.",
}
_PAYMENT_V1 = {
    "name": "X-PAYMENT",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "Base64 of an x402 v1 PaymentPayload, instead of PAYMENT-SIGNATURE.",
}
_PAYMENT_MPP = {
    "name": "Payment-Authorization",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "`Payment` and an MPP credential, instead of PAYMENT-SIGNATURE, where WWW-Authenticate asks for it.",
}
_PAYMENT_ID = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{16,128}$"},
    "description": "The payment id; the same as the payment-identifier extension's id where both are sent.",
}
_OPEN = ("/health", "/artifacts/{job_id}/{name}")


def _describe(paths: dict[str, Any]) -> None:
    """Add what the routes read by hand: the vendor's name, its secret, the payment."""
    for path, methods in paths.items():
        if path in _OPEN:
            continue
        for operation in methods.values():
            operation["security"] = [{"vendorSecret": []}]
            operation.setdefault("parameters", []).append(_VENDOR_ID)
            if path == "/submit-job":
                operation["parameters"] += [_PAYMENT, _PAYMENT_V1, _PAYMENT_MPP, _PAYMENT_ID]
