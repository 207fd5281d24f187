"""The vendor API's routes: who asks, for what, and the bodies that go back. `docs/vendor-api.md` describes them."""

import asyncio
import hashlib
import hmac
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import HTMLResponse, Response

from cashier.core.model import PaidRequest
from inbound.web import ExactRoute, JsonReply, ProblemReply
from vendor_mock import simulation
from vendor_mock.catalogue import Vendor
from vendor_mock.errors import VendorApiError, problem_of
from vendor_mock.shop import Shop, money
from vendor_mock.simulation import TERMINAL, Job
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

_HTML = "<!doctype html><title>Maintenance</title><h1>We will be back soon</h1>"


def shop_of(request: Request) -> Shop:
    shop: Shop = request.app.state.shop
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
    """A route that waits until the shop is open, and on which the vendor's scripted faults happen."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await with_faults(request)
            except VendorApiError as error:
                challenge = {"www-authenticate": "Bearer"} if error.code == "bad_vendor_secret" else None
                return ProblemReply(problem_of(error), challenge)

        async def with_faults(request: Request) -> Response:
            shop = shop_of(request)
            await shop.open()
            vendor = named_vendor(request)
            faults = shop.faults.of(vendor.vendor_id)
            if not faults.apply_to(request.url.path):
                return await handle(request)
            if faults.slow_seconds:
                await asyncio.sleep(float(faults.slow_seconds))
            if shop.faults.take_error(vendor.vendor_id):
                words = faults.words or (f"{vendor.vendor_id} was told to fail here",)
                raise VendorApiError("vendor_fault", words[0])
            response = HTMLResponse(_HTML) if faults.answer_html else await handle(request)
            if faults.header_bytes:
                response.headers["x-padding"] = "x" * faults.header_bytes
            return response

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
ShopHere = Annotated[Shop, Depends(shop_of)]
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
    if answer.status == 200 and shop.faults.take_timeout(vendor.vendor_id):
        await _hang(request)
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
    start = _line(since)
    return JsonReply(_status(request, shop, vendor, await shop.poll(vendor, vendor_job_id), start))


@router.post("/cancel-job", response_model=JobStatus, responses=_WITH_BODY)
async def cancel_job(
    request: Request,
    vendor: VendorHere,
    shop: ShopHere,
    body: CancelRequest,
) -> Response:
    """End the job; the unused part of its price is transferred back before this answers."""
    start = _line(body.since)
    return JsonReply(_status(request, shop, vendor, await shop.cancel(vendor, body.vendor_job_id), start))


@router.get("/artifacts/{job_id}", response_model=ArtifactsReply, responses=_EVERY)
async def artifacts(request: Request, vendor: VendorHere, shop: ShopHere, job_id: str) -> Response:
    """The files of an ended job, a failed one's too; none while it runs."""
    job = await shop.job(vendor, job_id)
    if shop.faults.of(vendor.vendor_id).no_artifacts:
        return JsonReply(ArtifactsReply(artifacts=()))
    listed = [
        Artifact(
            name=name,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            url=_artifact_url(request, vendor, job, name),
        )
        for name, content in simulation.artifacts(job).items()
    ]
    return JsonReply(ArtifactsReply(artifacts=tuple(listed)))


@free.get("/artifacts/{job_id}/{name}", responses=_problems(404), response_class=Response)
async def artifact(
    shop: ShopHere, job_id: str, name: str, signature: Annotated[str, Query(max_length=64)] = ""
) -> Response:
    """One file's bytes. Its address, as /artifacts gave it, is the permission; no bearer is asked."""
    job = await shop.store.find_job(job_id)
    content = None if job is None else simulation.artifacts(job).get(name)
    if job is None or content is None or job.vendor_id not in shop.vendors:
        raise VendorApiError("not_found", "no such file")
    wanted = _signature(shop.vendors[job.vendor_id], job, name)
    if not hmac.compare_digest(signature.encode("utf-8", "surrogateescape"), wanted.encode()):
        raise VendorApiError("not_found", "no such file")
    return Response(content, media_type="application/octet-stream")


@free.get("/health", response_model=VendorHealth)
async def health(shop: ShopHere) -> Response:
    """Whether the server is up, and whom it serves."""
    return JsonReply(VendorHealth(vendors=tuple(shop.vendors)))


def _status(request: Request, shop: Shop, vendor: Vendor, job: Job, start: int) -> JobStatus:
    faults = shop.faults.of(vendor.vendor_id)
    lies = faults.lie_about_progress and job.status not in TERMINAL
    completed = job.status == "completed"
    words = faults.words
    metrics = {**simulation.FINAL_METRICS, **{name[:200]: Decimal("1e6") for name in words[:20]}}
    refund = None
    if job.refund_transaction is not None:
        refund = Refund(
            amount=money(job.refund_atomic),
            asset=vendor.asset.address,
            network=vendor.asset.network,
            transaction=job.refund_transaction,
        )
    return JobStatus(
        vendor_job_id=job.job_id,
        status=job.status,
        # The lie: nearly done at first, and ever less as the work goes on.
        progress=Decimal("0.99") - job.progress if lies else job.progress,
        logs=words if words and job.logs and start == 0 else job.logs[start:],
        cursor=f"line-{len(job.logs)}",
        estimated_remaining_minutes=simulation.remaining_minutes(job),
        cost_so_far=money(simulation.cost_atomic(job)),
        final_metrics=metrics if completed else None,
        artifact_url=_artifact_url(request, vendor, job, "model.json")
        if completed and not faults.no_artifacts
        else None,
        error_message=(*words[-1:], simulation.FAILURE)[0] if job.status == "failed" else None,
        ended_at=None if job.ended_at_s is None else datetime.fromtimestamp(job.ended_at_s, UTC),
        refund=refund,
    )


def _line(cursor: str | None) -> int:
    """Return the line that `cursor` stands before. Raises VendorApiError for one that we never gave."""
    if cursor is None:
        return 0
    number = cursor.removeprefix("line-")
    if number == cursor or not number.isascii() or not number.isdigit() or len(number) > 9:
        raise VendorApiError("invalid_field", "since: not a `cursor` of this vendor")
    return int(number)


def _artifact_url(request: Request, vendor: Vendor, job: Job, name: str) -> str:
    return f"{request.base_url}artifacts/{job.job_id}/{name}?signature={_signature(vendor, job, name)}"


def _signature(vendor: Vendor, job: Job, name: str) -> str:
    key = vendor.secret.get_secret_value().encode()
    return hmac.new(key, f"{job.job_id}/{name}".encode(), hashlib.sha256).hexdigest()


async def _hang(request: Request) -> None:
    """Return when the caller has gone: until then it hears nothing."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
