"""
What every suite reads and compares after it has done its worst: the chain, the vendors' books, the store's counters,
and the runs that all of these have to agree with.

The chain is read here by other code than the product's own, so that a fault of that one shows. The rest is pure: each
function returns a sentence for each thing that is not as it has to be, and nothing where all is well.
"""

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agent.core.invariants import Broken, Settlement, VendorJob
from agent.core.model import Entry, Payment, Run
from agent.core.policy import once
from agent.core.replay import replay
from agent.ports import Store
from agent.status import is_same
from chain.abi import TOPICS, quantity
from chain.devchain import DevNode
from wire import decimal_json
from wire.money import BASE_SEPOLIA_USDC

SETTLED = ("completed", "refunded")
_USED = TOPICS["AuthorizationUsed(address,bytes32)"]
_TRANSFER = TOPICS["Transfer(address,address,uint256)"]
_PAGE = 200
# Counters of the store that count no money and no single use: when the sweep's last turn at something was.
_TURNS = "turn/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """One Transfer of the token that no cheque moved; addresses and `transaction` in lower case."""

    sender: str
    receiver: str
    amount_atomic: int
    transaction: str
    index: int


def read_chain(
    chain: DevNode, since_block: int, payer: str | None = None
) -> tuple[tuple[Settlement, ...], tuple[Moved, ...]]:
    """
    Return the authorizations that were settled after `since_block`, `payer`'s or all, and the token's other transfers.

    Raises:
        ValueError: an authorization was used and no transfer follows it.
    """
    if quantity(chain.rpc("eth_blockNumber")) <= since_block:
        return (), ()
    window = {"fromBlock": hex(since_block + 1), "toBlock": "latest", "address": BASE_SEPOLIA_USDC.address}
    settlements: list[Settlement] = []
    transfers: list[Moved] = []
    used: Any = None
    for log in chain.rpc("eth_getLogs", window):
        topics = log["topics"]
        if used is not None:
            if topics[0] != _TRANSFER or _place(log) != (used["blockNumber"], quantity(used["logIndex"]) + 1):
                break
            settled = Settlement(
                payer=_address(used["topics"][1]),
                nonce=used["topics"][2].lower(),
                pay_to=_address(topics[2]),
                amount_atomic=quantity(log["data"]),
            )
            settlements += [settled] if payer is None or settled.payer == payer.lower() else []
            used = None
        elif topics[0] == _USED:
            used = log
        elif topics[0] == _TRANSFER:
            moved = Moved(
                sender=_address(topics[1]),
                receiver=_address(topics[2]),
                amount_atomic=quantity(log["data"]),
                transaction=log["transactionHash"].lower(),
                index=quantity(log["logIndex"]),
            )
            transfers.append(moved)
    if used is not None:
        raise ValueError(f"the authorization {used['topics'][2]} moved nothing")
    return tuple(settlements), tuple(transfers)


def _place(log: Any) -> tuple[str, int]:
    return log["blockNumber"], quantity(log["logIndex"])


def _address(topic: str) -> str:
    return "0x" + topic[-40:].lower()


def vendor_jobs(database: Path, since_row: int = 0) -> tuple[VendorJob, ...]:
    """Return every job in the vendors' database, or those after `since_row`."""
    query = "SELECT document FROM mock_jobs WHERE rowid > ? ORDER BY rowid"
    with closing(_open(database)) as connection:
        documents = [decimal_json.loads(row[0]) for row in connection.execute(query, (since_row,))]
    return tuple(
        VendorJob(
            vendor_id=job["vendor_id"],
            vendor_job_id=job["job_id"],
            payment_id=job["payment_id"],
            status=job["status"],
        )
        for job in documents
    )


def vendor_row(database: Path) -> int:
    """Return the number of the newest row of the vendors' jobs, 0 where there is none."""
    with closing(_open(database)) as connection:
        row: int = connection.execute("SELECT coalesce(max(rowid), 0) FROM mock_jobs").fetchone()[0]
        return row


def read_holds(url: str, name: str = "") -> dict[str, int]:
    """Return every counter of the store at `url` that holds something by its scope; `name` is a MongoDB's database."""
    if url.startswith("sqlite:///"):
        with closing(_open(Path(url.removeprefix("sqlite:///")))) as connection:
            rows = connection.execute("SELECT id, value FROM wallets").fetchall()
    else:
        from pymongo import MongoClient

        with MongoClient[dict[str, Any]](url) as client:
            database = client[urlsplit(url).path.strip("/") or name]
            rows = [(row["_id"], int(row["value"])) for row in database.wallets.find()]
    return {scope: value for scope, value in rows if not scope.startswith(_TURNS)}


def _open(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{database}?mode=ro", uri=True)


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


def told(broken: Iterable[Broken]) -> list[str]:
    return [f"{one.invariant} {one.run_id}: {one.detail}" for one in broken]


def unlike_log(run: Run, log: Sequence[Entry]) -> list[str]:
    """Return how the stored `run` is not what its log folds to, or what of its log a replay does not repeat."""
    try:
        again = replay(log)
    except (LookupError, ValueError, AssertionError) as error:
        return [f"log {run.run_id}: it cannot be replayed: {type(error).__name__}: {error}"]
    found = [] if again.broken_at is None else [f"log {run.run_id}: broken at {again.broken_at}"]
    found += [f"log {run.run_id}: the decision of entry {one.seq} does not repeat" for one in again.differences]
    if not is_same(run, again.run):
        found.append(f"log {run.run_id}: it does not fold to the stored run")
    return found


def double_payments(runs: Iterable[Run], settlements: Iterable[Settlement]) -> list[str]:
    """Return a line for each settlement that paid a job again."""
    by_nonce = {paid.nonce.lower(): paid for paid in _payments(runs)}
    settled = Counter(one.nonce.lower() for one in settlements)
    paid_for = Counter(by_nonce[nonce].job_id for nonce in settled.elements() if nonce in by_nonce)
    found = [f"{job_id} was paid {count} times" for job_id, count in paid_for.items() for _ in range(count - 1)]
    # A cheque that we do not know may have paid a job whose own cheque was not settled; no job needs another.
    waiting = {paid.job_id for paid in by_nonce.values()} - set(paid_for)
    unknown = sorted(set(settled) - set(by_nonce))[len(waiting) :]
    return found + [f"the unknown cheque {nonce} paid a job again" for nonce in unknown]


def lost_payments(runs: Iterable[Run], settlements: Iterable[Settlement]) -> list[str]:
    """Return a line for each payment that is settled on the chain or in our books and not in both."""
    settled = Counter(one.nonce.lower() for one in settlements)
    booked = Counter({paid.nonce.lower() for paid in _payments(runs) if paid.status in SETTLED})
    return [f"the chain settled {nonce}, our books do not have it as paid" for nonce in settled - booked] + [
        f"our books have {nonce} as paid, the chain never settled it" for nonce in booked - settled
    ]


def unserved(runs: Iterable[Run], settlements: Iterable[Settlement], jobs: Iterable[VendorJob]) -> list[str]:
    """Return a line for each payment that was settled and that no vendor has a job for."""
    settled, started = {one.nonce.lower() for one in settlements}, {job.payment_id for job in jobs}
    return [
        f"{paid.payment_id} was paid and no vendor has a job for it"
        for paid in _payments(runs)
        if paid.nonce.lower() in settled and paid.payment_id not in started
    ]


def unpaid_jobs(runs: Iterable[Run], settlements: Iterable[Settlement], jobs: Iterable[VendorJob]) -> list[str]:
    """Return a line for each payment that a vendor works for and that was not settled, or is none of ours."""
    settled = {one.nonce.lower() for one in settlements}
    nonces = {paid.payment_id: paid.nonce.lower() for paid in _payments(runs)}
    return [
        f"a vendor works for {payment_id}, which is " + ("not settled" if payment_id in nonces else "no payment")
        for payment_id in dict.fromkeys(job.payment_id for job in jobs)
        if nonces.get(payment_id) not in settled
    ]


def overspend(runs: Iterable[Run]) -> int:
    """Return by how much the payments of all runs that were or may be settled exceed the runs' budgets."""
    return sum(max(0, -run.budget.total_atomic + sum(_kept(run))) for run in runs)


def wanted_holds(runs: Iterable[Run], transfers: Sequence[Moved] = ()) -> dict[str, int]:
    """
    Return what the store's counters have to hold, by scope, if `runs` are all that it has.

    A payment that did not fail counts in its payer's day and in the vendor's, a vendor's job once, a transfer once
    that was counted as a refund; `transfers` are the token's, from the chain.
    """
    wanted: Counter[str] = Counter()
    runs, left = tuple(runs), list(transfers)
    for paid in _payments(runs):
        if paid.status == "failed":
            continue
        day = f"{paid.network}:{paid.asset.lower()}:{paid.payer.lower()}:{paid.created_at:%Y-%m-%d}"
        wanted.update({day: paid.amount_atomic, f"{day}:{paid.vendor_id}": paid.amount_atomic})
        if paid.status == "refunded" and paid.refund is not None:
            sent = next((one for one in left if _is_refund(one, paid)), None)
            # None of these is on the chain: this scope is in no store.
            wanted[once(f"{paid.refund.transaction}:{sent.index if sent else 'not sent'}").scope] += 1
            left = [one for one in left if one is not sent]
    jobs = [job for run in runs for job in run.jobs if job.vendor_job_id is not None]
    wanted.update(once(f"{job.vendor_id}:{job.vendor_job_id}").scope for job in jobs)
    return dict(wanted)


def unlike_holds(held: Mapping[str, int], wanted: Mapping[str, int]) -> list[str]:
    """Return a line for each scope whose counter is not what the payments and jobs come to."""
    return [
        f"{held.get(scope, 0)} is held under {scope}, payments and jobs are {wanted.get(scope, 0)}"
        for scope in sorted(held.keys() | wanted.keys())
        if held.get(scope, 0) != wanted.get(scope, 0)
    ]


def _payments(runs: Iterable[Run]) -> Iterator[Payment]:
    return (paid for run in runs for paid in run.payments)


def _kept(run: Run) -> Iterator[int]:
    return (paid.amount_atomic - paid.refunded_atomic for paid in run.payments if paid.status != "failed")


def _is_refund(moved: Moved, paid: Payment) -> bool:
    assert paid.refund is not None
    asked = (paid.refund.transaction.lower(), paid.pay_to.lower(), paid.payer.lower(), paid.refunded_atomic)
    return (moved.transaction, moved.sender, moved.receiver, moved.amount_atomic) == asked
