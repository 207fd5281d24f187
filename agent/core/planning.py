"""
What a planner answers, before `decide` checks it against the run; and the planner that needs no network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_CEILING, Decimal
from typing import Annotated, Literal

from pydantic import Field

from agent.core.model import Run, Standing, Vendor
from agent.core.slots import lost_race
from wire.money import HOURS_STEP, hours_bought

# Beside the rest of its work: fetching a checkpoint and loading the model again.
RESUME_HOURS = 2 * HOURS_STEP
# A model may propose NaN hours: `decide` refuses them, and the log that says so must stay readable.
WishedHours = Annotated[Decimal, Field(allow_inf_nan=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """
    A planner's wish. `code` says why it aborts (a refusal of `wire.problems`).

    `fallback` says that another planner had to answer in its place; `other` is what a second planner, asked as well,
    would have done. `until` is when a wish to wait is to be thought over.
    """

    action: Literal["start_job", "wait", "abort"]
    reason: str
    vendor_id: str | None = None
    max_hours: WishedHours | None = None
    code: str | None = None
    mode: str = "stub"
    prompt: str = ""
    raw: str = ""
    fallback: bool = False
    other: "Proposal | None" = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """
    What a planner is asked: all it may know. The same question has the same answer, but where a model is asked.

    `rest` is how much of the work is left, from 0 to 1; `avoided` are vendors that are not to be chosen now.
    """

    run: Run
    vendors: tuple[Vendor, ...]
    standings: tuple[Standing, ...]
    now: datetime
    rest: Decimal = Decimal(1)
    avoided: frozenset[str] = frozenset()


def gpu_for(run: Run, vendor: Vendor) -> str | None:
    """Return the GPU type to rent at `vendor`: the one the run asks for, or the vendor's first; None if it has none."""
    wanted = run.job.gpu_type
    if wanted is None:
        return next(iter(vendor.supported_gpu_types), None)
    return wanted if wanted in vendor.supported_gpu_types else None


def listed_price(vendor: Vendor, gpu_type: str) -> int | None:
    """Return the registered price of an hour of `gpu_type`, in atomic units; None where none is kept."""
    return next((price.per_hour_atomic for price in vendor.prices if price.gpu_type == gpu_type), None)


def price_of(vendor: Vendor, gpu_type: str) -> int:
    """Return what an hour of `gpu_type` is reckoned at, in atomic units: its listed price, or the vendor's lowest."""
    listed = listed_price(vendor, gpu_type)
    return vendor.base_price_per_hour_atomic if listed is None else listed


def hours_wanted(run: Run, rest: Decimal = Decimal(1)) -> Decimal:
    """
    Return the hours one job of the run may be rented for: what the run says, else 1.

    Of a piece of work of which only `rest` is left it is so much less, with room to start in; never more than the
    whole, nor less than the smallest that is rented.
    """
    whole = run.job.max_hours if run.job.max_hours is not None else Decimal(1)
    if rest >= 1 or whole < HOURS_STEP:
        return whole
    return min(whole, (whole * rest).quantize(HOURS_STEP, ROUND_CEILING) + RESUME_HOURS)


def first_vendor(
    run: Run, vendors: Sequence[Vendor], rest: Decimal = Decimal(1), avoided: frozenset[str] = frozenset()
) -> Proposal:
    """
    Return the stub's wish: the first registered vendor that has not failed in this run and is not `avoided`.

    For as many hours as the `rest` of the work wants, or as the budget buys if that is less.
    """
    if not vendors:
        return Proposal(action="wait", reason="no vendor is registered")
    failed = {job.vendor_id for job in run.jobs if job.status in ("failed", "cancelled") and not lost_race(run, job)}
    cap = run.price_per_hour_atomic_max
    able = [
        (vendor, price_of(vendor, gpu_type))
        for vendor in vendors
        if vendor.vendor_id not in failed | avoided
        and (gpu_type := gpu_for(run, vendor)) is not None
        and price_of(vendor, gpu_type) > 0
        and (cap is None or price_of(vendor, gpu_type) <= cap)
    ]
    if not able:
        return Proposal(action="abort", code="no_vendor_left", reason=f"{len(failed)} of {len(vendors)} vendors failed")
    vendor, per_hour_atomic = able[0]
    hours = min(hours_wanted(run, rest), hours_bought(run.budget.available_atomic, per_hour_atomic))
    if hours < HOURS_STEP:
        return Proposal(action="abort", code="insufficient_budget", reason=f"nothing to buy at {vendor.vendor_id}")
    return Proposal(
        action="start_job",
        vendor_id=vendor.vendor_id,
        max_hours=hours,
        reason=f"{vendor.vendor_id} is the first registered vendor that has not failed in this run",
    )
