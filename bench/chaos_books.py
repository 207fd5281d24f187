"""What store, chain and vendors hold when all runs have ended, against what was acknowledged."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.core.invariants import Settlement, of_run, of_world
from agent.core.model import Entry, Run
from agent.core.replay import replay
from agent.core.states import RUN_ENDS
from agent.ports import Store
from bench.kill.books import read_chain, read_jobs
from chain.devchain import DevNode

Note = dict[str, Any]
_PAGE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """`lost` and `broken` have a line for each thing that is not as it has to be."""

    acknowledged: int
    unanswered: tuple[str, ...]
    lost: tuple[str, ...]
    broken: tuple[str, ...]
    payments: int
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


async def all_runs(store: Store) -> list[Run]:
    """Return every run of the store."""
    found: list[Run] = []
    cursor: str | None = None
    while True:
        page = await store.list_runs(None, cursor, _PAGE)
        found.extend(page.runs)
        cursor = page.cursor
        if cursor is None:
            return found


async def check(store: Store, notes: Sequence[Note], chain: DevNode, payer: str, paid_in: int, jobs: Path) -> Findings:
    """
    Return what became of the acknowledged writes, and whether ledger, chain and vendors' books are one.

    Args:
        paid_in: what the payer was given at the beginning.
        jobs: the vendors' database.
    """
    runs = {run.run_id: run for run in await all_runs(store)}
    logs = {run_id: await store.read_log(run_id) for run_id in runs}
    lost = [line for note in notes if (line := _lost(note, runs, logs)) is not None]
    lost += _doubled_tokens(notes)

    settlements, _ = read_chain(chain, 0)
    broken = [f"{one.invariant} {one.run_id}: {one.detail}" for run in runs.values() for one in of_run(run)]
    world = of_world(runs.values(), settlements, read_jobs(jobs))
    broken += [f"{one.invariant} {one.run_id}: {one.detail}" for one in world]
    for run in runs.values():
        broken += _log_troubles(run, logs[run.run_id])
    spent, gone = sum(run.budget.spent_atomic for run in runs.values()), paid_in - chain.balance(payer)
    if spent != gone:
        broken.append(f"books: the runs spent {spent}, the payer is down by {gone}")
    return Findings(
        acknowledged=sum(note["what"] != "unanswered" for note in notes),
        unanswered=tuple(note["detail"] for note in notes if note["what"] == "unanswered"),
        lost=tuple(lost),
        broken=tuple(broken),
        payments=sum(len(run.payments) for run in runs.values()),
        **_payments(runs.values(), settlements),
    )


def _lost(note: Note, runs: dict[str, Run], logs: dict[str, list[Entry]]) -> str | None:
    """Return what an acknowledged write has lost, None where it stands."""
    if note["what"] == "unanswered":
        return None
    run = runs.get(note["run"])
    if run is None:
        return f"{note['what']}: {note['run']} is not there"
    if note["what"] == "cancel":
        kept = run.cancel_requested_at is not None or run.status in RUN_ENDS
        return None if kept else f"cancel of {run.run_id}"
    log = logs[run.run_id]
    if note["seq"] and (len(log) < note["seq"] or log[note["seq"] - 1].hash != note["hash"]):
        return f"{note['what']} of {run.run_id}: entry {note['seq']} is not the acknowledged one"
    return None


def _doubled_tokens(notes: Iterable[Note]) -> list[str]:
    """Return a line for each lease that two were given under one fencing token: the first was lost."""
    given = Counter((note["run"], note["token"]) for note in notes if note["what"] == "claim")
    return [
        f"claim of {run_id}: token {token} was given {count} times"
        for (run_id, token), count in given.items()
        if count > 1
    ]


def _log_troubles(run: Run, log: Sequence[Entry]) -> list[str]:
    """Return what a replay of the run's log shows otherwise than the run."""
    again = replay(log)
    beside: dict[str, Any] = {"next_tick_at": None, "cancel_requested_at": None}
    troubles = [] if again.broken_at is None else [f"log {run.run_id}: broken at {again.broken_at}"]
    troubles += [f"log {run.run_id}: a decision does not repeat" for _ in again.differences]
    if replace(again.run, **beside) != replace(run, **beside):
        troubles.append(f"log {run.run_id}: does not fold to the stored run")
    return troubles


def _payments(runs: Iterable[Run], settlements: Sequence[Settlement]) -> dict[str, int]:
    """Return how often a job was settled for twice, a settlement is not in a ledger or the reverse, and overspend."""
    runs = tuple(runs)
    payments = {paid.nonce.lower(): paid for run in runs for paid in run.payments}
    settled = Counter(one.nonce.lower() for one in settlements)
    jobs = Counter(payments[nonce].job_id for nonce in settled.elements() if nonce in payments)
    counted = {nonce for nonce, paid in payments.items() if paid.status in ("completed", "refunded")}
    return {
        "double_payments": sum(count - 1 for count in jobs.values()),
        "lost_payments": len(counted ^ settled.keys()),
        "overspend": sum(
            max(
                0,
                sum(paid.amount_atomic - paid.refunded_atomic for paid in run.payments if paid.status != "failed")
                - run.budget.total_atomic,
            )
            for run in runs
        ),
    }
