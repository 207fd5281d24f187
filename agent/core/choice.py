"""Why a vendor was chosen, in sentences: who could have been, what each was reckoned at, what the planner said."""

from collections.abc import Iterator
from decimal import Decimal

from agent.core.bandit import record_of
from agent.core.decide import StartJob, TickRecord, Wait, question_of
from agent.core.model import Run, Vendor
from agent.core.planning import Proposal, gpu_for, hours_wanted, price_of
from agent.core.scoring import beliefs, expected_cost
from agent.core.standing import faded
from agent.core.wording import clock, counted, money, times
from wire.money import price_atomic, to_decimal

_PLANNERS = {
    "stub": "The stub planner, which takes vendors in the order of the register,",
    "bandit": "The bandit, which looks for the vendor where a finished job costs least,",
    "llm": "The language model, asked to choose among the bandit's best,",
}


def chosen(run: Run, record: TickRecord) -> Iterator[str]:
    """Yield why the planner's wish in `record` was taken, or was not; nothing where no planner was asked."""
    wish, action = record.facts.proposal, record.action
    if wish is None:
        return
    if not isinstance(action, Wait) or wish.action == "start_job":
        yield from _candidates(run, record)
    yield from _wish(wish)
    if isinstance(action, StartJob):
        wanted = hours_wanted(run, question_of(run, record.facts, record.now).rest)
        hours = "" if action.max_hours == wanted else ", which is what the budget buys"
        yield f"So {action.vendor_id} was asked for {action.max_hours} h of {action.gpu_type}{hours}."
    elif isinstance(action, Wait) and wish.action == "start_job":
        yield f"That wish was not followed ({action.message.lower()}: {action.reason})."
    elif isinstance(action, Wait):
        until = "" if action.until is None else f" It was to be thought over at {clock(action.until)}."
        yield f"So nothing was started yet.{until}"


def _candidates(run: Run, record: TickRecord) -> Iterator[str]:
    vendors = record.facts.vendors
    able = [(vendor, gpu_type) for vendor in vendors if (gpu_type := _able(run, vendor)) is not None]
    if not able:
        yield f"Of {counted(len(vendors), 'registered vendor')} none has what the run asks for at a price it pays."
        return
    one = len(able) == 1
    yield f"{'One vendor' if one else counted(len(able), 'vendor')} could have been chosen:"
    standings = [faded(one, record.now) for one in record.facts.standings]
    question = question_of(run, record.facts, record.now)
    known = beliefs([record_of(vendor, gpu_type, standings) for vendor, gpu_type in able])
    for (vendor, gpu_type), belief in zip(able, known, strict=True):
        per_hour = price_of(vendor, gpu_type)
        cost = expected_cost(belief.mean, float(price_atomic(per_hour, hours_wanted(run, question.rest))))
        reckoned = to_decimal(round(cost), run.asset).quantize(Decimal("0.01"))
        here = next((one for one in standings if (one.vendor_id, one.gpu_type) == (vendor.vendor_id, gpu_type)), None)
        done = f"; {_jobs(here.completed, here.failed)}" if here is not None else "; no job of ours there yet"
        lately = sum(job.vendor_id == vendor.vendor_id and job.status in ("failed", "cancelled") for job in run.jobs)
        failed = f"; it had failed {times(lately)} in this run" if lately else ""
        yield (
            f"  {vendor.vendor_id} ({vendor.name}): {gpu_type} at {money(run, per_hour)} an hour, a finished job"
            f" reckoned at {reckoned} {run.asset.symbol}, its chance to finish at {belief.mean:.0%}{done}{failed}."
        )
    if left_out := [vendor.vendor_id for vendor in vendors if _able(run, vendor) is None]:
        yield f"Left out, for want of the GPU or for the price: {', '.join(left_out)}."


def _able(run: Run, vendor: Vendor) -> str | None:
    gpu_type, cap = gpu_for(run, vendor), run.price_per_hour_atomic_max
    if gpu_type is None or price_of(vendor, gpu_type) <= 0 or (cap is not None and price_of(vendor, gpu_type) > cap):
        return None
    return gpu_type


def _wish(wish: Proposal) -> Iterator[str]:
    who = _PLANNERS.get(wish.mode, f"The planner {wish.mode}")
    if wish.fallback:
        who = "The language model gave no answer that could be used, and the bandit"
    what = {
        "start_job": f"chose {wish.vendor_id} for {wish.max_hours} h",
        "wait": "wished to wait",
        "abort": "wished to give up",
    }[wish.action]
    yield f"{who} {what}: {wish.reason.rstrip('.')}."
    if wish.other is not None:
        same = (wish.other.action, wish.other.vendor_id) == (wish.action, wish.vendor_id)
        instead = (
            "would have done the same" if same else f"would have chosen {wish.other.vendor_id or wish.other.action}"
        )
        yield f"A second planner ({wish.other.mode}) was asked as well and {instead}; who acts is drawn."


def _jobs(completed: Decimal, failed: Decimal) -> str:
    return f"of {completed + failed:.1f} jobs there, fading with age, {completed:.1f} were finished".replace(".0 ", " ")
