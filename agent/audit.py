"""
Auditing: the stored runs and their logs, the chain and the vendors are asked, and `core.audit` says where they differ.

Nothing is written and no lease is taken: ticks go on meanwhile, so what differs is read again before it is said.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from agent.core import audit as core
from agent.core.audit import Account, Answer, Report, Unchecked, Wallet, World
from agent.core.errors import ChainUnavailable, VendorError, VendorRefused
from agent.core.model import Payment, Run, Vendor
from agent.core.states import JOB_ENDS
from agent.ports import Agent
from agent.settle import HEAD_MARGIN_BLOCKS
from wire.vendor import JobFound

READS_MAX = 3
CALLS_AT_ONCE = 8


async def audit(agent: Agent, run_id: str | None = None) -> Report:
    """
    Return how the books of one run, or of all, differ from their logs, the chain and the vendors.

    Raises:
        UnknownRun, StoreUnavailable: there are no books to look at. A chain or a vendor that is away is in the report.
    """
    for _ in range(READS_MAX):
        accounts = await _accounts(agent, run_id)
        books = core.books_of(accounts)
        world = await _world(agent, [run for run, _ in books], whole=run_id is None)
        report = core.audit(books, world, whole=run_id is None)
        moved = await _moved(agent, accounts, run_id) if report.differences else frozenset()
        if not moved:
            return report
    return _of_what_stood_still(report, moved)


def _of_what_stood_still(report: Report, moved: frozenset[str]) -> Report:
    """Return `report` without what it says of runs that were ticked meanwhile: that was not seen at one moment."""
    still = tuple(one for one in report.differences if one.run_id and one.run_id not in moved)
    late = tuple(
        Unchecked(run_id, "run", "it was ticked while it was read: audit it again") for run_id in sorted(moved)
    )
    return replace(report, differences=still, unchecked=report.unchecked + late)


async def _accounts(agent: Agent, run_id: str | None) -> list[Account]:
    return [await _account(agent, one) for one in ([run_id] if run_id is not None else await _ids(agent))]


async def _ids(agent: Agent) -> list[str]:
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await agent.store.list_runs(None, cursor, 200)
        found += [run.run_id for run in page.runs]
        cursor = page.cursor
        if cursor is None:
            return found


async def _account(agent: Agent, run_id: str) -> Account:
    """Return a run with its log, of one moment: a tick may save between the two reads."""
    for _ in range(READS_MAX):
        run, entries = await agent.store.read_run(run_id), await agent.store.read_log(run_id)
        if entries and entries[-1].seq == run.log.seq:
            break
    return Account(run=run, entries=tuple(entries))


async def _moved(agent: Agent, accounts: Sequence[Account], run_id: str | None) -> frozenset[str]:
    """Return the runs that were saved, or began, since they were read."""
    seen = {account.run.run_id: account.run.log.seq for account in accounts}
    ids = [run_id] if run_id is not None else await _ids(agent)
    return frozenset([one for one in ids if (await agent.store.read_run(one)).log.seq != seen.get(one)])


async def _world(agent: Agent, runs: Sequence[Run], *, whole: bool) -> World:
    ours = [run for run in runs if run.asset == agent.policy.asset]
    unchecked = [
        Unchecked(
            run.run_id, "chain", f"it pays in {run.asset.address} on {run.asset.network}, not in this wallet's asset"
        )
        for run in runs
        if run.asset != agent.policy.asset
    ]
    wallets: dict[str, Wallet] = {}
    payments = [payment for run in ours for payment in run.payments]
    for address in sorted({payment.payer.lower() for payment in payments}):
        since = min(payment.from_block for payment in payments if payment.payer.lower() == address)
        try:
            wallet = await _wallet(agent, address, max(0, since - HEAD_MARGIN_BLOCKS))
        except ChainUnavailable as error:
            unchecked.append(Unchecked("", address, f"the chain could not be asked: {error}"))
            continue
        wallets[address] = wallet
        if whole and wallet.before_atomic is None:
            why = f"the node no longer knows what it held in block {wallet.since}"
            unchecked.append(Unchecked("", address, why))
    vendors = {vendor.vendor_id: vendor for vendor in await agent.store.list_vendors()}
    answers, silent = await _answers(agent, runs, vendors)
    live, deaf = await _live(agent, vendors) if whole else ((), ())
    return World(wallets=wallets, answers=answers, live=live, unchecked=(*unchecked, *silent, *deaf))


async def _wallet(agent: Agent, address: str, since: int) -> Wallet:
    chain = agent.chain
    head = await chain.head()
    history = await chain.history(address, since, head)
    after = await chain.balance(address, head)
    try:
        before: int | None = await chain.balance(address, since)
    except ChainUnavailable:
        # Nodes forget old states and keep old logs: the logs were read.
        before = None
    return Wallet(address=address, since=since, before_atomic=before, after_atomic=after, history=history)


async def _answers(
    agent: Agent, runs: Sequence[Run], vendors: dict[str, Vendor]
) -> tuple[dict[str, Answer], list[Unchecked]]:
    """Ask the vendors for the job of each payment; return what they say, and what could not be asked."""
    answers: dict[str, Answer] = {}
    silent: list[Unchecked] = []

    async def ask(run: Run, payment: Payment) -> None:
        vendor = vendors.get(payment.vendor_id)
        if vendor is None:
            silent.append(Unchecked(run.run_id, payment.payment_id, f"{payment.vendor_id} is no longer registered"))
            return
        try:
            answers[payment.payment_id] = await _answer(agent, vendor, payment)
        except VendorError as error:
            silent.append(Unchecked(run.run_id, payment.payment_id, f"{payment.vendor_id}: {error}"))

    gate = asyncio.Semaphore(CALLS_AT_ONCE)

    async def in_turn(run: Run, payment: Payment) -> None:
        async with gate:
            await ask(run, payment)

    await asyncio.gather(*(in_turn(run, payment) for run in runs for payment in run.payments))
    return answers, sorted(silent, key=lambda one: one.subject)


async def _answer(agent: Agent, vendor: Vendor, payment: Payment) -> Answer:
    found = await agent.vendors.find(vendor, payment.payment_id)
    if found is None or found.status not in JOB_ENDS:
        return Answer(found)
    # What it logged is of no use here: nothing is newer than the job's end.
    return Answer(found, await agent.vendors.job_status(vendor, found.vendor_job_id, None))


async def _live(
    agent: Agent, vendors: dict[str, Vendor]
) -> tuple[tuple[tuple[str, JobFound], ...], tuple[Unchecked, ...]]:
    live: list[tuple[str, JobFound]] = []
    deaf: list[Unchecked] = []
    for vendor_id, vendor in vendors.items():
        try:
            live += [(vendor_id, job) for job in await agent.vendors.live_jobs(vendor)]
        except VendorRefused:
            pass  # a vendor need not list its jobs: those of our payments were asked for one by one
        except VendorError as error:
            deaf.append(Unchecked("", vendor_id, f"its jobs could not be listed: {error}"))
    return tuple(live), tuple(deaf)
