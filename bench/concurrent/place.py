"""Where a crowd works: a store, a chain, vendors as processes; and what all three say after it has worked."""

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from agent.config import AgentSettings
from agent.core.errors import ChainUnavailable, RunBusy, RunFinished, StoreUnavailable
from agent.core.invariants import Settlement, VendorJob, of_run, of_world
from agent.core.model import Run
from agent.core.states import RUN_ENDS
from agent.ports import Agent
from agent.start import start
from agent.status import replayed
from agent.vendors import register
from agent.wiring import open_agent
from bench.concurrent.witness import disorder, holders_max
from bench.concurrent.worker import Answer
from chain.abi import TOPICS, quantity, word
from chain.devchain import DevNode
from wire import decimal_json
from wire.control import StartRequest
from wire.money import BASE_SEPOLIA_USDC

ASSET = BASE_SEPOLIA_USDC.address
# What a tick may be told where many ask: it did nothing, or leaves to the next what it has begun.
HARMLESS = (RunBusy.code, RunFinished.code, StoreUnavailable.code, ChainUnavailable.code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """`vendors_db` is the vendors' own database: what is in it they say of themselves."""

    settings: AgentSettings
    chain: DevNode
    payer: str
    vendors_url: str
    vendors_db: Path


@dataclass(frozen=True, slots=True)
class Before:
    """What chain and vendors held before a crowd began."""

    block: int
    payer_atomic: int
    vendor_row: int


@asynccontextmanager
async def opened(place: Place, *vendor_ids: str) -> AsyncIterator[Agent]:
    """Yield an agent of this process on the place's store, with just these vendors registered."""
    agent = open_agent(place.settings)
    try:
        for vendor in await agent.store.list_vendors():
            await agent.store.remove_vendor(vendor.vendor_id)
        for vendor_id in vendor_ids:
            await register(agent, vendor_id, place.vendors_url)
        yield agent
    finally:
        await agent.store.close()


async def begin(agent: Agent, hours: Sequence[Decimal]) -> list[str]:
    """Start a run for each of `hours`, with money enough; return their ids."""
    run_ids = []
    for wanted in hours:
        request = {"goal": "Fine-tune tiny-llm", "budgetTotal": Decimal(20), "job": {"maxHours": wanted}}
        run_ids.append((await start(agent, StartRequest.model_validate(request))).run_id)
    return run_ids


def before(place: Place) -> Before:
    with closing(sqlite3.connect(place.vendors_db)) as connection:
        row = connection.execute("SELECT coalesce(max(rowid), 0) FROM mock_jobs").fetchone()[0]
    return Before(quantity(place.chain.rpc("eth_blockNumber")), place.chain.balance(place.payer), row)


async def broken(
    place: Place, agent: Agent, runs: Sequence[Run], start: Before, answers: Sequence[Answer]
) -> list[str]:
    """
    Return what is wrong between the ended `runs`, the chain, the vendors' books and what every process has seen.

    Empty: each run's books add up and its log folds to it; one held it at a time, by growing tokens; each payment was
    settled once, by the one cheque that was ever sent for it, and bought one job; the wallet paid what they spent.
    """
    held = [one for answer in answers for one in answer.seen.held]
    found = disorder(held, [one for answer in answers for one in answer.seen.saved])
    if holders_max(held) > 1:
        found.append(f"{holders_max(held)} held one run at once")
    exits = [one for answer in answers for one in answer.exits]
    found += [f"a tick ended with {one.said}" for one in exits if one.error not in (None, *HARMLESS)]
    found += [f"{run.run_id} is {run.status}" for run in runs if run.status not in RUN_ENDS]
    settled, jobs = settlements(place, start), vendor_jobs(place, start)
    wrong = [one for run in runs for one in of_run(run)] + of_world(runs, settled, jobs)
    found += [f"{one.invariant} {one.run_id}: {one.detail}" for one in wrong]

    payments = [paid for run in runs for paid in run.payments]
    completed = [paid for paid in payments if paid.status in ("completed", "refunded")]
    if sorted(one.nonce.lower() for one in settled) != sorted(paid.nonce.lower() for paid in completed):
        found.append(f"{len(settled)} settlements on the chain, {len(completed)} settled payments in the ledgers")
    sent = {one for answer in answers for one in answer.sent}
    stored = {(paid.payment_id, paid.header) for paid in payments}
    found += [f"{payment_id}: a cheque was sent that is not the stored one" for payment_id, _ in sent - stored]
    gone = start.payer_atomic - place.chain.balance(place.payer)
    if gone != (spent := sum(run.budget.spent_atomic for run in runs)):
        found.append(f"the wallet is {gone} poorer, the runs spent {spent}")
    for run in runs:
        _, again = await replayed(agent, run.run_id)
        if again.broken_at is not None or again.differences:
            found.append(f"{run.run_id}: the log is broken at {again.broken_at}, {again.differences}")
    return found


def settlements(place: Place, start: Before) -> list[Settlement]:
    """Return every transfer by authorization of the wallet since `start`, as the chain shows them."""
    wanted = {
        "address": ASSET,
        "fromBlock": hex(start.block + 1),
        "topics": [TOPICS["AuthorizationUsed(address,bytes32)"], word(place.payer)],
    }
    found = []
    for used in place.chain.rpc("eth_getLogs", wanted):
        logs: list[dict[str, Any]] = place.chain.rpc("eth_getTransactionReceipt", used["transactionHash"])["logs"]
        moved = next(log for log in logs if quantity(log["logIndex"]) == quantity(used["logIndex"]) + 1)
        found.append(
            Settlement(
                payer=place.payer,
                nonce=used["topics"][2],
                pay_to="0x" + moved["topics"][2][-40:],
                amount_atomic=quantity(moved["data"]),
            )
        )
    return found


def vendor_jobs(place: Place, start: Before) -> list[VendorJob]:
    """Return every job in the vendors' books since `start`."""
    with closing(sqlite3.connect(place.vendors_db)) as connection:
        rows = connection.execute("SELECT document FROM mock_jobs WHERE rowid > ?", (start.vendor_row,)).fetchall()
    return [
        VendorJob(
            vendor_id=job["vendor_id"],
            vendor_job_id=job["job_id"],
            payment_id=job["payment_id"],
            status=job["status"],
        )
        for job in (decimal_json.loads(row[0]) for row in rows)
    ]
