"""A shop's HTTP door: the vendor API, and the document that describes it."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from inbound.web import create_door
from storefront.errors import ERRORS, problem_of
from storefront.routes import AnyShop, Around, free, router
from wire.problems import ProblemDocument
from wire.vendor import VendorHealth

_ABOUT = "How somebody who rents GPUs talks to somebody who sells them. /submit-job takes x402 and MPP, money is USDC."


def create_vendor_app(
    shop: AnyShop,
    *,
    title: str = "Livery vendor API",
    around: Around | None = None,
    health: Callable[[], VendorHealth] | None = None,
    errors: Mapping[type[Exception], Callable[[Any], ProblemDocument]] | None = None,
    bodies: Mapping[str, int] | None = None,
    lifespan: Any = None,
) -> FastAPI:
    """
    Return the app that sells what `shop` has; `app.state.shop` is the shop.

    It opens the shop at the first request, so it also serves where no lifespan is run (`httpx.ASGITransport`).

    Args:
        around: what stands around every request that names a vendor.
        health: what `/health` answers; None: that the vendors are there.
        errors: the seller's own errors, and what each is told as.
        bodies: the largest body in bytes under a prefix of the path, see `inbound.web.create_door`.
    """
    own = errors or {}

    def translate(error: Exception) -> ProblemDocument:
        say = next((say for kind, say in own.items() if isinstance(error, kind)), problem_of)
        return say(error)

    app = create_door(
        title=title,
        version="1",
        description=_ABOUT,
        errors=(*own, *ERRORS),
        translate=translate,
        bodies=bodies,
        lifespan=lifespan,
    )
    app.state.shop = shop
    app.state.around = around
    app.state.health = health
    app.include_router(router)
    app.include_router(free)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


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


def _header(name: str, description: str, **more: str) -> dict[str, Any]:
    """Return an optional header as OpenAPI describes it; `more` bounds its text."""
    schema = {"type": "string", **more}
    return {"name": name, "in": "header", "required": False, "schema": schema, "description": description}


_VENDOR_ID = _header("x-vendor-id", "The vendor that is meant, where one address serves several; absent: the first.")
_PAYMENT = _header(
    "PAYMENT-SIGNATURE",
    "Base64 of an x402 v2 PaymentPayload; without a payment the answer is a 402 that says what to sign.",
)
_PAYMENT_V1 = _header("X-PAYMENT", "Base64 of an x402 v1 PaymentPayload, instead of PAYMENT-SIGNATURE.")
_PAYMENT_MPP = _header(
    "Payment-Authorization",
    "`Payment` and an MPP credential, instead of PAYMENT-SIGNATURE, where WWW-Authenticate asks for it.",
)
_PAYMENT_ID = _header(
    "Idempotency-Key",
    "The payment id; the same as the payment-identifier extension's id where both are sent.",
    pattern="^[A-Za-z0-9_-]{16,128}$",
)
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
