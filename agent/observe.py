"""
Polling the active jobs: new log lines, progress, the end, a refund announced. Silence is not failure.
"""

import re
from datetime import datetime, timedelta

from agent.core.decide import active_jobs
from agent.core.errors import VendorError, VendorGarbled
from agent.core.events import (
    Event,
    JobEnded,
    JobLogged,
    JobMissed,
    JobObserved,
    RefundAnnounced,
    Refused,
)
from agent.core.model import Job, Payment, Run, Vendor
from agent.core.states import JOB_ENDS
from agent.settle import settle_refunds
from agent.turn import Turn
from wire.money import MoneyError, to_atomic, to_atomic_up
from wire.vendor import JobStatus, Refund

# Kept of one job's log; a vendor that talks for ever fills its own disk, not ours.
LOG_LINES_MAX = 10_000

_TRANSACTION = re.compile(r"0x[0-9a-fA-F]{64}")


async def observe(turn: Turn, vendors: dict[str, Vendor]) -> str | None:
    """Poll each submitted job and store what was learned; return a message if one ended, else None."""
    message: str | None = None
    for job in active_jobs(turn.run):
        if job.vendor_job_id is None:
            continue
        events = await _poll(turn, vendors.get(job.vendor_id), job)
        message = await take(turn, events) or message
    return message


async def take(turn: Turn, events: list[Event]) -> str | None:
    """Store what a vendor said of a job, count a refund if the chain has it; return a message if the job ended."""
    turn.record(*events)
    await turn.save()
    if any(isinstance(event, RefundAnnounced) for event in events):
        await settle_refunds(turn)
    ends = [event.status for event in events if isinstance(event, JobEnded)]
    return f"Job {ends[-1]}" if ends else None


async def _poll(turn: Turn, vendor: Vendor | None, job: Job) -> list[Event]:
    assert job.vendor_job_id is not None
    if vendor is None:
        return _missed(turn, job, "Active job missing vendor configuration")
    try:
        status = await turn.agent.vendors.job_status(vendor, job.vendor_job_id, job.cursor)
        return read_status(turn.run, job, status, turn.now)
    except VendorError as error:
        return _missed(turn, job, str(error))


def _missed(turn: Turn, job: Job, detail: str) -> list[Event]:
    limits = turn.agent.limits
    missed = JobMissed(at=turn.now, job_id=job.job_id, detail=detail)
    since = job.missed_since or turn.now
    if job.misses + 1 < limits.misses_max or turn.now < since + timedelta(seconds=limits.missed_s_max):
        return [missed]
    return [missed, JobEnded(at=turn.now, job_id=job.job_id, status="failed", error_message=f"job_lost: {detail}")]


def read_status(run: Run, job: Job, status: JobStatus, now: datetime) -> list[Event]:
    """
    Return what a vendor's status means for `job`.

    Raises:
        VendorGarbled: another job's status, or a cost that is no amount.
    """
    if status.vendor_job_id != job.vendor_job_id:
        raise VendorGarbled(f"asked for {job.vendor_job_id}, was told of {status.vendor_job_id}")
    try:
        cost_atomic = to_atomic_up(status.cost_so_far, run.asset)
    except MoneyError as error:
        raise VendorGarbled(f"costSoFar: {error}") from None
    events: list[Event] = [JobLogged(at=now, job_id=job.job_id, line=line) for line in _new_lines(job, status)]
    if status.status in JOB_ENDS:
        if status.refund is not None:
            events.extend(_announced(run, job, status.refund, now))
        events.append(
            JobEnded(
                at=now,
                job_id=job.job_id,
                status=status.status,
                progress=status.progress,
                cost_atomic=cost_atomic,
                final_metrics=status.final_metrics,
                artifact_url=status.artifact_url,
                error_message=status.error_message,
            )
        )
        return events
    # A vendor that is already running does not go back to waiting.
    waits = status.status == "submitted" and job.status != "running"
    events.append(
        JobObserved(
            at=now,
            job_id=job.job_id,
            status="submitted" if waits else "running",
            progress=status.progress,
            cursor=status.cursor,
        )
    )
    return events


def _new_lines(job: Job, status: JobStatus) -> tuple[str, ...]:
    """Return the lines to keep: none where the cursor stands still (they were read before), never endlessly many."""
    if status.cursor == job.cursor:
        return ()
    return status.logs[: LOG_LINES_MAX - job.log_lines]


def _announced(run: Run, job: Job, refund: Refund, now: datetime) -> list[Event]:
    payment = next((payment for payment in run.payments if payment.job_id == job.job_id), None)
    if payment is None or payment.refund is not None:
        return []
    try:
        amount_atomic = to_atomic(refund.amount, run.asset)
        problem = _refund_problem(payment, refund, amount_atomic)
    except MoneyError as error:
        problem = str(error)
    if problem is not None:
        return [Refused(at=now, code="bad_refund", detail=problem, job_id=job.job_id)]
    return [
        RefundAnnounced(
            at=now,
            payment_id=payment.payment_id,
            amount_atomic=amount_atomic,
            transaction=refund.transaction.lower(),
        )
    ]


def _refund_problem(payment: Payment, refund: Refund, amount_atomic: int) -> str | None:
    if refund.asset.lower() != payment.asset.lower() or refund.network != payment.network:
        return f"announced in {refund.asset} on {refund.network}"
    if not _TRANSACTION.fullmatch(refund.transaction):
        return "the transaction is not a hash"
    if amount_atomic > payment.amount_atomic:
        return "more than was paid"
    return None
