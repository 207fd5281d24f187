"""What a vendor's answer to a poll becomes: every line of its log once, and not endlessly many."""

from decimal import Decimal

import pytest

from agent.core.events import JobLogged, JobObserved
from agent.core.log import record
from agent.core.model import Run
from agent.observe import LOG_LINES_MAX, read_status
from tests.agent.core.values import a_job, a_run, at
from wire.vendor import JobStatus


def _status(cursor: str, *lines: str) -> JobStatus:
    return JobStatus(
        vendor_job_id="vgpu_1",
        status="running",
        progress=Decimal("0.5"),
        logs=lines,
        cursor=cursor,
        cost_so_far=Decimal(0),
    )


def _read(run: Run, status: JobStatus) -> tuple[Run, list[str]]:
    events = read_status(run, run.jobs[0], status, at(1))
    return record(run, events)[0], [event.line for event in events if isinstance(event, JobLogged)]


def test_lines_under_a_cursor_that_stands_still_were_read_before() -> None:
    run = a_run(jobs=(a_job(1, **{"status": "running", "vendor_job_id": "vgpu_1", "cursor": "1"}),))
    run, lines = _read(run, _status("2", "Epoch 1/3"))
    assert lines == ["Epoch 1/3"]
    run, lines = _read(run, _status("2", "Epoch 1/3"))
    assert lines == []
    run, lines = _read(run, _status("3", "Epoch 2/3"))
    assert lines == ["Epoch 2/3"]
    assert run.jobs[0].log_lines == 2


@pytest.mark.parametrize(("kept", "new"), [(LOG_LINES_MAX, 0), (LOG_LINES_MAX - 1, 1), (LOG_LINES_MAX - 5, 3)])
def test_a_job_that_talks_for_ever_is_cut_and_still_watched(kept: int, new: int) -> None:
    run = a_run(jobs=(a_job(1, **{"status": "running", "vendor_job_id": "vgpu_1", "cursor": "1", "log_lines": kept}),))
    events = read_status(run, run.jobs[0], _status("2", "a", "b", "c"), at(1))
    assert sum(isinstance(event, JobLogged) for event in events) == new
    assert isinstance(events[-1], JobObserved)
