"""
Documents of a run and of what belongs to it, written and read inside a transaction of the caller's.

The first write of a save is the one that its fencing token guards; what fails after it undoes it. A write that met
another transaction carries the driver's label for that and is let through, so that the whole is tried again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pymongo import ReplaceOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from agent.core import standing
from agent.core.errors import AgentError, Bug, KeyConflict, StaleClaim
from agent.core.model import Entry, Job, Notice, Outcome, Payment, Run, Standing, Vendor
from agent.edges.documents import check_books, decode, decode_run, encode, encode_time, standing_key
from agent.edges.store_errors import HoldRefused
from agent.ports import Hold
from storage.mongo import Database, Document, Session

_DUPLICATE_KEY = 11000


async def with_parts(database: Database, session: Session | None, found: Sequence[Document]) -> list[Run]:
    """Return the runs of these documents with their jobs and payments."""
    if not found:
        return []
    parts: dict[tuple[str, str], list[Document]] = {}
    for name in ("jobs", "payments"):
        of_these = {"runId": {"$in": [document["_id"] for document in found]}}
        async for part in database[name].find(of_these, session=session).sort([("runId", 1), ("position", 1)]):
            parts.setdefault((name, part["runId"]), []).append(part)
    return [
        decode_run(run, parts.get(("jobs", run["_id"]), []), parts.get(("payments", run["_id"]), [])) for run in found
    ]


async def insert_run(
    database: Database, session: Session, run: Run, entries: Sequence[Entry], key: str | None, fingerprint: str
) -> Run:
    """Store a new run, or return the one `key` began. Raises KeyConflict."""
    check_books(run, entries)
    if key is not None:
        before = await database.runs.find_one({"startKey": key}, session=session)
        if before is not None:
            if before["startFingerprint"] != fingerprint:
                raise KeyConflict("the key began a run with another body")
            return (await with_parts(database, session, [before]))[0]
    document = encode(run) | {
        "cancelRequestedAt": None if run.cancel_requested_at is None else encode_time(run.cancel_requested_at),
        "nextTickAt": None if run.next_tick_at is None else encode_time(run.next_tick_at),
        "startKey": key,
        "startFingerprint": None if key is None else fingerprint,
        "lease": {"token": 0, "claimedAt": None, "until": None},
    }
    with _duplicate_means(Bug(f"run {run.run_id} was stored before")):
        await database.runs.insert_one(document, session=session)
    await _write_parts(database, session, run, entries)
    return run


async def save(
    database: Database,
    session: Session,
    token: int,
    run: Run,
    entries: Sequence[Entry],
    holds: Sequence[Hold],
    outcomes: Sequence[Outcome],
    notices: Sequence[Notice],
) -> None:
    """See `Store.save`. Raises HoldRefused where that returns the hold."""
    check_books(run, entries)
    document = encode(run)
    del document["_id"]
    guard = {"_id": run.run_id, "lease.token": token}
    if (await database.runs.update_one(guard, {"$set": document}, session=session)).matched_count != 1:
        raise StaleClaim(f"run {run.run_id} was claimed by another tick")
    if notices:
        queued = [encode(notice) | {"dueAt": encode_time(notice.created_at)} for notice in notices]
        with _duplicate_means(Bug(f"run {run.run_id} queued a notice twice")):
            await database.outbox.insert_many(queued, session=session)
    await _write_parts(database, session, run, entries)
    # Last: many runs meet at a vendor's standing and a wallet's counter, and hold them from here to the commit alone.
    for outcome in outcomes:
        await _count_outcome(database, session, outcome)
    for hold in holds:
        await _count_hold(database, session, hold)


async def _count_outcome(database: Database, session: Session, outcome: Outcome) -> None:
    key = {"_id": standing_key(outcome.vendor_id, outcome.gpu_type)}
    found = await database.standings.find_one(key, session=session)
    before = (
        standing.opened(outcome.vendor_id, outcome.gpu_type, outcome.at) if found is None else decode(Standing, found)
    )
    # Two that count at once collide, and the later one is tried again with what the first has counted.
    await database.standings.replace_one(key, encode(standing.counted(before, outcome)), upsert=True, session=session)


async def open_counters(database: Database, holds: Sequence[Hold]) -> None:
    """Make the counters that do not exist yet, at 0, outside of any transaction: two that made one would collide."""
    for scope in {hold.scope for hold in holds}:
        await database.wallets.update_one({"_id": scope}, {"$setOnInsert": {"value": 0}}, upsert=True)


async def take_turn(database: Database, name: str, now_s: int, interval_s: int) -> bool:
    """See `Store.take_turn`. Kept among the counters, as the second of the last turn."""
    due = {"_id": f"turn/{name}", "value": {"$lte": now_s - interval_s}}
    try:
        await database.wallets.update_one(due, {"$set": {"value": now_s}}, upsert=True)
    except DuplicateKeyError:
        return False
    return True


async def put_vendor(database: Database, vendor: Vendor, replace: bool) -> bool:
    """Return whether `vendor` was written."""
    document = encode(vendor)
    taken = await database.schema.find_one_and_update({"_id": "vendors"}, {"$inc": {"position": 1}}, upsert=True)
    first = {"_id": vendor.vendor_id, "position": taken["position"] if taken else 0}
    change = {"$set": document, "$setOnInsert": first} if replace else {"$setOnInsert": document | first}
    written = await database.vendors.update_one({"vendorId": vendor.vendor_id}, change, upsert=True)
    return replace or written.upserted_id is not None


async def _count_hold(database: Database, session: Session, hold: Hold) -> None:
    amount = hold.amount_atomic
    counted = await database.wallets.find_one_and_update(
        {"_id": hold.scope} if amount <= 0 else {"_id": hold.scope, "value": {"$lte": hold.cap_atomic - amount}},
        [{"$set": {"value": {"$max": [0, {"$add": ["$value", amount]}]}}}],
        session=session,
    )
    if counted is None:
        raise HoldRefused(hold)


async def _write_parts(database: Database, session: Session, run: Run, entries: Sequence[Entry]) -> None:
    written: dict[str, tuple[Job | Payment, ...]] = {"jobs": run.jobs, "payments": run.payments}
    for name, parts in written.items():
        if parts:
            changes = [_replacement(run, position, part) for position, part in enumerate(parts)]
            with _duplicate_means(Bug(f"{name} of run {run.run_id}: an id or a transaction that is another's")):
                await database[name].bulk_write(changes, session=session)
    if entries:
        with _duplicate_means(Bug(f"run {run.run_id} has entries of these numbers")):
            await database.observations.insert_many(
                [{"_id": f"{entry.run_id}:{entry.seq}"} | encode(entry) for entry in entries], session=session
            )


def _replacement(run: Run, position: int, part: Job | Payment) -> ReplaceOne[dict[str, Any]]:
    document = encode(part) | {"runId": run.run_id, "position": position}
    # With the run in the condition, the id of another run's part is a duplicate instead of an overwrite.
    return ReplaceOne({"_id": document["_id"], "runId": run.run_id}, document, upsert=True)


@contextmanager
def _duplicate_means(refusal: AgentError) -> Iterator[None]:
    try:
        yield
    except DuplicateKeyError as error:
        raise refusal from error
    except BulkWriteError as error:
        if any(each["code"] == _DUPLICATE_KEY for each in error.details["writeErrors"]):
            raise refusal from error
        raise
