"""The paid submission: sent once, and what is not a clear yes or no is no answer. Retries of what may be repeated."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import httpx
import pytest

from agent.core.errors import VendorUnreachable
from agent.core.model import Dialect, Vendor
from agent.edges import vendor_http
from agent.edges.vendor_http import HttpVendors, VendorSilent
from agent.ports import Declined, Submitted, Unsettled
from outbound.http import HttpClient
from tests.agent.edges.vendor_app import QUOTE, STATUS, SUBMITTED, ScriptedVendor
from tests.contracts.store_values import a_vendor
from wire.vendor import QuoteRequest, SubmitReply
from wire.x402 import PAYMENT_RESPONSE, SettleResponse, encode_header
from wire.x402_v1 import X_PAYMENT_RESPONSE

VENDOR = a_vendor(endpoint="http://vendor.test")
ASKED = QuoteRequest(job_type="fine_tune", gpu_type="A10", max_hours=Decimal(1))
TRANSACTION = "0x" + "ab" * 32


async def submitted(
    client: HttpVendors, vendor: Vendor = VENDOR, dialect: Dialect = "x402-v2"
) -> Submitted | Unsettled | Declined:
    return await client.submit(vendor, '{"vendorJobTemplateId":"t"}', "payment-1", "the cheque", dialect)


def settlement(**changes: Any) -> str:
    values = {"success": True, "transaction": TRANSACTION, "network": "eip155:84532"} | changes
    return encode_header(SettleResponse(**values))


@pytest.mark.row(15)
async def test_the_very_bytes_are_sent_with_the_cheque_and_the_key() -> None:
    vendor = ScriptedVendor()
    vendor.says("/submit-job", SUBMITTED, 200, **{PAYMENT_RESPONSE: settlement()})
    answer = await submitted(vendor.client())
    assert answer == Submitted(
        SubmitReply(vendor_job_id="vjob-1", status="submitted", payment_tx_id="0xaa"), TRANSACTION
    )
    ((request, body),) = vendor.seen
    assert body == b'{"vendorJobTemplateId":"t"}'
    assert request.headers["payment-signature"] == "the cheque"
    assert request.headers["idempotency-key"] == "payment-1"
    assert request.headers["authorization"] == "Bearer s3cret"


@pytest.mark.row(15)
async def test_in_version_1_the_cheque_and_the_settlement_have_other_headers() -> None:
    vendor = ScriptedVendor()
    vendor.says("/submit-job", SUBMITTED, 200, **{X_PAYMENT_RESPONSE: settlement(network="base-sepolia")})
    answer = await submitted(vendor.client(), dialect="x402-v1")
    assert isinstance(answer, Submitted)
    assert answer.transaction == TRANSACTION
    ((request, _),) = vendor.seen
    assert request.headers["x-payment"] == "the cheque"
    assert "payment-signature" not in request.headers


@pytest.mark.parametrize("header", ["", "%%%", "e30=", settlement(transaction=""), "A" * 20_000])
async def test_a_settlement_that_cannot_be_read_is_none_and_the_job_is_taken(header: str) -> None:
    vendor = ScriptedVendor()
    vendor.says("/submit-job", SUBMITTED, 200, **{PAYMENT_RESPONSE: header})
    answer = await submitted(vendor.client())
    assert isinstance(answer, Submitted)
    assert answer.transaction is None


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (200, b"{}"),
        (200, b'{"vendorJobId": 7, "status": "submitted"}'),
        (201, b'{"vendorJobId": "v", "status": "submitted"}'),
        (202, b'{"code": "settlement_pending"}'),
        (302, b""),
        (408, b""),
        (425, b""),
        (429, b""),
        (500, b"oops"),
        (503, b"oops"),
    ],
)
async def test_what_is_not_a_clear_answer_leaves_the_outcome_open(status: int, body: bytes) -> None:
    vendor = ScriptedVendor()
    vendor.says("/submit-job", body, status)
    answer = await submitted(vendor.client())
    assert isinstance(answer, Unsettled)
    assert answer.detail
    assert len(vendor.seen) == 1


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 413, 422, 499])
async def test_a_final_no_is_declined_with_its_words(status: int) -> None:
    vendor = ScriptedVendor()
    vendor.says("/submit-job", b'{"detail":  "no"}', status)
    assert await submitted(vendor.client()) == Declined(status, f'x402-v2: {status} {{"detail": "no"}}')
    assert len(vendor.seen) == 1


async def test_an_answer_too_large_leaves_the_outcome_open() -> None:
    vendor = ScriptedVendor()
    vendor.says("/submit-job", b" " * 1_048_577)
    assert isinstance(await submitted(vendor.client()), Unsettled)
    vendor.says("/submit-job", SUBMITTED, 200, x_padding="x" * 40_000)
    assert isinstance(await submitted(vendor.client()), Unsettled)


async def test_a_submission_that_hangs_is_given_its_time_once() -> None:
    assert (vendor_http.CALL_S, vendor_http.SUBMIT_S, vendor_http.TRIES_MAX) == (10.0, 30.0, 3)
    vendor = ScriptedVendor(hangs=asyncio.Event())
    answer = await submitted(vendor.client(submit_s=0.05))
    assert answer == Unsettled("POST http://vendor.test: no whole answer in 0.05 s")
    assert len(vendor.seen) == 1


async def test_a_vendor_without_a_secret_is_not_sent_a_cheque() -> None:
    vendor = ScriptedVendor()
    answer = await submitted(vendor.client(""))
    assert answer == Unsettled("no_vendor_secret: no bearer secret is configured for gpu_vendor_1")
    assert vendor.seen == []


class Counting(httpx.AsyncBaseTransport):
    """The real network, with its attempts counted; `fails` breaks them before or after they were sent."""

    def __init__(self, fails: Callable[[httpx.Request], Exception] | None = None) -> None:
        self.attempts = 0
        self._fails = fails

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.attempts += 1
        if self._fails is not None:
            raise self._fails(request)
        async with httpx.AsyncHTTPTransport() as network:
            return await network.handle_async_request(request)


@pytest.fixture
def closed() -> Vendor:
    """A vendor at a port that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return a_vendor(endpoint=f"http://127.0.0.1:{one.getsockname()[1]}")


Call = Callable[[HttpVendors, Vendor], Awaitable[Any]]
REPEATED: dict[str, Call] = {
    "offers": lambda client, vendor: client.offers(vendor),
    "quote": lambda client, vendor: client.quote(vendor, ASKED),
    "challenge": lambda client, vendor: client.challenge(vendor, "{}", "payment-1"),
    "find": lambda client, vendor: client.find(vendor, "payment-1"),
    "cancel": lambda client, vendor: client.cancel(vendor, "vjob-1", None),
    "artifacts": lambda client, vendor: client.artifacts(vendor, "vjob-1"),
}
ONCE: dict[str, Call] = {"job_status": lambda client, vendor: client.job_status(vendor, "vjob-1", None)}


@pytest.mark.row(35)
@pytest.mark.parametrize("name", sorted(REPEATED | ONCE))
async def test_a_vendor_that_cannot_be_reached_is_tried_three_times_where_that_is_safe(
    name: str, closed: Vendor
) -> None:
    network = Counting()
    client = HttpVendors(HttpClient(network), "s3cret", retry_wait_s=0.001)
    with pytest.raises(VendorUnreachable) as unreachable:
        await (REPEATED | ONCE)[name](client, closed)
    assert not isinstance(unreachable.value, VendorSilent)
    assert network.attempts == (3 if name in REPEATED else 1)


async def test_a_cheque_is_never_sent_twice_by_itself(closed: Vendor) -> None:
    network = Counting()
    answer = await submitted(HttpVendors(HttpClient(network), "s3cret", retry_wait_s=0.001), closed)
    assert isinstance(answer, Unsettled)
    assert network.attempts == 1


@pytest.mark.parametrize("name", sorted(REPEATED | ONCE))
async def test_a_call_whose_answer_was_lost_is_not_repeated_at_once(name: str) -> None:
    network = Counting(lambda request: httpx.ReadTimeout("the answer was lost", request=request))
    client = HttpVendors(HttpClient(network), "s3cret", retry_wait_s=0.001)
    with pytest.raises(VendorSilent):
        await (REPEATED | ONCE)[name](client, VENDOR)
    assert network.attempts == 1


async def test_a_vendor_that_comes_back_is_answered_by_the_next_try() -> None:
    vendor = ScriptedVendor()
    vendor.says("/quote", QUOTE)
    app = httpx.ASGITransport(vendor.app())
    left = [2]

    class Recovering(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if left[0]:
                left[0] -= 1
                raise httpx.ConnectError("refused", request=request)
            return await app.handle_async_request(request)

    client = HttpVendors(HttpClient(Recovering()), "s3cret", retry_wait_s=0.001)
    assert (await client.quote(VENDOR, ASKED)).price_estimate == Decimal("1.4")


@pytest.mark.parametrize("endpoint", ["ftp://vendor.test", "vendor.test", "http://user:pass@vendor.test", "http://"])
async def test_an_endpoint_that_cannot_be_called_is_garbled_and_called_once(endpoint: str) -> None:
    network = Counting()
    client = HttpVendors(HttpClient(network), "s3cret", retry_wait_s=0.001)
    with pytest.raises(vendor_http.VendorGarbled):
        await client.quote(a_vendor(endpoint=endpoint), ASKED)
    assert isinstance(await submitted(client, a_vendor(endpoint=endpoint)), Unsettled)
    assert network.attempts == 0


async def test_a_silent_vendor_is_an_unreachable_one() -> None:
    assert issubclass(VendorSilent, VendorUnreachable)
    assert VendorSilent("").retryable
    vendor = ScriptedVendor()
    vendor.says("/job-status", STATUS)
    assert (await vendor.client().job_status(VENDOR, "vjob-1", None)).status == "running"
