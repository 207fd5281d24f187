"""The vendor API's bodies: what a vendor may say, and what it may not."""

import json
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from wire import vendor

OFFER = {
    "gpuType": "A100",
    "pricePerHour": Decimal("1.4"),
    "currency": "USDC",
    "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
    "network": "eip155:84532",
    "payTo": "0x" + "2b" * 20,
    "vramGb": 80,
    "available": 2,
    "jobTypes": ["fine_tune", "evaluate"],
    "benchmarkTokPerSec": Decimal("1234.5"),
}
CHECKPOINT = {"modelHash": "0a" * 32, "specHash": "0b" * 32, "step": 20, "steps": 60, "bytes": 9_000_000}
RESUME = {**CHECKPOINT, "url": "http://plane/api/agent-files/run_1/job_1", "manifestSha256": "0c" * 32}
FILES = {"url": "http://plane/api/agent-files/run_1/job_2", "token": "t" * 43, "partBytesMax": 4_194_304}
STATUS = {
    "vendorJobId": "job-1",
    "status": "running",
    "progress": Decimal("0.3"),
    "logs": ["epoch 3"],
    "metrics": [{"step": 20, "values": {"loss": Decimal("1.5")}}],
    "checkpoint": {**CHECKPOINT, "at": "2026-11-21T12:00:00Z"},
    "cursor": "3",
    "estimatedRemainingMinutes": Decimal("4.5"),
    "costSoFar": Decimal("0.42"),
    "finalMetrics": {"loss": Decimal("0.1")},
    "artifactUrl": "http://vendor/artifacts/job-1",
    "errorMessage": "out of memory",
    "refund": {"amount": Decimal("0.7"), "asset": "USDC", "network": "eip155:84532", "transaction": "0x1"},
}


@pytest.mark.parametrize(
    ("body", "document"),
    [
        (vendor.Offer, OFFER),
        (vendor.OffersReply, {"vendorId": "v1", "name": "Vendor", "offers": [OFFER]}),
        (vendor.QuoteRequest, {"jobType": "fine_tune", "gpuType": "A100", "maxHours": 1, "jobMetadata": {"a": [1]}}),
        (
            vendor.QuoteRequest,
            {"jobType": "fine_tune", "gpuType": "A100", "maxHours": 1, "hasFiles": True, "resume": CHECKPOINT},
        ),
        (
            vendor.Quote,
            {
                "vendorJobTemplateId": "t1",
                "priceEstimate": Decimal("1.4"),
                "currency": "USDC",
                "etaMinutes": Decimal("60"),
                "moves": False,
                "notes": ["cannot move: the run has no artifact store"],
            },
        ),
        (vendor.SubmitRequest, {"vendorJobTemplateId": "t1", "jobParams": {"a": None}, "callbackUrl": "http://x"}),
        (
            vendor.SubmitRequest,
            {"vendorJobTemplateId": "t1", "jobParams": {}, "maxHours": 1, "files": FILES, "resume": RESUME},
        ),
        (vendor.SubmitReply, {"vendorJobId": "job-1", "status": "submitted", "paymentTxId": "0x1"}),
        (vendor.JobStatus, STATUS),
        (vendor.CancelRequest, {"vendorJobId": "job-1"}),
        (vendor.CancelRequest, {"vendorJobId": "job-1", "since": "line-2"}),
        (vendor.JobsReply, {"jobs": [{"vendorJobId": "job-1", "status": "failed"}]}),
        (
            vendor.ArtifactsReply,
            {"artifacts": [{"name": "model.bin", "bytes": 3, "sha256": "0a" * 32, "url": "http://x"}]},
        ),
        (vendor.VendorHealth, {"status": "ok", "vendors": ["v1", "v2"]}),
        (
            vendor.WorkerHealth,
            {"status": "ok", "vendors": ["w1"], "state": "draining", "mode": "jobs", "uptime": Decimal("12.5")},
        ),
    ],
)
def test_a_body_survives_the_wire(body: type[vendor.Body], document: dict[str, Any]) -> None:
    read = body.model_validate(document)
    assert body.from_json(read.to_json()) == read
    assert json.loads(read.to_json(), parse_float=Decimal) == document


def test_absent_fields_stay_absent_and_have_their_defaults() -> None:
    least = {"vendorJobId": "j", "status": "submitted", "progress": 0, "cursor": "0", "costSoFar": 0}
    status = vendor.JobStatus.model_validate(least)
    assert status.document() == {**least, "logs": (), "metrics": ()}
    assert vendor.SubmitRequest(vendor_job_template_id="t").document() == {"vendorJobTemplateId": "t", "jobParams": {}}
    assert vendor.VendorHealth().document() == {"status": "ok", "vendors": ()}
    new = ("vramGb", "jobTypes", "benchmarkTokPerSec")
    bare = vendor.Offer.model_validate({key: value for key, value in OFFER.items() if key not in new})
    assert (bare.vram_gb, bare.job_types, bare.benchmark_tok_per_sec) == (None, (), None)


def test_a_grants_token_is_not_shown() -> None:
    assert FILES["token"] not in repr(vendor.SubmitRequest(vendor_job_template_id="t", files=FILES))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "document", "changes"),
    [
        (vendor.Offer, OFFER, {"available": -1}),
        (vendor.Offer, OFFER, {"pricePerHour": "1.4"}),
        (vendor.Offer, OFFER, {"pricePerHour": 1.4}),
        (vendor.Offer, OFFER, {"gpuType": ""}),
        (vendor.Offer, OFFER, {"payTo": "x" * 257}),
        (vendor.JobStatus, STATUS, {"progress": Decimal("1.01")}),
        (vendor.JobStatus, STATUS, {"progress": Decimal("-0.01")}),
        (vendor.JobStatus, STATUS, {"costSoFar": Decimal("-0.01")}),
        (vendor.JobStatus, STATUS, {"status": "paused"}),
        (vendor.JobStatus, STATUS, {"logs": ["x"] * 1_001}),
        (vendor.JobStatus, STATUS, {"logs": ["x" * 4_097]}),
        (vendor.JobStatus, STATUS, {"finalMetrics": {"loss": "0.1"}}),
        (vendor.JobStatus, STATUS, {"refund": {}}),
        (vendor.JobStatus, STATUS, {"metrics": [{"step": -1, "values": {}}]}),
        (vendor.JobStatus, STATUS, {"metrics": [{"step": 1, "values": {"loss": "1.5"}}]}),
        (vendor.JobStatus, STATUS, {"checkpoint": CHECKPOINT}),
        (vendor.CheckpointDescription, CHECKPOINT, {"steps": 0}),
        (vendor.CheckpointDescription, CHECKPOINT, {"step": vendor.STEPS_MAX + 1}),
        (vendor.CheckpointDescription, CHECKPOINT, {"bytes": vendor.BYTES_MAX + 1}),
        (vendor.CheckpointDescription, CHECKPOINT, {"modelHash": "0a" * 31}),
        (vendor.ResumeFrom, RESUME, {"manifestSha256": ""}),
        (vendor.FilesGrant, FILES, {"token": "short"}),
        (vendor.FilesGrant, FILES, {"partBytesMax": 0}),
        (vendor.Artifact, {"name": "m", "bytes": 0, "sha256": "0a" * 32, "url": "u"}, {"bytes": -1}),
        (vendor.Artifact, {"name": "m", "bytes": 0, "sha256": "0a" * 32, "url": "u"}, {"sha256": "0A" * 32}),
        (vendor.Artifact, {"name": "m", "bytes": 0, "sha256": "0a" * 32, "url": "u"}, {"sha256": "0a" * 33}),
    ],
)
def test_a_body_with_a_wrong_field_is_refused(body: Any, document: dict[str, Any], changes: dict[str, Any]) -> None:
    assert body.model_validate(document)
    with pytest.raises(ValidationError):
        body.model_validate({**document, **changes})


@pytest.mark.parametrize(
    ("body", "document", "changes"),
    [
        (vendor.Offer, OFFER, {"available": 0}),
        (vendor.Offer, OFFER, {"payTo": "x" * 256}),
        (vendor.JobStatus, STATUS, {"progress": 1, "costSoFar": 0}),
        (vendor.JobStatus, STATUS, {"progress": 0}),
        (vendor.JobStatus, STATUS, {"logs": ["x" * 4_096] * 1_000}),
        (vendor.Artifact, {"name": "m", "sha256": "0a" * 32, "url": "u"}, {"bytes": 0}),
    ],
)
def test_a_body_at_its_limits_is_accepted(body: Any, document: dict[str, Any], changes: dict[str, Any]) -> None:
    assert body.model_validate({**document, **changes})


@pytest.mark.parametrize(
    ("hours", "accepted"),
    [
        ("0", False),
        ("-1", False),
        ("0.01", True),
        ("10000", True),
        ("10000.01", False),
        ("1e400", False),
        ("true", False),
    ],
)
def test_hours_of_a_quote_are_above_zero_and_below_a_limit(hours: str, accepted: bool) -> None:
    text = f'{{"jobType": "fine_tune", "gpuType": "A100", "maxHours": {hours}}}'
    if accepted:
        assert vendor.QuoteRequest.from_json(text).max_hours == Decimal(hours)
    else:
        with pytest.raises(ValueError, match="maxHours"):
            vendor.QuoteRequest.from_json(text)


@pytest.mark.parametrize(
    ("secrets", "expected"),
    [
        ("", None),
        ("one-for-all", "one-for-all"),
        ("one,with,commas", "one,with,commas"),
        ("cGFkZGVk==", "cGFkZGVk=="),
        ("v1=a,v2=b", "a"),
        (" v2=b , v1=a ", "a"),
        ("v1=cGFkZGVk==,v2=b", "cGFkZGVk=="),
        ("v1=,v2=b", None),
        ("v2=b", None),
        ("v2=b,v1", None),
    ],
)
def test_a_vendors_secret_is_found_among_the_secrets(secrets: str, expected: str | None) -> None:
    assert vendor.secret_for("v1", secrets) == expected
