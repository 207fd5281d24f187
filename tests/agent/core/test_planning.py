"""The stub planner: vendors in the order they came, another after a failure, never more hours than money."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import ledger
from agent.core.model import JobSpec
from agent.core.planning import Proposal, first_vendor, gpu_for, hours_wanted
from tests.agent.core.values import a_job, a_run, a_vendor
from wire.money import price_atomic

VENDORS = (a_vendor(1), a_vendor(2), a_vendor(3))


def test_the_first_registered_vendor_is_chosen_for_an_hour() -> None:
    assert first_vendor(a_run(), VENDORS) == Proposal(
        action="start_job",
        vendor_id="gpu_vendor_1",
        max_hours=Decimal(1),
        reason="gpu_vendor_1 is the first registered vendor that has not failed in this run",
    )


@pytest.mark.row(9)
@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_vendor_that_failed_in_this_run_is_not_chosen_again(state: str) -> None:
    run = a_run(jobs=(a_job(1, status=state),))
    assert first_vendor(run, VENDORS).vendor_id == "gpu_vendor_2"
    run = a_run(jobs=(a_job(1, status=state), a_job(2, status=state, vendor_id="gpu_vendor_2")))
    assert first_vendor(run, VENDORS).vendor_id == "gpu_vendor_3"


@pytest.mark.parametrize("state", ["quoted", "submitted", "running", "completed"])
def test_a_vendor_that_did_not_fail_is_chosen_again(state: str) -> None:
    assert first_vendor(a_run(jobs=(a_job(1, status=state),)), VENDORS).vendor_id == "gpu_vendor_1"


def test_the_order_is_the_one_given() -> None:
    assert first_vendor(a_run(), VENDORS[::-1]).vendor_id == "gpu_vendor_3"


def test_without_vendors_the_run_waits() -> None:
    assert first_vendor(a_run(), ()) == Proposal(action="wait", reason="no vendor is registered")


def test_without_a_vendor_left_the_run_is_given_up() -> None:
    run = a_run(jobs=(a_job(1, status="failed"), a_job(2, status="failed")))
    assert first_vendor(run, VENDORS[:1]) == Proposal(
        action="abort", code="no_vendor_left", reason="1 of 1 vendors failed"
    )


def test_a_vendor_without_the_wanted_gpu_is_passed_over() -> None:
    run = a_run(job=JobSpec(gpu_type="H100"))
    assert first_vendor(run, VENDORS).code == "no_vendor_left"
    assert first_vendor(run, VENDORS).reason == "0 of 3 vendors failed"
    able = a_vendor(4, supported_gpu_types=("A10", "".join(["H1", "00"])))
    assert first_vendor(run, (*VENDORS, able)).vendor_id == "gpu_vendor_4"


def test_a_vendor_dearer_than_the_run_allows_is_passed_over() -> None:
    cheap = a_vendor(4, base_price_per_hour_atomic=1_000_000)
    run = a_run(price_per_hour_atomic_max=1_000_000)
    assert first_vendor(run, (*VENDORS, cheap)).vendor_id == "gpu_vendor_4"
    assert first_vendor(a_run(price_per_hour_atomic_max=999_999), (cheap,)).code == "no_vendor_left"


@pytest.mark.parametrize(
    ("spec", "budget_atomic", "hours"),
    [
        ({}, 5_000_000, "1"),
        ({}, 1_400_000, "1"),
        ({}, 1_399_999, "0.99"),
        ({}, 700_000, "0.50"),
        ({}, 14_000, "0.01"),
        ({"max_hours": Decimal(3)}, 5_000_000, "3"),
        ({"max_hours": Decimal(4)}, 5_000_000, "3.57"),
        ({"max_hours": Decimal("0.25")}, 5_000_000, "0.25"),
        ({"max_hours": Decimal("0.01")}, 5_000_000, "0.01"),
    ],
)
@pytest.mark.row(9)
def test_hours_are_one_or_what_was_asked_or_what_the_budget_buys(
    spec: dict[str, Any], budget_atomic: int, hours: str
) -> None:
    run = a_run(job=JobSpec(**spec), budget=ledger.opened(budget_atomic))
    proposal = first_vendor(run, VENDORS)
    assert (proposal.action, proposal.max_hours) == ("start_job", Decimal(hours))


def test_a_budget_that_buys_no_hundredth_of_an_hour_ends_the_run() -> None:
    assert first_vendor(a_run(budget=ledger.opened(13_999)), VENDORS) == Proposal(
        action="abort", code="insufficient_budget", reason="nothing to buy at gpu_vendor_1"
    )


@given(st.integers(1, 10**15), st.integers(1, 10**12))
def test_what_is_proposed_can_be_paid_for(budget_atomic: int, per_hour_atomic: int) -> None:
    vendor = a_vendor(base_price_per_hour_atomic=per_hour_atomic)
    proposal = first_vendor(a_run(budget=ledger.opened(budget_atomic)), (vendor,))
    if proposal.action == "start_job":
        assert proposal.max_hours is not None
        assert 0 < price_atomic(per_hour_atomic, proposal.max_hours) <= budget_atomic


def test_money_that_is_not_available_buys_nothing() -> None:
    budget = ledger.reserved(ledger.opened(5_000_000), 4_300_000)
    assert first_vendor(a_run(budget=budget), VENDORS).max_hours == Decimal("0.5")


def test_the_gpu_is_the_wanted_one_or_the_vendors_first() -> None:
    assert gpu_for(a_run(), a_vendor()) == "A10"
    assert gpu_for(a_run(), a_vendor(supported_gpu_types=())) is None
    assert gpu_for(a_run(job=JobSpec(gpu_type="A100")), a_vendor()) == "A100"
    assert gpu_for(a_run(job=JobSpec(gpu_type="H100")), a_vendor()) is None


def test_a_job_is_rented_for_one_hour_unless_the_run_says_otherwise() -> None:
    assert hours_wanted(a_run()) == 1
    assert hours_wanted(a_run(job=JobSpec(max_hours=Decimal(0)))) == 0
    assert hours_wanted(a_run(job=JobSpec(max_hours=Decimal("2.5")))) == Decimal("2.5")


def test_a_vendor_that_asks_nothing_is_passed_over() -> None:
    free = a_vendor(1, base_price_per_hour_atomic=0)
    assert first_vendor(a_run(), (free, a_vendor(2))).vendor_id == "gpu_vendor_2"
    assert first_vendor(a_run(), (free,)).code == "no_vendor_left"
    cheapest = a_vendor(1, base_price_per_hour_atomic=1)
    assert first_vendor(a_run(), (cheapest, a_vendor(2))).vendor_id == "gpu_vendor_1"
