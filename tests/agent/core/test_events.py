"""Events and decisions survive the way to JSON and back, bit for bit."""

from dataclasses import replace
from decimal import Decimal

import pytest
from pydantic import ValidationError

from agent.core import decide, events
from agent.core.decide import AskPlanner, CancelJobs, EndRun, StartJob, TickRecord, Wait, tick_document, tick_from
from agent.core.events import Event, event_document, event_from
from agent.core.planning import Proposal
from tests.agent.core.values import EVENTS, T0, a_claim, a_job, a_payment, a_run, a_vendor, at, facts
from wire import decimal_json


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.kind)
def test_every_kind_of_event_comes_back_from_json_as_it_was(event: Event) -> None:
    document = event_document(event)
    assert event_from(document) == event
    assert decimal_json.dumps(document)
    stored = decimal_json.plain(decimal_json.loads(decimal_json.dumps(document)))
    assert event_from(stored) == event
    assert event_document(event_from(stored)) == document


def test_an_event_says_its_kind_and_its_time_with_a_zone() -> None:
    document = event_document(events.JobLogged(at=T0, job_id="run_1-job-1", line="Epoch 1/5"))
    assert document == {
        "at": "2026-01-31T09:30:00.123456Z",
        "job_id": "run_1-job-1",
        "line": "Epoch 1/5",
        "kind": "job_logged",
    }


def test_decimals_are_kept_as_text_with_all_their_digits() -> None:
    event = events.JobObserved(at=T0, job_id="j", status="running", progress=Decimal("0.20"), cursor="1")
    assert event_document(event)["progress"] == "0.20"


def test_kinds_are_told_apart_and_none_is_invented() -> None:
    assert len({event.kind for event in EVENTS}) == 20
    with pytest.raises(ValidationError):
        event_from({"kind": "run_paused", "at": "2026-01-31T09:30:00Z"})


def test_a_run_that_owns_everything_survives_inside_an_event() -> None:
    payment = a_payment(1, status="completed", transaction="0xaa", refund=a_claim())
    job = a_job(1, polls=".xx", missed_since=T0, final_metrics={"loss": Decimal("0.10")}, vendor_job_id="v")
    run = a_run(jobs=(job,), payments=(payment,), deadline=at(9), next_tick_at=at(1), price_per_hour_atomic_max=7)
    started = events.RunStarted(at=T0, run=run)
    assert event_from(event_document(started)) == started


@pytest.mark.parametrize(
    "action",
    [
        AskPlanner(),
        StartJob(vendor_id="v", gpu_type="A10", max_hours=Decimal("0.50"), reason="cheap"),
        Wait(reason="r", message="m"),
        CancelJobs(reason="deadline_passed", job_ids=("run_1-job-1",), since=T0),
        EndRun(status="failed", reason="planner_aborted", detail="d"),
    ],
    ids=lambda action: action.kind,
)
def test_every_decision_comes_back_from_json_as_it_was(action: object) -> None:
    proposal = Proposal(action="start_job", reason="cheap", vendor_id="v", max_hours=Decimal("0.50"), raw="{}")
    record = TickRecord(now=T0, facts=facts(cancel_requested_at=at(1), proposal=proposal), action=action)
    stored = decimal_json.loads(decimal_json.dumps(tick_document(record)))
    assert tick_from(stored) == record
    assert tick_document(tick_from(stored)) == tick_document(record)
    assert tick_from(tick_document(replace(record, facts=facts(vendors=(a_vendor(),))))).facts.proposal is None


@pytest.mark.parametrize("hours", ["NaN", "sNaN", "Infinity", "-Infinity"])
def test_a_planner_that_proposes_no_number_leaves_a_log_that_can_be_read(hours: str) -> None:
    proposal = Proposal(action="start_job", reason="", vendor_id="v", max_hours=Decimal(hours))
    record = TickRecord(now=T0, facts=facts(proposal=proposal), action=Wait(reason=f"proposed {hours} h"))
    again = tick_from(tick_document(record))
    assert again.facts.proposal is not None
    assert str(again.facts.proposal.max_hours) == hours
    decided = events.Decided(at=T0, action="wait", reason="", phase="waiting", max_hours=Decimal(hours), mode="llm")
    assert str(event_from(event_document(decided)).max_hours) == hours


def test_an_event_says_no_more_than_it_was_told() -> None:
    decided = events.Decided(at=T0, action="wait", reason="r", phase="waiting", mode="stub")
    assert (decided.vendor_id, decided.max_hours, decided.prompt, decided.raw, decided.fallback) == (
        None,
        None,
        "",
        "",
        False,
    )
    assert events.Refused(at=T0, code="c", detail="d").job_id is None
    ended = events.JobEnded(at=T0, job_id="j", status="failed")
    assert {getattr(ended, name) for name in ("progress", "cost_atomic", "final_metrics", "artifact_url")} == {None}
    assert ended.error_message is None
    finished = events.RunEnded(at=T0, status="completed")
    assert (finished.reason, finished.detail) == (None, "")


def test_the_codecs_are_built_once() -> None:
    assert events._codec() is events._codec()
    assert decide._codec() is decide._codec()
