"""The vendor API's routes: who asks, for what, and the bodies that go back. `docs/vendor-api.md` describes them."""

import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response, StreamingResponse

from cashier.core.model import PaidRequest
from inbound.web import ExactRoute, JsonReply, ProblemReply
from storefront.errors import VendorApiError, problem_of
from storefront.model import Sold, StatusView, Vendor
from storefront.shop import Shop
from wire.money import to_decimal
from wire.problems import ProblemDocument
from wire.vendor import (
    VENDOR_ID_HEADER,
    Artifact,
    ArtifactsReply,
    CancelRequest,
    JobsReply,
    JobStatus,
    OffersReply,
    Quote,
    QuoteRequest,
    Refund,
    SubmitReply,
    SubmitRequest,
    VendorHealth,
)

AnyShop = Shop[Any]
Handle = Callable[[Request], Awaitable[Response]]
# What stands around every request that names a vendor: it may wait, refuse, or change what `Handle` answers.
Around = Callable[[Request, Vendor, Handle], Awaitable[Response]]


def shop_of(request: Request) -> AnyShop:
    shop: AnyShop = request.app.state.shop
    return shop


def named_vendor(request: Request) -> Vendor:
    """Return the vendor that x-vendor-id names, the first one where it is absent. Raises VendorApiError."""
    vendors = shop_of(request).vendors
    vendor_id = request.headers.get(VENDOR_ID_HEADER) or next(iter(vendors))
    if vendor_id not in vendors:
        raise VendorApiError("unknown_vendor", f"no vendor here is called {vendor_id[:80]}")
    return vendors[vendor_id]


def vendor_of(request: Request) -> Vendor:
    """Return the vendor, to a caller with its secret. Raises VendorApiError."""
    vendor = named_vendor(request)
    sent = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
    wanted = f"Bearer {vendor.secret.get_secret_value()}".encode()
    if not hmac.compare_digest(sent, wanted):
        raise VendorApiError("bad_vendor_secret", f"this is not the bearer secret of {vendor.vendor_id}")
    return vendor


class VendorRoute(ExactRoute):
    """A route that waits until the shop is open; `app.state.around` stands around it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            around: Around | None = request.app.state.around
            try:
                await shop_of(request).open()
                if around is None:
                    return await handle(request)
                return await around(request, named_vendor(request), handle)
            except VendorApiError as error:
                challenge = {"www-authenticate": "Bearer"} if error.code == "bad_vendor_secret" else None
                return ProblemReply(problem_of(error), challenge)

        return handler


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"description": _MEANINGS[status], "model": ProblemDocument} for status in statuses}


_MEANINGS = {
    202: "The settlement is not mined yet: send the same request with the same payment again.",
    400: "A payment header that cannot be read, or a GPU that the vendor does not have.",
    401: "The bearer secret is wrong.",
    402: "Pay first (PAYMENT-REQUIRED, the body and WWW-Authenticate say how), or: refused, and nothing was charged.",
    404: "No such vendor, quote or job.",
    409: "This payment or its id came with another request before.",
    413: "The body is too large.",
    422: "The body is not JSON, or a field is missing or wrong.",
    500: "A scripted fault.",
    503: "Full, or the facilitator, the chain or the database does not answer; nothing is lost by asking again.",
}
_EVERY = _problems(401, 404, 422, 500, 503)
_WITH_BODY = {**_EVERY, **_problems(400, 413)}
_PAID = {**_WITH_BODY, **_problems(202, 402, 409)}

router = APIRouter(route_class=VendorRoute)
free = APIRouter()
VendorHere = Annotated[Vendor, Depends(vendor_of)]
ShopHere = Annotated[AnyShop, Depends(shop_of)]
JobId = Annotated[str, Query(alias="vendorJobId", min_length=1, max_length=256)]
Cursor = Annotated[str | None, Query(min_length=1, max_length=256, description="The last reply's `cursor`.")]


@router.get("/offers", response_model=OffersReply, responses=_EVERY)
async def offers(vendor: VendorHere, shop: ShopHere) -> Response:
    """The vendor's catalogue: GPU types, prices, what is free now."""
    return JsonReply(await shop.offers(vendor))


@router.post("/quote", response_model=Quote, responses=_WITH_BODY)
async def quote(vendor: VendorHere, shop: ShopHere, body: QuoteRequest) -> Response:
    """A binding price for one job."""
    return JsonReply(await shop.quote(vendor, body))


@router.post("/submit-job", response_model=SubmitReply, responses=_PAID)
async def submit_job(
    request: Request,
    vendor: VendorHere,
    shop: ShopHere,
    body: SubmitRequest,
) -> Response:
    """Start a quoted job, paid with x402 or MPP. The same request with the same payment gets the same answer."""
    paid = PaidRequest(
        method=request.method, url=str(request.url), headers=dict(request.headers), body=await request.body()
    )
    answer = await shop.submit(vendor, body, paid)
    return Response(answer.body, answer.status, dict(answer.headers))


@router.get("/jobs", response_model=JobsReply, responses=_EVERY)
async def jobs(
    vendor: VendorHere,
    shop: ShopHere,
    key: Annotated[str | None, Query(min_length=1, max_length=256)] = None,
    after: Annotated[str | None, Query(min_length=1, max_length=256, description="The last page's `cursor`.")] = None,
) -> Response:
    """The job that a payment id bought; none is no error. Without `key` all jobs of the buyer that have not ended."""
    return JsonReply(await (shop.active_jobs(vendor, after) if key is None else shop.find(vendor, key)))


@router.get("/job-status", response_model=JobStatus, responses=_EVERY)
async def job_status(
    request: Request, vendor: VendorHere, shop: ShopHere, vendor_job_id: JobId, since: Cursor = None
) -> Response:
    """How the job stands, with the log lines since a cursor. Each poll of a mock's job moves it by an epoch."""
    _must_know(shop, since)
    job = await shop.poll(vendor, vendor_job_id)
    return JsonReply(_status(request, vendor, job, await shop.seller.status(vendor, job, since)))


@router.post("/cancel-job", response_model=JobStatus, responses=_WITH_BODY)
async def cancel_job(
    request: Request,
    vendor: VendorHere,
    shop: ShopHere,
    body: CancelRequest,
) -> Response:
    """End the job; the unused part of its price is transferred back before this answers."""
    _must_know(shop, body.since)
    job = await shop.cancel(vendor, body.vendor_job_id)
    return JsonReply(_status(request, vendor, job, await shop.seller.status(vendor, job, body.since)))


@router.get("/artifacts/{job_id}", response_model=ArtifactsReply, responses=_EVERY)
async def artifacts(request: Request, vendor: VendorHere, shop: ShopHere, job_id: str) -> Response:
    """The files of an ended job, a failed one's too; none while it runs."""
    job = await shop.job(vendor, job_id)
    listed = [
        Artifact(
            name=file.name,
            bytes=file.bytes,
            sha256=file.sha256,
            url=_artifact_url(request, vendor, job, file.name),
        )
        for file in await shop.seller.files(job)
    ]
    return JsonReply(ArtifactsReply(artifacts=tuple(listed)))


@free.get("/artifacts/{job_id}/{name}", responses=_problems(404), response_class=Response)
async def artifact(
    shop: ShopHere, job_id: str, name: str, signature: Annotated[str, Query(max_length=64)] = ""
) -> Response:
    """One file's bytes. Its address, as /artifacts gave it, is the permission; no bearer is asked."""
    job = await shop.store.find_job(job_id)
    if job is None or job.vendor_id not in shop.vendors:
        raise VendorApiError("not_found", "no such file")
    wanted = _signature(shop.vendors[job.vendor_id], job, name)
    if not hmac.compare_digest(signature.encode("utf-8", "surrogateescape"), wanted.encode()):
        raise VendorApiError("not_found", "no such file")
    content = _content(shop, job, name)
    # The first chunk now: a file that is not there is 404, and not a broken answer.
    first = await anext(content, b"")
    return StreamingResponse(_joined(first, content), media_type="application/octet-stream")


@free.get("/health", response_model=VendorHealth)
async def health(request: Request, shop: ShopHere) -> Response:
    """Whether the server is up, and whom it serves."""
    own: Callable[[], VendorHealth] | None = request.app.state.health
    return JsonReply(VendorHealth(vendors=tuple(shop.vendors)) if own is None else own())


def _must_know(shop: AnyShop, since: str | None) -> None:
    """Raises VendorApiError for a cursor that the seller never gave; nothing has moved yet."""
    if since is not None and not shop.seller.knows(since):
        raise VendorApiError("invalid_field", "since: not a `cursor` of this vendor")


def _status(request: Request, vendor: Vendor, job: Sold, view: StatusView) -> JobStatus:
    refund = None
    if job.refund_transaction is not None:
        refund = Refund(
            amount=to_decimal(job.refund_atomic, vendor.asset),
            asset=vendor.asset.address,
            network=vendor.asset.network,
            transaction=job.refund_transaction,
        )
    return JobStatus(
        vendor_job_id=job.job_id,
        status=job.status,
        progress=view.progress,
        logs=view.logs,
        metrics=view.metrics,
        checkpoint=view.checkpoint,
        cursor=view.cursor,
        estimated_remaining_minutes=view.remaining_minutes,
        cost_so_far=to_decimal(view.cost_atomic, vendor.asset),
        final_metrics=None if view.final_metrics is None else dict(view.final_metrics),
        artifact_url=None if view.artifact is None else _artifact_url(request, vendor, job, view.artifact),
        error_message=view.error_message,
        ended_at=None if job.ended_at_s is None else datetime.fromtimestamp(job.ended_at_s, UTC),
        refund=refund,
    )


async def _content(shop: AnyShop, job: Sold, name: str) -> AsyncIterator[bytes]:
    async with aclosing(shop.seller.read(job, name)) as chunks:
        async for chunk in chunks:
            yield chunk


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


def _artifact_url(request: Request, vendor: Vendor, job: Sold, name: str) -> str:
    return f"{request.base_url}artifacts/{job.job_id}/{name}?signature={_signature(vendor, job, name)}"


def _signature(vendor: Vendor, job: Sold, name: str) -> str:
    key = vendor.secret.get_secret_value().encode()
    return hmac.new(key, f"{job.job_id}/{name}".encode(), hashlib.sha256).hexdigest()
