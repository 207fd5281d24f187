"""What is read after a trial, and where ledger, chain and vendor's books differ."""

import hashlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.core.invariants import Settlement, VendorJob, of_run, of_world
from agent.core.model import Run
from agent.core.states import RUN_ENDS
from agent.ports import Agent
from agent.status import replayed
from chain.abi import TOPICS, quantity
from chain.devchain import DevNode
from vendor_mock.simulation import EPOCHS
from wire import decimal_json
from wire.money import BASE_SEPOLIA_USDC

# Each is a count of what must never be.
WRONGS = (
    "double_payments",
    "lost_payments",
    "overspend",
    "books_differ",
    "jobs_unpaid",
    "jobs_left_running",
    "refunds_differ",
    "invariants_broken",
    "replays_differ",
    "results_differ",
    "stuck",
)
SETTLED = ("completed", "refunded")
# What a completed job of the mock leaves.
FILES = ["model.json", "training.log"]


@dataclass(frozen=True, slots=True)
class Moved:
    """One Transfer of the token; addresses in lower case."""

    sender: str
    receiver: str
    amount_atomic: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """
    One trial's run and what chain and vendors show since it began.

    `balances` is how far each address's moved. `replay` says what a replay of the run's log shows otherwise,
    `results` what is wrong with the lines and files of the jobs that were completed.
    """

    run: Run
    payer: str
    settlements: tuple[Settlement, ...]
    transfers: tuple[Moved, ...]
    jobs: tuple[VendorJob, ...]
    balances: Mapping[str, int]
    replay: str = ""
    results: str = ""


def wrongs(seen: Seen) -> tuple[Counter[str], list[str]]:
    """Return how often each of WRONGS is there, and a sentence for each."""
    found = [*_payments(seen), *_refunds(seen), *_balances(seen)]
    for broken in (*of_run(seen.run), *of_world([seen.run], seen.settlements, seen.jobs)):
        name = "jobs_left_running" if broken.invariant == "I3" else "invariants_broken"
        found.append((name, f"{broken.invariant}: {broken.detail}"))
    told = (("replays_differ", seen.replay), ("results_differ", seen.results))
    found += [(name, detail) for name, detail in told if detail]
    if seen.run.status not in RUN_ENDS or seen.run.next_tick_at is not None:
        found.append(("stuck", f"the run is {seen.run.status}, next tick {seen.run.next_tick_at}"))
    return Counter(name for name, _ in found), [f"{name}: {detail}" for name, detail in found]


def _payments(seen: Seen) -> Iterator[tuple[str, str]]:
    """One settled cheque for each job that a vendor started, each in our books, and none beside them."""
    by_nonce = {paid.nonce.lower(): paid for paid in seen.run.payments}
    settled = Counter(one.nonce.lower() for one in seen.settlements)
    booked = {paid.nonce.lower() for paid in seen.run.payments if paid.status in SETTLED}
    for nonce in settled - Counter(booked):
        yield "lost_payments", f"the chain settled {nonce}, our books do not have it as paid"
    for nonce in Counter(booked) - settled:
        yield "lost_payments", f"our books have {nonce} as paid, the chain never settled it"
    for job_id, count in Counter(by_nonce[nonce].job_id for nonce in settled.elements() if nonce in by_nonce).items():
        if count > 1:
            yield "double_payments", f"{job_id} was paid {count} times"
    started = Counter(job.payment_id for job in seen.jobs)
    for paid in seen.run.payments:
        if paid.nonce.lower() in settled and not started[paid.payment_id]:
            yield "lost_payments", f"{paid.payment_id} was paid and no vendor has a job for it"
        if started[paid.payment_id] and paid.nonce.lower() not in settled:
            yield "jobs_unpaid", f"{paid.payment_id} is not settled and a vendor works for it"
    unknown = set(started) - {paid.payment_id for paid in seen.run.payments}
    for payment_id in unknown:
        yield "jobs_unpaid", f"a vendor works for {payment_id}, which is no payment of ours"
    # A cheque that we do not know may have paid a job whose own cheque was not settled; no job needs another.
    paid_jobs = {by_nonce[nonce].job_id for nonce in settled if nonce in by_nonce}
    waiting = {paid.job_id for paid in seen.run.payments} - paid_jobs
    for nonce in sorted(set(settled) - set(by_nonce))[len(waiting) :]:
        yield "double_payments", f"the unknown cheque {nonce} paid a job again"


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


def read_chain(chain: DevNode, since_block: int) -> tuple[tuple[Settlement, ...], tuple[Moved, ...]]:
    """Return the authorizations that were settled after `since_block`, and the token's other transfers."""
    if quantity(chain.rpc("eth_blockNumber")) <= since_block:
        return (), ()
    window = {"fromBlock": hex(since_block + 1), "toBlock": "latest", "address": BASE_SEPOLIA_USDC.address}
    settlements: list[Settlement] = []
    transfers: list[Moved] = []
    used: Any = None
    for log in chain.rpc("eth_getLogs", window):
        topics = log["topics"]
        if topics[0] == TOPICS["AuthorizationUsed(address,bytes32)"]:
            used = log
            continue
        moved = Moved(_address(topics[1]), _address(topics[2]), quantity(log["data"]))
        if used is not None and _place(log) == (used["blockNumber"], quantity(used["logIndex"]) + 1):
            settlements.append(
                Settlement(
                    payer=_address(used["topics"][1]),
                    nonce=used["topics"][2],
                    pay_to=moved.receiver,
                    amount_atomic=moved.amount_atomic,
                )
            )
        else:
            transfers.append(moved)
        used = None
    return tuple(settlements), tuple(transfers)


def _place(log: Any) -> tuple[str, int]:
    return log["blockNumber"], quantity(log["logIndex"])


def _address(topic: str) -> str:
    return "0x" + topic[-40:].lower()


def read_jobs(database: Path) -> tuple[VendorJob, ...]:
    """Return every job in the vendors' books."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        documents = [decimal_json.loads(row[0]) for row in connection.execute("SELECT document FROM mock_jobs")]
    finally:
        connection.close()
    return tuple(
        VendorJob(
            vendor_id=job["vendor_id"],
            vendor_job_id=job["job_id"],
            payment_id=job["payment_id"],
            status=job["status"],
        )
        for job in documents
    )


async def read_run(agent: Agent, run_id: str) -> tuple[Run, str, str]:
    """Return the run as stored, what a replay of its log shows otherwise, and what is wrong with its results."""
    run = await agent.store.read_run(run_id)
    replay, results = await _replay(agent, run), await _results(agent, run)
    await agent.store.close()
    return run, replay, results


async def _results(agent: Agent, run: Run) -> str:
    """Every line that the vendor wrote is read once, every file is kept whole, and told of once."""
    entries = await agent.store.read_log(run.run_id)
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


async def _replay(agent: Agent, run: Run) -> str:
    try:
        _, again = await replayed(agent, run.run_id)
    except (LookupError, ValueError, AssertionError) as error:
        return f"the log cannot be replayed: {type(error).__name__}: {error}"
    beside: dict[str, Any] = {"next_tick_at": None, "cancel_requested_at": None}
    if again.broken_at is not None:
        return f"the log is broken at {again.broken_at}"
    if again.differences:
        return f"{len(again.differences)} decisions do not repeat"
    if replace(again.run, **beside) != replace(run, **beside):
        return "the log does not fold to the stored run"
    return ""


def balances(chain: DevNode, holders: Sequence[str]) -> dict[str, int]:
    return {holder: chain.balance(holder) for holder in holders}
