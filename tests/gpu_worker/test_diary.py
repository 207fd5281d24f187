"""A program speaks while it loads: at once, every few seconds, and not for ever."""

import time
from decimal import Decimal
from pathlib import Path

import pytest

from gpu_worker.engine.diary import Diary, Stopped
from tests.fixtures.tiny import Job

WAIT_S = 20.0


def until(job: Job, text: str) -> None:
    end = time.monotonic() + WAIT_S
    while text not in job.logs():
        assert time.monotonic() < end, job.logs()
        time.sleep(0.005)


def test_what_lasts_is_told_at_once_and_again_until_it_is_over(tmp_path: Path) -> None:
    diary, job = Diary(tmp_path, created_s=Decimal(1), beat_s=0.01), Job(tmp_path)
    with diary.during("loading"):
        assert job.logs() == "loading"
        until(job, "loading: 0 s so far\nloading: 0 s so far")
    told = job.logs()
    diary.log("done")
    assert job.logs() == f"{told}\ndone"
    assert job.state["phase"] == "loading"


def test_what_hangs_falls_silent(tmp_path: Path) -> None:
    diary, job = Diary(tmp_path, created_s=Decimal(1), beat_s=0.0001), Job(tmp_path)
    with diary.during("loading"):
        end = time.monotonic() + WAIT_S
        while len(job.lines()) < 201 and time.monotonic() < end:
            time.sleep(0.005)
        diary.log("silence")
        assert len(job.lines()) == 202


def test_many_records_are_told_now_and_then_and_a_stop_is_heard_between_them(tmp_path: Path) -> None:
    diary, job = Diary(tmp_path, created_s=Decimal(1), beat_s=0.02), Job(tmp_path)
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        diary.beat("another record")
    assert 2 <= len(job.lines()) <= 6
    diary.stop()
    with pytest.raises(Stopped):
        diary.beat("another record")


def test_preparing_a_dataset_counts_and_loading_does_not(tmp_path: Path) -> None:
    diary = Diary(tmp_path, created_s=Decimal(1))
    assert diary.ended().worked_s == 0
    diary.begin()
    began = diary.ended().worked_s
    diary.work(0, 1)
    assert 0 < began < diary.ended().worked_s
    assert diary.state.phase == "working"
