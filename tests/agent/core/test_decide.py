"""The agent's judgement: every rule, where each begins and ends, and which of two speaks first."""

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from agent.core.decide import (
    Action,
    AskPlanner,
    CancelJobs,
    EndRun,
    Facts,
    StartJob,
    Wait,
    active_jobs,
    decide,
    stop_wanted,
)
from agent.core.model import Job, JobSpec, Run
from agent.core.planning import Proposal
from tests.agent.core.values import T0, a_claim, a_job, a_payment, a_run, a_vendor, at, facts

NOW = at(100)
PENDING = Wait(reason="a payment's outcome is not known yet", message="Payment pending")
RUNNING = Wait(reason="enough jobs are active", message="Job still running")
REFUNDING = Wait(reason="a refund is on its way", message="Waiting")

WISH = Proposal(action="start_job", vendor_id="gpu_vendor_1", max_hours=Decimal("0.50"), reason="it is cheap")


def jobs(*states: str) -> tuple[Job, ...]:
    """Return jobs in `states`; the submitted and the running ones are known to their vendors."""
    return tuple(
        a_job(n, status=state, vendor_job_id=f"v-{n}" if state in ("submitted", "running") else None)
        for n, state in enumerate(states, 1)
    )


def run_with(*states: str, count: int = 1, **changes: Any) -> Run:
    return a_run(**{"jobs": jobs(*states), "job": JobSpec(count=count)} | changes)


def decided(run: Run, **changes: Any) -> Action:
    return decide(run, facts(**changes), NOW)


def test_a_fresh_run_asks_the_planner() -> None:
    assert decided(run_with()) == AskPlanner()


@pytest.mark.parametrize("state", ["quoted", "submitted", "running"])
def test_a_run_with_its_job_active_waits(state: str) -> None:
    assert decided(run_with(state)) == RUNNING
    assert [job.status for job in active_jobs(run_with("failed", state, "completed", "cancelled"))] == [state]


@pytest.mark.parametrize(
    ("count", "states", "action"),
    [
        (1, ["completed"], EndRun(status="completed")),
        (1, ["completed", "completed"], EndRun(status="completed")),
        (2, ["completed"], AskPlanner()),
        (2, ["completed", "completed"], EndRun(status="completed")),
        (2, ["running"], AskPlanner()),
        (2, ["running", "running"], RUNNING),
        (2, ["running", "completed"], RUNNING),
        (3, ["running", "completed"], AskPlanner()),
        (3, ["running", "completed", "running"], RUNNING),
        (2, ["running", "failed"], AskPlanner()),
        (2, ["running", "cancelled"], AskPlanner()),
        (1, ["cancelled"], AskPlanner()),
        (2, ["cancelled", "completed"], AskPlanner()),
        (1, ["failed"], AskPlanner()),
        (1, ["failed", "running"], RUNNING),
        (1, ["failed", "completed"], EndRun(status="completed")),
        (1, ["failed", "failed"], AskPlanner()),
        (1, ["failed", "failed", "failed"], EndRun(status="failed", reason="attempts_exhausted")),
        (1, ["failed", "failed", "failed", "failed"], EndRun(status="failed", reason="attempts_exhausted")),
        (1, ["failed", "cancelled"], AskPlanner()),
        (1, ["failed", "failed", "cancelled"], EndRun(status="failed", reason="attempts_exhausted")),
        (1, ["cancelled", "cancelled", "cancelled"], EndRun(status="failed", reason="attempts_exhausted")),
        (2, ["cancelled", "cancelled", "completed"], AskPlanner()),
        (2, ["failed", "cancelled", "running"], AskPlanner()),
        (2, ["failed", "cancelled", "failed", "running"], RUNNING),
        (2, ["failed", "failed", "completed"], AskPlanner()),
        (1, ["failed", "failed", "failed", "completed"], EndRun(status="completed")),
        (1, ["failed", "failed", "failed", "running"], RUNNING),
    ],
)
def test_how_jobs_stand_decides(count: int, states: list[str], action: Action) -> None:
    assert decided(run_with(*states, count=count)) == action


@pytest.mark.parametrize("status", ["pending", "unknown"])
@pytest.mark.parametrize("states", [["quoted"], ["completed"], ["failed"], []])
def test_nothing_is_begun_or_ended_while_a_payment_is_open(status: str, states: list[str]) -> None:
    run = run_with(*states, payments=(a_payment(9, status="completed"), a_payment(1, status=status)))
    assert decided(run, proposal=WISH) == PENDING
    assert decided(run, cancel_requested_at=T0) == PENDING
    assert decided(replace(run, deadline=T0)) == PENDING


@pytest.mark.parametrize("status", ["completed", "failed", "refunded"])
def test_a_known_outcome_holds_nothing_up(status: str) -> None:
    assert decided(run_with(payments=(a_payment(1, status=status),))) == AskPlanner()


@pytest.mark.parametrize(
    ("age_s", "waits"), [(0, True), (59, True), (59.999_999, True), (60, False), (61, False), (3_600, False)]
)
def test_an_announced_refund_is_waited_for_so_long_and_no_longer(age_s: float, waits: bool) -> None:
    claimed = a_payment(1, status="completed", refund=a_claim(announced_at=at(100 - age_s)))
    run = run_with("failed", payments=(claimed, a_payment(2, status="completed")))
    assert decided(run) == (REFUNDING if waits else AskPlanner())
    assert decided(run, refund_wait_s=0) == AskPlanner()


@pytest.mark.parametrize("status", ["refunded", "failed"])
def test_a_refund_that_has_come_is_not_waited_for(status: str) -> None:
    payment = a_payment(1, status=status, refund=a_claim(announced_at=NOW))
    assert decided(run_with("failed", payments=(payment,))) == AskPlanner()


def test_a_refund_is_waited_for_before_the_run_ends() -> None:
    payment = a_payment(1, status="completed", refund=a_claim(announced_at=NOW))
    assert decided(run_with("completed", payments=(payment,))) == REFUNDING
    assert decided(run_with("cancelled", payments=(payment,)), cancel_requested_at=T0) == REFUNDING


@pytest.mark.parametrize(
    ("wish", "reason", "status"),
    [({"cancel": T0}, "cancelled", "cancelled"), ({"deadline": NOW}, "deadline_passed", "failed")],
)
def test_a_run_that_is_to_stop_cancels_ends_and_begins_nothing(wish: dict[str, Any], reason: str, status: Any) -> None:
    def stopped(*states: str, count: int = 1) -> Action:
        run = run_with(*states, count=count, deadline=wish.get("deadline"))
        return decided(run, cancel_requested_at=wish.get("cancel"), proposal=WISH)

    end = EndRun(status=status, reason=reason)
    assert stopped() == end
    assert stopped("failed", "failed", "failed") == end
    assert stopped("cancelled") == end
    assert stopped("completed", count=2) == end
    assert stopped("completed") == EndRun(status="completed")
    since = T0 if status == "cancelled" else NOW
    assert stopped("submitted") == CancelJobs(reason=reason, job_ids=("run_1-job-1",), since=since)
    assert stopped("running", count=5) == CancelJobs(reason=reason, job_ids=("run_1-job-1",), since=since)
    assert stopped("quoted", "running") == CancelJobs(reason=reason, job_ids=("run_1-job-2",), since=since)
    # A quoted job is nobody's yet: `recover` drops it, nothing new is begun beside it.
    assert stopped("quoted", count=2) == RUNNING


def test_jobs_are_cancelled_before_payments_are_waited_for() -> None:
    run = run_with("running", payments=(a_payment(1, status="unknown"),))
    assert decided(run, cancel_requested_at=T0) == CancelJobs(reason="cancelled", job_ids=("run_1-job-1",), since=T0)


@pytest.mark.parametrize(("late_s", "late"), [(0, False), (0.000_001, True), (9_999, True)])
def test_a_job_is_cancelled_once_it_runs_longer_than_was_paid_for_and_some_patience(late_s: float, late: bool) -> None:
    due = NOW - timedelta(seconds=late_s)
    submitted_at = due - timedelta(hours=1.5, seconds=60)
    late_job = a_job(1, status="running", vendor_job_id="v-1", hours=Decimal("1.5"), submitted_at=submitted_at)
    fine_job = a_job(2, status="running", vendor_job_id="v-2", hours=Decimal("1.5"), submitted_at=NOW)
    run = run_with(jobs=(late_job, fine_job), job=JobSpec(count=2))
    cancelled = CancelJobs(reason="overdue", job_ids=("run_1-job-1",), since=due)
    assert decided(run, overdue_s=60) == (cancelled if late else RUNNING)
    # Asked once in a tick, it holds up nothing else.
    assert decided(run, overdue_s=60, asked=("run_1-job-1",)) == RUNNING


def test_of_several_overdue_jobs_patience_is_counted_from_the_first() -> None:
    def late(number: int) -> Job:
        submitted_at = NOW - timedelta(hours=1 + number)
        return a_job(
            number, status="submitted", vendor_job_id=f"v-{number}", hours=Decimal(1), submitted_at=submitted_at
        )

    action = decided(run_with(jobs=(late(1), late(2)), job=JobSpec(count=2)), overdue_s=60)
    assert isinstance(action, CancelJobs)
    assert action.job_ids == ("run_1-job-1", "run_1-job-2")
    assert action.since == NOW - timedelta(hours=2) + timedelta(seconds=60)


def test_a_deadline_passes_at_its_very_moment() -> None:
    assert stop_wanted(a_run(deadline=NOW), None, NOW) == ("failed", "deadline_passed")
    assert stop_wanted(a_run(deadline=NOW), None, at(100.000_001)) == ("failed", "deadline_passed")
    assert stop_wanted(a_run(deadline=at(100.000_001)), None, NOW) is None
    assert stop_wanted(a_run(), None, NOW) is None


def test_a_wish_to_cancel_goes_before_a_deadline_and_stands_whenever_it_was_made() -> None:
    assert stop_wanted(a_run(deadline=T0), at(1_000), NOW) == ("cancelled", "cancelled")


def test_the_wish_is_read_from_the_facts() -> None:
    assert decided(run_with(cancel_requested_at=T0)) == AskPlanner()


def test_a_wish_to_start_a_job_is_taken() -> None:
    assert decided(run_with(), proposal=WISH) == StartJob(
        vendor_id="gpu_vendor_1", gpu_type="A10", max_hours=Decimal("0.50"), reason="it is cheap"
    )


def test_a_vendor_is_known_by_its_id_and_the_runs_gpu_is_rented_there() -> None:
    wish = replace(WISH, vendor_id="".join(["gpu_", "vendor_2"]))
    run = run_with(job=JobSpec(gpu_type="A100"))
    action = decided(run, proposal=wish, vendors=(a_vendor(1), a_vendor(2), a_vendor(3)))
    assert isinstance(action, StartJob)
    assert (action.vendor_id, action.gpu_type) == ("gpu_vendor_2", "A100")


@pytest.mark.parametrize(
    ("hours", "wanted", "taken"),
    [
        ("0.01", None, True),
        ("0.009999", None, False),
        ("0", None, False),
        ("-1", None, False),
        ("1", None, True),
        ("1.00", None, True),
        ("1.01", None, False),
        ("2.5", "2.5", True),
        ("2.51", "2.5", False),
        ("NaN", None, False),
        ("sNaN", None, False),
        ("Infinity", None, False),
    ],
)
def test_hours_are_taken_from_a_hundredth_to_what_the_run_wants(hours: str, wanted: str | None, taken: bool) -> None:
    run = run_with(job=JobSpec(max_hours=wanted and Decimal(wanted)))
    action = decided(run, proposal=replace(WISH, max_hours=Decimal(hours)))
    refused = Wait(reason=f"the planner proposed {hours} h at gpu_vendor_1", message="Waiting")
    assert isinstance(action, StartJob) if taken else action == refused


@pytest.mark.parametrize(
    ("wish", "spec", "action"),
    [
        ({"vendor_id": None}, {}, Wait(reason="the planner named None", message="Unknown vendor")),
        ({"vendor_id": "gpu"}, {}, Wait(reason="the planner named gpu", message="Unknown vendor")),
        ({"vendor_id": "gpu_vendor_3"}, {}, Wait(reason="the planner named gpu_vendor_3", message="Unknown vendor")),
        ({"max_hours": None}, {}, Wait(reason="the planner proposed None h at gpu_vendor_1")),
        ({}, {"gpu_type": "H100"}, Wait(reason="the planner proposed 0.50 h at gpu_vendor_1")),
    ],
)
def test_a_wish_that_cannot_be_is_waited_out(wish: dict[str, Any], spec: dict[str, Any], action: Action) -> None:
    assert decided(run_with(job=JobSpec(**spec)), proposal=replace(WISH, **wish)) == action


def test_a_planner_that_waits_is_waited_with_and_told_apart_from_having_no_vendors() -> None:
    wish = Proposal(action="wait", reason="too dear now")
    assert decided(run_with(), proposal=wish) == Wait(reason="too dear now", message="Waiting")
    assert decided(run_with(), proposal=wish, vendors=()) == Wait(reason="too dear now", message="No vendors available")


@pytest.mark.parametrize(("code", "reason"), [("no_vendor_left", "no_vendor_left"), (None, "planner_aborted")])
def test_a_planner_that_gives_up_ends_the_run_once_nothing_is_active(code: str | None, reason: str) -> None:
    wish = Proposal(action="abort", code=code, reason="2 of 2 vendors failed")
    assert decided(run_with("failed"), proposal=wish) == EndRun(
        status="failed", reason=reason, detail="2 of 2 vendors failed"
    )
    assert decided(run_with("running", count=2), proposal=wish) == Wait(
        reason="jobs are still active; 2 of 2 vendors failed", message="Waiting"
    )


def test_the_same_run_facts_and_time_decide_the_same() -> None:
    for run in (run_with(), run_with("running"), run_with("completed"), run_with("failed", deadline=T0)):
        for known in (facts(), facts(proposal=WISH), facts(cancel_requested_at=T0)):
            before = (replace(run), replace(known))
            assert decide(run, known, NOW) == decide(replace(run), replace(known), at(100))
            assert (run, known) == before


@pytest.mark.parametrize(
    ("count", "states", "waits"),
    [
        (1, ["completed"], True),
        (2, ["completed"], False),
        (1, ["failed"], False),
        (1, ["failed", "completed"], True),
        (2, ["completed", "completed"], True),
        (1, [], False),
    ],
)
def test_a_run_ends_as_completed_when_the_files_of_its_jobs_are_kept_or_given_up(
    count: int, states: list[str], waits: bool
) -> None:
    run = run_with(*states, count=count)
    held = Wait(reason="the files of a completed job are being fetched", message="Fetching artifacts")
    free = decided(run)
    assert free != held
    assert decided(run, keeps_artifacts=True) == (held if waits else free)
    closed = replace(
        run,
        # A failed job's files hold nothing up.
        jobs=tuple(replace(job, artifacts_closed_at=NOW if job.status == "completed" else None) for job in run.jobs),
    )
    assert decided(closed, keeps_artifacts=True) == free
    half = replace(closed, jobs=(*closed.jobs[:-1], *run.jobs[-1:]))
    assert decided(half, keeps_artifacts=True) == (held if waits else free)


def test_a_run_that_is_to_end_does_not_wait_for_files() -> None:
    run = run_with("completed")
    assert decided(run, keeps_artifacts=True, cancel_requested_at=T0) == EndRun(status="completed")
    assert decided(replace(run, deadline=NOW), keeps_artifacts=True) == EndRun(status="completed")


def test_a_run_that_is_to_end_undone_waits_a_little_for_the_files_of_what_ended() -> None:
    run = run_with("failed", "failed", "failed")
    ended = replace(run.jobs[-1], vendor_job_id="v", completed_at=NOW, artifacts_closed_at=None)
    run = replace(run, jobs=(*(replace(job, vendor_job_id=None) for job in run.jobs[:-1]), ended))
    over, asked = EndRun(status="failed", reason="attempts_exhausted"), {"keeps_artifacts": True}
    assert decided(run, **asked) == over
    waits = decided(run, **asked, artifacts_wait_s=1)
    assert isinstance(waits, Wait)
    assert waits.message == "Fetching artifacts"
    assert isinstance(decided(run, **asked, artifacts_wait_s=1, cancel_requested_at=T0), Wait)
    late = replace(ended, completed_at=NOW - timedelta(seconds=1))
    for last in (late, replace(ended, artifacts_closed_at=NOW), replace(ended, vendor_job_id=None)):
        assert decided(replace(run, jobs=(*run.jobs[:-1], last)), **asked, artifacts_wait_s=1) == over


def test_facts_know_nothing_that_was_not_told() -> None:
    known = Facts(attempts_max=1, refund_wait_s=0)
    assert not known.keeps_artifacts
    assert known.artifacts_wait_s == 0
    assert (known.cancel_requested_at, known.vendors, known.proposal, known.overdue_s) == (None, (), None, 3_600)
    assert (Wait(reason="r").message, EndRun(status="failed").reason, EndRun(status="failed").detail) == (
        "Waiting",
        None,
        "",
    )
    assert [kind(**more).kind for kind, more in ACTIONS] == [
        "ask_planner",
        "start_job",
        "wait",
        "cancel_jobs",
        "end_run",
    ]


ACTIONS: list[tuple[Any, dict[str, Any]]] = [
    (AskPlanner, {}),
    (StartJob, {"vendor_id": "v", "gpu_type": "A10", "max_hours": Decimal(1), "reason": "r"}),
    (Wait, {"reason": "r"}),
    (CancelJobs, {"reason": "r", "job_ids": (), "since": T0}),
    (EndRun, {"status": "failed"}),
]
