"""
A run's work in pieces: `count` slots, each done by one job, and by another where that one was lost or is late.

A job of before there were slots counts by itself. Of several jobs that did one piece, one counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from agent.core.model import Checkpoint, Job, Run
from agent.core.states import JOB_ENDS

HEDGE_LOST = "hedge_lost"
CHECKPOINT_REFUSED = "checkpoint_refused"
JOB_LOST = "job_lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a job is to be started for: which slot, from which checkpoint on, to overtake which job."""

    slot: int | None = None
    resume: Checkpoint | None = None
    hedges: str | None = None

    @property
    def rest(self) -> Decimal:
        """Return how much of the work is left, from 0 to 1: whoever made the checkpoint may have lied about it."""
        if self.resume is None or self.resume.steps <= 0:
            return Decimal(1)
        done = Decimal(self.resume.step) / self.resume.steps
        return 1 - min(max(done, Decimal(0)), Decimal(1))


WHOLE = Piece()


def done_slots(run: Run) -> frozenset[int]:
    """Return the slots whose work is done."""
    return frozenset(job.slot for job in run.jobs if job.slot is not None and job.status == "completed")


def done_count(run: Run) -> int:
    """Return how many pieces of work are done."""
    return len(done_slots(run)) + sum(job.slot is None and job.status == "completed" for job in run.jobs)


def active_in(run: Run, slot: int | None) -> tuple[Job, ...]:
    """Return the jobs of `slot` that have not ended; none for no slot."""
    return tuple(job for job in run.jobs if slot is not None and job.slot == slot and job.status not in JOB_ENDS)


def open_slots(run: Run) -> tuple[int, ...]:
    """Return the slots that nobody has done or works on, the lowest first."""
    taken = done_slots(run) | {job.slot for job in run.jobs if job.status not in JOB_ENDS}
    alone = sum(job.slot is None and job.status not in ("failed", "cancelled") for job in run.jobs)
    return tuple(slot for slot in range(run.job.count) if slot not in taken)[alone:]


def winner_of(run: Run, slot: int | None) -> datetime | None:
    """Return when the work of `slot` was first done, None where it is not."""
    ends = [job.completed_at for job in run.jobs if slot is not None and job.slot == slot and job.status == "completed"]
    return min((at for at in ends if at is not None), default=None)


def lost_race(run: Run, job: Job) -> bool:
    """Return whether `job` came too late: another did its work, and it is not wanted any more or was ended for that."""
    won_at = winner_of(run, job.slot)
    if won_at is None or job.status == "completed":
        return False
    if job.status not in JOB_ENDS:
        return True
    # A job that failed before its successor was done lost no race; nor did one that failed by itself.
    is_told = job.status == "cancelled" or (job.error_message or "").startswith(HEDGE_LOST)
    return is_told and job.completed_at is not None and job.completed_at >= won_at


def spent_attempts(run: Run) -> int:
    """Return how many jobs ended without their work being done, those that lost a race left out."""
    return sum(job.status in ("failed", "cancelled") and not lost_race(run, job) for job in run.jobs)


def left_behind(run: Run, slots: Sequence[int]) -> tuple[Job, ...]:
    """Return the jobs of `slots` that ended without their work being done, and may have left a checkpoint."""
    ended = (job for job in run.jobs if job.slot in slots and job.status in ("failed", "cancelled"))
    return tuple(job for job in ended if job.vendor_job_id is not None)


def newest(run: Run, slot: int, checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return the checkpoint that a new job of `slot` goes on from: the one that is furthest, and was never refused."""
    ours = {job.job_id for job in run.jobs if job.slot == slot}
    able = [one for one in checkpoints if one.job_id in ours and not _is_spoilt(run, one)]
    return max(able, key=lambda one: (one.step * _inverse(one.steps), one.job_id), default=None)


def avoided(run: Run, slot: int | None, suspects: Sequence[Job]) -> frozenset[str]:
    """Return the vendors that get no job of `slot` now: one that has one, and those that are silent elsewhere."""
    return frozenset(job.vendor_id for job in (*active_in(run, slot), *suspects))


def _inverse(steps: int) -> Decimal:
    return Decimal(1) / max(1, steps)


def _is_spoilt(run: Run, checkpoint: Checkpoint) -> bool:
    """Return whether a job that was to go on from it was refused for it, or failed without coming any further."""
    tried = [job for job in run.jobs if job.checkpoint is not None and job.checkpoint.sha256 == checkpoint.sha256]
    return any(job.status == "failed" and _came_no_further(job, checkpoint) for job in tried)


def _came_no_further(job: Job, checkpoint: Checkpoint) -> bool:
    why = job.error_message or ""
    if job.vendor_job_id is None:
        return why.startswith(CHECKPOINT_REFUSED)
    return not why.startswith((JOB_LOST, HEDGE_LOST)) and (job.step or 0) <= checkpoint.step
