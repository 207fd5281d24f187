"""
The planner that learns: of the vendors that can serve a run, the one where a finished job costs least (`core.scoring`).

Its chance comes from the run and its log alone, so the same question has the same answer, to the bit.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal

from agent.core.model import Run, Standing, Vendor
from agent.core.planning import Proposal, Question, gpu_for, hours_wanted, price_of
from agent.core.scoring import Record, beliefs, expected_cost, shortlist
from agent.core.slots import lost_race
from agent.core.standing import faded, rests_until
from reputation.beta import Beta
from wire.money import HOURS_STEP, hours_bought, price_atomic, to_decimal

INTERVAL = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """
    One vendor among the best. `mean`, `low` and `high` are its reliability and the interval that holds 90 % of it.

    `completed` and `failed` are its jobs on `gpu_type`, faded with age; `cost_atomic` is what a finished job can be
    expected to cost in all, as it was sampled.
    """

    vendor_id: str
    gpu_type: str
    price_per_hour_atomic: int
    hours: Decimal
    mean: float
    low: float
    high: float
    completed: Decimal
    failed: Decimal
    cost_atomic: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The bandit's own wish, and whoever else may be chosen as well: `candidates`, the best first."""

    proposal: Proposal
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arm:
    """`rests_until` is None where it is ready: nothing is held against it, or its rest is over."""

    vendor: Vendor
    gpu_type: str
    per_hour_atomic: int
    hours: Decimal
    here: Standing | None
    record: Record
    rests_until: datetime | None


def advise(question: Question) -> Advice:
    """
    Return whom to rent from, or why nobody: nobody is able, nothing can be paid, or the best one or all are resting.

    A rest is waited out where nobody ready is as good: a job takes longer, and the next best costs more. A vendor that
    rests beyond the run's deadline is passed over while another is ready.
    """
    run = question.run
    arms = _arms(question)
    if not question.vendors:
        return _none("wait", "no vendor is registered")
    if not arms:
        return _none("abort", f"none of {len(question.vendors)} vendors has what the run asks for", "no_vendor_left")
    paid = [arm for arm in arms if arm.hours >= HOURS_STEP]
    if not paid:
        left = to_decimal(run.budget.available_atomic, run.asset)
        return _none("abort", f"Insufficient budget: {left} {run.asset.symbol} buys no job", "insufficient_budget")
    rests = sorted((arm.rests_until, arm.vendor.vendor_id) for arm in paid if arm.rests_until is not None)
    if len(rests) == len(paid):
        named = ", ".join(f"{vendor_id} until {until:%H:%M:%S} UTC" for until, vendor_id in rests)
        return _none("wait", f"every able vendor failed lately: {named}", until=rests[0][0])
    all_known = zip(paid, beliefs([arm.record for arm in paid]), strict=True)
    in_time = [(arm, belief) for arm, belief in all_known if not _is_late(run, arm)]
    return _best(question, [arm for arm, _ in in_time], [belief for _, belief in in_time])


def _is_late(run: Run, arm: _Arm) -> bool:
    return arm.rests_until is not None and run.deadline is not None and arm.rests_until > run.deadline


def _best(question: Question, arms: Sequence[_Arm], known: Sequence[Beta]) -> Advice:
    """Return the ready ones of the shortlist of `arms`, of which at least one is ready; or whom to wait for."""
    run, hours = question.run, hours_wanted(question.run, question.rest)
    # All are compared by a whole job, also where the budget buys less of it.
    prices = [float(price_atomic(arm.per_hour_atomic, hours)) for arm in arms]
    ranked = shortlist(known, prices, float(run.budget.available_atomic), [_draw(run, arm) for arm in arms])
    candidates = tuple(
        _candidate(arms[place], known[place], cost) for cost, place in ranked if arms[place].rests_until is None
    )
    if candidates:
        best = candidates[0]
        return Advice(proposal=_wish(best, _described(run, best, hours)), candidates=candidates)
    cost, place = ranked[0]
    ready = [place for place, arm in enumerate(arms) if arm.rests_until is None]
    next_cost, next_best = min((expected_cost(known[place].mean, prices[place]), place) for place in ready)
    until = arms[place].rests_until
    return _none(
        "wait",
        f"{arms[place].vendor.vendor_id} failed lately and rests until {until:%H:%M:%S} UTC:"
        f" drawn as {_money(run, cost)} per finished job,"
        f" the next best, {arms[next_best].vendor.vendor_id}, costs {_money(run, next_cost)}",
        until=until,
    )


def choose(advice: Advice, candidate: Candidate, reason: str) -> Proposal:
    """Return the wish to start a job at `candidate`. Raises ValueError where `advice` does not hold it."""
    if candidate not in advice.candidates:
        raise ValueError(f"{candidate.vendor_id} is not on the shortlist")
    return _wish(candidate, reason)


def _none(
    action: Literal["wait", "abort"], reason: str, code: str | None = None, until: datetime | None = None
) -> Advice:
    return Advice(proposal=Proposal(action=action, reason=reason, code=code, until=until, mode="bandit"))


def _wish(candidate: Candidate, reason: str) -> Proposal:
    return Proposal(
        action="start_job", vendor_id=candidate.vendor_id, max_hours=candidate.hours, reason=reason, mode="bandit"
    )


def _arms(question: Question) -> list[_Arm]:
    run, cap = question.run, question.run.price_per_hour_atomic_max
    standings = [faded(one, question.now) for one in question.standings]
    arms = []
    for vendor in question.vendors:
        gpu_type = gpu_for(run, vendor)
        if gpu_type is None or vendor.vendor_id in question.avoided:
            continue
        per_hour = price_of(vendor, gpu_type)
        if per_hour <= 0 or (cap is not None and per_hour > cap):
            continue
        here = next((one for one in standings if (one.vendor_id, one.gpu_type) == (vendor.vendor_id, gpu_type)), None)
        hours = min(hours_wanted(run, question.rest), hours_bought(run.budget.available_atomic, per_hour))
        rests = _rests_until(run, vendor.vendor_id, here)
        arms.append(
            _Arm(
                vendor=vendor,
                gpu_type=gpu_type,
                per_hour_atomic=per_hour,
                hours=hours,
                here=here,
                record=record_of(vendor, gpu_type, standings),
                rests_until=None if rests is None or rests <= question.now else rests,
            )
        )
    return arms


def record_of(vendor: Vendor, gpu_type: str, standings: Sequence[Standing]) -> Record:
    """Return what is known of `vendor` on `gpu_type`; `standings` are everybody's, faded to now."""
    own = [one for one in standings if one.vendor_id == vendor.vendor_id]
    here = [one for one in own if one.gpu_type == gpu_type]
    elsewhere = [one for one in own if one.gpu_type != gpu_type]
    return Record(
        score=float(vendor.reliability_score),
        completed=float(sum(one.completed for one in here)),
        failed=float(sum(one.failed for one in here)),
        completed_elsewhere=float(sum(one.completed for one in elsewhere)),
        failed_elsewhere=float(sum(one.failed for one in elsewhere)),
    )


def _rests_until(run: Run, vendor_id: str, here: Standing | None) -> datetime | None:
    """Return how long a vendor is left alone: by its record over all runs, and by this run's, our refusals included."""
    failed_in_a_row, last_failed_at = 0, None
    for job in run.jobs:
        if job.vendor_id == vendor_id and job.status in ("failed", "cancelled") and not lost_race(run, job):
            failed_in_a_row, last_failed_at = failed_in_a_row + 1, job.completed_at
        elif job.vendor_id == vendor_id and job.status == "completed":
            failed_in_a_row = 0
    both = [
        rests_until(failed_in_a_row, last_failed_at),
        None if here is None else rests_until(here.failed_in_a_row, here.last_failed_at),
    ]
    return max((until for until in both if until is not None), default=None)


def _draw(run: Run, arm: _Arm) -> float:
    # By the attempts so far, not by the length of the log: a vendor that could lengthen it would draw until it wins.
    seed = f"{run.run_id}|{len(run.jobs)}|{arm.vendor.vendor_id}|{arm.gpu_type}"
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    return (number + 0.5) / 2**64


def _candidate(arm: _Arm, belief: Beta, cost: float) -> Candidate:
    low, high = belief.interval(INTERVAL)
    return Candidate(
        vendor_id=arm.vendor.vendor_id,
        gpu_type=arm.gpu_type,
        price_per_hour_atomic=arm.per_hour_atomic,
        hours=arm.hours,
        mean=belief.mean,
        low=low,
        high=high,
        completed=arm.here.completed if arm.here else Decimal(0),
        failed=arm.here.failed if arm.here else Decimal(0),
        cost_atomic=math.ceil(cost),
    )


def _described(run: Run, candidate: Candidate, hours: Decimal) -> str:
    price = float(price_atomic(candidate.price_per_hour_atomic, hours))
    mean = _money(run, expected_cost(candidate.mean, price))
    return (
        f"{candidate.vendor_id} {candidate.gpu_type}: {mean} expected per finished job,"
        f" drawn as {_amount(run, candidate.cost_atomic)}"
        f" (reliability {candidate.mean:.2f}, {candidate.low:.2f}-{candidate.high:.2f},"
        f" {_plain(candidate.completed)} of {_plain(candidate.completed + candidate.failed)} jobs)"
    )


def _money(run: Run, cost: float) -> str:
    return f"{_amount(run, cost)} {run.asset.symbol}"


def _amount(run: Run, cost: float) -> Decimal:
    return to_decimal(math.ceil(cost), run.asset).quantize(Decimal("0.01"))


def _plain(count: Decimal) -> str:
    return f"{count:.1f}".removesuffix(".0")
