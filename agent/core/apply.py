"""
`apply(run, event) -> run`: the only way a run changes. One line per kind of event, in a table.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from agent.core import ledger
from agent.core.errors import IllegalMove
from agent.core.events import (
    ArtifactsKept,
    ArtifactsMissed,
    AttemptFailed,
    ChequeRevoked,
    Decided,
    Event,
    JobEnded,
    JobLogged,
    JobMissed,
    JobObserved,
    JobQuoted,
    JobSubmitted,
    PaymentReserved,
    PaymentSettled,
    PaymentVoided,
    RefundAnnounced,
    RefundSettled,
    Refused,
    RunEnded,
    RunStarted,
    SubmissionUnanswered,
)
from agent.core.evidence import noted
from agent.core.model import Job, Payment, RefundClaim, Run
from agent.core.states import JOB_MOVES, OPEN_PAYMENTS, PAYMENT_MOVES, RUN_MOVES, move


def apply(run: Run, event: Event) -> Run:
    """
    Return `run` after `event`.

    Raises:
        IllegalMove: the state tables have no such move, or a run would end with an open payment.
        AssertionError: the budget would not balance.
    """
    return replace(_RULES[type(event)](run, event), updated_at=event.at)


def _decided(run: Run, event: Decided) -> Run:
    return replace(run, phase=event.phase)


def _job_quoted(run: Run, event: JobQuoted) -> Run:
    return replace(run, phase="executing", jobs=(*run.jobs, event.job))


def _attempt_failed(run: Run, event: AttemptFailed) -> Run:
    return replace(run, phase="planning", jobs=(*run.jobs, event.job))


def _payment_reserved(run: Run, event: PaymentReserved) -> Run:
    payment = event.payment
    return replace(run, budget=ledger.reserved(run.budget, payment.amount_atomic), payments=(*run.payments, payment))


def _submission_unanswered(run: Run, event: SubmissionUnanswered) -> Run:
    payment = find_payment(run, event.payment_id)
    status = move(PAYMENT_MOVES, payment.status, "unknown") if payment.status == "pending" else payment.status
    sends = payment.sends + event.sent
    return _with_payment(run, payment, event, status=status, sends=sends, error_message=event.detail)


def _cheque_revoked(run: Run, event: ChequeRevoked) -> Run:
    payment = find_payment(run, event.payment_id)
    if payment.status not in OPEN_PAYMENTS:
        raise IllegalMove(f"a {payment.status} payment has no cheque to revoke")
    return _with_payment(run, payment, event, revoked_in=event.transaction)


def _payment_settled(run: Run, event: PaymentSettled) -> Run:
    payment = find_payment(run, event.payment_id)
    run = replace(run, budget=ledger.spent(run.budget, payment.amount_atomic))
    status = move(PAYMENT_MOVES, payment.status, "completed")
    return _with_payment(run, payment, event, status=status, transaction=event.transaction, error_message=None)


def _payment_voided(run: Run, event: PaymentVoided) -> Run:
    payment = find_payment(run, event.payment_id)
    run = replace(run, budget=ledger.released(run.budget, payment.amount_atomic))
    status = move(PAYMENT_MOVES, payment.status, "failed")
    return _with_payment(run, payment, event, status=status, error_message=event.detail)


def _job_submitted(run: Run, event: JobSubmitted) -> Run:
    job = find_job(run, event.job_id)
    run = replace(run, phase="waiting")
    return _with_job(
        run,
        job,
        event,
        status=move(JOB_MOVES, job.status, "submitted"),
        vendor_job_id=event.vendor_job_id,
        submitted_at=event.at,
    )


def _job_logged(run: Run, event: JobLogged) -> Run:
    job = find_job(run, event.job_id)
    return _with_job(run, job, event, log_lines=job.log_lines + 1)


def _job_observed(run: Run, event: JobObserved) -> Run:
    job = find_job(run, event.job_id)
    status = job.status if job.status == event.status else move(JOB_MOVES, job.status, event.status)
    # A vendor that counts backwards is not believed: progress never falls.
    return _with_job(
        run,
        job,
        event,
        status=status,
        progress=max(job.progress, event.progress),
        cursor=event.cursor,
        polls=noted(job.polls, "."),
        missed_since=None,
        **_measured(job, event),
    )


def _job_missed(run: Run, event: JobMissed) -> Run:
    job = find_job(run, event.job_id)
    polls = noted(job.polls, "g" if event.gone else "x")
    return _with_job(run, job, event, polls=polls, missed_since=job.missed_since or event.at)


def _job_ended(run: Run, event: JobEnded) -> Run:
    job = find_job(run, event.job_id)
    return _with_job(
        replace(run, phase="planning"),
        job,
        event,
        status=move(JOB_MOVES, job.status, event.status),
        progress=max(job.progress, event.progress or job.progress),
        actual_cost_atomic=event.cost_atomic,
        final_metrics=event.final_metrics,
        artifact_url=event.artifact_url,
        error_message=event.error_message,
        completed_at=event.at,
        **_measured(job, event),
    )


def _measured(job: Job, event: JobObserved | JobEnded) -> dict[str, Any]:
    """Return what was told of steps. Nor do these go backwards."""
    step = job.step if event.step is None else max(job.step or 0, event.step)
    return {"step": step, "latest_metrics": event.metrics or job.latest_metrics}


def _artifacts_kept(run: Run, event: ArtifactsKept) -> Run:
    job = find_job(run, event.job_id)
    closed_at = event.at if event.closed else None
    return _with_job(run, job, event, artifacts=(*job.artifacts, *event.artifacts), artifacts_closed_at=closed_at)


def _artifacts_missed(run: Run, event: ArtifactsMissed) -> Run:
    job = find_job(run, event.job_id)
    closed_at = event.at if event.closed else None
    return _with_job(run, job, event, artifact_misses=job.artifact_misses + 1, artifacts_closed_at=closed_at)


def _refund_announced(run: Run, event: RefundAnnounced) -> Run:
    payment = find_payment(run, event.payment_id)
    claim = RefundClaim(amount_atomic=event.amount_atomic, transaction=event.transaction, announced_at=event.at)
    return _with_payment(run, payment, event, refund=claim)


def _refund_settled(run: Run, event: RefundSettled) -> Run:
    payment = find_payment(run, event.payment_id)
    run = replace(run, budget=ledger.refunded(run.budget, event.amount_atomic))
    status = move(PAYMENT_MOVES, payment.status, "refunded")
    return _with_payment(run, payment, event, status=status, refunded_atomic=event.amount_atomic)


def _run_ended(run: Run, event: RunEnded) -> Run:
    for payment in run.payments:
        if payment.status in OPEN_PAYMENTS:
            raise IllegalMove(f"a run does not end while {payment.payment_id} is open")
    status = move(RUN_MOVES, run.status, event.status)
    return replace(run, status=status, phase="done", reason=event.reason, completed_at=event.at)


_RULES: Mapping[type, Callable[[Run, Any], Run]] = {
    RunStarted: lambda run, event: event.run,
    Decided: _decided,
    Refused: lambda run, event: run,
    JobQuoted: _job_quoted,
    AttemptFailed: _attempt_failed,
    PaymentReserved: _payment_reserved,
    SubmissionUnanswered: _submission_unanswered,
    ChequeRevoked: _cheque_revoked,
    PaymentSettled: _payment_settled,
    PaymentVoided: _payment_voided,
    JobSubmitted: _job_submitted,
    JobLogged: _job_logged,
    JobObserved: _job_observed,
    JobMissed: _job_missed,
    JobEnded: _job_ended,
    ArtifactsKept: _artifacts_kept,
    ArtifactsMissed: _artifacts_missed,
    RefundAnnounced: _refund_announced,
    RefundSettled: _refund_settled,
    RunEnded: _run_ended,
}


def find_job(run: Run, job_id: str) -> Job:
    """Return the run's job. Raises KeyError."""
    return {job.job_id: job for job in run.jobs}[job_id]


def find_payment(run: Run, payment_id: str) -> Payment:
    """Return the run's payment. Raises KeyError."""
    return {payment.payment_id: payment for payment in run.payments}[payment_id]


def _with_job(run: Run, job: Job, event: Event, **changes: Any) -> Run:
    changed = replace(job, updated_at=event.at, **changes)
    return replace(run, jobs=tuple(changed if item is job else item for item in run.jobs))


def _with_payment(run: Run, payment: Payment, event: Event, **changes: Any) -> Run:
    changed = replace(payment, updated_at=event.at, **changes)
    return replace(run, payments=tuple(changed if item is payment else item for item in run.payments))
