"""
How the jobs of a vendor end, counted over every run: what happened, and how it fades with time.
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from agent.core.events import AttemptFailed, Event, JobEnded
from agent.core.model import Outcome, Run, Standing

HALF_LIFE_DAYS = 30
_STEP = Decimal("0.001")
# What an attempt may fail of that is no fault of the vendor's: our caps, our budget, our wish.
OUR_REFUSALS = frozenset(
    {
        "over_payment_cap",
        "over_run_cap",
        "over_vendor_cap",
        "over_day_cap",
        "over_hourly_price",
        "over_budget",
        "cancelled",
        "deadline_passed",
    }
)


def opened(vendor_id: str, gpu_type: str, now: datetime) -> Standing:
    """Return the standing of a vendor that nothing is known of."""
    return Standing(vendor_id=vendor_id, gpu_type=gpu_type, completed=Decimal(0), failed=Decimal(0), updated_at=now)


def faded(standing: Standing, now: datetime) -> Standing:
    """Return `standing` as of `now`: counts halve every HALF_LIFE_DAYS."""
    days = max(0.0, (now - standing.updated_at).total_seconds() / 86_400)
    share = Decimal(str(0.5 ** (days / HALF_LIFE_DAYS)))
    return replace(
        standing,
        completed=(standing.completed * share).quantize(_STEP),
        failed=(standing.failed * share).quantize(_STEP),
        updated_at=max(now, standing.updated_at),
    )


def counted(standing: Standing, outcome: Outcome) -> Standing:
    """Return `standing` after one more job ended."""
    then = faded(standing, outcome.at)
    if outcome.succeeded:
        return replace(then, completed=then.completed + 1, failed_in_a_row=0)
    return replace(
        then, failed=then.failed + 1, failed_in_a_row=then.failed_in_a_row + 1, last_failed_at=then.updated_at
    )


def outcomes_of(run: Run, events: Iterable[Event]) -> tuple[Outcome, ...]:
    """Return what `events` of `run` (applied to it already) say of vendors; a job cancelled by us says nothing."""
    jobs = {job.job_id: job for job in run.jobs}
    found = []
    for event in events:
        if not isinstance(event, JobEnded | AttemptFailed):
            continue
        job = event.job if isinstance(event, AttemptFailed) else jobs[event.job_id]
        reason = (job.error_message or "").partition(":")[0]
        if job.status == "cancelled" or reason in OUR_REFUSALS:
            continue
        found.append(
            Outcome(vendor_id=job.vendor_id, gpu_type=job.gpu_type, succeeded=job.status == "completed", at=event.at)
        )
    return tuple(found)
