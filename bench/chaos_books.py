"""What store, chain and vendors hold when all runs have ended, against what was acknowledged and what the runs say."""

import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from agent.core import standing
from agent.core.apply import apply
from agent.core.errors import ArtifactsUnavailable, UnknownArtifact
from agent.core.events import RunStarted, event_from
from agent.core.invariants import of_run, of_world
from agent.core.model import Entry, Notice, Outcome, Run, Standing
from agent.core.notices import notices_of
from agent.core.standing import outcomes_of
from agent.core.states import RUN_ENDS
from agent.ports import Agent
from bench import books
from bench.kill.books import FILES
from chain.devchain import DevNode

Note = dict[str, Any]
# Counts fade by the order in which runs saved, which their logs do not tell; a job more or less is far more than this.
STANDING_ROOM = Decimal("0.5")


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """`lost` and `broken` have a line for each thing that is not as it has to be; `ends` counts status and reason."""

    acknowledged: int
    unanswered: tuple[str, ...]
    lost: tuple[str, ...]
    broken: tuple[str, ...]
    ends: Mapping[tuple[str, str | None], int]
    payments: int
    files: int
    double_payments: int
    lost_payments: int
    overspend: int


def read_journals(folder: Path) -> list[Note]:
    """Return every line that the processes have written, each file in its order."""
    return [
        json.loads(line)
        for path in sorted(folder.glob("*.journal"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


async def check(
    agent: Agent,
    notes: Sequence[Note],
    chain: DevNode,
    payer: str,
    paid_in: int,
    *,
    jobs: Path,
    url: str,
    database: str,
) -> Findings:
    """
    Return what became of the acknowledged writes, and whether runs, counters, files, chain and vendors agree.

    Args:
        paid_in: what the payer was given at the beginning.
        jobs: the vendors' database.
        url: of the MongoDB that `agent` keeps everything in, in `database`.
    """
    store = agent.store
    runs = {run.run_id: run for run in await books.all_runs(store)}
    logs = {run_id: await store.read_log(run_id) for run_id in runs}
    lost = [line for note in notes if (line := _lost(note, runs, logs)) is not None]
    lost += _doubled_tokens(notes)

    settlements, transfers = books.read_chain(chain, 0)
    vendor_jobs = books.vendor_jobs(jobs)
    broken = books.told(one for run in runs.values() for one in of_run(run))
    broken += books.told(of_world(runs.values(), settlements, vendor_jobs))
    for run in runs.values():
        broken += books.unlike_log(run, logs[run.run_id])
    spent, gone = sum(run.budget.spent_atomic for run in runs.values()), paid_in - chain.balance(payer)
    if spent != gone:
        broken.append(f"books: the runs spent {spent}, the payer is down by {gone}")
    broken += books.unlike_holds(books.read_holds(url, database), books.wanted_holds(runs.values(), transfers))
    broken += books.unpaid_jobs(runs.values(), settlements, vendor_jobs)
    broken += books.unserved(runs.values(), settlements, vendor_jobs)
    wanted = [one for run in runs.values() for one in _followed(run, logs[run.run_id])]
    broken += _unlike_standings(await store.standings(), [one for one in wanted if isinstance(one, Outcome)])
    if agent.webhooks is not None:
        broken += _unlike_outbox(url, database, {one.notice_id for one in wanted if isinstance(one, Notice)})
    files = 0
    for run in runs.values():
        for job in run.jobs:
            files += len(job.artifacts)
            if job.status == "completed" and (names := [one.name for one in job.artifacts]) != FILES:
                broken.append(f"files of {job.job_id}: {names}")
            broken += [line async for line in _unlike_files(agent, run, job.job_id)]
    return Findings(
        acknowledged=sum(note["what"] != "unanswered" for note in notes),
        unanswered=tuple(note["detail"] for note in notes if note["what"] == "unanswered"),
        lost=tuple(lost),
        broken=tuple(broken),
        ends=Counter((run.status, run.reason) for run in runs.values()),
        payments=sum(len(run.payments) for run in runs.values()),
        files=files,
        double_payments=len(books.double_payments(runs.values(), settlements)),
        lost_payments=len(books.lost_payments(runs.values(), settlements)),
        overspend=books.overspend(runs.values()),
    )


def _lost(note: Note, runs: dict[str, Run], logs: dict[str, list[Entry]]) -> str | None:
    """Return what an acknowledged write has lost, None where it stands."""
    if note["what"] == "unanswered":
        return None
    run = runs.get(note["run"])
    if run is None:
        return f"{note['what']}: {note['run']} is not there"
    if note["what"] == "cancel":
        return _lost_cancel(note, run)
    log = logs[run.run_id]
    if note["seq"] and (len(log) < note["seq"] or log[note["seq"] - 1].hash != note["hash"]):
        return f"{note['what']} of {run.run_id}: entry {note['seq']} is not the acknowledged one"
    return None


def _lost_cancel(note: Note, run: Run) -> str | None:
    """The time of the first wish stands. A run that had ended by then keeps none, and has to have ended."""
    if note["at"] is None:
        return None if run.status in RUN_ENDS else f"cancel of {run.run_id}: it had ended, and is {run.status}"
    kept = run.cancel_requested_at
    is_kept = kept is not None and kept.isoformat() == note["at"]
    return None if is_kept else f"cancel of {run.run_id}: asked at {note['at']}, stored is {kept}"


def _doubled_tokens(notes: Iterable[Note]) -> list[str]:
    """Return a line for each lease that two were given under one fencing token: the first was lost."""
    given = Counter((note["run"], note["token"]) for note in notes if note["what"] == "claim")
    return [
        f"claim of {run_id}: token {token} was given {count} times"
        for (run_id, token), count in given.items()
        if count > 1
    ]


def _followed(stored: Run, log: Sequence[Entry]) -> Iterator[Outcome | Notice]:
    """Yield what a run's log says of vendors, and what its owner is to be told. When it was cancelled no log says."""
    asked = stored.cancel_requested_at
    first = event_from(log[0].data)
    assert isinstance(first, RunStarted)
    run = first.run
    for entry in log:
        if entry.type == "tick":
            continue
        event = event_from(entry.data)
        run = apply(run, event)
        then = asked if asked is not None and asked <= entry.timestamp else None
        yield from outcomes_of(replace(run, cancel_requested_at=then), [event])
        yield from notices_of(run, [(event, entry)])


def _unlike_standings(stored: Iterable[Standing], outcomes: Iterable[Outcome]) -> Iterator[str]:
    wanted: dict[tuple[str, str], Standing] = {}
    for one in sorted(outcomes, key=lambda one: one.at):
        key = one.vendor_id, one.gpu_type
        wanted[key] = standing.counted(wanted.get(key) or standing.opened(*key, one.at), one)
    held = {(one.vendor_id, one.gpu_type): (one.completed, one.failed) for one in stored}
    nothing = Decimal(0), Decimal(0)
    for key in sorted(held.keys() | wanted.keys()):
        told = (wanted[key].completed, wanted[key].failed) if key in wanted else nothing
        counts = held.get(key, nothing)
        if any(abs(one - other) > STANDING_ROOM for one, other in zip(counts, told, strict=True)):
            yield f"standing of {key}: completed and failed are {counts}, the logs come to {told}"


def _unlike_outbox(url: str, database: str, wanted: set[str]) -> Iterator[str]:
    """Yield where what waits to be told is not what happened; nothing could be told yet."""
    with MongoClient[dict[str, Any]](url) as client:
        queued = {str(row["_id"]) for row in client[database].outbox.find({}, {"_id": True})}
    yield from (f"outbox: {name} is not in it" for name in sorted(wanted - queued))
    yield from (f"outbox: {name} never happened" for name in sorted(queued - wanted))


async def _unlike_files(agent: Agent, run: Run, job_id: str) -> AsyncIterator[str]:
    """Yield the files of a job that are not kept as the vendor listed them."""
    for artifact in next(job.artifacts for job in run.jobs if job.job_id == job_id):
        try:
            content = b"".join([chunk async for chunk in agent.artifacts.open(run.run_id, job_id, artifact.name)])
        except (UnknownArtifact, ArtifactsUnavailable) as error:
            yield f"file {artifact.name} of {job_id}: {error}"
            continue
        if hashlib.sha256(content).hexdigest() != artifact.sha256:
            yield f"file {artifact.name} of {job_id}: {len(content)} other bytes are kept"
