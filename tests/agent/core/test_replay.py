"""A recorded run folds to itself, decision by decision; a tampered one is found out."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from agent.core import events
from agent.core.bandit import advise
from agent.core.decide import AskPlanner, EndRun, StartJob, TickRecord, Wait, decide, tick_document, tick_from
from agent.core.log import record, record_tick
from agent.core.model import Entry, Run, Standing
from agent.core.planning import Proposal, Question, first_vendor
from agent.core.replay import Difference, Replayed, replay
from tests.agent.core.values import EVENTS, STARTED, at, facts
from wire import decimal_json


def a_recorded_run() -> tuple[Run, list[Entry]]:
    """Return a run and its log, with a decision before every event."""
    run, entries = record(STARTED, EVENTS[:1])
    log = list(entries)
    for event in EVENTS[1:]:
        known = facts(proposal=first_vendor(run, facts().vendors))
        tick = TickRecord(now=event.at, facts=known, action=decide(run, known, event.at))
        run, entry = record_tick(run, event.at, tick_document(tick))
        run, entries = record(run, [event])
        log += [entry, *entries]
    return run, log


def tampered(entry: Entry, **changes: Any) -> Entry:
    return replace(entry, data={**entry.data, **changes})


def test_a_recorded_run_folds_to_itself_and_every_decision_is_made_again() -> None:
    run, log = a_recorded_run()
    assert {entry.data["action"]["kind"] for entry in log if entry.type == "tick"} >= {"start_job", "wait", "end_run"}
    assert replay(log) == Replayed(run=run, broken_at=None, differences=())


def test_a_run_read_back_from_json_replays_the_same() -> None:
    run, log = a_recorded_run()
    stored = [
        replace(entry, data=decimal_json.plain(decimal_json.loads(decimal_json.dumps(entry.data)))) for entry in log
    ]
    assert replay(stored) == Replayed(run=run, broken_at=None, differences=())


def test_an_action_that_was_changed_is_a_difference_and_a_broken_chain() -> None:
    run, log = a_recorded_run()
    assert log[1].type == "tick"
    log[1] = tampered(log[1], action={"kind": "end_run", "status": "failed", "reason": "cancelled", "detail": ""})
    found = replay(log)
    decided = decide(STARTED, facts(proposal=first_vendor(STARTED, facts().vendors)), at(1))
    assert isinstance(decided, StartJob)
    assert found.differences == (Difference(2, EndRun(status="failed", reason="cancelled"), decided),)
    assert found.broken_at == 2
    assert found.run == run


def test_a_decision_that_is_worth_the_same_and_written_otherwise_does_not_repeat_bit_for_bit() -> None:
    _, log = a_recorded_run()
    place = next(
        place for place, entry in enumerate(log) if entry.type == "tick" and entry.data["action"]["kind"] == "start_job"
    )
    action = log[place].data["action"]
    log[place] = tampered(log[place], action={**action, "max_hours": "1.000"})
    [found] = replay(log).differences
    assert (found.seq, found.recorded) == (log[place].seq, found.decided)


def test_a_log_that_is_older_than_a_field_of_a_decision_repeats() -> None:
    _, log = a_recorded_run()
    place = next(
        place for place, entry in enumerate(log) if entry.type == "tick" and entry.data["action"]["kind"] == "wait"
    )
    older = {name: value for name, value in log[place].data["action"].items() if name != "until"}
    log[place] = tampered(log[place], action=older)
    assert replay(log).differences == ()


def test_facts_that_were_changed_are_a_difference() -> None:
    _, log = a_recorded_run()
    log[1] = tampered(log[1], facts={**log[1].data["facts"], "proposal": None})
    found = replay(log)
    assert [(one.seq, one.decided) for one in found.differences] == [(2, AskPlanner())]


def test_an_event_that_was_changed_changes_the_run_and_breaks_the_chain() -> None:
    run, log = a_recorded_run()
    place = next(index for index, entry in enumerate(log) if entry.data.get("kind") == "job_missed")
    log[place] = tampered(log[place], at="2030-01-01T00:00:00Z")
    found = replay(log)
    assert found.broken_at == log[place].seq
    assert found.run != run


def test_every_difference_is_reported_in_order() -> None:
    _, log = a_recorded_run()
    wrong = {"kind": "wait", "reason": "tampered", "message": "Waiting"}
    ticks = [index for index, entry in enumerate(log) if entry.type == "tick"][:3]
    for index in ticks:
        log[index] = tampered(log[index], action=wrong)
    found = replay(log)
    assert [one.seq for one in found.differences] == [log[index].seq for index in ticks]
    assert {one.recorded for one in found.differences} == {Wait(reason="tampered")}


def a_bandits_tick(standings: tuple[Standing, ...] = (), **changes: Any) -> list[Entry]:
    """Return the log of a run whose one decision was a bandit's, recorded with `changes` to its wish."""
    run, entries = record(STARTED, EVENTS[:1])
    question = Question(run=run, vendors=facts().vendors, standings=standings, now=at(1))
    known = facts(standings=standings, proposal=replace(advise(question).proposal, **changes))
    tick = TickRecord(now=at(1), facts=known, action=decide(run, known, at(1)))
    run, entry = record_tick(
        run, at(1), decimal_json.plain(decimal_json.loads(decimal_json.dumps(tick_document(tick))))
    )
    return [*entries, entry]


@pytest.mark.parametrize("other", [None, first_vendor(STARTED, facts().vendors)])
def test_a_bandits_wish_is_made_again(other: Proposal | None) -> None:
    assert replay(a_bandits_tick(other=other)).differences == ()


def test_a_wait_of_an_older_log_has_no_time_and_is_made_again() -> None:
    lately = tuple(
        Standing(
            vendor_id=vendor.vendor_id,
            gpu_type="A10",
            completed=Decimal(0),
            failed=Decimal(1),
            updated_at=at(0),
            last_failed_at=at(0),
            failed_in_a_row=1,
        )
        for vendor in facts().vendors
    )
    assert replay(a_bandits_tick(lately, until=None)).differences == ()
    assert replay(a_bandits_tick(lately)).differences == ()
    assert len(replay(a_bandits_tick(lately, until=at(61))).differences) == 1


@pytest.mark.parametrize("as_other", [False, True])
def test_a_wish_the_bandit_would_not_make_is_a_difference(as_other: bool) -> None:
    [*_, tick] = a_bandits_tick()
    honest = tick_from(tick.data).facts.proposal
    assert honest is not None
    forged = replace(honest, reason="the vendor is a friend")
    log = a_bandits_tick(mode="llm", other=forged) if as_other else a_bandits_tick(reason=forged.reason)
    [found] = [one for one in replay(log).differences if isinstance(one.recorded, Proposal)]
    assert (found.seq, found.recorded, found.decided) == (2, forged, honest)


@pytest.mark.parametrize("first", [0, 2])
def test_a_log_begins_with_the_runs_start(first: int) -> None:
    _, log = a_recorded_run()
    with pytest.raises(ValueError, match=r"^a log begins with the run's start$"):
        replay(log[2:] if first else [])


def test_the_end_of_the_run_is_of_the_log() -> None:
    _, log = a_recorded_run()
    found = replay(log).run
    assert (found.status, found.reason, found.log.seq, found.log.hash) == ("completed", None, len(log), log[-1].hash)
    before = replay(log[:-2]).run
    assert (before.status, before.log.seq, before.log.hash) == ("running", len(log) - 2, log[-3].hash)
    assert isinstance(EVENTS[-1], events.RunEnded)
