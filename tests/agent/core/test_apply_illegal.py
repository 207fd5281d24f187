"""Events that cannot be: `apply` refuses them, whoever made them up."""

from decimal import Decimal
from typing import Any

import pytest

from agent.core import events, ledger
from agent.core.apply import apply
from agent.core.errors import IllegalMove
from agent.core.events import Event
from agent.core.model import Run
from tests.agent.core.values import PRICE, REFUND, SETTLEMENT, a_job, a_payment, a_run, at

JOB, PAYMENT = "run_1-job-1", "run_1-payment-1"
BUDGET = ledger.reserved(ledger.spent(ledger.reserved(ledger.opened(5_000_000), PRICE), PRICE), PRICE)


def a_running_run(job: dict[str, Any], payment: dict[str, Any]) -> Run:
    return a_run(jobs=(a_job(1, **job),), payments=(a_payment(1, **payment),), budget=BUDGET)


@pytest.mark.parametrize("status", ["pending", "unknown"])
def test_a_run_does_not_end_while_a_payment_is_open(status: str) -> None:
    run = a_run(payments=(a_payment(9, status="completed"), a_payment(1, status=status)), budget=BUDGET)
    with pytest.raises(IllegalMove, match=r"^a run does not end while run_1-payment-1 is open$"):
        apply(run, events.RunEnded(at=at(1), status="cancelled"))


def settled(payment_id: str = PAYMENT) -> Event:
    return events.PaymentSettled(at=at(1), payment_id=payment_id, transaction=SETTLEMENT)


@pytest.mark.row(4)
@pytest.mark.parametrize(
    ("job", "payment", "event"),
    [
        ({}, {"status": "completed"}, settled()),
        ({}, {"status": "failed"}, settled()),
        ({}, {"status": "refunded"}, settled()),
        ({}, {"status": "completed"}, events.PaymentVoided(at=at(1), payment_id=PAYMENT, detail="")),
        (
            {},
            {"status": "unknown"},
            events.RefundSettled(at=at(1), payment_id=PAYMENT, amount_atomic=1, transaction=REFUND),
        ),
        (
            {},
            {"status": "refunded"},
            events.RefundSettled(at=at(1), payment_id=PAYMENT, amount_atomic=1, transaction=REFUND),
        ),
        ({"status": "submitted"}, {}, events.JobSubmitted(at=at(1), job_id=JOB, vendor_job_id="vjob-2")),
        ({"status": "failed"}, {}, events.JobEnded(at=at(1), job_id=JOB, status="completed")),
        ({"status": "completed"}, {}, events.JobEnded(at=at(1), job_id=JOB, status="completed")),
        ({"status": "quoted"}, {}, events.JobEnded(at=at(1), job_id=JOB, status="completed")),
        (
            {"status": "running"},
            {},
            events.JobObserved(at=at(1), job_id=JOB, status="submitted", progress=Decimal(0), cursor="1"),
        ),
        (
            {"status": "quoted"},
            {},
            events.JobObserved(at=at(1), job_id=JOB, status="running", progress=Decimal(0), cursor="1"),
        ),
    ],
)
def test_an_event_that_cannot_be_is_an_illegal_move(job: Any, payment: Any, event: Event) -> None:
    with pytest.raises(IllegalMove):
        apply(a_running_run(job, payment), event)


@pytest.mark.row(4)
@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_an_ended_run_does_not_end_again(status: str) -> None:
    with pytest.raises(IllegalMove):
        apply(a_run(status=status), events.RunEnded(at=at(1), status="failed"))
