"""What each kind of event does to a run, field by field, and what it must not do."""

from dataclasses import fields, replace
from decimal import Decimal
from typing import Any, get_args

import pytest

from agent.core import events
from agent.core.apply import _RULES, apply, find_job, find_payment
from agent.core.events import Event
from agent.core.model import Budget, RefundClaim, Run
from tests.agent.core.values import (
    EVENTS,
    MODEL,
    PRICE,
    REFUND,
    SETTLEMENT,
    STARTED,
    T0,
    a_claim,
    a_job,
    a_payment,
    a_run,
    at,
)

# Beside what an event is about stands another job and another payment, which it leaves alone.
OTHER_JOB = a_job(9, status="running", vendor_job_id="vjob-9")
OTHER_PAYMENT = a_payment(9, status="completed", transaction="0x09")
JOB, PAYMENT = "run_1-job-1", "run_1-payment-1"


def a_budget(available: int, reserved: int, spent: int) -> Budget:
    return Budget(
        total_atomic=available + reserved + spent,
        available_atomic=available,
        reserved_atomic=reserved,
        spent_atomic=spent,
    )


BUDGET = a_budget(1_000_000, PRICE, PRICE)


def a_running_run(job: dict[str, Any], payment: dict[str, Any]) -> Run:
    return a_run(
        jobs=(OTHER_JOB, a_job(1, **job)),
        payments=(OTHER_PAYMENT, a_payment(1, **payment)),
        budget=BUDGET,
        phase="executing",
    )


def changed(before: Any, after: Any) -> dict[str, Any]:
    """Return the fields of `after` that differ from those of `before`."""
    names = [field.name for field in fields(before)]
    return {name: getattr(after, name) for name in names if getattr(before, name) != getattr(after, name)}


def of_job(run: Run, event: Event) -> tuple[dict[str, Any], dict[str, Any]]:
    after = apply(run, event)
    assert after.jobs[0] is OTHER_JOB
    assert after.payments == run.payments
    run_changes = changed(run, after)
    del run_changes["jobs"]
    return run_changes, changed(run.jobs[1], after.jobs[1])


def of_payment(run: Run, event: Event) -> tuple[dict[str, Any], dict[str, Any]]:
    after = apply(run, event)
    assert after.payments[0] is OTHER_PAYMENT
    assert after.jobs == run.jobs
    run_changes = changed(run, after)
    del run_changes["payments"]
    return run_changes, changed(run.payments[1], after.payments[1])


def test_every_kind_of_event_has_a_rule_and_happens_in_these_tests() -> None:
    assert set(_RULES) == set(get_args(Event)) == {type(event) for event in EVENTS}


def test_a_run_starts_as_it_was_told() -> None:
    assert apply(a_run(goal="another"), EVENTS[0]) == STARTED


def test_a_decision_moves_the_phase_alone() -> None:
    decided = events.Decided(at=at(1), action="wait", reason="", phase="waiting", mode="stub")
    assert changed(a_run(), apply(a_run(), decided)) == {"phase": "waiting", "updated_at": at(1)}


def test_a_refusal_changes_nothing_but_the_time() -> None:
    run = a_running_run({}, {})
    refused = events.Refused(at=at(1), code="over_budget", detail="")
    assert changed(run, apply(run, refused)) == {"updated_at": at(1)}


def test_a_line_of_a_jobs_log_is_counted() -> None:
    run = a_running_run({"log_lines": 7}, {})
    logged = apply(run, events.JobLogged(at=at(1), job_id=JOB, line="Epoch 1/5"))
    assert changed(find_job(run, JOB), find_job(logged, JOB)) == {"log_lines": 8, "updated_at": at(1)}
    assert replace(logged, jobs=run.jobs) == replace(run, updated_at=at(1))


@pytest.mark.parametrize(
    ("kind", "status", "phase"),
    [(events.JobQuoted, "quoted", "executing"), (events.AttemptFailed, "failed", "planning")],
)
def test_a_new_job_comes_last(kind: Any, status: Any, phase: str) -> None:
    run = a_run(jobs=(OTHER_JOB,), phase="waiting")
    job = a_job(1, status=status)
    assert changed(run, apply(run, kind(at=at(1), job=job))) == {
        "jobs": (OTHER_JOB, job),
        "phase": phase,
        "updated_at": at(1),
    }


def test_a_reservation_takes_from_what_is_available() -> None:
    run = a_run(budget=a_budget(2_000_000, 1, 2), payments=(OTHER_PAYMENT,))
    payment = a_payment(1)
    assert changed(run, apply(run, events.PaymentReserved(at=at(1), payment=payment))) == {
        "budget": a_budget(600_000, PRICE + 1, 2),
        "payments": (OTHER_PAYMENT, payment),
        "updated_at": at(1),
    }


def test_no_more_is_reserved_than_is_available() -> None:
    run = a_run(budget=a_budget(PRICE - 1, 0, 0))
    with pytest.raises(AssertionError, match=r"the budget does not balance"):
        apply(run, events.PaymentReserved(at=at(1), payment=a_payment(1)))


def test_an_unanswered_submission_makes_a_pending_payment_unknown() -> None:
    event = events.SubmissionUnanswered(at=at(1), payment_id=PAYMENT, detail="202: pending")
    assert of_payment(a_running_run({}, {"status": "pending"}), event) == (
        {"updated_at": at(1)},
        {"status": "unknown", "sends": 1, "error_message": "202: pending", "updated_at": at(1)},
    )


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("status", ["unknown", "completed"])
def test_a_further_unanswered_submission_is_counted_where_it_was_sent_and_changes_no_state(
    status: str, sent: bool
) -> None:
    event = events.SubmissionUnanswered(at=at(1), payment_id=PAYMENT, detail="again", sent=sent)
    assert of_payment(a_running_run({}, {"status": status, "sends": 4}), event)[1] == {
        **({"sends": 5} if sent else {}),
        "error_message": "again",
        "updated_at": at(1),
    }


@pytest.mark.parametrize("status", ["pending", "unknown"])
def test_a_settlement_spends_what_was_reserved(status: str) -> None:
    run = a_running_run({}, {"status": status, "error_message": "202: pending"})
    assert of_payment(run, events.PaymentSettled(at=at(1), payment_id=PAYMENT, transaction=SETTLEMENT)) == (
        {"budget": a_budget(1_000_000, 0, 2 * PRICE), "updated_at": at(1)},
        {"status": "completed", "transaction": SETTLEMENT, "error_message": None, "updated_at": at(1)},
    )


@pytest.mark.parametrize("status", ["pending", "unknown"])
def test_a_void_cheque_gives_back_what_was_reserved(status: str) -> None:
    event = events.PaymentVoided(at=at(1), payment_id=PAYMENT, detail="lapsed")
    assert of_payment(a_running_run({}, {"status": status}), event) == (
        {"budget": a_budget(1_000_000 + PRICE, 0, PRICE), "updated_at": at(1)},
        {"status": "failed", "error_message": "lapsed", "updated_at": at(1)},
    )


def test_an_announced_refund_is_a_claim_and_moves_no_money() -> None:
    event = events.RefundAnnounced(at=at(1), payment_id=PAYMENT, amount_atomic=700_000, transaction=REFUND)
    claim = RefundClaim(amount_atomic=700_000, transaction=REFUND, announced_at=at(1))
    assert of_payment(a_running_run({}, {"status": "completed"}), event) == (
        {"updated_at": at(1)},
        {"refund": claim, "updated_at": at(1)},
    )


def test_a_settled_refund_makes_money_available_again() -> None:
    event = events.RefundSettled(at=at(1), payment_id=PAYMENT, amount_atomic=700_000, transaction=REFUND)
    assert of_payment(a_running_run({}, {"status": "completed", "refund": a_claim()}), event) == (
        {"budget": a_budget(1_700_000, PRICE, PRICE - 700_000), "updated_at": at(1)},
        {"status": "refunded", "refunded_atomic": 700_000, "updated_at": at(1)},
    )


def test_a_submitted_job_is_waited_for() -> None:
    event = events.JobSubmitted(at=at(1), job_id=JOB, vendor_job_id="vjob-1")
    assert of_job(a_running_run({"status": "quoted"}, {}), event) == (
        {"phase": "waiting", "updated_at": at(1)},
        {"status": "submitted", "vendor_job_id": "vjob-1", "submitted_at": at(1), "updated_at": at(1)},
    )


def test_an_answered_poll_sets_the_clock_back_and_keeps_the_ones_before_it() -> None:
    run = a_running_run({"status": "submitted", "polls": "xxx", "missed_since": T0}, {})
    event = events.JobObserved(at=at(1), job_id=JOB, status="running", progress=Decimal("0.2"), cursor="7")
    assert of_job(run, event) == (
        {"updated_at": at(1)},
        {
            "status": "running",
            "progress": Decimal("0.2"),
            "cursor": "7",
            "polls": "xxx.",
            "missed_since": None,
            "updated_at": at(1),
        },
    )


@pytest.mark.parametrize("status", ["submitted", "running"])
def test_a_job_may_stay_as_it_is_and_its_progress_never_falls(status: Any) -> None:
    run = a_running_run({"status": status, "progress": Decimal("0.5")}, {})
    event = events.JobObserved(at=at(1), job_id=JOB, status=status, progress=Decimal("0.4"), cursor="7")
    assert of_job(run, event)[1] == {"cursor": "7", "polls": ".", "updated_at": at(1)}


def test_misses_are_counted_from_the_first() -> None:
    run = a_running_run({"status": "running"}, {})
    for count, polls in ((1, "x"), (2, "xg")):
        run = apply(run, events.JobMissed(at=at(count), job_id=JOB, detail="nobody there", gone=count == 2))
        job = find_job(run, JOB)
        assert (job.polls, job.missed_since, job.updated_at, run.updated_at) == (polls, at(1), at(count), at(count))
    assert (job.status, run.jobs[0], run.phase) == ("running", OTHER_JOB, "executing")


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_an_ended_job_keeps_what_its_vendor_said_last(status: Any) -> None:
    run = a_running_run({"status": "running", "progress": Decimal("0.4")}, {})
    event = events.JobEnded(
        at=at(1),
        job_id=JOB,
        status=status,
        progress=Decimal("0.5"),
        cost_atomic=700_000,
        final_metrics={"loss": Decimal("0.1")},
        artifact_url="http://vendor/artifacts/1",
        error_message="CUDA out of memory",
    )
    assert of_job(run, event) == (
        {"phase": "planning", "updated_at": at(1)},
        {
            "status": status,
            "progress": Decimal("0.5"),
            "actual_cost_atomic": 700_000,
            "final_metrics": {"loss": Decimal("0.1")},
            "artifact_url": "http://vendor/artifacts/1",
            "error_message": "CUDA out of memory",
            "completed_at": at(1),
            "updated_at": at(1),
        },
    )


def test_files_that_were_kept_are_added_and_the_last_of_them_close_the_job() -> None:
    ended = a_running_run({"status": "completed", "completed_at": T0}, {})
    first = events.ArtifactsKept(at=at(1), job_id=JOB, artifacts=(MODEL,), closed=False)
    assert of_job(ended, first) == ({"updated_at": at(1)}, {"artifacts": (MODEL,), "updated_at": at(1)})
    log = replace(MODEL, name="training.log")
    last = events.ArtifactsKept(at=at(2), job_id=JOB, artifacts=(log,), closed=True)
    assert of_job(apply(ended, first), last) == (
        {"updated_at": at(2)},
        {"artifacts": (MODEL, log), "artifacts_closed_at": at(2), "updated_at": at(2)},
    )


@pytest.mark.parametrize(("closed", "more"), [(False, {}), (True, {"artifacts_closed_at": at(1)})])
def test_files_that_were_missed_are_counted_and_given_up_in_the_end(closed: bool, more: Any) -> None:
    ended = a_running_run({"status": "failed", "completed_at": T0, "artifact_misses": 1}, {})
    missed = events.ArtifactsMissed(at=at(1), job_id=JOB, detail="nobody there", closed=closed)
    assert of_job(ended, missed) == (
        {"updated_at": at(1)},
        {"artifact_misses": 2, "updated_at": at(1)} | more,
    )


def test_progress_never_falls_at_the_end_either() -> None:
    run = a_running_run({"status": "running", "progress": Decimal("0.4")}, {})
    ended = apply(run, events.JobEnded(at=at(1), job_id=JOB, status="failed"))
    assert find_job(ended, JOB).progress == Decimal("0.4")
    ended = apply(run, events.JobEnded(at=at(1), job_id=JOB, status="failed", progress=Decimal(0)))
    assert find_job(ended, JOB).progress == Decimal("0.4")
    ended = apply(run, events.JobEnded(at=at(1), job_id=JOB, status="failed", progress=Decimal("0.7")))
    assert find_job(ended, JOB).progress == Decimal("0.7")


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
def test_an_ended_run_is_done_and_says_why(status: Any) -> None:
    run = a_run()
    assert changed(run, apply(run, events.RunEnded(at=at(1), status=status, reason="cancelled", detail="x"))) == {
        "status": status,
        "phase": "done",
        "reason": "cancelled",
        "completed_at": at(1),
        "updated_at": at(1),
    }


def test_a_job_and_a_payment_are_found_by_their_ids() -> None:
    run = a_running_run({}, {})
    assert find_job(run, "".join(["run_1", "-job-1"])) is run.jobs[1]
    assert find_payment(run, "".join(["run_1", "-payment-9"])) is OTHER_PAYMENT
    with pytest.raises(KeyError):
        find_job(run, "run_1-job-2")
    with pytest.raises(KeyError):
        find_payment(run, "run_1-payment-2")


def test_a_run_is_not_changed_where_it_stands() -> None:
    run = a_running_run({"status": "running"}, {})
    copy = replace(run)
    apply(run, events.JobEnded(at=at(1), job_id=JOB, status="failed"))
    assert run == copy
