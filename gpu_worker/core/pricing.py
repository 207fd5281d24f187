"""
What a job costs: its hours, paid ahead; what its program did not use is paid back, whatever the end.

Amounts are atomic units. A price rounds up, and so does what was used: the buyer's part and the refund are the price.
"""

import math
from collections.abc import Mapping
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
    A container's one step is its end, and how it ends is its buyer's choice: what it used is paid.
    """
    did_nothing = job.step <= first_step(job) and not (job.kind == "container" and job.fault == "buyer")
    if job.fault == "owner" or (job.status == "failed" and did_nothing):
        return job.price_atomic
    return job.price_atomic - used_atomic(job)


def kept_s(marks: Mapping[str, Decimal], used_s: Decimal, step: int, begins_at: int | None) -> Decimal:
    """
    Return the seconds that still cost once a program begins again: those that are done again are paid once.

    Args:
        marks: the seconds at which a checkpoint was seen, by its step.
        used_s: the seconds so far, in which `step` was reached.
        begins_at: the step of the checkpoint that it goes on from, None: from nothing.
    """
    if begins_at is None:
        return Decimal(0)
    if begins_at >= step:
        return used_s
    # A checkpoint that nobody saw being made counts as the one before it.
    return min(used_s, max((seconds for mark, seconds in marks.items() if int(mark) <= begins_at), default=Decimal(0)))


def first_step(job: Job) -> int:
    """Return the step that the job began at, and nothing of it is its own work."""
    return 0 if job.resume is None else job.resume.step


def cost_atomic(job: Job) -> int:
    """Return what the job has cost so far; of an ended one the price less the refund."""
    return used_atomic(job) if job.ended_at_s is None else job.price_atomic - job.refund_atomic


def ends_by_s(started_at_s: int, hours: Decimal, max_hours: Decimal | None) -> int:
    """Return when a job of `hours` that may live `max_hours` is over, Unix seconds."""
    return started_at_s + math.ceil(Fraction(min(hours, max_hours or hours)) * SECONDS_PER_HOUR)
