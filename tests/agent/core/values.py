"""Runs in every state, with ids that are the same every time, and events to happen to them."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from agent.core import events, ledger
from agent.core.decide import Facts
from agent.core.dialects import Challenge
from agent.core.events import Event
from agent.core.log import record
from agent.core.model import Artifact, Job, Payment, RefundClaim, Run, Vendor
from agent.core.policy import SpendingPolicy
from tests.contracts import store_values
from tests.contracts.store_values import PAY_TO, PAYER, T0
from wire.money import BASE_SEPOLIA_USDC
from wire.x402 import PaymentRequired, PaymentRequirements, ResourceInfo

USDC = BASE_SEPOLIA_USDC
PRICE = 1_400_000
SETTLEMENT = "0x" + "ab" * 32
REFUND = "0x" + "cd" * 32
MODEL = Artifact(name="model.json", bytes=3, sha256="0a" * 32)

__all__ = ["PAYER", "PAY_TO", "T0"]


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def a_run(**changes: Any) -> Run:
    return store_values.a_run(**{"run_id": "run_1", "status": "running", "budget": ledger.opened(5_000_000)} | changes)


def a_job(number: int = 1, **changes: Any) -> Job:
    values = {"job_id": f"run_1-job-{number}", "status": "quoted", "job_params": {"goal": "Fine-tune tiny-llm"}}
    return store_values.a_job(**values | changes)


def a_payment(number: int = 1, **changes: Any) -> Payment:
    values = {"payment_id": f"run_1-payment-{number}", "job_id": f"run_1-job-{number}", "nonce": f"0x{number:064x}"}
    return store_values.a_payment(**values | changes)


def a_vendor(number: int = 1, **changes: Any) -> Vendor:
    return store_values.a_vendor(**{"vendor_id": f"gpu_vendor_{number}"} | changes)


def a_claim(amount_atomic: int = 700_000, announced_at: datetime = T0) -> RefundClaim:
    return RefundClaim(amount_atomic=amount_atomic, transaction=REFUND, announced_at=announced_at)


def policy(**changes: Any) -> SpendingPolicy:
    values: dict[str, Any] = {
        "asset": USDC,
        "payment_atomic_max": 2_000_000,
        "run_atomic_max": 4_000_000,
        "vendor_day_atomic_max": 10_000_000,
        "wallet_day_atomic_max": 20_000_000,
    }
    return SpendingPolicy(**values | changes)


def requirements(**changes: Any) -> PaymentRequirements:
    values: dict[str, Any] = {
        "scheme": "exact",
        "network": USDC.network,
        "asset": USDC.address,
        "amount": str(PRICE),
        "pay_to": PAY_TO,
        "max_timeout_seconds": 300,
        "extra": {"name": "USDC", "version": "2"},
    }
    return PaymentRequirements(**values | changes)


def required(*accepts: PaymentRequirements, extensions: dict[str, Any] | None = None) -> PaymentRequired:
    resource = ResourceInfo(url="http://localhost:4001/submit-job", description="a job")
    return PaymentRequired(resource=resource, accepts=accepts, extensions=extensions)


def challenge(asked: PaymentRequired) -> Challenge:
    """Return `asked` as a seller of version 2 says it."""
    return Challenge(required=asked, dialect="x402-v2", said=tuple(offer.document() for offer in asked.accepts))


def facts(**changes: Any) -> Facts:
    return Facts(**{"attempts_max": 3, "refund_wait_s": 60, "vendors": (a_vendor(1), a_vendor(2))} | changes)


# A run from its start to its end: the first job is paid, fails and is refunded, the second fails at the
# quote, the third's cheque lapses, the fourth completes. Every kind of event happens.
STARTED = a_run(next_tick_at=T0)
EVENTS: tuple[Event, ...] = (
    events.RunStarted(at=at(0), run=STARTED),
    events.Decided(
        at=at(1),
        action="start_job",
        reason="it is first",
        phase="executing",
        vendor_id="gpu_vendor_1",
        max_hours=Decimal("1.00"),
        mode="stub",
        prompt="which?",
        raw="the first",
        fallback=True,
    ),
    events.JobQuoted(at=at(2), job=a_job(1)),
    events.PaymentReserved(at=at(3), payment=a_payment(1)),
    events.SubmissionUnanswered(at=at(4), payment_id="run_1-payment-1", detail="202: pending"),
    events.PaymentSettled(at=at(5), payment_id="run_1-payment-1", transaction=SETTLEMENT),
    events.JobSubmitted(at=at(6), job_id="run_1-job-1", vendor_job_id="vjob-1"),
    events.JobLogged(at=at(7), job_id="run_1-job-1", line="Epoch 1/5"),
    events.JobObserved(at=at(8), job_id="run_1-job-1", status="running", progress=Decimal("0.2"), cursor="1"),
    events.JobMissed(at=at(9), job_id="run_1-job-1", detail="nobody there"),
    events.RefundAnnounced(at=at(10), payment_id="run_1-payment-1", amount_atomic=700_000, transaction=REFUND),
    events.JobEnded(
        at=at(10),
        job_id="run_1-job-1",
        status="failed",
        progress=Decimal("0.5"),
        cost_atomic=700_000,
        error_message="CUDA out of memory",
    ),
    events.RefundSettled(at=at(11), payment_id="run_1-payment-1", amount_atomic=700_000, transaction=REFUND),
    events.ArtifactsMissed(at=at(11), job_id="run_1-job-1", detail="nobody there", closed=False),
    events.AttemptFailed(at=at(12), job=a_job(2, status="failed", error_message="bad_quote: the quote is zero")),
    events.JobQuoted(at=at(13), job=a_job(3)),
    events.PaymentReserved(at=at(14), payment=a_payment(3)),
    events.ChequeRevoked(at=at(14), payment_id="run_1-payment-3", transaction="0x" + "ba" * 32),
    events.PaymentVoided(at=at(15), payment_id="run_1-payment-3", detail="the cheque lapsed unused"),
    events.Refused(at=at(16), code="over_run_cap", detail="4 + 1 is above 4", job_id="run_1-job-3"),
    events.JobEnded(at=at(16), job_id="run_1-job-3", status="cancelled"),
    events.JobQuoted(at=at(17), job=a_job(4)),
    events.PaymentReserved(at=at(18), payment=a_payment(4)),
    events.PaymentSettled(at=at(19), payment_id="run_1-payment-4", transaction="0x" + "ef" * 32),
    events.JobSubmitted(at=at(20), job_id="run_1-job-4", vendor_job_id="vjob-4"),
    events.JobEnded(
        at=at(21),
        job_id="run_1-job-4",
        status="completed",
        progress=Decimal(1),
        cost_atomic=PRICE,
        final_metrics={"loss": Decimal("0.10"), "accuracy": Decimal("0.9")},
        artifact_url="http://localhost:4001/artifacts/vjob-4",
    ),
    events.ArtifactsKept(at=at(21), job_id="run_1-job-4", artifacts=(MODEL,), closed=True),
    events.RunEnded(at=at(22), status="completed"),
)


def run_after(*happened: Event, run: Run | None = None) -> Run:
    return record(run or a_run(), happened)[0]
