"""Vendors over HTTP: whatever comes back becomes a value or one of three errors, and only safe calls are repeated."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
import pytest

from agent.core.errors import (
    NoVendorSecret,
    VendorDenied,
    VendorError,
    VendorGarbled,
    VendorRefused,
    VendorUnreachable,
)
from agent.edges.vendor_http import BODY_BYTES_MAX, LIST_PAGES_MAX
from tests.agent.core.values import challenge, required, requirements
from tests.agent.edges.vendor_app import QUOTE, STATUS, SUBMITTED, ScriptedVendor
from tests.contracts.store_values import a_vendor
from wire.vendor import JobFound, Quote, QuoteRequest
from wire.x402 import PAYMENT_REQUIRED, encode_header

VENDOR = a_vendor(endpoint="http://vendor.test/base/")
ASKED = QuoteRequest(job_type="fine_tune", gpu_type="A10", max_hours=Decimal("0.50"), job_metadata={"goal": "g"})
REQUIRED = required(requirements())
HTML = b"<html><body>Bad\n  gateway</body></html>"


@pytest.fixture
def vendor() -> ScriptedVendor:
    return ScriptedVendor()


async def called(vendor: ScriptedVendor, name: str) -> Any:
    client = vendor.client()
    calls = {
        "offers": lambda: client.offers(VENDOR),
        "quote": lambda: client.quote(VENDOR, ASKED),
        "challenge": lambda: client.challenge(VENDOR, "{}", "payment-1"),
        "find": lambda: client.find(VENDOR, "payment-1"),
        "job_status": lambda: client.job_status(VENDOR, "vjob-1", None),
        "cancel": lambda: client.cancel(VENDOR, "vjob-1", "7"),
        "artifacts": lambda: client.artifacts(VENDOR, "vjob-1"),
    }
    return await calls[name]()


PATHS = {
    "offers": "/base/offers",
    "quote": "/base/quote",
    "challenge": "/base/submit-job",
    "find": "/base/jobs",
    "job_status": "/base/job-status",
    "cancel": "/base/cancel-job",
    "artifacts": "/base/artifacts/vjob-1",
}


async def test_a_quote_is_asked_for_and_read_in_decimals(vendor: ScriptedVendor) -> None:
    vendor.says("/base/quote", b'{"vendorJobTemplateId":"t","priceEstimate":0.70,"currency":"USDC","etaMinutes":30}')
    quote = await called(vendor, "quote")
    assert quote == Quote(
        vendor_job_template_id="t", price_estimate=Decimal("0.70"), currency="USDC", eta_minutes=Decimal(30)
    )
    ((request, body),) = vendor.seen
    assert (request.method, request.url.path) == ("POST", "/base/quote")
    assert body == b'{"jobType":"fine_tune","gpuType":"A10","maxHours":0.50,"jobMetadata":{"goal":"g"}}'


@pytest.mark.parametrize("name", sorted(PATHS))
async def test_every_call_carries_the_bearer_secret_and_the_vendors_name(vendor: ScriptedVendor, name: str) -> None:
    with pytest.raises(VendorRefused) as refused:
        await called(vendor, name)
    assert refused.value.status == 404
    ((request, _),) = vendor.seen
    assert request.url.path == PATHS[name]
    assert request.headers["authorization"] == "Bearer s3cret"
    assert request.headers["x-vendor-id"] == "gpu_vendor_1"
    assert request.headers["content-type"] == "application/json"


@pytest.mark.row(35)
async def test_each_vendor_is_sent_its_own_secret_and_one_without_is_not_called(vendor: ScriptedVendor) -> None:
    client = vendor.client("gpu_vendor_1=first,gpu_vendor_2=second==")
    for vendor_id in ("gpu_vendor_1", "gpu_vendor_2"):
        with pytest.raises(VendorRefused):
            await client.offers(a_vendor(vendor_id=vendor_id, endpoint="http://vendor.test"))
    sent = [request.headers["authorization"] for request, _ in vendor.seen]
    assert sent == ["Bearer first", "Bearer second=="]
    with pytest.raises(NoVendorSecret, match=r"no bearer secret is configured for gpu_vendor_3"):
        await client.offers(a_vendor(vendor_id="gpu_vendor_3"))
    assert len(vendor.seen) == 2


@pytest.mark.parametrize("name", sorted(set(PATHS) - {"challenge"}))
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (HTML, "the answer is not JSON"),
        (b"", "the answer is not JSON"),
        (b"\xff\xfe", "the answer is not JSON"),
        (b"[" * 100_000, "the answer is not JSON: nested too deeply"),
        (b'{"progress": NaN}', "the answer is not JSON: NaN is not JSON"),
        (b"[]", "body: "),
        (b"{}", "Field required"),
    ],
)
async def test_an_answer_that_is_not_the_api_is_garbled(
    vendor: ScriptedVendor, name: str, body: bytes, says: str
) -> None:
    vendor.says(PATHS[name], body)
    with pytest.raises(VendorGarbled, match=says):
        await called(vendor, name)
    assert len(vendor.seen) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"priceEstimate": "1.4"}, "Quote.priceEstimate: Value error, must be a JSON number"),
        ({"priceEstimate": True}, "Quote.priceEstimate"),
        ({"priceEstimate": None}, "Quote.priceEstimate"),
        ({"vendorJobTemplateId": ""}, "Quote.vendorJobTemplateId"),
        ({"vendorJobTemplateId": 7}, "Quote.vendorJobTemplateId"),
        ({"currency": "U" * 257}, "Quote.currency"),
        ({"etaMinutes": [60]}, "Quote.etaMinutes"),
    ],
)
async def test_a_field_of_another_type_is_garbled_by_its_name(
    vendor: ScriptedVendor, change: dict[str, Any], says: str
) -> None:
    vendor.says("/base/quote", QUOTE | change)
    with pytest.raises(VendorGarbled, match=says):
        await called(vendor, "quote")


@pytest.mark.parametrize(
    "change",
    [{"progress": 1.01}, {"progress": -0.01}, {"costSoFar": -1}, {"status": "exploded"}, {"logs": ["x"] * 1_001}],
)
async def test_a_status_beyond_its_bounds_is_garbled(vendor: ScriptedVendor, change: dict[str, Any]) -> None:
    vendor.says("/base/job-status", STATUS | change)
    with pytest.raises(VendorGarbled, match=f"JobStatus.{next(iter(change))}"):
        await called(vendor, "job_status")


async def test_what_is_said_of_a_garbled_answer_is_short_however_long_its_keys(vendor: ScriptedVendor) -> None:
    vendor.says("/base/job-status", STATUS | {"finalMetrics": {"k" * 900_000: "none"}})
    with pytest.raises(VendorGarbled) as garbled:
        await called(vendor, "job_status")
    assert len(str(garbled.value)) < 400


async def test_an_answer_may_be_a_mebibyte_and_no_more(vendor: ScriptedVendor) -> None:
    padding = b'{"vendorJobTemplateId":"t","priceEstimate":1,"currency":"USDC","etaMinutes":1,"more":"%s"}'
    length = BODY_BYTES_MAX - len(padding) + 2
    assert BODY_BYTES_MAX == 1_048_576
    vendor.says("/base/quote", padding % (b"x" * length))
    assert (await called(vendor, "quote")).price_estimate == 1
    vendor.says("/base/quote", padding % (b"x" * (length + 1)))
    with pytest.raises(VendorGarbled, match=r"the body exceeds 1048576 bytes"):
        await called(vendor, "quote")


@pytest.mark.parametrize("name", ["quote", "challenge", "job_status"])
async def test_a_header_that_does_not_end_is_garbled(vendor: ScriptedVendor, name: str) -> None:
    vendor.says(PATHS[name], {}, x_padding="x" * 40_000)
    with pytest.raises(VendorGarbled, match=r"the headers exceed 32768 bytes"):
        await called(vendor, name)


@pytest.mark.parametrize("name", sorted(PATHS))
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (500, VendorUnreachable),
        (503, VendorUnreachable),
        (400, VendorRefused),
        (401, VendorDenied),
        (403, VendorDenied),
    ],
)
async def test_a_failure_is_the_vendors_and_is_not_asked_again(
    vendor: ScriptedVendor, name: str, status: int, kind: type[VendorError]
) -> None:
    vendor.says(PATHS[name], HTML, status)
    with pytest.raises(kind) as raised:
        await called(vendor, name)
    assert type(raised.value) is kind
    assert "<html><body>Bad gateway</body></html>" in str(raised.value)
    assert len(vendor.seen) == 1


@pytest.mark.parametrize("name", sorted(PATHS))
async def test_a_redirect_is_refused_and_not_followed(vendor: ScriptedVendor, name: str) -> None:
    vendor.says(PATHS[name], b"", 302, location="http://vendor.test/elsewhere")
    with pytest.raises(VendorRefused) as refused:
        await called(vendor, name)
    assert refused.value.status == 302
    assert len(vendor.seen) == 1


async def test_a_vendors_words_are_cut_short(vendor: ScriptedVendor) -> None:
    vendor.says("/base/quote", b"x" * 10_000, 400)
    with pytest.raises(VendorRefused) as refused:
        await called(vendor, "quote")
    assert str(refused.value).endswith("x" * 300)
    assert "x" * 301 not in str(refused.value)


async def test_a_challenge_is_the_402_of_an_unpaid_submission(vendor: ScriptedVendor) -> None:
    vendor.says("/base/submit-job", b"{}", 402, **{PAYMENT_REQUIRED: encode_header(REQUIRED)})
    assert await vendor.client().challenge(VENDOR, '{"a":1}', "payment-1") == (challenge(REQUIRED),)
    ((request, body),) = vendor.seen
    assert (request.method, body, request.headers["idempotency-key"]) == ("POST", b'{"a":1}', "payment-1")
    assert "payment-signature" not in request.headers


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("", "PAYMENT-REQUIRED: not JSON"),
        ("%%%", "PAYMENT-REQUIRED: the header is not base64"),
        ("PGh0bWw+", "PAYMENT-REQUIRED: not JSON"),
        ("W10=", "PAYMENT-REQUIRED: not a JSON object"),
        ("e30=", "PAYMENT-REQUIRED: x402Version is not 2 or 1"),
        (encode_header(requirements()), "PAYMENT-REQUIRED: x402Version is not 2 or 1"),
        ("eyJ4NDAyVmVyc2lvbiI6Mn0=", "x402-v2: PAYMENT-REQUIRED: accepts: must be a list of at most 1000"),
        ("A" * 16_388, "PAYMENT-REQUIRED: the header is larger than 16384 bytes"),
    ],
)
async def test_a_402_that_cannot_be_read_is_garbled(vendor: ScriptedVendor, header: str, says: str) -> None:
    vendor.says("/base/submit-job", b"{}", 402, **{PAYMENT_REQUIRED: header})
    with pytest.raises(VendorGarbled, match=f"^{says}"):
        await called(vendor, "challenge")


@pytest.mark.parametrize("status", [200, 202])
async def test_an_unpaid_submission_that_is_served_is_garbled(vendor: ScriptedVendor, status: int) -> None:
    vendor.says("/base/submit-job", SUBMITTED, status)
    with pytest.raises(VendorGarbled, match=f"an unpaid submission was answered {status}, not 402"):
        await called(vendor, "challenge")


@pytest.mark.parametrize("version", [0, 3, True, "2", None])
async def test_a_402_of_another_version_is_garbled(vendor: ScriptedVendor, version: Any) -> None:
    newer = orjson.dumps({**REQUIRED.document(), "x402Version": version})
    vendor.says("/base/submit-job", newer, 402)
    with pytest.raises(VendorGarbled, match=r"the body: x402Version is not 2 or 1"):
        await called(vendor, "challenge")


async def test_a_job_is_looked_up_by_its_key(vendor: ScriptedVendor) -> None:
    vendor.says("/base/jobs", {"jobs": []})
    assert await vendor.client().find(VENDOR, "a&b=c") is None
    vendor.says(
        "/base/jobs", {"jobs": [{"vendorJobId": "v1", "status": "running"}, {"vendorJobId": "v2", "status": "failed"}]}
    )
    assert await vendor.client().find(VENDOR, "a&b=c") == JobFound(vendor_job_id="v1", status="running")
    assert [dict(request.query_params) for request, _ in vendor.seen] == [{"key": "a&b=c"}] * 2


async def test_a_vendor_that_lists_more_than_was_asked_for_sells_no_other_purchases_job(vendor: ScriptedVendor) -> None:
    other = {"vendorJobId": "v1", "status": "running", "paymentId": "run_1-payment-1"}
    vendor.says("/base/jobs", {"jobs": [other]})
    assert await vendor.client().find(VENDOR, "run_2-payment-1") is None
    vendor.says("/base/jobs", {"jobs": [other, {**other, "vendorJobId": "v2", "paymentId": "run_2-payment-1"}]})
    found = await vendor.client().find(VENDOR, "run_2-payment-1")
    assert found is not None
    assert found.vendor_job_id == "v2"


async def test_live_jobs_are_read_page_after_page_and_of_endless_ones_the_first(vendor: ScriptedVendor) -> None:
    running = {"vendorJobId": "v1", "status": "running", "paymentId": "p1", "startedAt": "2026-01-31T09:00:00Z"}
    vendor.says("/base/jobs", {"jobs": [running, {"vendorJobId": "v2", "status": "completed"}]})
    (live,) = await vendor.client().live_jobs(VENDOR)
    assert (live.vendor_job_id, live.payment_id) == ("v1", "p1")
    assert live.started_at == datetime(2026, 1, 31, 9, tzinfo=UTC)
    vendor.says("/base/jobs", {"jobs": [running], "cursor": "page 2"})
    # However often a job is told of, it is one.
    assert await vendor.client().live_jobs(VENDOR) == (live,)
    asked = [dict(request.query_params) for request, _ in vendor.seen]
    assert asked == [{}, {}] + [{"after": "page 2"}] * (LIST_PAGES_MAX - 1)


async def test_a_poll_sends_the_cursor_it_has_and_none_at_first(vendor: ScriptedVendor) -> None:
    vendor.says("/base/job-status", STATUS)
    status = await vendor.client().job_status(VENDOR, "v/1?x", None)
    assert (status.cursor, status.progress, status.cost_so_far) == ("7", Decimal("0.2"), Decimal("0.28"))
    await vendor.client().job_status(VENDOR, "v/1?x", "")
    await vendor.client().job_status(VENDOR, "v/1?x", "7")
    assert [dict(request.query_params) for request, _ in vendor.seen] == [
        {"vendorJobId": "v/1?x"},
        {"vendorJobId": "v/1?x", "since": ""},
        {"vendorJobId": "v/1?x", "since": "7"},
    ]


async def test_a_job_is_cancelled_and_its_artifacts_are_read(vendor: ScriptedVendor) -> None:
    vendor.says("/base/cancel-job", STATUS | {"status": "cancelled"})
    assert (await called(vendor, "cancel")).status == "cancelled"
    assert vendor.seen[0][1] == b'{"vendorJobId":"vjob-1","since":"7"}'
    artifact = {"name": "model", "bytes": 3, "sha256": "a" * 64, "url": "http://vendor.test/model"}
    vendor.says("/base/artifacts/../vjob 1", {"artifacts": [artifact]})
    found = await vendor.client().artifacts(VENDOR, "../vjob 1")
    assert found.artifacts[0].sha256 == "a" * 64
    assert vendor.seen[1][0].scope["raw_path"] == b"/base/artifacts/..%2Fvjob%201"
