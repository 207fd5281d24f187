"""
Ending jobs before they end by themselves: their run was cancelled, its deadline passed, they are overdue, or another
has done their work.
"""

from datetime import timedelta

from agent.core.apply import find_job
from agent.core.decide import CancelJobs
from agent.core.errors import VendorError
from agent.core.events import Event, JobEnded, JobMissed
from agent.core.model import Job, JobState, Vendor
from agent.core.slots import HEDGE_LOST
from agent.core.states import JOB_ENDS
from agent.observe import read_status, take
from agent.turn import Turn


async def cancel_jobs(turn: Turn, vendors: dict[str, Vendor], action: CancelJobs) -> str:
    """Ask each vendor to cancel; give a job up whose vendor does not confirm in time. Return the tick's message."""
    await turn.save()
    message = "Waiting"
    for job_id in action.job_ids:
        job = find_job(turn.run, job_id)
        said = await _cancelled(turn, vendors.get(job.vendor_id), job)
        if not any(isinstance(event, JobEnded) for event in said) and _is_given_up(turn, action):
            said.append(_given_up(turn, job, action.reason))
        message = await take(turn, said) or message
    return message


async def _cancelled(turn: Turn, vendor: Vendor | None, job: Job) -> list[Event]:
    assert job.vendor_job_id is not None
    if vendor is None:
        return [JobMissed(at=turn.now, job_id=job.job_id, detail="cancel: Active job missing vendor configuration")]
    try:
        status = await turn.agent.vendors.cancel(vendor, job.vendor_job_id, job.cursor)
        events = read_status(turn.run, job, status, turn.now)
    except VendorError as error:
        return [JobMissed(at=turn.now, job_id=job.job_id, detail=f"cancel: {error}")]
    if status.status not in JOB_ENDS:
        events.append(JobMissed(at=turn.now, job_id=job.job_id, detail=f"cancel: the vendor answers {status.status}"))
    return events


def _is_given_up(turn: Turn, action: CancelJobs) -> bool:
    return turn.now >= action.since + timedelta(seconds=turn.agent.limits.missed_s_max)


def _given_up(turn: Turn, job: Job, reason: str) -> JobEnded:
    status: JobState = "cancelled" if reason in ("cancelled", HEDGE_LOST) else "failed"
    message = f"{reason}: the vendor did not confirm the cancellation"
    return JobEnded(at=turn.now, job_id=job.job_id, status=status, error_message=message)
