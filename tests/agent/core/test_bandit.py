"""The bandit: who is able, who rests, what is wished for; and what it never wishes."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.core import ledger
from agent.core.bandit import Advice, advise, choose
from agent.core.model import GpuPrice, JobSpec, LogHead, Run, Standing, Vendor
from agent.core.planning import Proposal, Question, hours_wanted
from tests.agent.core.values import T0, a_job, a_run, a_vendor, at
from wire.money import price_atomic

VENDORS = (a_vendor(1), a_vendor(2), a_vendor(3))


def a_standing(number: int = 1, completed: int = 0, failed: int = 0, **changes: Any) -> Standing:
    values: dict[str, Any] = {
        "vendor_id": f"gpu_vendor_{number}",
        "gpu_type": "A10",
        "completed": Decimal(completed),
        "failed": Decimal(failed),
        "updated_at": T0,
    }
    return Standing(**values | changes)


def a_question(*standings: Standing, run: Run | None = None, vendors: tuple[Vendor, ...] = VENDORS) -> Question:
    return Question(run=run or a_run(), vendors=vendors, standings=standings, now=T0)


def wish(*standings: Standing, **more: Any) -> Proposal:
    return advise(a_question(*standings, **more)).proposal


def failed_lately(number: int, in_a_row: int = 1, seconds_ago: float = 0) -> Standing:
    return a_standing(number, failed=in_a_row, failed_in_a_row=in_a_row, last_failed_at=at(-seconds_ago))


@pytest.mark.row(12)
def test_of_equally_good_vendors_the_cheapest_is_chosen() -> None:
    cheap = a_vendor(2, base_price_per_hour_atomic=1_000_000)
    found = wish(*(a_standing(number, 20, 1) for number in (1, 2, 3)), vendors=(VENDORS[0], cheap, VENDORS[2]))
    assert (found.action, found.vendor_id, found.max_hours, found.mode) == ("start_job", "gpu_vendor_2", 1, "bandit")
    assert found.reason.startswith("gpu_vendor_2 A10: 1.0")
    assert found.reason.endswith(" 20 of 21 jobs)")


def test_a_dearer_vendor_that_finishes_is_cheaper_than_one_that_fails() -> None:
    cheap = a_vendor(1, base_price_per_hour_atomic=1_000_000)
    assert wish(a_standing(1, 2, 30), a_standing(2, 30, 2), vendors=(cheap, a_vendor(2))).vendor_id == "gpu_vendor_2"


@pytest.mark.row(12)
def test_what_the_budget_buys_is_rented_to_a_hundredth_of_an_hour() -> None:
    found = wish(run=a_run(budget=ledger.opened(1_000_000)), vendors=VENDORS[:1])
    assert (found.action, found.max_hours) == ("start_job", Decimal("0.71"))


@pytest.mark.row(12)
def test_a_budget_that_buys_nothing_ends_the_run() -> None:
    found = wish(run=a_run(budget=ledger.opened(13_999)))
    assert (found.action, found.code) == ("abort", "insufficient_budget")
    assert found.reason == "Insufficient budget: 0.013999 USDC buys no job"


@pytest.mark.row(12)
def test_without_vendors_the_run_waits() -> None:
    assert wish(vendors=()).action == "wait"


@pytest.mark.parametrize(
    "changes",
    [{"job": JobSpec(gpu_type="H100")}, {"price_per_hour_atomic_max": 1_399_999}],
    ids=["gpu", "price"],
)
def test_where_no_vendor_has_what_is_asked_for_the_run_is_given_up(changes: dict[str, Any]) -> None:
    found = wish(run=a_run(**changes))
    assert (found.action, found.code) == ("abort", "no_vendor_left")
    assert wish(vendors=(a_vendor(1, base_price_per_hour_atomic=0),)).code == "no_vendor_left"


@pytest.mark.row(13)
def test_after_two_vendors_failed_the_third_is_chosen() -> None:
    assert wish(failed_lately(1), failed_lately(2)).vendor_id == "gpu_vendor_3"
    tried = (
        a_job(1, vendor_id="gpu_vendor_1", status="failed", completed_at=T0),
        a_job(2, vendor_id="gpu_vendor_2", status="cancelled", completed_at=T0),
    )
    assert wish(run=a_run(jobs=tried)).vendor_id == "gpu_vendor_3"


def test_when_all_have_failed_lately_the_run_waits_and_says_until_when() -> None:
    found = wish(*(failed_lately(number, number) for number in (1, 2, 3)))
    assert (found.action, found.vendor_id) == ("wait", None)
    assert found.reason == (
        "every able vendor failed lately: gpu_vendor_1 until 09:31:00 UTC, gpu_vendor_2 until 09:32:00 UTC,"
        " gpu_vendor_3 until 09:34:00 UTC"
    )
    assert found.until == at(60)


def test_the_best_is_waited_for_where_the_others_cost_more() -> None:
    dear = a_vendor(2, base_price_per_hour_atomic=9_000_000)
    standings = (a_standing(1, 200, 1, failed_in_a_row=3, last_failed_at=T0), a_standing(2, 200, 1))
    found = wish(*standings, vendors=(VENDORS[0], dear))
    assert (found.action, found.until) == ("wait", at(240))
    assert found.reason.startswith("gpu_vendor_1 failed lately and rests until 09:34:00 UTC: drawn as 1.4")
    assert " the next best, gpu_vendor_2, costs 9.0" in found.reason
    assert advise(a_question(*standings, vendors=(VENDORS[0], dear))).candidates == ()
    # Nobody waits beyond the run's end, nor where a ready one is as good.
    assert wish(*standings, run=a_run(deadline=at(239)), vendors=(VENDORS[0], dear)).vendor_id == "gpu_vendor_2"
    assert wish(*standings, vendors=VENDORS[:2]).vendor_id == "gpu_vendor_2"


def test_a_vendor_is_reckoned_at_the_price_of_the_gpu_that_is_asked_for() -> None:
    prices = (GpuPrice(gpu_type="A10", per_hour_atomic=1_000_000), GpuPrice(gpu_type="A100", per_hour_atomic=8_000_000))
    lure = a_vendor(1, base_price_per_hour_atomic=1_000_000, prices=prices)
    run = a_run(job=JobSpec(gpu_type="A100"))
    known = tuple(a_standing(number, 20, 1, gpu_type="A100") for number in (1, 2))
    assert wish(*known, vendors=(lure, VENDORS[1])).vendor_id == "gpu_vendor_1"
    assert wish(*known, run=run, vendors=(lure, VENDORS[1])).vendor_id == "gpu_vendor_2"
    assert wish(run=replace(run, price_per_hour_atomic_max=7_999_999), vendors=(lure,)).code == "no_vendor_left"
    [candidate] = advise(a_question(run=replace(run, budget=ledger.opened(4_000_000)), vendors=(lure,))).candidates
    assert (candidate.price_per_hour_atomic, candidate.hours) == (8_000_000, Decimal("0.5"))


@pytest.mark.parametrize(("in_a_row", "rest_s"), [(1, 60), (2, 120), (3, 240), (4, 300), (10_000, 300)])
def test_the_rest_doubles_with_every_failure_in_a_row_up_to_five_minutes(in_a_row: int, rest_s: int) -> None:
    assert wish(failed_lately(1, in_a_row, rest_s - 1), vendors=VENDORS[:1]).action == "wait"
    assert wish(failed_lately(1, in_a_row, rest_s), vendors=VENDORS[:1]).action == "start_job"


def test_a_job_that_was_finished_since_ends_the_rest() -> None:
    jobs = (a_job(1, status="failed", completed_at=T0), a_job(2, status="completed", completed_at=T0))
    assert wish(run=a_run(jobs=jobs), vendors=VENDORS[:1]).action == "start_job"


def after(attempts: int, **changes: Any) -> Run:
    """Return a run that has had so many jobs, of somebody else."""
    jobs = (a_job(number, vendor_id="gpu_vendor_9", status="completed") for number in range(attempts))
    return a_run(jobs=tuple(jobs), **changes)


def test_the_chance_is_of_the_run_and_its_attempts_so_far() -> None:
    chosen = [wish(run=after(attempts)).vendor_id for attempts in range(40)]
    assert chosen == [wish(run=after(attempts)).vendor_id for attempts in range(40)]
    assert set(chosen) == {vendor.vendor_id for vendor in VENDORS}


def test_nobody_draws_again_by_making_the_log_longer() -> None:
    assert len({wish(run=after(1, log=LogHead(seq=seq))).vendor_id for seq in range(40)}) == 1


def test_one_of_the_shortlist_is_chosen_and_nobody_else() -> None:
    advice = advise(a_question(*(a_standing(number, 5_000, 10) for number in (1, 2, 3))))
    assert len(advice.candidates) == 3
    other = advice.candidates[-1]
    assert choose(advice, other, "it said so") == Proposal(
        action="start_job", vendor_id=other.vendor_id, max_hours=Decimal(1), reason="it said so", mode="bandit"
    )
    with pytest.raises(ValueError, match="not on the shortlist"):
        choose(Advice(proposal=advice.proposal), other, "it said so")


STANDINGS = st.lists(
    st.builds(
        a_standing,
        st.integers(1, 3),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        gpu_type=st.sampled_from(["A10", "A100", "H100"]),
        updated_at=st.integers(-(10**7), 10**4).map(at),
        last_failed_at=st.none() | st.integers(-5_000, 100).map(at),
        failed_in_a_row=st.integers(0, 50),
    ),
    max_size=4,
    unique_by=lambda standing: (standing.vendor_id, standing.gpu_type),
)
OFFERS = st.lists(st.tuples(st.integers(0, 10**12), st.decimals(0, 1, places=2)), max_size=3)


@settings(max_examples=50)
@given(
    STANDINGS, OFFERS, st.integers(1, 10**15), st.sampled_from([None, "0.01", "0.5", "3", "720"]), st.integers(0, 99)
)
def test_nothing_is_proposed_that_cannot_be(
    standings: list[Standing], offers: list[tuple[int, Decimal]], budget_atomic: int, hours: str | None, seq: int
) -> None:
    vendors = tuple(
        a_vendor(number, base_price_per_hour_atomic=price, reliability_score=score)
        for number, (price, score) in enumerate(offers, 1)
    )
    spec = JobSpec(max_hours=None if hours is None else Decimal(hours))
    run = a_run(budget=ledger.opened(budget_atomic), job=spec, run_id=f"run_{seq}")
    question = a_question(*standings, run=run, vendors=vendors)
    advice = advise(question)
    assert advice == advise(question)
    assert (advice.proposal.action == "start_job") == bool(advice.candidates)
    for candidate in advice.candidates:
        vendor = next(vendor for vendor in vendors if vendor.vendor_id == candidate.vendor_id)
        assert 0 < candidate.hours <= hours_wanted(run)
        assert price_atomic(vendor.base_price_per_hour_atomic, candidate.hours) <= budget_atomic
        # The mean of a belief that leans far to one end may lie outside the interval that holds 90 % of it.
        assert 0 <= candidate.low < candidate.high <= 1
        assert 0 < candidate.mean < 1
        assert candidate.cost_atomic > 0
        resting = [one for one in standings if (one.vendor_id, one.gpu_type) == (vendor.vendor_id, candidate.gpu_type)]
        assert all(
            one.failed_in_a_row == 0
            or one.last_failed_at is None
            or one.last_failed_at + timedelta(minutes=1) <= question.now
            for one in resting
        )
