"""
Polling the active jobs: new log lines, progress, the end, a refund announced. Silence is not failure: `core.evidence`.
"""

from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from agent.core import evidence
from agent.core.decide import active_jobs
from agent.core.errors import VendorError, VendorGarbled, VendorRefused
from agent.core.events import (
    Event,
    JobEnded,
    JobLogged,
    JobMissed,
    JobObserved,
)
from agent.core.model import Job, Run, Vendor
from agent.core.states import JOB_ENDS
from agent.refunds import read_refund
from agent.turn import Turn
from wire.money import MoneyError, to_atomic_up
from wire.vendor import JobStatus

# Kept of one job's log; a vendor that talks for ever fills its own disk, not ours.
LOG_LINES_MAX = 10_000

# The vendor is there and knows no such job, or no longer.
GONE = frozenset({404, 410})


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
    """Store what a vendor said of a job; return a message if the job ended."""
    turn.record(*events)
    await turn.save()
    ends = [event.status for event in events if isinstance(event, JobEnded)]
    return f"Job {ends[-1]}" if ends else None


async def _poll(turn: Turn, vendor: Vendor | None, job: Job) -> list[Event]:
    assert job.vendor_job_id is not None
    if vendor is None:
        return _missed(turn, job, "Active job missing vendor configuration")
    try:
        status = await turn.agent.vendors.job_status(vendor, job.vendor_job_id, job.cursor)
        return read_status(turn.run, job, status, turn.now)
    except VendorRefused as error:
        return await _refused(turn, vendor, job, error)
    except VendorError as error:
        return _missed(turn, job, str(error))


async def _refused(turn: Turn, vendor: Vendor, job: Job, error: VendorRefused) -> list[Event]:
    """Return what a 4xx means. A proxy says 404 of anything: what is gone is gone by its key as well."""
    payment = next((payment for payment in turn.run.payments if payment.job_id == job.job_id), None)
    if error.status not in GONE or payment is None:
        return _missed(turn, job, str(error))
    try:
        found = await turn.agent.vendors.find(vendor, payment.payment_id)
    except VendorError:
        return _missed(turn, job, str(error))
    if found is None or found.vendor_job_id != job.vendor_job_id:
        return _missed(turn, job, f"no such job: {error}", gone=True)
    if found.status in JOB_ENDS:
        return _missed(turn, job, f"{found.status}, and no word of how: {error}")
    return [_observed(turn.now, job, found.status, job.progress, job.cursor)]


def _missed(turn: Turn, job: Job, detail: str, gone: bool = False) -> list[Event]:
    missed = JobMissed(at=turn.now, job_id=job.job_id, detail=detail, gone=gone)
    polls = evidence.noted(job.polls, "g" if gone else "x")
    if evidence.verdict(polls, job.missed_since or turn.now, turn.now, turn.agent.limits) != "lost":
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
            events.extend(read_refund(run, job, status.refund, now))
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
                step=_step(status),
                metrics=_metrics(status),
            )
        )
        return events
    observed = _observed(now, job, status.status, status.progress, status.cursor)
    events.append(replace(observed, step=_step(status), metrics=_metrics(status)))
    return events


def _observed(now: datetime, job: Job, status: str, progress: Decimal, cursor: str | None) -> JobObserved:
    # A vendor that is already running does not go back to waiting.
    waits = status == "submitted" and job.status != "running"
    return JobObserved(
        at=now, job_id=job.job_id, status="submitted" if waits else "running", progress=progress, cursor=cursor
    )


def _step(status: JobStatus) -> int | None:
    """Return the last step that a status tells of, by its measurements or its checkpoint."""
    told = [point.step for point in status.metrics[-1:]]
    return max([*told, *([] if status.checkpoint is None else [status.checkpoint.step])], default=None)


def _metrics(status: JobStatus) -> dict[str, Decimal] | None:
    return dict(status.metrics[-1].values) if status.metrics else None


def _new_lines(job: Job, status: JobStatus) -> tuple[str, ...]:
    """Return the lines to keep: none where the cursor stands still (they were read before), never endlessly many."""
    if status.cursor == job.cursor:
        return ()
    return status.logs[: LOG_LINES_MAX - job.log_lines]
