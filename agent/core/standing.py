"""
How the jobs of a vendor end, counted over every run: what happened, and how it fades with time.
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

from agent.core.decide import stop_wanted
from agent.core.events import AttemptFailed, Event, JobEnded
from agent.core.model import Job, Outcome, Run, Standing
from agent.core.slots import lost_race
from reputation import decay

HALF_LIFE = timedelta(days=30)
# How long a vendor is left alone after a failure; each further one in a row doubles it. It is an accident's time to
# pass, not a punishment: what failures say of the next job is in the counts, and the best vendor of many is one whose
# every other job fails.
COOL_DOWN = timedelta(minutes=1)
COOL_DOWN_MAX = timedelta(minutes=5)
# What speaks against a vendor that never had the job: what it answered, or that it did not. Any other refusal is of
# our own making (caps, secrets, our register) or may be (a payment that was never settled), and says nothing.
VENDOR_FAULTS = frozenset(
    {
        "bad_challenge",
        "bad_quote",
        "bad_timeout",
        "over_listed_price",
        "paid_not_served",
        "price_mismatch",
        "terms_changed",
        "unknown_quote_currency",
        "unsupported_scheme",
        "vendor_refused",
        "vendor_unreachable",
        "wrong_asset",
        "wrong_domain",
        "wrong_network",
        "wrong_pay_to",
    }
)


def opened(vendor_id: str, gpu_type: str, now: datetime) -> Standing:
    """Return the standing of a vendor that nothing is known of."""
    return Standing(vendor_id=vendor_id, gpu_type=gpu_type, completed=Decimal(0), failed=Decimal(0), updated_at=now)


def faded(standing: Standing, now: datetime) -> Standing:
    """Return `standing` as of `now`: counts halve every HALF_LIFE."""
    age = now - standing.updated_at
    return replace(
        standing,
        completed=decay.faded(standing.completed, age, HALF_LIFE),
        failed=decay.faded(standing.failed, age, HALF_LIFE),
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


def rests_until(failed_in_a_row: int, last_failed_at: datetime | None) -> datetime | None:
    """Return when a vendor may be tried again after its failures, None where nothing was held against it."""
    if last_failed_at is None or failed_in_a_row <= 0:
        return None
    return last_failed_at + min(COOL_DOWN * (1 << min(failed_in_a_row - 1, 16)), COOL_DOWN_MAX)


def outcomes_of(run: Run, events: Iterable[Event]) -> tuple[Outcome, ...]:
    """
    Return what `events` of `run` (applied to it already) say of vendors.

    A job that was to be stopped by our wish and did not complete says nothing, nor does one whose work another had done
    by then, nor an attempt that failed of anything but VENDOR_FAULTS before the vendor had the job.
    A cancelled job that nobody wished to stop was overdue, or the vendor gave it up.
    """
    jobs = {job.job_id: job for job in run.jobs}
    found = []
    for event in events:
        if not isinstance(event, JobEnded | AttemptFailed):
            continue
        job = event.job if isinstance(event, AttemptFailed) else jobs[event.job_id]
        succeeded = job.status == "completed"
        is_ours = stop_wanted(run, run.cancel_requested_at, event.at) or lost_race(run, job)
        if not succeeded and (is_ours or not _is_vendors_fault(job)):
            continue
        found.append(Outcome(vendor_id=job.vendor_id, gpu_type=job.gpu_type, succeeded=succeeded, at=event.at))
    return tuple(found)


def _is_vendors_fault(job: Job) -> bool:
    # What the vendor writes of a job it has is its own word, and could be one of ours.
    return job.vendor_job_id is not None or (job.error_message or "").partition(":")[0] in VENDOR_FAULTS
