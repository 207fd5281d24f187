"""
What a job costs: its hours, paid ahead; what its program did not use is paid back, whatever the end.

Amounts are atomic units. A price rounds up, and so does what was used: the buyer's part and the refund are the price.
"""

import math
from decimal import Decimal
from fractions import Fraction

from gpu_worker.core.model import Job
from wire.money import price_atomic

SECONDS_PER_HOUR = 3_600


def price_of(per_hour_atomic: int, least_atomic: int, hours: Decimal) -> int:
    """Return the price of `hours`, at least `least_atomic`."""
    return max(price_atomic(per_hour_atomic, hours), least_atomic)


def used_atomic(job: Job) -> int:
    """Return what the seconds that the job's program worked cost, at most the price."""
    hours_s = Fraction(job.hours) * SECONDS_PER_HOUR
    return min(job.price_atomic, math.ceil(job.price_atomic * Fraction(max(job.used_s, Decimal(0))) / hours_s))


def refund_atomic(job: Job) -> int:
    """
    Return what is paid back of a job that has ended.

    All of it where it was the owner's fault, or where it failed before its first step; else what was not used.
    """
    if job.fault == "owner" or (job.status == "failed" and job.step <= first_step(job)):
        return job.price_atomic
    return job.price_atomic - used_atomic(job)


def first_step(job: Job) -> int:
    """Return the step that the job began at, and nothing of it is its own work."""
    return 0 if job.resume is None else job.resume.step


def cost_atomic(job: Job) -> int:
    """Return what the job has cost so far; of an ended one the price less the refund."""
    return used_atomic(job) if job.ended_at_s is None else job.price_atomic - job.refund_atomic


def ends_by_s(started_at_s: int, hours: Decimal, max_hours: Decimal | None) -> int:
    """Return when a job of `hours` that may live `max_hours` is over, Unix seconds."""
    return started_at_s + math.ceil(Fraction(min(hours, max_hours or hours)) * SECONDS_PER_HOUR)
