"""
Polling the active jobs: new log lines, progress, the end, a refund announced. Silence is not failure.
"""

from datetime import datetime, timedelta

from agent.core.decide import active_jobs
from agent.core.errors import VendorError, VendorGarbled
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
