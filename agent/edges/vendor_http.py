"""
The vendor API over HTTP. Whatever a vendor answers becomes one of our values or one of our errors.

Retried, with jitter: only calls that may be made twice, and only where nothing was sent. The paid
submission is sent once; sending it again is the tick's decision, with the same bytes.
"""

from collections.abc import AsyncGenerator, Mapping
from typing import TypeVar
from urllib.parse import quote, urlencode

from pydantic import ValidationError

from agent.core.dialects import DIALECTS, Challenge, read_challenges, settled_in
from agent.core.errors import (
    NoVendorSecret,
    VendorDenied,
    VendorError,
    VendorGarbled,
    VendorRefused,
    VendorUnreachable,
)
from agent.core.model import Dialect, Vendor
from agent.core.states import JOB_ENDS
from agent.edges.vendor_files import download
from agent.ports import Declined, Submitted, Unsettled
from outbound.http import BadAddress, HttpClient, HttpReply, OutboundError, TooLarge, Unreachable
from wire.model import Body
from wire.problems import ProblemDocument
from wire.vendor import (
    IDEMPOTENCY_KEY_HEADER,
    VENDOR_ID_HEADER,
    ArtifactsReply,
    CancelRequest,
    JobFound,
    JobsReply,
    JobStatus,
    OffersReply,
    Quote,
    QuoteRequest,
    SubmitReply,
    secret_for,
)

BODY_BYTES_MAX = 1024 * 1024
DETAIL_CHARS_MAX = 300
CALL_S = 10.0
SUBMIT_S = 30.0
TRIES_MAX = 3
RETRY_WAIT_S = 0.2
LIST_PAGES_MAX = 10

# Request timeout, too early, too many requests: the answer to the same bytes may change.
NOT_FINAL = frozenset({408, 425, 429})
# What speaks of our secret, not of what was asked.
DENIED = frozenset({401, 403})

BodyT = TypeVar("BodyT", bound=Body)


class HttpVendors:
    """
    Every vendor, through its `endpoint`, with its bearer secret (`wire.vendor.secret_for`).

    Args:
        submit_s: how long a paid submission may take; settlement on a busy chain takes up to 28 s.
    """

    def __init__(
        self, http: HttpClient, secrets: str, *, submit_s: float = SUBMIT_S, retry_wait_s: float = RETRY_WAIT_S
    ):
        self._http = http
        self._secrets = secrets
        self._submit_s = submit_s
        self._retry_wait_s = retry_wait_s

    async def offers(self, vendor: Vendor) -> OffersReply:
        return _read(OffersReply, await self._get(vendor, "/offers"))

    async def quote(self, vendor: Vendor, request: QuoteRequest) -> Quote:
        return _read(Quote, await self._again(vendor, "POST", "/quote", request.to_json()))

    async def challenge(self, vendor: Vendor, request: str, payment_id: str) -> tuple[Challenge, ...]:
        """Return what the 402 of an unpaid submission asks, in every dialect; any other answer is garbled."""
        key = {IDEMPOTENCY_KEY_HEADER: payment_id}
        reply = await self._again(vendor, "POST", "/submit-job", request.encode(), key)
        if reply.status != 402:
            _refuse_failure(reply)
            raise VendorGarbled(f"an unpaid submission was answered {reply.status}, not 402")
        return read_challenges(reply.headers, reply.content)

    async def submit(
        self, vendor: Vendor, request: str, payment_id: str, header: str, dialect: Dialect
    ) -> Submitted | Unsettled | Declined:
        """Send the paid submission. Never raises: what is not a clear yes or no is Unsettled."""
        headers = {IDEMPOTENCY_KEY_HEADER: payment_id, DIALECTS[dialect].payment: header}
        try:
            reply = await self._call(vendor, "POST", "/submit-job", request.encode(), headers, self._submit_s)
            if reply.status == 200:
                return Submitted(_read(SubmitReply, reply), settled_in(dialect, reply.headers))
        except NoVendorSecret as error:
            # No vendor's word begins so: `recover` knows by it that the fault is ours.
            return Unsettled(f"{error.refusal}: {error}")
        except VendorError as error:
            return Unsettled(str(error))
        if 400 <= reply.status < 500 and reply.status not in NOT_FINAL:
            return Declined(reply.status, f"{dialect}: {_detail(reply)}", _asks(reply))
        return Unsettled(_detail(reply))

    async def find(self, vendor: Vendor, payment_id: str) -> JobFound | None:
        found = _read(JobsReply, await self._get(vendor, f"/jobs?{urlencode({'key': payment_id})}"))
        # Who lists more than was asked for does not sell us another one's job.
        return next((job for job in found.jobs if job.payment_id in (None, payment_id)), None)

    async def live_jobs(self, vendor: Vendor) -> tuple[JobFound, ...]:
        """See `VendorGateway.live_jobs`. Of endless pages the first ten: what is behind comes when these have gone."""
        # By their ids: a job that a growing list moves to the next page is told twice.
        jobs: dict[str, JobFound] = {}
        after: dict[str, str] = {}
        for _ in range(LIST_PAGES_MAX):
            query = f"?{urlencode(after)}" if after else ""
            page = _read(JobsReply, await self._get(vendor, f"/jobs{query}", tries=1))
            jobs |= {job.vendor_job_id: job for job in page.jobs}
            if page.cursor is None or not page.jobs:
                break
            after = {"after": page.cursor}
        return tuple(job for job in jobs.values() if job.status not in JOB_ENDS)

    async def job_status(self, vendor: Vendor, vendor_job_id: str, cursor: str | None) -> JobStatus:
        query = {"vendorJobId": vendor_job_id} | ({"since": cursor} if cursor is not None else {})
        return _read(JobStatus, await self._get(vendor, f"/job-status?{urlencode(query)}", tries=1))

    async def cancel(self, vendor: Vendor, vendor_job_id: str, cursor: str | None) -> JobStatus:
        body = CancelRequest(vendor_job_id=vendor_job_id, since=cursor).to_json()
        return _read(JobStatus, await self._again(vendor, "POST", "/cancel-job", body))

    async def artifacts(self, vendor: Vendor, vendor_job_id: str) -> ArtifactsReply:
        return _read(ArtifactsReply, await self._get(vendor, f"/artifacts/{quote(vendor_job_id, safe='')}"))

    def download(self, vendor: Vendor, url: str, *, timeout_s: float, bytes_max: int) -> AsyncGenerator[bytes, None]:
        secret = secret_for(vendor.vendor_id, self._secrets)
        return download(self._http, vendor, secret, url, timeout_s=timeout_s, bytes_max=bytes_max)

    async def _get(self, vendor: Vendor, path: str, tries: int = TRIES_MAX) -> HttpReply:
        return await self._again(vendor, "GET", path, None, tries=tries)

    async def _again(
        self,
        vendor: Vendor,
        method: str,
        path: str,
        content: bytes | None,
        headers: Mapping[str, str] | None = None,
        tries: int = TRIES_MAX,
    ) -> HttpReply:
        """Make a call that may be made twice, again where the vendor could not be reached."""
        from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: type(error) is VendorUnreachable),
            stop=stop_after_attempt(tries),
            wait=wait_exponential_jitter(multiplier=self._retry_wait_s, max=2, jitter=self._retry_wait_s),
            reraise=True,
        )
        return await retrying(self._call, vendor, method, path, content, headers or {}, CALL_S)

    async def _call(
        self,
        vendor: Vendor,
        method: str,
        path: str,
        content: bytes | None,
        headers: Mapping[str, str],
        timeout_s: float,
    ) -> HttpReply:
        secret = secret_for(vendor.vendor_id, self._secrets)
        if secret is None:
            raise NoVendorSecret(f"no bearer secret is configured for {vendor.vendor_id}")
        try:
            return await self._http.request(
                method,
                vendor.endpoint.rstrip("/") + path,
                headers={
                    "authorization": f"Bearer {secret}",
                    "content-type": "application/json",
                    VENDOR_ID_HEADER: vendor.vendor_id,
                    **headers,
                },
                content=content,
                timeout_s=timeout_s,
                body_bytes_max=BODY_BYTES_MAX,
            )
        except (TooLarge, BadAddress) as error:
            raise VendorGarbled(str(error)) from None
        except OutboundError as error:
            raise (VendorUnreachable if isinstance(error, Unreachable) else VendorSilent)(str(error)) from None


class VendorSilent(VendorUnreachable):
    """It was reached and did not answer in time. Not tried again at once: it was given its time."""


def _read(kind: type[BodyT], reply: HttpReply) -> BodyT:
    _refuse_failure(reply)
    try:
        return kind.from_json(reply.content)
    except ValidationError as error:
        first = error.errors()[0]
        # A place may be a key of the vendor's own making, a megabyte long.
        where = ".".join(str(part) for part in first["loc"])[:DETAIL_CHARS_MAX] or "body"
        raise VendorGarbled(f"{kind.__name__}.{where}: {first['msg']}") from None
    except ValueError as error:
        raise VendorGarbled(f"the answer is not JSON: {error}") from None


def _refuse_failure(reply: HttpReply) -> None:
    if reply.status >= 500:
        raise VendorUnreachable(_detail(reply))
    if reply.status >= 300 and reply.status != 402:
        refused = VendorDenied if reply.status in DENIED else VendorRefused
        raise refused(reply.status, _detail(reply), _code(reply))


def _asks(reply: HttpReply) -> tuple[Challenge, ...]:
    try:
        return read_challenges(reply.headers, reply.content) if reply.status == 402 else ()
    except VendorError:
        return ()


def _code(reply: HttpReply) -> str:
    try:
        return ProblemDocument.from_json(reply.content).code
    except ValueError:
        return ""


def _detail(reply: HttpReply) -> str:
    """Return an answer's problem, or the beginning of its text, for our log: shown, never obeyed."""
    try:
        problem = ProblemDocument.from_json(reply.content)
        text = f"{problem.title}: {problem.detail}"
    except ValueError:
        text = reply.content[: 4 * DETAIL_CHARS_MAX].decode("utf-8", "replace")
    return f"{reply.status} {' '.join(text.split())[:DETAIL_CHARS_MAX]}"
