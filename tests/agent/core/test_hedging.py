"""Twins: wanted where a piece of work is late or its vendor silent, and another would still be in time."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from agent.core import hedging
from agent.core.decide import AskPlanner, CancelJobs, EndRun, StartJob, Wait, decide, question_of, worth_reading
from agent.core.model import Checkpoint, Run
from agent.core.planning import Proposal
from tests.agent.core.test_slots import a_checkpoint, in_slot, run_of
from tests.agent.core.values import a_payment, a_vendor, at, facts

NOW = at(1_000)
WISH = Proposal(action="start_job", vendor_id="gpu_vendor_2", max_hours=Decimal("0.50"), reason="it is free")


def a_late_run(progress: str = "0.5", deadline_s: float = 1_900, **changes: Any) -> Run:
    """Return a run whose one job began 1,000 s ago."""
    values = {"submitted_at": at(0), "progress": Decimal(progress), "vendor_id": "gpu_vendor_1"} | changes
    job = in_slot(1, 0, "running", **values)
    return run_of(job, deadline=at(deadline_s))


@pytest.mark.parametrize(
    ("progress", "deadline_s", "resume", "wanted"),
    [
        # Half is done in 1,000 s: it ends at 2,000 s. The rest after the checkpoint takes 60 + 2,000 * rest.
        ("0.5", 2_000, 300, False),
        ("0.5", 1_999, 300, True),
        ("0.5", 1_560, 300, True),
        ("0.5", 1_559, 300, False),
        ("0.5", 1_999, None, False),
        # A tenth is done: it would end at 10,000 s. It was quoted for an hour, and so another would take no longer.
        ("0.1", 4_659, None, False),
        ("0.1", 4_660, None, True),
        ("0", 1_100, 399, False),
    ],
)
def test_a_late_job_has_a_twin_where_the_twin_is_in_time(
    progress: str, deadline_s: float, resume: int | None, wanted: bool
) -> None:
    run = a_late_run(progress, deadline_s)
    checkpoints = () if resume is None else (a_checkpoint(1, resume),)
    piece = hedging.wanted(run, checkpoints, NOW)
    assert (piece is not None) is wanted
    if piece is not None:
        assert (piece.slot, piece.hedges, piece.resume) == (0, "run_1-job-1", (checkpoints or (None,))[0])


@pytest.mark.parametrize(
    ("polls", "silent", "wanted"), [("xxx", True, True), ("xx", True, False), ("xxx", False, False)]
)
def test_a_silent_job_has_a_twin_and_one_that_answers_again_has_none(polls: str, silent: bool, wanted: bool) -> None:
    run = a_late_run("0.5", 5_000, polls=polls, missed_since=at(900) if silent else None)
    assert (hedging.wanted(run, (), NOW) is not None) is wanted


def test_a_resumed_job_is_measured_by_what_it_did_itself() -> None:
    # It began at 400 of 500 steps; at 90 % after 1,000 s it needs 1,000 s more, not 111.
    job = in_slot(1, 0, "running", submitted_at=at(0), progress=Decimal("0.9"))
    job = replace(job, checkpoint=a_checkpoint(7, 400, steps=500), resumes="run_1-job-7")
    assert hedging.ends_at(job, NOW) == at(2_000)
    assert hedging.ends_at(replace(job, progress=Decimal("0.8")), NOW) is None
    # Nor does it say anything of its pace that it told of less than it began with.
    assert hedging.ends_at(replace(job, progress=Decimal(0)), NOW) is None


def test_work_of_years_is_reckoned_as_what_it_is_and_that_of_a_moment_as_a_second() -> None:
    slow = in_slot(1, 0, "running", submitted_at=at(0), progress=Decimal("0.001"))
    assert hedging.ends_at(slow, at(63_072)) == at(63_072 + 63_072_000 * 0.999)
    quick = replace(slow, progress=Decimal("0.5"))
    assert hedging.ends_at(quick, at(0)) == at(1)


@pytest.mark.parametrize(
    ("minutes", "hours", "checkpoint", "resume", "needed_s"),
    [
        # What was quoted, else what was paid for.
        ("30", "2", None, None, 60 + 1_800),
        ("0", "2", None, None, 60 + 7_200),
        # Who went on from three quarters was quoted a quarter.
        ("15", "1", a_checkpoint(7, 300), 300, 60 + 900),
        ("15", "1", a_checkpoint(7, 300), None, 60 + 3_600),
        ("15", "1", a_checkpoint(7, 400), None, 60 + 900),
    ],
)
def test_a_twin_is_reckoned_by_what_its_forerunner_was_quoted_for(
    minutes: str, hours: str, checkpoint: Checkpoint | None, resume: int | None, needed_s: int
) -> None:
    begun = Decimal(0) if checkpoint is None else Decimal(checkpoint.step) / checkpoint.steps
    known = () if resume is None else (a_checkpoint(1, resume),)

    def wanted(deadline_s: int) -> bool:
        run = a_late_run(
            str(begun),
            1_000 + deadline_s,
            polls="xxx",
            missed_since=at(900),
            expected_duration_minutes=Decimal(minutes),
            hours=Decimal(hours),
            checkpoint=checkpoint,
        )
        return hedging.wanted(run, known, NOW) is not None

    assert (wanted(needed_s - 1), wanted(needed_s)) == (False, True)


def test_what_is_paid_or_doubled_of_other_pieces_keeps_no_twin_away() -> None:
    late = replace(a_late_run().jobs[0], job_id="run_1-job-2", slot=1)
    jobs = (
        in_slot(1, 0, "running"),
        late,
        in_slot(3, 2, "running"),
        in_slot(4, 0, "failed", hedges="run_1-job-1"),
        in_slot(5, 2, "failed", hedges="run_1-job-3"),
    )
    others = tuple(replace(a_payment(number), job_id=f"run_1-job-{number}", status="unknown") for number in (1, 3))
    own = replace(a_payment(2), job_id="run_1-job-2", status="completed")
    run = run_of(*jobs, count=3, deadline=at(1_900), payments=(*others, own))
    piece = hedging.wanted(run, (a_checkpoint(2, 300),), NOW)
    assert piece == hedging.Piece(slot=1, resume=a_checkpoint(2, 300), hedges="run_1-job-2")


@pytest.mark.parametrize("value", ["1e-300", "0.0000001", "1"])
def test_no_word_of_a_vendor_breaks_the_reckoning(value: str) -> None:
    run = a_late_run(value, expected_duration_minutes=Decimal("1e300"), missed_since=at(999), polls="xxx")
    assert isinstance(hedging.wanted(run, (a_checkpoint(1),), NOW), hedging.Piece | None)
    silent = a_late_run("0", expected_duration_minutes=Decimal("1e300"), missed_since=at(999), polls="xxx")
    assert hedging.wanted(silent, (), NOW) is None


def twins(run: Run, **changes: Any) -> Run:
    values = {"vendor_id": "gpu_vendor_2", "hedges": "run_1-job-1", "submitted_at": at(990)} | changes
    twin = in_slot(2, 0, str(values.pop("status", "running")), **values)
    return replace(run, jobs=(*run.jobs, twin))


@pytest.mark.parametrize(
    "run",
    [
        replace(a_late_run(), deadline=None),
        replace(a_late_run(), deadline=NOW),
        twins(a_late_run()),
        # One twin a piece, whatever became of it.
        twins(a_late_run(), status="failed"),
        replace(a_late_run(), payments=(a_payment(1, status="unknown"),)),
        a_late_run(vendor_job_id=None),
        twins(a_late_run(), hedges=None),
        replace(a_late_run(), jobs=(replace(a_late_run().jobs[0], slot=None),)),
    ],
)
def test_no_twin_is_wanted(run: Run) -> None:
    assert hedging.wanted(run, (a_checkpoint(1, 390),), NOW) is None


@pytest.mark.parametrize("deadline_s", [1_000, 999])
def test_when_the_time_is_over_nothing_is_late_any_more(deadline_s: float) -> None:
    assert hedging.doubtful(a_late_run(deadline_s=deadline_s), NOW) == ()
    assert worth_reading(a_late_run(deadline_s=deadline_s), NOW) == ()


def test_a_twin_is_started_elsewhere_for_the_rest_and_the_loser_is_stopped() -> None:
    run, checkpoint = a_late_run(), a_checkpoint(1, 300)
    assert [job.job_id for job in worth_reading(run, NOW)] == ["run_1-job-1"]
    known = facts(has_slots=True, checkpoints=(checkpoint,))
    assert decide(run, known, NOW) == AskPlanner()
    question = question_of(run, known, NOW)
    assert (question.rest, question.avoided) == (Decimal("0.25"), {"gpu_vendor_1"})
    # An hour's quarter, and the room to start in: no more is taken of a planner.
    assert isinstance(decide(run, replace(known, proposal=WISH), NOW), Wait)
    right = replace(WISH, max_hours=Decimal("0.27"))
    assert decide(run, replace(known, proposal=right), NOW) == StartJob(
        vendor_id="gpu_vendor_2",
        gpu_type="A10",
        max_hours=Decimal("0.27"),
        reason="it is free",
        slot=0,
        resume=checkpoint,
        hedges="run_1-job-1",
    )
    own = replace(right, vendor_id="gpu_vendor_1")
    assert isinstance(decide(run, replace(known, proposal=own), NOW), Wait)
    both = twins(run)
    assert decide(both, known, NOW) == Wait(reason="enough jobs are active", message="Job still running")
    won = replace(both, jobs=(both.jobs[0], replace(both.jobs[1], status="completed", completed_at=at(999))))
    stop = CancelJobs(reason="hedge_lost", job_ids=("run_1-job-1",), since=at(999))
    assert decide(won, known, NOW) == stop
    # Asked once in a tick: after that the run waits for it, and other pieces are gone on with.
    asked = replace(known, asked=("run_1-job-1",))
    assert decide(won, asked, NOW) == Wait(reason="enough jobs are active", message="Job still running")
    assert decide(replace(won, job=replace(won.job, count=2)), asked, NOW) == AskPlanner()
    lost = replace(won.jobs[0], status="cancelled", completed_at=NOW)
    assert decide(replace(won, jobs=(lost, won.jobs[1])), known, NOW) == EndRun(status="completed")


def test_a_run_does_not_end_while_the_loser_has_not() -> None:
    run = twins(a_late_run())
    first = replace(run.jobs[0], status="completed", completed_at=at(999))
    unserved = replace(run.jobs[1], status="quoted", vendor_job_id=None)
    ended = replace(run, jobs=(first, unserved))
    assert isinstance(decide(ended, facts(has_slots=True), NOW), Wait)


def test_pieces_are_paid_for_beside_each_other_and_a_lost_one_first_comes_to_light() -> None:
    asked = facts(has_slots=True, vendors=(a_vendor(1), a_vendor(2)))
    first = in_slot(1, 0, "running")
    run = run_of(first, count=2, payments=(a_payment(1, status="unknown"),))
    assert decide(run, asked, NOW) == AskPlanner()
    pending = Wait(reason="a payment's outcome is not known yet", message="Payment pending")
    # Nothing else is wanted, the job has ended, the run is to stop, or the log is of before there were slots.
    assert decide(replace(run, job=replace(run.job, count=1)), asked, NOW) == pending
    assert decide(replace(run, jobs=(in_slot(1, 0, "failed"),)), asked, NOW) == pending
    quoted = replace(run, jobs=(in_slot(1, 0, "quoted", vendor_job_id=None),))
    assert decide(quoted, replace(asked, cancel_requested_at=at(0)), NOW) == pending
    assert decide(run, replace(asked, has_slots=False), NOW) == pending


def test_what_was_left_behind_is_gone_on_from_and_no_other_piece() -> None:
    lost = in_slot(1, 1, "failed", error_message="job_lost: nobody there")
    run = run_of(lost, in_slot(2, 0, "running"), count=2)
    known = facts(has_slots=True, checkpoints=(a_checkpoint(1, 100), a_checkpoint(2, 300)))
    right = replace(WISH, max_hours=Decimal("0.77"))
    action = decide(run, replace(known, proposal=right), NOW)
    assert isinstance(action, StartJob)
    assert (action.slot, action.resume, action.hedges) == (1, a_checkpoint(1, 100), None)
