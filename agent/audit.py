"""
Auditing: the stored runs and their logs, the chain and the vendors are asked, and `core.audit` says where they differ.

Nothing is written and no lease is taken: ticks go on meanwhile. So the books are read, then the world, then what moved
of the books meanwhile. A run that seems to differ and moved is read again alone, faster than ticks follow each other.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from agent.core import audit as core
from agent.core.audit import Account, Answer, Report, Unchecked, Wallet, World
from agent.core.errors import ChainUnavailable, VendorError, VendorRefused, WalletError
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
    report = await _once(agent, run_id)
    if run_id is not None:
        return report if not report.late else await _alone(agent, run_id)
    for late in report.late:
        again = await _alone(agent, late)
        known = {*report.differences, *report.unchecked}
        report = replace(
            report,
            differences=report.differences + tuple(one for one in again.differences if one.code not in core.STANDS),
            unchecked=report.unchecked + tuple(one for one in again.unchecked if one not in known),
        )
    return replace(report, late=())


async def _alone(agent: Agent, run_id: str) -> Report:
    """Return the report of one run that a tick moved on while it was read."""
    for _ in range(READS_MAX):
        report = await _once(agent, run_id)
        if not report.late:
            return report
    late = Unchecked(run_id, "run", "it was ticked while it was read: audit it again")
    return replace(report, unchecked=(*report.unchecked, late), late=())


async def _once(agent: Agent, run_id: str | None) -> Report:
    whole, asset = run_id is None, agent.policy.asset
    accounts = await _accounts(agent, run_id)
    books = core.books_of(accounts)
    world = await _world(agent, [run for run, _ in books], whole=whole)
    report = core.audit(books, world, asset, whole=whole)
    if not report.differences and not report.unchecked:
        return report
    later = await _later(agent, accounts, run_id)
    return core.audit(books, replace(world, later=later), asset, whole=whole) if later else report


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


async def _later(agent: Agent, accounts: Sequence[Account], run_id: str | None) -> tuple[Run, ...]:
    """Return the runs that were saved, or began, since they were read, as they are now."""
    seen = {account.run.run_id: account.run.log.seq for account in accounts}
    ids = [run_id] if run_id is not None else await _ids(agent)
    runs = [await agent.store.read_run(one) for one in ids]
    return tuple(run for run in runs if run.log.seq != seen.get(run.run_id))


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
    used: list[tuple[str, str]] = []
    payments = [payment for run in ours for payment in run.payments]
    payers = {payment.payer.lower() for payment in payments}
    try:
        own = {(await agent.wallet.address()).lower()} if ours and agent.wallet is not None else set()
    except WalletError as error:
        own = set()
        unchecked.append(Unchecked("", "wallet", f"its address could not be asked: {error}"))
    for address in sorted(payers | own):
        try:
            if address in payers:
                since = min(payment.from_block for payment in payments if payment.payer.lower() == address)
                wallets[address] = await _wallet(agent, address, max(0, since - HEAD_MARGIN_BLOCKS))
            used += await _used(agent, address, [nonce for run in ours for nonce in core.next_nonces(run)])
        except ChainUnavailable as error:
            unchecked.append(Unchecked("", address, f"the chain could not be asked: {error}"))
    if whole:
        unchecked += [
            Unchecked("", wallet.address, f"the node no longer knows what it held in block {wallet.since}")
            for wallet in wallets.values()
            if wallet.before_atomic is None
        ]
    vendors = {vendor.vendor_id: vendor for vendor in await agent.store.list_vendors()}
    answers, silent = await _answers(agent, runs, vendors)
    live, deaf = await _live(agent, vendors) if whole else ((), ())
    return World(
        wallets=wallets,
        answers=answers,
        live=live,
        used=used,
        doors={vendor_id: vendor.endpoint.rstrip("/") for vendor_id, vendor in vendors.items()},
        unchecked=(*unchecked, *silent, *deaf),
    )


async def _wallet(agent: Agent, address: str, since: int) -> Wallet:
    """Return what the chain shows of a payer up to its newest block as it is now, whatever is mined meanwhile."""
    chain = agent.chain
    head, finalized_s = await chain.head(), await chain.finalized_time_s()
    history = await chain.history(address, since, head)
    after = await chain.balance(address, head)
    try:
        before: int | None = await chain.balance(address, since)
    except ChainUnavailable:
        # Nodes forget old states and keep old logs: the logs were read.
        before = None
    return Wallet(
        address=address,
        since=since,
        before_atomic=before,
        after_atomic=after,
        finalized_s=finalized_s,
        history=history,
    )


async def _used(agent: Agent, payer: str, nonces: Sequence[str]) -> list[tuple[str, str]]:
    """Return the cheques of a payer, of those with these nonces, that the token knows as cashed or cancelled."""
    found: list[tuple[str, str]] = []
    for start in range(0, len(nonces), CALLS_AT_ONCE):
        some = nonces[start : start + CALLS_AT_ONCE]
        states = await asyncio.gather(*(agent.chain.is_nonce_used(payer, nonce) for nonce in some))
        found += [(payer, nonce) for nonce, is_used in zip(some, states, strict=True) if is_used]
    return found


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
