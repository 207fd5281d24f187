"""
The run's append-only log: every event and every decision, chained by hashes, and the lines people read.

hash = SHA-256(previous hash | canonical JSON of the entry); a changed, dropped or reordered entry breaks
the chain from there on.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from agent.core import events
from agent.core.apply import apply, find_job, find_payment
from agent.core.events import Event, event_document
from agent.core.evidence import SUSPECT_MISSES, misses
from agent.core.model import Entry, EntryType, LogHead, Run
from agent.core.planning import Proposal
from wire import decimal_json
from wire.money import to_decimal

CONTENT_CHARS_MAX = 4_096


def record(run: Run, happened: Iterable[Event]) -> tuple[Run, tuple[Entry, ...]]:
    """Return `run` after the events, and the log entries they leave."""
    entries: list[Entry] = []
    for event in happened:
        run = apply(run, event)
        kind, content = _line(run, event)
        run, entry = _append(run, kind, content, event_document(event), event.at, getattr(event, "job_id", None))
        entries.append(entry)
    return run, tuple(entries)


def record_tick(run: Run, at: datetime, tick: dict[str, Any]) -> tuple[Run, Entry]:
    """Return `run` and the entry that keeps one decision (`facts`, `action`) for replay."""
    return _append(run, "tick", str(tick["action"]["kind"]), tick, at, None)


def broken_at(entries: Sequence[Entry]) -> int | None:
    """Return the sequence number of the first entry (of a whole log) that breaks the chain, None where none does."""
    head = LogHead()
    for entry in entries:
        if entry.seq != head.seq + 1 or entry.previous != head.hash or entry.hash != _hash(entry):
            return entry.seq
        head = LogHead(seq=entry.seq, hash=entry.hash)
    return None


def _append(
    run: Run, kind: EntryType, content: str, data: dict[str, Any], at: datetime, job_id: str | None
) -> tuple[Run, Entry]:
    entry = Entry(
        run_id=run.run_id,
        seq=run.log.seq + 1,
        type=kind,
        content=content[:CONTENT_CHARS_MAX],
        data=data,
        timestamp=at,
        previous=run.log.hash,
        hash="",
        job_id=job_id,
    )
    entry = replace(entry, hash=_hash(entry))
    return replace(run, log=LogHead(seq=entry.seq, hash=entry.hash)), entry


def _hash(entry: Entry) -> str:
    covered = [
        entry.run_id,
        entry.seq,
        entry.type,
        entry.content,
        entry.data,
        entry.timestamp.isoformat(),
        entry.job_id,
    ]
    return hashlib.sha256(entry.previous.encode() + decimal_json.dumps(covered, sort_keys=True)).hexdigest()


def _money(run: Run, atomic: int) -> str:
    return f"{to_decimal(atomic, run.asset)} {run.asset.symbol}"


def _decided(run: Run, event: events.Decided) -> str:
    other = "" if event.other is None else f" · instead of {_wish(event.other)}"
    return f"{_wish(event)}{other}"


def _wish(wish: events.Decided | Proposal) -> str:
    where = f" at {wish.vendor_id} for {wish.max_hours} h" if wish.vendor_id else ""
    return f"mode: {wish.mode} · {wish.action}{where} · {wish.reason}"


def _reserved(run: Run, event: events.PaymentReserved) -> str:
    payment = event.payment
    return (
        f"Reserved {_money(run, payment.amount_atomic)} for {payment.vendor_id}"
        f" and signed it once, in {payment.dialect} to {payment.pay_to}"
    )


def _settled(run: Run, event: events.PaymentSettled) -> str:
    payment = find_payment(run, event.payment_id)
    return f"Paid {_money(run, payment.amount_atomic)} to {payment.vendor_id} in {event.transaction}"


def _ended(run: Run, event: events.JobEnded) -> str:
    job = find_job(run, event.job_id)
    if event.status == "completed":
        metrics = ", ".join(f"{name} {value}" for name, value in sorted((event.final_metrics or {}).items()))
        return f"Job at {job.vendor_id} completed: {metrics or 'no metrics'}"
    return f"Job at {job.vendor_id} {event.status}: {event.error_message or 'no reason given'}"


def _run_ended(run: Run, event: events.RunEnded) -> str:
    why = f" ({event.reason}{': ' if event.detail else ''}{event.detail})" if event.reason else ""
    return f"Run {event.status}{why}: {_money(run, run.budget.spent_atomic)} spent"


def _missed(run: Run, event: events.JobMissed) -> str:
    polls = find_job(run, event.job_id).polls
    suspect = f" ({misses(polls)} of the last {len(polls)})" if misses(polls) >= SUSPECT_MISSES else ""
    return f"No answer to a poll{suspect}: {event.detail}"


def _kept(run: Run, event: events.ArtifactsKept) -> str:
    vendor_id = find_job(run, event.job_id).vendor_id
    names = ", ".join(f"{artifact.name} ({artifact.bytes} bytes)" for artifact in event.artifacts)
    return f"Kept of the job at {vendor_id}: {names}" if names else f"The job at {vendor_id} left no files"


def _files_missed(run: Run, event: events.ArtifactsMissed) -> str:
    what = "given up" if event.closed else "not there yet"
    return f"Files of the job at {find_job(run, event.job_id).vendor_id} {what}: {event.detail}"


def _quoted(run: Run, event: events.JobQuoted) -> str:
    job = event.job
    return f"{job.vendor_id} quotes {_money(run, job.expected_cost_atomic)} for {job.hours} h of {job.gpu_type}"


_Reader = tuple[EntryType, Callable[[Run, Any], str]]

# What people read of an event, and under which type (an end that is a failure is an "error").
# The others are kept as "event", with their kind.
_READERS: Mapping[type, _Reader] = {
    events.Decided: ("agent_reasoning", _decided),
    events.Refused: ("error", lambda run, event: f"{event.code}: {event.detail}"),
    events.JobQuoted: ("payment_event", _quoted),
    events.AttemptFailed: ("error", lambda run, event: f"{event.job.vendor_id}: {event.job.error_message}"),
    events.PaymentReserved: ("payment_event", _reserved),
    events.SubmissionUnanswered: ("payment_event", lambda run, event: f"No final word yet: {event.detail}"),
    events.ChequeRevoked: (
        "payment_event",
        lambda run, event: f"The cheque is to be cancelled on the chain in {event.transaction}",
    ),
    events.PaymentSettled: ("payment_event", _settled),
    events.PaymentVoided: ("payment_event", lambda run, event: f"Not paid, released: {event.detail}"),
    events.JobEnded: ("metric", _ended),
    events.ArtifactsKept: ("metric", _kept),
    events.ArtifactsMissed: ("error", _files_missed),
    events.RunEnded: ("metric", _run_ended),
    events.JobLogged: ("job_log", lambda run, event: event.line),
    events.JobMissed: ("error", _missed),
    events.RefundAnnounced: (
        "payment_event",
        lambda run, event: f"A refund of {_money(run, event.amount_atomic)} was announced in {event.transaction}",
    ),
    events.RefundSettled: (
        "payment_event",
        lambda run, event: f"{_money(run, event.amount_atomic)} came back in {event.transaction}",
    ),
}


def _line(run: Run, event: Event) -> tuple[EntryType, str]:
    kind, read = _READERS.get(type(event), ("event", lambda run, event: event.kind))
    failed = isinstance(event, (events.JobEnded, events.RunEnded)) and event.status == "failed"
    return "error" if failed else kind, read(run, event)
