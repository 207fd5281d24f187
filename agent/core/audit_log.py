"""
A run as it is stored against the run that its log folds to: what was changed, dropped or added behind our back.

Where the log's chain is whole, the log is right. Where it is broken or cut it proves little, and both are held against
the world.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from agent.core.errors import IllegalMove
from agent.core.model import Entry, Job, Payment, Run
from agent.core.replay import Replayed, replay
from agent.core.wording import money

# Kept by the store beside the run, never in the log.
_BESIDE = frozenset({"next_tick_at", "cancel_requested_at", "log", "jobs", "payments"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """
    One thing that the books and the world tell differently. `subject` is the payment, job, entry or account.

    `by_atomic` is the money in question, None where it is not of money.
    """

    code: str
    run_id: str
    subject: str
    books: str
    world: str
    by_atomic: int | None = None


@dataclass(frozen=True, slots=True)
class Unchecked:
    """Something that could not be known: it neither agrees nor differs. `subject` is a payment, a job or an account."""

    run_id: str
    subject: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A run as it is stored, and its whole log, oldest first."""

    run: Run
    entries: tuple[Entry, ...]


def differs(run: Run, code: str, subject: str, books: str, world: str, by_atomic: int | None = None) -> Difference:
    return Difference(code=code, run_id=run.run_id, subject=subject, books=books, world=world, by_atomic=by_atomic)


def judged(account: Account) -> tuple[Run, list[Difference]]:
    """Return the run to hold against the world, and what its log and its record tell differently."""
    stored = account.run
    try:
        again = replay(account.entries)
    except (ValueError, KeyError, AssertionError, IllegalMove) as error:
        return stored, [
            differs(stored, "log_unreadable", "log", f"{stored.log.seq} entries", f"it does not fold: {error}")
        ]
    if again.broken_at is None and again.run.log == stored.log:
        found = [*_decisions(stored, again), *_fields(stored, again.run)]
        found += [*_parts(stored, again.run, "payment"), *_parts(stored, again.run, "job")]
        due, cancelled = stored.next_tick_at, stored.cancel_requested_at
        return replace(again.run, next_tick_at=due, cancel_requested_at=cancelled), found
    return _joined(stored, again.run), [_harmed(stored, account.entries, again), *_missing(stored, again.run)]


def _harmed(stored: Run, entries: Sequence[Entry], again: Replayed) -> Difference:
    seq = again.broken_at
    if seq is None:
        books, log = f"{stored.log.seq} entries", f"the log has {again.run.log.seq}, or ends otherwise"
        return differs(stored, "log_cut", "log", books, log)
    entry = next(entry for entry in entries if entry.seq == seq)
    said = f"{entry.type}: {entry.content[:80]}"
    return differs(
        stored, "log_broken", f"entry {seq}", said, "its hash is of another text, or of another place in the log"
    )


def _decisions(stored: Run, again: Replayed) -> Iterator[Difference]:
    for one in again.differences:
        yield differs(
            stored, "decision_differs", f"entry {one.seq}", str(one.recorded), f"decided again: {one.decided}"
        )


def _fields(stored: Run, folded: Run) -> Iterator[Difference]:
    names = [field.name for field in fields(Run) if field.name not in _BESIDE]
    for name in names:
        ours, logs = getattr(stored, name), getattr(folded, name)
        if ours != logs:
            yield differs(stored, "run_differs", name, str(ours), f"the log says {logs}")


def _parts(stored: Run, folded: Run, kind: str) -> Iterator[Difference]:
    ours, logs = _by_id(stored, kind), _by_id(folded, kind)
    yield from _missing(stored, folded, kind)
    for name, part in ours.items():
        if name not in logs:
            yield differs(stored, f"{kind}_unrecorded", name, f"it is {part.status}", "the log knows nothing of it")
        elif part != logs[name]:
            changed = [
                field.name for field in fields(part) if getattr(part, field.name) != getattr(logs[name], field.name)
            ]
            said = ", ".join(f"{field} {getattr(part, field)}" for field in changed)
            log = ", ".join(f"{field} {getattr(logs[name], field)}" for field in changed)
            yield differs(
                stored, f"{kind}_differs", name, said, f"the log says {log}", _money_between(part, logs[name])
            )


def _missing(stored: Run, folded: Run, kind: str = "payment") -> Iterator[Difference]:
    ours = _by_id(stored, kind)
    for name, part in _by_id(folded, kind).items():
        if name not in ours:
            by = part.amount_atomic if isinstance(part, Payment) else None
            amount = "" if by is None else f", {money(stored, by)}"
            world = f"the log says it is {part.status}{amount}"
            yield differs(stored, f"{kind}_missing", name, "there is none", world, by)


def _by_id(run: Run, kind: str) -> dict[str, Job | Payment]:
    if kind == "payment":
        return {payment.payment_id: payment for payment in run.payments}
    return {job.job_id: job for job in run.jobs}


def _money_between(ours: Job | Payment, logs: Job | Payment) -> int | None:
    if isinstance(ours, Payment) and isinstance(logs, Payment):
        return abs(ours.amount_atomic - logs.amount_atomic) or None
    return None


def _joined(stored: Run, folded: Run) -> Run:
    """Return the stored run with the jobs and payments added that only its log knows."""
    jobs, payments = _by_id(stored, "job"), _by_id(stored, "payment")
    return replace(
        stored,
        jobs=(*stored.jobs, *(job for job in folded.jobs if job.job_id not in jobs)),
        payments=(*stored.payments, *(paid for paid in folded.payments if paid.payment_id not in payments)),
    )
