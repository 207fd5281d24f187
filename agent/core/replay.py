"""
Folding a run's log again: the same run, and for every recorded tick the same decision, to the bit.

What a model was asked cannot be asked again; the bandit's wishes are made again from the facts they were made from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agent.core.apply import apply
from agent.core.bandit import advise
from agent.core.decide import Action, TickRecord, decide, question_of, tick_document, tick_from
from agent.core.events import RunStarted, event_from
from agent.core.log import broken_at
from agent.core.model import Entry, LogHead, Run
from agent.core.planning import Proposal
from wire import decimal_json


@dataclass(frozen=True, slots=True)
class Difference:
    """A recorded decision, or a bandit's wish, that is not made again. `decided` is today's answer."""

    seq: int
    recorded: Action | Proposal
    decided: Action | Proposal


@dataclass(frozen=True, slots=True)
class Replayed:
    """`broken_at` is the first entry that breaks the hash chain, None in an honest log."""

    run: Run
    broken_at: int | None
    differences: tuple[Difference, ...]


def replay(entries: Sequence[Entry]) -> Replayed:
    """
    Return the run that a whole log, oldest first, folds to, and what does not repeat.

    `next_tick_at` and `cancel_requested_at` are not of the log: the store keeps them beside the run.

    Raises:
        ValueError: the log does not begin with the run's start.
    """
    first = event_from(entries[0].data) if entries else None
    if not isinstance(first, RunStarted):
        raise ValueError("a log begins with the run's start")
    run, differences = first.run, []
    for entry in entries:
        if entry.type == "tick":
            record = tick_from(entry.data)
            decided = decide(run, record.facts, record.now)
            if not _is_recorded(replace(record, action=decided), entry.data):
                differences.append(Difference(entry.seq, record.action, decided))
            asked = replace(run, log=LogHead(seq=entry.seq - 1, hash=entry.previous))
            differences.extend(Difference(entry.seq, *pair) for pair in _wished_otherwise(asked, record))
        else:
            run = apply(run, event_from(entry.data))
    run = replace(run, log=LogHead(seq=entries[-1].seq, hash=entries[-1].hash))
    return Replayed(run, broken_at(entries), tuple(differences))


def _is_recorded(decided: TickRecord, recorded: Mapping[str, Any]) -> bool:
    """Return whether a decision is, written down, the recorded bytes: 1.0 h are not 1.00 h."""
    written = tick_document(decided)["action"]
    # A log may be older than a field of today's, which then had its default.
    older = tick_document(replace(decided, action=tick_from(dict(recorded)).action))["action"]
    known = {name: value for name, value in written.items() if name in recorded["action"]}
    return _bytes(known) == _bytes(recorded["action"]) and _bytes(written) == _bytes(older)


def _bytes(document: Mapping[str, Any]) -> bytes:
    return decimal_json.dumps(document, sort_keys=True)


def _wished_otherwise(run: Run, record: TickRecord) -> list[tuple[Proposal, Proposal]]:
    """Return the recorded wishes of the bandit that it does not make again, each with today's."""
    wish, facts = record.facts.proposal, record.facts
    recorded = [replace(one, other=None) for one in (wish, wish and wish.other) if one and one.mode == "bandit"]
    if not recorded:
        return []
    again = advise(question_of(run, facts, record.now)).proposal
    # A log may be older than the time of a wait.
    return [(one, again) for one in recorded if one != (again if one.until else replace(again, until=None))]
