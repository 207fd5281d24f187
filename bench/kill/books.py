"""What is read after a trial, and where ledger, chain and vendor's books differ."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.core.invariants import Settlement, VendorJob, of_run, of_world
from agent.core.model import Entry, Run
from agent.core.states import RUN_ENDS
from agent.ports import Agent
from bench import books
from bench.books import SETTLED, Moved
from chain.devchain import DevNode
from vendor_mock.simulation import EPOCHS

# Each is a count of what must never be.
WRONGS = (
    "double_payments",
    "lost_payments",
    "overspend",
    "books_differ",
    "jobs_unpaid",
    "jobs_left_running",
    "refunds_differ",
    "holds_differ",
    "invariants_broken",
    "replays_differ",
    "results_differ",
    "bugs",
    "stuck",
)
# What a completed job of the mock leaves.
FILES = ["model.json", "training.log"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """
    One trial's run and what chain and vendors show since it began.

    `holds` are the store's counters, `balances` how far each address's moved. `replay` says what a replay of the run's
    log shows otherwise, `results` what is wrong with the lines and files of the jobs that were completed.
    """

    run: Run
    payer: str
    settlements: tuple[Settlement, ...]
    transfers: tuple[Moved, ...]
    jobs: tuple[VendorJob, ...]
    holds: Mapping[str, int]
    balances: Mapping[str, int]
    replay: Sequence[str] = ()
    results: str = ""


def wrongs(seen: Seen) -> list[tuple[str, str]]:
    """Return one of WRONGS and a sentence for each thing that is wrong."""
    runs, settled = [seen.run], seen.settlements
    told = (
        ("double_payments", books.double_payments(runs, settled)),
        ("lost_payments", books.lost_payments(runs, settled)),
        ("lost_payments", books.unserved(runs, settled, seen.jobs)),
        ("jobs_unpaid", books.unpaid_jobs(runs, settled, seen.jobs)),
        ("holds_differ", books.unlike_holds(seen.holds, books.wanted_holds(runs, seen.transfers))),
        ("replays_differ", seen.replay),
        ("results_differ", [seen.results] if seen.results else []),
    )
    found = [*_refunds(seen), *_balances(seen), *((name, detail) for name, details in told for detail in details)]
    for broken in (*of_run(seen.run), *of_world([seen.run], seen.settlements, seen.jobs)):
        name = "jobs_left_running" if broken.invariant == "I3" else "invariants_broken"
        found.append((name, f"{broken.invariant}: {broken.detail}"))
    if seen.run.status not in RUN_ENDS or seen.run.next_tick_at is not None:
        found.append(("stuck", f"the run is {seen.run.status}, next tick {seen.run.next_tick_at}"))
    return found


def _refunds(seen: Seen) -> Iterator[tuple[str, str]]:
    sent = Counter((one.sender, one.amount_atomic) for one in seen.transfers if one.receiver == seen.payer.lower())
    counted = Counter(
        (paid.pay_to.lower(), paid.refunded_atomic) for paid in seen.run.payments if paid.status == "refunded"
    )
    for sender, amount in (sent - counted).elements():
        yield "refunds_differ", f"{sender} sent {amount} back, our books do not have it"
    for sender, amount in (counted - sent).elements():
        yield "refunds_differ", f"our books have {amount} back from {sender}, the chain does not"


def _balances(seen: Seen) -> Iterator[tuple[str, str]]:
    """What moved on the chain is what our books say, no more and no less."""
    budget = seen.run.budget
    paid_out = -seen.balances[seen.payer]
    if paid_out != budget.spent_atomic:
        yield "books_differ", f"the payer is down by {paid_out}, the run spent {budget.spent_atomic}"
    if max(paid_out, budget.spent_atomic) > budget.total_atomic:
        yield "overspend", f"{paid_out} of {budget.total_atomic} was paid"
    for address, gained in seen.balances.items():
        kept = sum(
            paid.amount_atomic - paid.refunded_atomic
            for paid in seen.run.payments
            if paid.pay_to == address and paid.status in SETTLED
        )
        if address != seen.payer and gained != kept:
            yield "books_differ", f"{address} gained {gained}, our books gave it {kept}"


async def read_run(agent: Agent, run_id: str) -> tuple[Run, list[str], str]:
    """Return the run as stored, what a replay of its log shows otherwise, and what is wrong with its results."""
    run = await agent.store.read_run(run_id)
    entries = await agent.store.read_log(run_id)
    results = await _results(agent, run, entries)
    await agent.store.close()
    return run, books.unlike_log(run, entries), results


async def _results(agent: Agent, run: Run, entries: Sequence[Entry]) -> str:
    """Every line that the vendor wrote is read once, every file is kept whole, and told of once."""
    for job in run.jobs:
        if job.status != "completed":
            continue
        lines = [entry.content for entry in entries if entry.type == "job_log" and entry.job_id == job.job_id]
        if len(lines) != EPOCHS or len(set(lines)) != EPOCHS:
            return f"{job.job_id} has the lines {lines}"
        kept = [entry for entry in entries if entry.data.get("kind") == "artifacts_kept" and entry.job_id == job.job_id]
        names = [artifact.name for artifact in job.artifacts]
        if len(kept) != 1 or names != FILES:
            return f"{job.job_id} has the files {names}, told of {len(kept)} times"
        for artifact in job.artifacts:
            content = b"".join([chunk async for chunk in agent.artifacts.open(run.run_id, job.job_id, artifact.name)])
            if hashlib.sha256(content).hexdigest() != artifact.sha256:
                return f"{job.job_id} keeps {len(content)} other bytes as {artifact.name}"
    return ""


def balances(chain: DevNode, holders: Sequence[str]) -> dict[str, int]:
    return {holder: chain.balance(holder) for holder in holders}
