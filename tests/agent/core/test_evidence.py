"""When a job is lost: at once by its vendor's word, by silence only after many polls and much time."""

from datetime import datetime, timedelta
from itertools import groupby
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import events
from agent.core.apply import apply
from agent.core.evidence import POLLS_KEPT, SUSPECT_MISSES, Mark, noted, verdict
from agent.core.limits import Limits
from agent.core.model import Job
from tests.agent.core.values import a_job, a_run, at

LIMITS = Limits()


class Watched:
    """A job as the agent's own fold keeps it, polled at times of the test's."""

    def __init__(self) -> None:
        self.run = a_run(jobs=(a_job(1, status="running", vendor_job_id="vgpu_1"),))
        self.verdicts: list[str] = []
        self.now = at(0)

    @property
    def job(self) -> Job:
        return self.run.jobs[0]

    def poll(self, mark: str, now: datetime) -> str:
        self.now = now
        job_id = self.job.job_id
        self.run = apply(
            self.run,
            events.JobObserved(at=now, job_id=job_id, status="running", progress=self.job.progress, cursor="1")
            if mark == "."
            else events.JobMissed(at=now, job_id=job_id, detail="", gone=mark == "g"),
        )
        self.verdicts.append(verdict(self.job.polls, self.job.missed_since, now, LIMITS))
        return self.verdicts[-1]


def polled(marks: str, every_s: float) -> list[str]:
    watched = Watched()
    return [watched.poll(mark, at(place * every_s)) for place, mark in enumerate(marks)]


@pytest.mark.parametrize("marks", ["gg", ".gg", "gxxg", "xxgxg", "." * 30 + "gg"])
def test_what_the_vendor_says_is_gone_is_lost_in_two_polls_that_found_it(marks: str) -> None:
    verdicts = polled(marks, 5)
    assert verdicts[-1] == "lost"
    assert "lost" not in verdicts[:-1]


@pytest.mark.parametrize("marks", ["g", "g.g", "gx.xg", "g" + "." * 30 + "g"])
def test_a_vendor_that_contradicts_itself_is_asked_again(marks: str) -> None:
    assert "lost" not in polled(marks, 5)


@pytest.mark.parametrize(
    ("every_s", "lost_at_s"),
    [(1, 600), (5, 600), (30, 600), (60, 17 * 60), (300, 17 * 300)],
)
def test_silence_is_a_loss_after_the_time_and_the_polls(every_s: int, lost_at_s: int) -> None:
    verdicts = polled("x" * 1_000, every_s)
    assert verdicts.index("lost") * every_s == lost_at_s


def test_misses_before_an_answer_still_count_and_the_clock_does_not() -> None:
    # Eight misses, one answer: then ten minutes of silence are enough, and not the seventeen of a job that was well.
    verdicts = polled("x" * 8 + "." + "x" * 20, 60)
    assert verdicts.index("lost") - 8 == 11


def test_one_answer_in_ten_minutes_keeps_a_job() -> None:
    assert "lost" not in polled(("x" * 119 + ".") * 20, 5)


def test_a_job_is_suspect_from_the_third_miss_until_they_have_gone_by() -> None:
    verdicts = polled("." * 5 + "x" * SUSPECT_MISSES + "." * POLLS_KEPT, 5)
    assert [key for key, _ in groupby(verdicts)] == ["alive", "suspect", "alive"]
    assert verdicts.count("suspect") == POLLS_KEPT - SUSPECT_MISSES + 1


@given(st.lists(st.tuples(st.sampled_from(".xg"), st.integers(0, 900)), max_size=80))
def test_no_pattern_condemns_without_evidence(polls: list[tuple[str, int]]) -> None:
    """The rule in other words, from the times themselves: what the fold keeps is enough to know it."""
    watched, seconds, answered_s, seen = Watched(), 0, None, ""
    first_miss_s = None
    for mark, wait_s in polls:
        seconds += wait_s
        said = watched.poll(mark, at(seconds))
        seen += mark
        if mark == ".":
            answered_s, first_miss_s = seconds, None
            assert said != "lost"
            continue
        first_miss_s = seconds if first_miss_s is None else first_miss_s
        recent = seen[-POLLS_KEPT:]
        silent = seconds - first_miss_s >= LIMITS.missed_s_max
        many = len(recent.replace(".", "")) >= LIMITS.misses_max
        gone = recent[recent.rfind(".") + 1 :].count("g") >= 2
        assert (said == "lost") == (gone or (silent and many))
        if said == "lost" and not gone:
            assert answered_s is None or seconds - answered_s >= LIMITS.missed_s_max


@given(st.lists(st.sampled_from([".", "x", "g"]), max_size=60))
def test_only_the_last_polls_are_kept(marks: list[Mark]) -> None:
    polls = ""
    for mark in marks:
        polls = noted(polls, mark)
    assert polls == "".join(marks)[-POLLS_KEPT:]


@pytest.mark.parametrize("every_s", [5, 30, 60, 120, 300, 600])
def test_an_hour_in_which_every_second_poll_fails_loses_next_to_no_healthy_job(every_s: int) -> None:
    chance, hours, lost = Random(every_s), 500, 0
    for _ in range(hours):
        polls, missed_s = "." * POLLS_KEPT, None
        for seconds in range(0, 3_600, every_s):
            is_missed = chance.random() < 0.5
            polls = noted(polls, "x" if is_missed else ".")
            missed_s = (seconds if missed_s is None else missed_s) if is_missed else None
            since = None if missed_s is None else at(missed_s)
            if verdict(polls, since, at(seconds), LIMITS) == "lost":
                lost += 1
                break
    assert lost <= hours / 100


def test_a_time_before_the_limit_is_not_after_it() -> None:
    almost = at(0) + timedelta(seconds=LIMITS.missed_s_max) - timedelta(microseconds=1)
    assert verdict("x" * 20, at(0), almost, LIMITS) == "suspect"
    assert verdict("x" * 20, at(0), almost + timedelta(microseconds=1), LIMITS) == "lost"
