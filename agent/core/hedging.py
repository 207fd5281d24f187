"""
When a second job is worth its price: a piece of work is late for the run's deadline, or its vendor is silent, and
another vendor that goes on from the last checkpoint would still be in time. Pure, and never more than one twin a piece.

Source: the tail at scale, Dean and Barroso 2013 (hedged requests); speculative execution in MapReduce, 2004.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from agent.core.evidence import is_suspect
from agent.core.model import Checkpoint, Job, Run
from agent.core.slots import Piece, active_in, newest
from agent.core.states import JOB_ENDS, OPEN_PAYMENTS

# What another vendor needs before its first step: quote, payment, the model, the checkpoint.
START_S = 60
# What a vendor says of time is its own word: no work is reckoned longer than a hundred years.
WHOLE_S_MAX = 100 * 365 * 86_400.0


def suspects(run: Run) -> tuple[Job, ...]:
    """Return the jobs whose vendors are silent."""
    active = (job for job in run.jobs if job.status not in JOB_ENDS)
    return tuple(job for job in active if is_suspect(job.polls, job.missed_since))


def doubtful(run: Run, now: datetime) -> tuple[Job, ...]:
    """Return the jobs that may miss the deadline and have no twin, each the only one at work on its piece."""
    if run.deadline is None or now >= run.deadline:
        return ()
    return tuple(job for job in run.jobs if _may_have_twin(run, job) and _is_doubtful(run, job, now))


def wanted(run: Run, checkpoints: Sequence[Checkpoint], now: datetime) -> Piece | None:
    """Return what a twin is to be started for now, None where none is worth it."""
    for job in doubtful(run, now):
        assert job.slot is not None
        assert run.deadline is not None
        piece = Piece(slot=job.slot, resume=newest(run, job.slot, checkpoints), hedges=job.job_id)
        if now + timedelta(seconds=START_S + _whole_s(job, now) * float(piece.rest)) <= run.deadline:
            return piece
    return None


def ends_at(job: Job, now: datetime) -> datetime | None:
    """Return when the job is done if it goes on as it did so far, None where nothing is known of that."""
    whole_s = _measured_s(job, now)
    return None if whole_s is None else now + timedelta(seconds=whole_s * float(1 - job.progress))


def _may_have_twin(run: Run, job: Job) -> bool:
    if job.slot is None or job.vendor_job_id is None or active_in(run, job.slot) != (job,):
        return False
    has_open = any(paid.job_id == job.job_id and paid.status in OPEN_PAYMENTS for paid in run.payments)
    return not has_open and not any(one.slot == job.slot and one.hedges is not None for one in run.jobs)


def _is_doubtful(run: Run, job: Job, now: datetime) -> bool:
    if is_suspect(job.polls, job.missed_since):
        return True
    end = ends_at(job, now)
    return end is not None and run.deadline is not None and end > run.deadline


def _whole_s(job: Job, now: datetime) -> float:
    """
    Return how long another vendor takes for all of the work: as this one quoted, or paid for, or as it is measured.

    The shorter of both: the twin is not there because it would be as slow.
    """
    quoted_s = float(job.expected_duration_minutes) * 60 or float(job.hours) * 3_600
    quoted_s = min(quoted_s / (float(1 - _begun(job)) or 1.0), WHOLE_S_MAX)
    return min(quoted_s, _measured_s(job, now) or quoted_s)


def _measured_s(job: Job, now: datetime) -> float | None:
    done = float(job.progress - _begun(job))
    if job.submitted_at is None or done <= 0:
        return None
    # A silent job's progress is of its last answer.
    elapsed_s = ((job.missed_since or now) - job.submitted_at).total_seconds()
    return min(max(elapsed_s, 1.0) / done, WHOLE_S_MAX)


def _begun(job: Job) -> Decimal:
    """Return how much of the work was done before the job began."""
    return 1 - Piece(resume=job.checkpoint).rest
