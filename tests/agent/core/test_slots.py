"""Pieces of work: which are done, which are open, what a new job goes on from, and who lost a race."""

from dataclasses import FrozenInstanceError, replace
from decimal import Decimal
from typing import Any

import pytest

from agent.core import slots
from agent.core.model import Checkpoint, Job, JobSpec, Run
from tests.agent.core.values import a_job, a_run, at


def a_checkpoint(number: int, step: int = 120, **changes: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "job_id": f"run_1-job-{number}",
        "step": step,
        "steps": 400,
        "bytes": 9,
        "model_hash": "aa" * 32,
        "spec_hash": "bb" * 32,
        "sha256": f"{number:032x}{step:032x}",
    }
    return Checkpoint(**values | changes)


def in_slot(number: int, slot: int | None, status: str, **changes: Any) -> Job:
    has_ended = status in ("completed", "failed", "cancelled")
    ends = {"completed_at": at(number)} if has_ended else {}
    return a_job(number, **{"slot": slot, "status": status, "vendor_job_id": f"v-{number}"} | ends | changes)


def run_of(*jobs: Job, count: int = 1, **changes: Any) -> Run:
    return a_run(**{"jobs": jobs, "job": JobSpec(count=count)} | changes)


@pytest.mark.parametrize(
    ("count", "jobs", "open_slots", "done"),
    [
        (1, [], (0,), 0),
        (3, [], (0, 1, 2), 0),
        (3, [(1, "running")], (0, 2), 0),
        (3, [(1, "quoted"), (0, "completed")], (2,), 1),
        (2, [(0, "failed"), (0, "running")], (1,), 0),
        (2, [(0, "failed"), (1, "cancelled")], (0, 1), 0),
        (2, [(0, "completed"), (0, "completed")], (1,), 1),
        (2, [(0, "completed"), (0, "running")], (1,), 1),
        # Jobs of before there were slots count by themselves.
        (2, [(None, "running")], (1,), 0),
        (2, [(None, "completed"), (None, "failed")], (1,), 1),
        (2, [(None, "completed"), (1, "running")], (), 1),
        (1, [(None, "completed")], (), 1),
        (2, [(0, "completed"), (None, "completed")], (), 2),
        (2, [(None, "cancelled")], (0, 1), 0),
    ],
)
def test_which_pieces_are_open_and_how_many_are_done(
    count: int, jobs: list[tuple[int | None, str]], open_slots: tuple[int, ...], done: int
) -> None:
    run = run_of(*(in_slot(number, *job) for number, job in enumerate(jobs, 1)), count=count)
    assert slots.open_slots(run) == open_slots
    assert slots.done_count(run) == done


@pytest.mark.parametrize(
    ("other", "lost"),
    [
        (in_slot(3, 0, "running"), True),
        (in_slot(3, 0, "quoted", vendor_job_id=None), True),
        (in_slot(3, 0, "cancelled"), True),
        (in_slot(2, 0, "cancelled"), True),
        (in_slot(3, 0, "failed", error_message="hedge_lost: the vendor did not confirm the cancellation"), True),
        # It ended before the work was done, failed by itself, was lost in silence, or does other work.
        (in_slot(1, 0, "cancelled"), False),
        (in_slot(1, 0, "failed", error_message="hedge_lost"), False),
        (in_slot(3, 0, "failed", error_message="CUDA out of memory"), False),
        (in_slot(3, 0, "failed", error_message="job_lost: nobody there"), False),
        (in_slot(3, 0, "completed"), False),
        (in_slot(3, 1, "running"), False),
        (in_slot(3, None, "running"), False),
    ],
)
def test_who_came_too_late_lost_and_who_failed_failed(other: Job, lost: bool) -> None:
    winner = replace(in_slot(9, 0, "completed"), completed_at=at(2))
    run = run_of(winner, other, count=2)
    assert slots.lost_race(run, other) is lost
    assert not slots.lost_race(run, winner)
    is_failure = other.status in ("failed", "cancelled") and not lost
    assert slots.spent_attempts(run) == (1 if is_failure else 0)


def test_of_checkpoints_the_furthest_of_the_same_piece_is_gone_on_from() -> None:
    run = run_of(in_slot(1, 0, "failed"), in_slot(2, 0, "failed"), in_slot(3, 1, "failed"), count=2)
    found = (a_checkpoint(1, 120), a_checkpoint(2, 80), a_checkpoint(3, 300))
    assert slots.newest(run, 0, found) == found[0]
    assert slots.newest(run, 1, found) == found[2]
    assert slots.newest(run, 0, found[1:]) == found[1]
    assert slots.newest(run, 0, found[2:]) is None
    # Of steps of another length: three quarters are further than 120 of 400.
    assert slots.newest(run, 0, (found[0], a_checkpoint(2, 3, steps=4))) == a_checkpoint(2, 3, steps=4)
    assert slots.newest(run, 0, (a_checkpoint(1, 200), a_checkpoint(2, 3, steps=10))) == a_checkpoint(1, 200)
    assert slots.newest(run, 0, (a_checkpoint(1, 300), a_checkpoint(2, 1, steps=1))) == a_checkpoint(2, 1, steps=1)
    assert slots.newest(run, 0, (a_checkpoint(2, 0, steps=0),)) == a_checkpoint(2, 0, steps=0)


@pytest.mark.parametrize(
    ("status", "changes", "again"),
    [
        ("failed", {"vendor_job_id": None, "error_message": "checkpoint_refused: 409 of another model"}, False),
        ("failed", {"error_message": "the part has another hash"}, False),
        ("failed", {"error_message": "CUDA out of memory", "step": 120}, False),
        ("failed", {"error_message": "CUDA out of memory", "step": 121}, True),
        ("failed", {"error_message": "job_lost: nobody there"}, True),
        ("failed", {"vendor_job_id": None, "error_message": "vendor_refused: 409 kind_off"}, True),
        ("cancelled", {}, True),
        ("running", {}, True),
    ],
)
def test_a_checkpoint_that_brought_nobody_further_is_not_tried_again(
    status: str, changes: dict[str, Any], again: bool
) -> None:
    checkpoint = a_checkpoint(1)
    tried = in_slot(2, 0, status, resumes="run_1-job-1", checkpoint=checkpoint, **changes)
    run = run_of(in_slot(1, 0, "failed"), tried)
    older = a_checkpoint(1, 40)
    assert slots.newest(run, 0, (checkpoint, older)) == (checkpoint if again else older)


def test_of_checkpoints_only_the_one_that_was_tried_is_spoilt_wherever_its_hash_was_read() -> None:
    tried = in_slot(2, 0, "failed", resumes="run_1-job-1", checkpoint=a_checkpoint(1, 40), error_message="it crashed")
    run = run_of(in_slot(1, 0, "failed"), tried)
    again = a_checkpoint(1, 40, sha256="".join(list(a_checkpoint(1, 40).sha256)))
    assert slots.newest(run, 0, (again, a_checkpoint(1, 120))) == a_checkpoint(1, 120)
    assert slots.newest(run, 0, (again,)) is None
    # One that nothing was done for is spoilt as well: a job told of no step.
    begun = replace(tried, checkpoint=a_checkpoint(1, 0))
    assert slots.newest(run_of(in_slot(1, 0, "failed"), begun), 0, (a_checkpoint(1, 0),)) is None


def test_what_a_vendor_says_of_its_steps_is_no_more_than_all_and_no_less_than_none() -> None:
    assert slots.Piece(slot=0).rest == 1
    assert slots.Piece(slot=0, resume=a_checkpoint(1, 100)).rest == Decimal("0.75")
    assert slots.Piece(slot=0, resume=a_checkpoint(1, 4_000)).rest == 0
    assert slots.Piece(slot=0, resume=a_checkpoint(1, -5)).rest == 1
    assert slots.Piece(slot=0, resume=a_checkpoint(1, 5, steps=0)).rest == 1
    assert slots.Piece(slot=0, resume=a_checkpoint(1, -5, steps=-5)).rest == 1
    assert slots.Piece(slot=0, resume=a_checkpoint(1, 1, steps=1)).rest == 0
    with pytest.raises(FrozenInstanceError):
        slots.WHOLE.slot = 1  # type: ignore[misc]


def test_checkpoints_are_looked_for_where_work_was_left_behind() -> None:
    run = run_of(
        in_slot(1, 0, "failed"),
        in_slot(2, 0, "failed", vendor_job_id=None),
        in_slot(3, 1, "cancelled"),
        in_slot(4, 1, "running"),
        in_slot(5, 2, "completed"),
        count=3,
    )
    assert [job.job_id for job in slots.left_behind(run, slots.open_slots(run))] == ["run_1-job-1"]


def test_a_vendor_gets_no_two_jobs_of_a_piece_and_none_while_it_is_silent() -> None:
    run = run_of(in_slot(1, 0, "running", vendor_id="a"), in_slot(2, 1, "running", vendor_id="b"), count=2)
    assert slots.avoided(run, 0, ()) == {"a"}
    assert slots.avoided(run, 1, ()) == {"b"}
    assert slots.avoided(run, 0, run.jobs[1:]) == {"a", "b"}
    assert slots.avoided(run, None, ()) == frozenset()
