"""What the control plane shows of a run: decimals, newest first, no secret of its owner's."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from agent.core.decide import AskPlanner, CancelJobs, EndRun, StartJob, Wait
from agent.core.events import RunEnded
from agent.core.log import record
from agent.core.model import Artifact, Budget, JobSpec
from agent.core.views import action_document, end_of, run_document, status_reply
from tests.agent.core.values import (
    EVENTS,
    PAY_TO,
    PAYER,
    REFUND,
    SETTLEMENT,
    STARTED,
    T0,
    USDC,
    a_claim,
    a_job,
    a_payment,
    a_run,
    at,
)

SPEC = JobSpec(
    kind="inference",
    gpu_type="A10",
    min_vram_gb=24,
    max_hours=Decimal("2.5"),
    count=2,
    model="tiny-llm",
    dataset="alpaca",
    params={"epochs": 3},
    env={"HF_TOKEN": "hf_secret", "EMPTY": ""},
)
RUN = a_run(
    job=SPEC,
    budget=Budget(
        total_atomic=5_000_000, available_atomic=1_500_000, reserved_atomic=1_400_000, spent_atomic=2_100_000
    ),
    phase="waiting",
    deadline=at(60),
    price_per_hour_atomic_max=1_500_000,
    cancel_requested_at=at(4),
    next_tick_at=at(5),
    updated_at=at(3),
)


def test_a_run_is_shown_with_every_field_in_decimals() -> None:
    assert run_document(RUN).document() == {
        "_id": "run_1",
        "userId": "local",
        "goal": "Fine-tune tiny-llm",
        "budgetTotal": Decimal(5),
        "budgetRemaining": Decimal("1.5"),
        "budgetReserved": Decimal("1.4"),
        "budgetSpent": Decimal("2.1"),
        "currency": "USDC",
        "asset": USDC.address,
        "network": "eip155:84532",
        "status": "running",
        "phase": "waiting",
        "job": {
            "kind": "inference",
            "gpuType": "A10",
            "minVramGb": 24,
            "maxHours": Decimal("2.5"),
            "count": 2,
            "model": "tiny-llm",
            "dataset": "alpaca",
            "params": {"epochs": 3},
            "env": {"HF_TOKEN": "***", "EMPTY": "***"},
        },
        "deadline": at(60),
        "maxPricePerHour": Decimal("1.5"),
        "cancelRequestedAt": at(4),
        "nextTickAt": at(5),
        "createdAt": T0,
        "updatedAt": at(3),
        "costs": (),
    }


def test_an_ended_run_says_when_and_why() -> None:
    ended = replace(RUN, status="failed", phase="done", reason="attempts_exhausted", completed_at=at(9))
    document = run_document(ended)
    assert (document.status, document.phase, document.reason) == ("failed", "done", "attempts_exhausted")
    assert document.completed_at == at(9)


def test_a_run_without_a_cap_on_the_hour_shows_none() -> None:
    assert run_document(a_run()).max_price_per_hour is None
    assert run_document(a_run(price_per_hour_atomic_max=1)).max_price_per_hour == Decimal("0.000001")


def test_a_job_is_shown_with_every_field_and_without_the_owners_environment() -> None:
    job = a_job(
        1,
        status="failed",
        vendor_job_id="vjob-1",
        progress=Decimal("0.6"),
        actual_cost_atomic=0,
        final_metrics={"loss": Decimal("0.1")},
        artifact_url="http://vendor/artifacts/1",
        artifacts=(Artifact(name="../a &b", bytes=3, sha256="0a" * 32),),
        error_message="CUDA out of memory",
        job_params={"goal": "g", "env": {"HF_TOKEN": "hf_secret"}, "params": {"epochs": 3}},
        updated_at=at(1),
        completed_at=at(2),
    )
    reply = status_reply(a_run(jobs=(job,)), ())
    assert reply.jobs[0].document() == {
        "_id": "run_1-job-1",
        "runId": "run_1",
        "vendorId": "gpu_vendor_1",
        "vendorJobId": "vjob-1",
        "status": "failed",
        "gpuType": "A10",
        "hours": Decimal("1.00"),
        "progress": Decimal("0.6"),
        "expectedCost": Decimal("1.4"),
        "expectedDurationMinutes": Decimal(60),
        "actualCost": Decimal(0),
        "finalMetrics": {"loss": Decimal("0.1")},
        "artifactUrl": "http://vendor/artifacts/1",
        "artifacts": (
            {
                "name": "../a &b",
                "bytes": 3,
                "sha256": "0a" * 32,
                "url": "/api/agent-artifact?runId=run_1&jobId=run_1-job-1&name=..%2Fa+%26b",
            },
        ),
        "errorMessage": "CUDA out of memory",
        "jobParams": {"goal": "g", "params": {"epochs": 3}},
        "createdAt": T0,
        "updatedAt": at(1),
        "completedAt": at(2),
    }
    assert b"hf_secret" not in reply.to_json()


def test_a_job_whose_cost_is_not_known_shows_none() -> None:
    assert status_reply(a_run(jobs=(a_job(1),)), ()).jobs[0].actual_cost is None


def test_a_payment_is_shown_with_every_field_and_without_its_cheque() -> None:
    payment = a_payment(
        1,
        status="refunded",
        transaction=SETTLEMENT,
        refund=a_claim(),
        refunded_atomic=700_000,
        error_message="202: pending",
        updated_at=at(1),
        dialect="x402-v1",
    )
    reply = status_reply(a_run(payments=(payment,)), ())
    assert reply.payments[0].document() == {
        "_id": "run_1-payment-1",
        "runId": "run_1",
        "jobId": "run_1-job-1",
        "vendorId": "gpu_vendor_1",
        "amount": Decimal("1.4"),
        "currency": "USDC",
        "asset": USDC.address,
        "network": "eip155:84532",
        "payer": PAYER,
        "payTo": PAY_TO,
        "dialect": "x402-v1",
        "status": "refunded",
        "x402TxId": SETTLEMENT,
        "refunded": Decimal("0.7"),
        "refundTxId": REFUND,
        "errorMessage": "202: pending",
        "createdAt": T0,
        "updatedAt": at(1),
    }
    assert payment.header.encode() not in reply.to_json()


def test_a_payment_without_a_settlement_or_a_refund_shows_none() -> None:
    shown = status_reply(a_run(payments=(a_payment(1),)), ()).payments[0]
    assert (shown.x402_tx_id, shown.refund_tx_id, shown.refunded) == (None, None, Decimal(0))
    one = status_reply(a_run(payments=(a_payment(1, status="refunded", refunded_atomic=1),)), ()).payments[0]
    assert one.refunded == Decimal("0.000001")


def test_the_newest_comes_first() -> None:
    run, entries = record(STARTED, EVENTS)
    reply = status_reply(run, entries)
    assert reply.run == run_document(run)
    assert [job.id for job in reply.jobs] == [f"run_1-job-{number}" for number in (4, 3, 2, 1)]
    assert [payment.id for payment in reply.payments] == [f"run_1-payment-{number}" for number in (4, 3, 1)]
    assert [shown.seq for shown in reply.observations] == list(range(len(EVENTS), 0, -1))
    assert reply.observations[-8].document() == {
        "runId": "run_1",
        "seq": 8,
        "jobId": "run_1-job-1",
        "type": "job_log",
        "content": "Epoch 1/5",
        "timestamp": at(7),
    }


@pytest.mark.parametrize(
    ("action", "document"),
    [
        (
            StartJob(vendor_id="v", gpu_type="A10", max_hours=Decimal("0.50"), reason="cheap"),
            {"action": "start_job", "vendorId": "v", "maxHours": Decimal("0.50"), "reason": "cheap"},
        ),
        (EndRun(status="failed", reason="no_vendor_left", detail="2 of 2"), {"action": "abort", "reason": "2 of 2"}),
        (EndRun(status="failed", reason="no_vendor_left"), {"action": "abort", "reason": "no_vendor_left"}),
        (Wait(reason="nobody"), {"action": "wait", "reason": "nobody"}),
        (CancelJobs(reason="cancelled", job_ids=(), since=T0), {"action": "wait", "reason": "cancelled"}),
        (AskPlanner(), {"action": "wait", "reason": ""}),
    ],
)
def test_a_decision_is_shown_as_one_of_three_actions(action: Any, document: dict[str, Any]) -> None:
    shown = action_document(action)
    assert shown is not None
    assert shown.document() == document


def test_no_decision_is_shown_as_none() -> None:
    assert action_document(None) is None


def test_the_entry_that_ends_a_run_tells_how() -> None:
    _, entries = record(a_run(), [RunEnded(at=at(1), status="cancelled", reason="cancelled")])
    assert [end_of(entry) for entry in entries] == ["cancelled"]
    _, entries = record(a_run(), [EVENTS[1]])
    assert [end_of(entry) for entry in entries] == [None]
