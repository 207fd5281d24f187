"""The log: no entry can be changed, dropped or moved unseen; and what people read of each event."""

import hashlib
from collections.abc import Callable
from dataclasses import fields, replace
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import events, log
from agent.core.decide import TickRecord, Wait, tick_document
from agent.core.events import Event, event_document
from agent.core.log import broken_at, record, record_tick
from agent.core.model import OBSERVATION_TYPES, Entry, JobSpec, LogHead
from tests.agent.core.values import (
    EVENTS,
    MODEL,
    PAY_TO,
    REFUND,
    SETTLEMENT,
    STARTED,
    T0,
    a_job,
    a_run,
    at,
    facts,
    run_after,
)
from wire import decimal_json

RUN, ENTRIES = record(STARTED, EVENTS)

# Of EVENTS, in their order: under which type and with which words people find them.
LINES = [
    ("event", "run_started"),
    ("agent_reasoning", "mode: stub · start_job at gpu_vendor_1 for 1.00 h · it is first"),
    ("payment_event", "gpu_vendor_1 quotes 1.4 USDC for 1.00 h of A10"),
    ("payment_event", f"Reserved 1.4 USDC for gpu_vendor_1 and signed it once, in x402-v2 to {PAY_TO}"),
    ("payment_event", "No final word yet: 202: pending"),
    ("payment_event", f"Paid 1.4 USDC to gpu_vendor_1 in {SETTLEMENT}"),
    ("event", "job_submitted"),
    ("job_log", "Epoch 1/5"),
    ("event", "job_observed"),
    ("error", "No answer to a poll: nobody there"),
    ("payment_event", f"A refund of 0.7 USDC was announced in {REFUND}"),
    ("error", "Job at gpu_vendor_1 failed: CUDA out of memory"),
    ("payment_event", f"0.7 USDC came back in {REFUND}"),
    ("error", "Files of the job at gpu_vendor_1 not there yet: nobody there"),
    ("error", "gpu_vendor_1: bad_quote: the quote is zero"),
    ("payment_event", "gpu_vendor_1 quotes 1.4 USDC for 1.00 h of A10"),
    ("payment_event", f"Reserved 1.4 USDC for gpu_vendor_1 and signed it once, in x402-v2 to {PAY_TO}"),
    ("payment_event", f"The cheque is to be cancelled on the chain in 0x{'ba' * 32}"),
    ("payment_event", "Not paid, released: the cheque lapsed unused"),
    ("error", "over_run_cap: 4 + 1 is above 4"),
    ("metric", "Job at gpu_vendor_1 cancelled: no reason given"),
    ("payment_event", "gpu_vendor_1 quotes 1.4 USDC for 1.00 h of A10"),
    ("payment_event", f"Reserved 1.4 USDC for gpu_vendor_1 and signed it once, in x402-v2 to {PAY_TO}"),
    ("payment_event", f"Paid 1.4 USDC to gpu_vendor_1 in 0x{'ef' * 32}"),
    ("event", "job_submitted"),
    ("metric", "Job at gpu_vendor_1 completed: accuracy 0.9, loss 0.10"),
    ("metric", "Kept of the job at gpu_vendor_1: model.json (3 bytes)"),
    ("metric", "Run completed: 2.1 USDC spent"),
]


def test_people_read_what_happened() -> None:
    assert [(entry.type, entry.content) for entry in ENTRIES] == LINES


@pytest.mark.parametrize(
    ("event", "kind", "content"),
    [
        (
            events.Decided(at=T0, action="wait", reason="nobody", phase="waiting", mode="llm"),
            "agent_reasoning",
            "mode: llm · wait · nobody",
        ),
        (
            events.RunEnded(at=T0, status="failed", reason="deadline_passed"),
            "error",
            "Run failed (deadline_passed): 0 USDC spent",
        ),
        (
            events.RunEnded(at=T0, status="cancelled", reason="cancelled", detail="by hand"),
            "metric",
            "Run cancelled (cancelled: by hand): 0 USDC spent",
        ),
    ],
)
def test_a_line_says_only_what_is_known(event: Event, kind: str, content: str) -> None:
    _, (entry,) = record(a_run(), [event])
    assert (entry.type, entry.content) == (kind, content)


@pytest.mark.parametrize(
    ("end", "content"),
    [
        ({"status": "completed"}, ("metric", "Job at gpu_vendor_1 completed: no metrics")),
        ({"status": "failed"}, ("error", "Job at gpu_vendor_1 failed: no reason given")),
        ({"status": "cancelled", "error_message": "asked"}, ("metric", "Job at gpu_vendor_1 cancelled: asked")),
    ],
)
def test_an_end_of_a_job_says_what_there_is_to_say(end: Any, content: tuple[str, str]) -> None:
    run = run_after(*EVENTS[1:7])
    _, (entry,) = record(run, [events.JobEnded(at=T0, job_id="run_1-job-1", **end)])
    assert (entry.type, entry.content) == content


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            events.ArtifactsKept(at=T0, job_id="run_1-job-1", artifacts=(), closed=True),
            ("metric", "The job at gpu_vendor_1 left no files"),
        ),
        (
            events.ArtifactsKept(at=T0, job_id="run_1-job-1", artifacts=(MODEL, MODEL), closed=False),
            ("metric", "Kept of the job at gpu_vendor_1: model.json (3 bytes), model.json (3 bytes)"),
        ),
        (
            events.ArtifactsMissed(at=T0, job_id="run_1-job-1", detail="'x': hash mismatch", closed=True),
            ("error", "Files of the job at gpu_vendor_1 given up: 'x': hash mismatch"),
        ),
    ],
)
def test_what_became_of_a_jobs_files_is_said(event: Event, line: tuple[str, str]) -> None:
    _, (entry,) = record(run_after(*EVENTS[1:7]), [event])
    assert (entry.type, entry.content) == line


def test_what_people_read_is_of_the_five_types() -> None:
    assert OBSERVATION_TYPES == ("agent_reasoning", "job_log", "error", "metric", "payment_event")
    assert {kind for kind, _ in LINES} == {*OBSERVATION_TYPES, "event"}


def test_an_entry_keeps_its_event_its_time_its_job_and_its_place() -> None:
    assert [entry.seq for entry in ENTRIES] == list(range(1, len(EVENTS) + 1))
    for event, entry in zip(EVENTS, ENTRIES, strict=True):
        assert entry.data == event_document(event)
        assert (entry.run_id, entry.timestamp) == ("run_1", event.at)
        assert entry.job_id == getattr(event, "job_id", None)
    assert {entry.job_id for entry in ENTRIES} == {None, "run_1-job-1", "run_1-job-3", "run_1-job-4"}


def test_the_chain_begins_with_zeros_and_the_run_holds_its_end() -> None:
    assert ENTRIES[0].previous == LogHead().hash == "0" * 64
    assert LogHead().seq == 0
    for before, after in pairwise(ENTRIES):
        assert after.previous == before.hash
    assert RUN.log == LogHead(seq=len(EVENTS), hash=ENTRIES[-1].hash)
    assert broken_at(ENTRIES) is None
    assert broken_at([]) is None


def test_a_hash_can_be_computed_by_anybody() -> None:
    entry = ENTRIES[1]
    covered = [1 + 1, "agent_reasoning", entry.content, entry.data, "2026-01-31T09:30:01.123456+00:00", None]
    text = decimal_json.dumps(["run_1", *covered], sort_keys=True)
    assert entry.hash == hashlib.sha256(ENTRIES[0].hash.encode() + text).hexdigest()


CHANGES: dict[str, Callable[[Entry], Any]] = {
    "run_id": lambda entry: "run_2",
    "seq": lambda entry: entry.seq + 1,
    "type": lambda entry: "metric" if entry.type != "metric" else "error",
    "content": lambda entry: entry.content + " ",
    "data": lambda entry: {**entry.data, "at": "2026-01-31T09:30:01.123457Z"},
    "timestamp": lambda entry: at(1_000),
    "previous": lambda entry: "f" * 64,
    "hash": lambda entry: "f" * 64,
    "job_id": lambda entry: "run_1-job-9",
}


@pytest.mark.parametrize("name", sorted(CHANGES))
@given(index=st.integers(0, len(ENTRIES) - 1))
def test_a_changed_field_breaks_the_chain_at_its_entry(name: str, index: int) -> None:
    entry = ENTRIES[index]
    changed = replace(entry, **{name: CHANGES[name](entry)})
    assert broken_at([*ENTRIES[:index], changed, *ENTRIES[index + 1 :]]) == changed.seq


def test_every_field_of_an_entry_is_under_the_hash() -> None:
    assert set(CHANGES) == {field.name for field in fields(Entry)}


@given(st.integers(0, len(ENTRIES) - 2))
def test_a_dropped_entry_breaks_the_chain_at_the_next_one(index: int) -> None:
    assert broken_at([*ENTRIES[:index], *ENTRIES[index + 1 :]]) == ENTRIES[index + 1].seq


@given(st.permutations(range(len(ENTRIES))))
def test_a_moved_entry_breaks_the_chain_where_the_order_ends(order: list[int]) -> None:
    first = next((index for place, index in enumerate(order) if place != index), None)
    assert broken_at([ENTRIES[index] for index in order]) == (None if first is None else ENTRIES[first].seq)


@given(st.integers(0, len(ENTRIES) - 1))
def test_a_repeated_entry_breaks_the_chain(index: int) -> None:
    repeated = [*ENTRIES[: index + 1], *ENTRIES[index:]]
    assert broken_at(repeated) == ENTRIES[index].seq


def test_an_entry_forged_with_a_hash_of_its_own_breaks_the_chain_at_the_next_one() -> None:
    _, forged = record(STARTED, [EVENTS[0], replace(EVENTS[1], reason="it pays me")])
    assert broken_at([*forged, *ENTRIES[2:]]) == ENTRIES[2].seq


def test_a_log_reads_the_same_after_a_store_has_read_it_from_json() -> None:
    run = a_run(job=JobSpec(params={"rate": 1e-7, "big": 1e22, "steps": 3, "nested": {"z": None, "a": [0.1]}}))
    _, entries = record(run, [events.RunStarted(at=T0, run=run)])
    text = decimal_json.dumps(entries[0].data)
    stored = replace(entries[0], data=decimal_json.plain(decimal_json.loads(text)))
    assert broken_at([stored]) is None


def test_an_endless_line_is_cut_where_people_read_it_and_kept_whole_as_data() -> None:
    line = "x" * 4_097
    _, (entry,) = record(a_run(jobs=(a_job(),)), [events.JobLogged(at=T0, job_id="run_1-job-1", line=line)])
    assert log.CONTENT_CHARS_MAX == 4_096
    assert entry.content == "x" * 4_096
    assert entry.data["line"] == line


def test_a_decision_is_kept_as_a_tick() -> None:
    document = tick_document(TickRecord(now=at(1), facts=facts(), action=Wait(reason="r")))
    run, entry = record_tick(RUN, at(1), document)
    assert (entry.type, entry.content, entry.data, entry.job_id) == ("tick", "wait", document, None)
    assert (entry.seq, entry.timestamp, entry.previous) == (len(EVENTS) + 1, at(1), ENTRIES[-1].hash)
    assert run == replace(RUN, log=LogHead(seq=entry.seq, hash=entry.hash))
    assert broken_at([*ENTRIES, entry]) is None


def test_money_is_shown_in_the_runs_asset_as_people_write_it() -> None:
    _, (entry,) = record(run_after(*EVENTS[1:6]), [replace(EVENTS[10], amount_atomic=1)])
    assert entry.content == f"A refund of 0.000001 USDC was announced in {REFUND}"
    assert Decimal("0.10") == RUN.jobs[-1].final_metrics["loss"]
