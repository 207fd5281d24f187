"""
What is told outside of a run's events, and in which words: the payloads of outgoing webhooks.

Source: Standard Webhooks (standardwebhooks.com), "Payload structure": {type, timestamp, data}.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from agent.core import events
from agent.core.apply import find_job, find_payment
from agent.core.events import Event
from agent.core.model import Entry, Notice, Run
from wire import decimal_json
from wire.money import to_decimal

# How long after each attempt that failed the next one comes; when all are used up the notice is given up.
RETRIES_S = (5, 300, 1_800, 7_200, 18_000, 36_000)


def notices_of(run: Run, happened: Iterable[tuple[Event, Entry]]) -> tuple[Notice, ...]:
    """
    Return what is to be told of events and the entries that they left.

    Args:
        run: as it is after them.
    """
    return tuple(_notice(run, event, entry) for event, entry in happened if type(event) in _TOLD)


def retry_s(attempts: int) -> int | None:
    """Return in how many seconds to try again after the `attempts`-th attempt failed, None for never."""
    return RETRIES_S[attempts - 1] if attempts <= len(RETRIES_S) else None


def _notice(run: Run, event: Event, entry: Entry) -> Notice:
    subject, read = _TOLD[type(event)]
    status, data = read(run, event)
    kind = f"{subject}.{status}"
    payload = {"type": kind, "timestamp": _written(entry.timestamp), "data": {"runId": run.run_id, **data}}
    return Notice(
        notice_id=f"msg_{run.run_id}_{entry.seq}",
        run_id=run.run_id,
        kind=kind,
        payload=decimal_json.dumps(payload).decode(),
        created_at=entry.timestamp,
    )


def _submitted(run: Run, event: events.JobSubmitted) -> tuple[str, dict[str, Any]]:
    return "submitted", _job(run, event.job_id) | {"vendorJobId": event.vendor_job_id}


def _job_ended(run: Run, event: events.JobEnded) -> tuple[str, dict[str, Any]]:
    why = {} if event.error_message is None else {"errorMessage": event.error_message}
    cost = {} if event.cost_atomic is None else {"actualCost": to_decimal(event.cost_atomic, run.asset)}
    return event.status, _job(run, event.job_id) | cost | why


def _settled(run: Run, event: events.PaymentSettled) -> tuple[str, dict[str, Any]]:
    return "completed", _payment(run, event.payment_id) | {"transaction": event.transaction}


def _voided(run: Run, event: events.PaymentVoided) -> tuple[str, dict[str, Any]]:
    return "failed", _payment(run, event.payment_id)


def _refunded(run: Run, event: events.RefundSettled) -> tuple[str, dict[str, Any]]:
    amount = {"amount": to_decimal(event.amount_atomic, run.asset), "transaction": event.transaction}
    return "completed", _payment(run, event.payment_id) | amount


def _run_ended(run: Run, event: events.RunEnded) -> tuple[str, dict[str, Any]]:
    why = {} if event.reason is None else {"reason": event.reason}
    spent = {"budgetSpent": to_decimal(run.budget.spent_atomic, run.asset), "currency": run.asset.symbol}
    return event.status, spent | why


def _job(run: Run, job_id: str) -> dict[str, Any]:
    return {"jobId": job_id, "vendorId": find_job(run, job_id).vendor_id, "currency": run.asset.symbol}


def _payment(run: Run, payment_id: str) -> dict[str, Any]:
    payment = find_payment(run, payment_id)
    return {
        "paymentId": payment_id,
        "jobId": payment.job_id,
        "vendorId": payment.vendor_id,
        "amount": to_decimal(payment.amount_atomic, run.asset),
        "currency": run.asset.symbol,
    }


def _written(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


_Reader = Callable[[Run, Any], tuple[str, dict[str, Any]]]

_TOLD: Mapping[type, tuple[str, _Reader]] = {
    events.JobSubmitted: ("job", _submitted),
    events.JobEnded: ("job", _job_ended),
    events.PaymentSettled: ("payment", _settled),
    events.PaymentVoided: ("payment", _voided),
    events.RefundSettled: ("refund", _refunded),
    events.RunEnded: ("run", _run_ended),
}
