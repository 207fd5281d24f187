"""Each invariant holds of a run's whole life, and each is seen to be broken where it is."""

from dataclasses import replace
from typing import Any

import pytest

from agent.core import invariants
from agent.core.invariants import Broken, Settlement, VendorJob
from agent.core.log import record
from agent.core.model import Budget, Job, JobSpec, Run
from tests.agent.core.test_slots import a_checkpoint
from tests.agent.core.values import EVENTS, PAY_TO, PAYER, PRICE, STARTED, a_job, a_payment, a_run

BUDGET = Budget(total_atomic=5_000_000, available_atomic=5_000_000 - PRICE, reserved_atomic=0, spent_atomic=PRICE)
PAID = a_run(
    budget=BUDGET, jobs=(a_job(1, status="running"),), payments=(a_payment(1, amount_atomic=PRICE, status="completed"),)
)
SETTLED = Settlement(payer=PAYER, nonce=PAID.payments[0].nonce, pay_to=PAY_TO, amount_atomic=PRICE)
STARTED_JOB = VendorJob(
    vendor_id="gpu_vendor_1", vendor_job_id="vjob-1", payment_id=PAID.payments[0].payment_id, status="running"
)


def names(found: list[Broken]) -> list[str]:
    return [broken.invariant for broken in found]


def test_a_whole_life_breaks_nothing() -> None:
    before = STARTED
    for token, event in enumerate(EVENTS, 1):
        after = record(before, [event])[0]
        assert invariants.of_run(after) == []
        assert invariants.of_step(before, after, token, token) == []
        before = after


@pytest.mark.parametrize(
    "changes",
    [
        {"budget": replace(BUDGET, available_atomic=BUDGET.available_atomic + 1)},
        {"budget": replace(BUDGET, available_atomic=-1, reserved_atomic=5_000_001 - PRICE)},
        {"budget": replace(BUDGET, available_atomic=BUDGET.available_atomic - 1, reserved_atomic=1)},
        {"payments": ()},
        {"payments": (replace(PAID.payments[0], refunded_atomic=1, status="refunded"),)},
    ],
)
def test_books_that_do_not_balance_are_seen(changes: dict[str, Any]) -> None:
    assert set(names(invariants.of_run(replace(PAID, **changes)))) == {"I1"}


@pytest.mark.parametrize("same", ["nonce", "payment_id", "job_id"])
def test_two_payments_for_one_thing_are_seen(same: str) -> None:
    first = PAID.payments[0]
    second = replace(a_payment(2, amount_atomic=0, status="completed"), **{same: getattr(first, same)})
    assert names(invariants.of_run(replace(PAID, payments=(first, second)))) == ["I2"]
    # A cheque that was never paid leaves its job free for another.
    void = replace(first, status="failed")
    unpaid = replace(PAID, budget=replace(BUDGET, available_atomic=5_000_000, spent_atomic=0), payments=(void, second))
    assert names(invariants.of_run(unpaid)) == ([] if same == "job_id" else ["I2"])


@pytest.mark.parametrize(
    ("changes", "tokens", "broken"),
    [
        ({}, (2, 1), "I4"),
        ({"log": replace(PAID.log, seq=-1)}, (1, 1), "I4"),
        ({"status": "pending"}, (1, 1), "I5"),
        ({"jobs": (a_job(1, status="quoted"),)}, (1, 1), "I5"),
        ({"jobs": ()}, (1, 1), "I5"),
        ({"payments": (replace(PAID.payments[0], status="failed"),)}, (1, 1), "I5"),
        ({"payments": ()}, (1, 1), "I5"),
    ],
)
def test_a_step_back_is_seen(changes: dict[str, Any], tokens: tuple[int, int], broken: str) -> None:
    assert names(invariants.of_step(PAID, replace(PAID, **changes), *tokens)) == [broken]


def test_an_ended_run_takes_on_nothing() -> None:
    ended = replace(PAID, status="completed")
    more = replace(ended, jobs=(*ended.jobs, a_job(2)))
    assert invariants.of_step(ended, ended, 1, 2) == []
    assert names(invariants.of_step(ended, more, 1, 2)) == ["I5"]


def world(run: Run, *jobs: VendorJob, settled: tuple[Settlement, ...] = (SETTLED,)) -> list[str]:
    return names(invariants.of_world([run], settled, jobs))


def test_what_was_promised_may_be_settled_and_started() -> None:
    assert world(PAID, STARTED_JOB) == []
    assert world(PAID, replace(STARTED_JOB, status="completed")) == []
    assert world(PAID, settled=()) == []


@pytest.mark.parametrize(
    "changes",
    [{"nonce": "0x" + "77" * 32}, {"amount_atomic": PRICE + 1}, {"pay_to": PAYER}, {"payer": PAY_TO}],
)
def test_money_that_nobody_promised_is_seen(changes: dict[str, Any]) -> None:
    assert world(PAID, STARTED_JOB, settled=(replace(SETTLED, **changes),)) == ["I6"]


def test_a_job_without_a_payment_is_seen_and_a_second_one_for_the_same() -> None:
    assert world(PAID, replace(STARTED_JOB, payment_id="run_9-payment-1")) == ["I6"]
    assert world(PAID, STARTED_JOB, replace(STARTED_JOB, vendor_job_id="vjob-2")) == ["I6"]


def test_a_job_at_another_vendor_than_was_paid_is_seen_and_the_payment_or_job_is_named() -> None:
    elsewhere = replace(STARTED_JOB, vendor_id="gpu_vendor_2")
    assert world(PAID, elsewhere) == ["I6"]
    dearer = replace(SETTLED, amount_atomic=PRICE + 1)
    ended = replace(PAID, status="cancelled")
    found = invariants.of_world([ended], [dearer], [STARTED_JOB, replace(elsewhere, vendor_job_id="vjob-2")])
    assert [(one.invariant, one.run_id, one.subject) for one in found] == [
        ("I6", "run_1", "run_1-payment-1"),
        ("I3", "run_1", "run_1-job-1"),
        ("I6", "run_1", "vjob-2"),
    ]


def test_a_job_that_nobody_wants_any_more_is_seen() -> None:
    assert world(replace(PAID, status="cancelled"), STARTED_JOB) == ["I3"]
    assert world(replace(PAID, jobs=(replace(PAID.jobs[0], status="failed"),)), STARTED_JOB) == ["I3"]


def worked(number: int, slot: int | None, status: str = "running", **changes: Any) -> Job:
    return a_job(number, **{"slot": slot, "status": status, "vendor_job_id": f"v-{number}"} | changes)


RESUMED = {"resumes": "run_1-job-1", "checkpoint": a_checkpoint(1)}
HEDGED = {"hedges": "run_1-job-1"}


@pytest.mark.parametrize(
    ("jobs", "changes"),
    [
        # Another slot's, a job without a slot, one of another run.
        ([worked(1, 0, "failed"), worked(2, 1, **RESUMED)], {}),
        ([worked(1, None, "failed"), worked(2, None, **RESUMED)], {}),
        ([worked(2, 0, **RESUMED)], {}),
        ([worked(1, 1), worked(2, 0, **HEDGED)], {}),
        ([worked(2, 0, **HEDGED)], {}),
        # It goes on from one that goes on, with another's checkpoint, or with none.
        ([worked(1, 0), worked(2, 0, "failed", **RESUMED)], {}),
        ([worked(1, 0, "failed"), worked(2, 0, resumes="run_1-job-1", checkpoint=a_checkpoint(2))], {}),
        ([worked(1, 0, "failed"), worked(2, 0, resumes="run_1-job-1")], {}),
        # Two work on one piece that are no twins, or three.
        ([worked(1, 0), worked(2, 0)], {}),
        ([worked(1, 0), worked(2, 0, **HEDGED), worked(3, 0, **HEDGED)], {}),
        # The run ended over the loser's head, or with a piece that counted twice.
        ([worked(1, 0), worked(2, 0, "completed", **HEDGED)], {"status": "completed"}),
        ([worked(1, 0, "completed"), worked(2, 0, "completed", **HEDGED)], {"status": "completed", "count": 2}),
    ],
)
def test_work_that_is_mixed_up_or_counted_twice_is_seen(jobs: list[Job], changes: dict[str, Any]) -> None:
    run = a_run(jobs=tuple(jobs), status=changes.get("status", "running"), job=JobSpec(count=changes.get("count", 1)))
    assert set(names(invariants.of_run(run))) == {"I7"}


@pytest.mark.parametrize(
    ("jobs", "status", "count"),
    [
        ([worked(1, 0, "failed"), worked(2, 0, **RESUMED)], "running", 1),
        ([worked(1, 0), worked(2, 0, **RESUMED, **HEDGED)], "running", 1),
        ([worked(1, 0, "completed"), worked(2, 0, "completed", **HEDGED)], "completed", 1),
        ([worked(1, 0), worked(2, 1)], "running", 2),
        ([worked(1, None), worked(2, None)], "running", 2),
        ([worked(1, None), worked(2, None, "completed")], "completed", 1),
    ],
)
def test_work_that_is_handed_on_breaks_nothing(jobs: list[Job], status: str, count: int) -> None:
    run = a_run(jobs=tuple(jobs), status=status, job=JobSpec(count=count))
    assert invariants.of_run(run) == []
