"""What the end of a job says of its vendor: whose fault a failure is, how it is counted, how it fades."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from agent.core.events import AttemptFailed, JobEnded, RunEnded
from agent.core.model import Job, Outcome, Run
from agent.core.standing import VENDOR_FAULTS, counted, faded, opened, outcomes_of, rests_until
from tests.agent.core.values import T0, a_job, a_run, at
from wire.problems import REFUSALS


def said(run: Run, **changes: Any) -> list[bool]:
    """Return what the end of the run's only job says of its vendor."""
    job = run.jobs[0]
    return [
        outcome.succeeded
        for outcome in outcomes_of(run, [JobEnded(at=at(9), job_id=job.job_id, status=job.status, **changes)])
    ]


def ended(job: Job, **changes: Any) -> Run:
    return a_run(jobs=(job,), **changes)


def test_a_completed_job_is_the_vendors_merit_and_a_failed_one_its_fault() -> None:
    assert said(ended(a_job(1, status="completed", vendor_job_id="v1"))) == [True]
    assert said(ended(a_job(1, status="failed", vendor_job_id="v1", error_message="CUDA out of memory"))) == [False]
    job = a_job(1, status="failed", gpu_type="A100", error_message="vendor_unreachable: nobody there")
    assert outcomes_of(a_run(jobs=(job,)), [AttemptFailed(at=at(3), job=job), RunEnded(at=at(4), status="failed")]) == (
        Outcome(vendor_id="gpu_vendor_1", gpu_type="A100", succeeded=False, at=at(3)),
    )


# What a vendor can be blamed for before it had the job, and what it cannot.
ITS_FAULTS = [
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
]
OUR_OWN = [
    "over_payment_cap",
    "over_run_cap",
    "over_vendor_cap",
    "over_day_cap",
    "over_hourly_price",
    "over_budget",
    "no_vendor_secret",
    "vendor_denied",
    "vendor_not_registered",
    "vendor_other_asset",
    "payment_refused",
    "cancelled",
    "deadline_passed",
]


@pytest.mark.parametrize(
    ("code", "says"), [*((code, [False]) for code in ITS_FAULTS), *((code, []) for code in OUR_OWN)]
)
def test_an_attempt_that_ends_before_the_vendor_has_the_job_says_whose_fault_it_was(
    code: str, says: list[bool]
) -> None:
    assert code in REFUSALS
    assert said(ended(a_job(1, status="failed", error_message=f"{code}: 4 + 1 is above 4"))) == says


def test_a_vendor_is_blamed_for_refusals_only_and_for_none_that_is_not_spelt_out_above() -> None:
    assert set(ITS_FAULTS) == VENDOR_FAULTS <= REFUSALS.keys()


@pytest.mark.parametrize("message", [None, "", "something new", "vendor_refused by us"])
def test_an_end_before_the_vendor_has_the_job_that_nobody_foresaw_says_nothing(message: str | None) -> None:
    assert said(ended(a_job(1, status="failed", error_message=message))) == []


@pytest.mark.parametrize("code", ["over_budget", "over_day_cap", "no_vendor_secret", "cancelled", "deadline_passed"])
def test_a_vendor_cannot_put_its_failure_down_to_us(code: str) -> None:
    job = a_job(1, status="failed", vendor_job_id="v1", error_message=f"{code}: says the vendor")
    assert said(ended(job)) == [False]


@pytest.mark.parametrize("stopped", [{"cancel_requested_at": T0}, {"deadline": at(9)}], ids=["cancel", "deadline"])
@pytest.mark.parametrize("state", ["cancelled", "failed"])
def test_a_job_that_we_stopped_says_nothing(stopped: dict[str, Any], state: str) -> None:
    assert said(ended(a_job(1, status=state, vendor_job_id="v1"), **stopped)) == []
    assert said(ended(a_job(1, status="completed", vendor_job_id="v1"), **stopped)) == [True]


def test_a_cancelled_job_that_nobody_wished_to_stop_was_overdue_or_given_up_by_the_vendor() -> None:
    assert said(ended(a_job(1, status="cancelled", vendor_job_id="v1"), deadline=at(10))) == [False]


def test_counts_halve_in_thirty_days_and_failures_in_a_row_end_with_a_success() -> None:
    def then(days: float, succeeded: bool) -> Outcome:
        moment = T0 + timedelta(days=days)
        return Outcome(vendor_id="gpu_vendor_1", gpu_type="A10", succeeded=succeeded, at=moment)

    one = counted(opened("gpu_vendor_1", "A10", T0), then(0, False))
    two = counted(one, then(30, False))
    assert (two.completed, two.failed, two.failed_in_a_row) == (0, Decimal("1.500"), 2)
    assert two.last_failed_at == T0 + timedelta(days=30)
    three = counted(two, then(30, True))
    assert (three.completed, three.failed, three.failed_in_a_row) == (1, Decimal("1.500"), 0)
    late = faded(three, T0 + timedelta(days=90))
    assert (late.completed, late.failed) == (Decimal("0.250"), Decimal("0.375"))
    # A clock that is behind changes nothing.
    assert faded(late, T0) == late


@pytest.mark.parametrize(
    ("in_a_row", "last", "until"),
    [(0, T0, None), (1, None, None), (1, T0, at(60)), (3, T0, at(240)), (4, T0, at(300)), (10**9, T0, at(300))],
)
def test_a_vendor_rests_a_minute_and_twice_as_long_each_time(
    in_a_row: int, last: datetime | None, until: datetime | None
) -> None:
    assert rests_until(in_a_row, last) == until
