"""Where a crowd works: a store, a chain, vendors as processes; and what all three say after it has worked."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from agent.config import AgentSettings
from agent.core.errors import ChainUnavailable, RunBusy, RunFinished, StoreUnavailable
from agent.core.invariants import of_run, of_world
from agent.core.model import Run
from agent.core.states import RUN_ENDS
from agent.ports import Agent
from agent.start import start
from agent.vendors import register
from agent.wiring import open_agent
from bench import books
from bench.concurrent.witness import disorder, holders_max
from bench.concurrent.worker import Answer, Exit
from chain.abi import quantity
from chain.devchain import DevNode
from wire.control import StartRequest

# What a tick may be told where many ask: it did nothing, or leaves to the next what it has begun.
HARMLESS = (RunBusy.code, RunFinished.code, StoreUnavailable.code, ChainUnavailable.code)
# But store and chain are there all the time: more ticks than these, in percent, may not say otherwise.
UNAVAILABLE_PERCENT_MAX = 1


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
    block = quantity(place.chain.rpc("eth_blockNumber"))
    return Before(block, place.chain.balance(place.payer), books.vendor_row(place.vendors_db))


async def broken(
    place: Place, agent: Agent, runs: Sequence[Run], start: Before, answers: Sequence[Answer]
) -> list[str]:
    """
    Return what is wrong between the ended `runs`, the chain, the vendors' books and what every process has seen.

    Empty: each run's books add up and its log folds to it; one held it at a time, by growing tokens; each payment was
    settled once, by the one cheque that was ever sent for it, and bought one job; the wallet paid what they spent, and
    what counts under its caps is that. Store and chain answered nearly always.
    """
    held = [one for answer in answers for one in answer.seen.held]
    found = disorder(held, [one for answer in answers for one in answer.seen.saved])
    if holders_max(held) > 1:
        found.append(f"{holders_max(held)} held one run at once")
    exits = [one for answer in answers for one in answer.exits]
    found += [f"a tick ended with {one.said}" for one in exits if one.error not in (None, *HARMLESS)]
    found += unanswered(exits)
    found += [f"{run.run_id} is {run.status}" for run in runs if run.status not in RUN_ENDS]
    settled, _ = books.read_chain(place.chain, start.block, place.payer)
    jobs = books.vendor_jobs(place.vendors_db, start.vendor_row)
    found += books.told([one for run in runs for one in of_run(run)] + of_world(runs, settled, jobs))
    found += books.double_payments(runs, settled) + books.lost_payments(runs, settled)
    found += books.unserved(runs, settled, jobs) + books.unpaid_jobs(runs, settled, jobs)
    sent = {one for answer in answers for one in answer.sent}
    stored = {(paid.payment_id, paid.header) for run in runs for paid in run.payments}
    found += [f"{payment_id}: a cheque was sent that is not the stored one" for payment_id, _ in sent - stored]
    gone = start.payer_atomic - place.chain.balance(place.payer)
    if gone != (spent := sum(run.budget.spent_atomic for run in runs)):
        found.append(f"the wallet is {gone} poorer, the runs spent {spent}")
    for run in runs:
        found += books.unlike_log(run, await agent.store.read_log(run.run_id))
    return found + await _unlike_holds(place, agent)


async def _unlike_holds(place: Place, agent: Agent) -> list[str]:
    """Return where the counters of the store are not what all of its runs come to, those before this scene too."""
    held = books.read_holds(place.settings.database_url.get_secret_value(), place.settings.database_name)
    _, transfers = books.read_chain(place.chain, 0)
    return books.unlike_holds(held, books.wanted_holds(await books.all_runs(agent.store), transfers))


def unanswered(exits: Sequence[Exit]) -> list[str]:
    """Return that too many ticks ended because store or chain did not answer; one alone says nothing."""
    if unavailable(exits) <= max(1, len(exits) * UNAVAILABLE_PERCENT_MAX // 100):
        return []
    return [f"store or chain did not answer {unavailable(exits)} of {len(exits)} ticks"]


def unavailable(exits: Sequence[Exit]) -> int:
    """Return how many ticks ended because store or chain did not answer."""
    return sum(one.error in (StoreUnavailable.code, ChainUnavailable.code) for one in exits)
