"""
The `Store` port on MongoDB: no query document leaves this room's Mongo files, and no clock but the server's is read.

A run's document carries its lease, so that a claim and the guard of a save are conditions on one document; what a
save writes besides is in `mongo_documents`. Reads of a run and its parts see one moment.
"""

import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from pymongo import ReturnDocument

from agent.core.errors import UnknownRun
from agent.core.model import Entry, Notice, Outcome, Run, Standing, Vendor
from agent.core.states import RUN_ENDS
from agent.edges import mongo_documents as documents
from agent.edges import mongo_schema
from agent.edges.documents import decode, decode_cursor, decode_time, encode_cursor, encode_time, is_id
from agent.edges.store_errors import HoldRefused, translated
from agent.ports import Busy, Claim, Hold, Page
from storage.mongo import Database, Mongo, Session

ResultT = TypeVar("ResultT")

# The server's time, as every time in a document is written: text of a fixed width. BSON counts milliseconds.
_TEXT_FORMAT = "%Y-%m-%dT%H:%M:%S.%L000Z"
_NOW = {"$dateToString": {"date": "$$NOW", "format": _TEXT_FORMAT}}
_ENDS = sorted(RUN_ENDS)


class MongoStore:
    """Runs in `database` of the deployment at `url`, migrated at its first use. The constructor does no I/O."""

    def __init__(self, url: str, database: str) -> None:
        self._db = Mongo(url, database)
        self._ready = False

    async def now(self) -> datetime:
        """See `Store.now`."""
        with translated():
            return await self._db.hello()

    async def insert_run(self, run: Run, entries: Sequence[Entry], key: str | None, fingerprint: str) -> Run:
        """See `Store.insert_run`."""

        async def insert(database: Database, session: Session) -> Run:
            return await documents.insert_run(database, session, run, entries, key, fingerprint)

        return await self._transaction(insert)

    async def claim(self, run_id: str, lease_s: int, *, due_before: datetime | None = None) -> Claim | Busy:
        """See `Store.claim`."""
        known = _known(run_id)
        return await self._run(lambda database: self._claim(database, known, lease_s, due_before))

    async def save(
        self,
        token: int,
        run: Run,
        entries: Sequence[Entry] = (),
        *,
        holds: Sequence[Hold] = (),
        outcomes: Sequence[Outcome] = (),
        notices: Sequence[Notice] = (),
        durable: bool = False,
    ) -> Hold | None:
        """See `Store.save`."""

        async def write(database: Database, session: Session) -> None:
            await documents.save(database, session, token, run, entries, holds, outcomes, notices)

        if holds:
            await self._run(lambda database: documents.open_counters(database, holds))
        try:
            await self._transaction(write, durable)
        except HoldRefused as refusal:
            return refusal.hold
        return None

    async def release(self, run_id: str, token: int, next_tick_at: datetime | None) -> None:
        """See `Store.release`. A cancel asked for since the claim keeps the run due."""
        if not is_id(run_id):
            return
        at = {"$literal": None if next_tick_at is None else encode_time(next_tick_at)}
        asked = "$cancelRequestedAt"
        unseen = [{"$gte": [asked, "$lease.claimedAt"]}, {"$not": [{"$in": ["$status", _ENDS]}]}]
        # $min leaves nulls out; a null is below every text for $gte.
        due = {"$cond": [{"$and": unseen}, {"$min": [at, asked]}, at]}
        change = [{"$set": {"lease.until": None, "nextTickAt": due}}]
        await self._run(lambda database: database.runs.update_one({"_id": run_id, "lease.token": token}, change))

    async def read_run(self, run_id: str) -> Run:
        """See `Store.read_run`."""
        known = _known(run_id)
        return (await self._runs({"_id": known}) or _unknown(known))[0]

    async def list_runs(self, status: str | None, cursor: str | None, limit: int) -> Page:
        """See `Store.list_runs`."""
        condition: dict[str, Any] = {} if status is None else {"status": status}
        if (place := decode_cursor(cursor)) is not None:
            created_at, run_id = place
            condition["$or"] = [{"createdAt": {"$lt": created_at}}, {"createdAt": created_at, "_id": {"$lt": run_id}}]
        limit = max(limit, 1)
        found = await self._runs(condition, limit + 1)
        page = tuple(found[:limit])
        more = encode_cursor(encode_time(page[-1].created_at), page[-1].run_id) if len(found) > limit else None
        return Page(runs=page, cursor=more)

    async def read_log(
        self,
        run_id: str,
        *,
        types: Sequence[str] | None = None,
        newest: int | None = None,
        oldest: int | None = None,
        after: int = 0,
    ) -> list[Entry]:
        """See `Store.read_log`. Of an unknown run, an empty list."""
        # To MongoDB a limit of 0 is none.
        limit, order = (newest, -1) if oldest is None else (oldest, 1)
        if not is_id(run_id) or (limit is not None and limit < 1):
            return []
        condition: dict[str, Any] = {"runId": run_id, "seq": {"$gt": after}}
        if types is not None:
            condition["type"] = {"$in": list(types)}
        found = await self._run(
            lambda database: database.observations.find(condition).sort("seq", order).limit(limit or 0).to_list()
        )
        return [decode(Entry, document) for document in found[::order]]

    async def due_runs(self, now: datetime, limit: int) -> list[str]:
        """See `Store.due_runs`."""
        if limit < 1:
            return []
        condition = {"nextTickAt": {"$lte": encode_time(now), "$type": "string"}}
        order = [("nextTickAt", 1), ("_id", 1)]
        found = await self._run(
            lambda database: database.runs.find(condition, {"_id": True}).sort(order).limit(limit).to_list()
        )
        return [str(document["_id"]) for document in found]

    async def request_cancel(self, run_id: str) -> Run:
        """See `Store.request_cancel`. A run that has ended is returned as it is."""
        known = _known(run_id)
        change = [
            {
                "$set": {
                    "cancelRequestedAt": {"$ifNull": ["$cancelRequestedAt", _NOW]},
                    "nextTickAt": {"$min": ["$nextTickAt", _NOW]},
                }
            }
        ]
        condition = {"_id": known, "status": {"$nin": _ENDS}}
        await self._run(lambda database: database.runs.update_one(condition, change))
        return await self.read_run(known)

    async def put_vendor(self, vendor: Vendor, *, replace: bool) -> bool:
        """See `Store.put_vendor`. A vendor that is replaced keeps its place in the order."""
        return await self._run(lambda database: documents.put_vendor(database, vendor, replace))

    async def list_vendors(self) -> list[Vendor]:
        """See `Store.list_vendors`."""
        found = await self._run(lambda database: database.vendors.find().sort("position", 1).to_list())
        return [decode(Vendor, document) for document in found]

    async def remove_vendor(self, vendor_id: str) -> bool:
        """See `Store.remove_vendor`. Returns whether there was one."""
        if not is_id(vendor_id):
            return False
        result = await self._run(lambda database: database.vendors.delete_one({"vendorId": vendor_id}))
        return result.deleted_count == 1

    async def standings(self) -> list[Standing]:
        """See `Store.standings`."""
        found = await self._run(lambda database: database.standings.find().sort("_id", 1).to_list())
        return [decode(Standing, document) for document in found]

    async def take_notices(self, limit: int, lease_s: int) -> list[Notice]:
        """See `Store.take_notices`."""
        taken: list[Notice] = []
        while len(taken) < limit:
            seen = [notice.notice_id for notice in taken]
            document = await self._run(partial(_take_notice, lease_s=lease_s, seen=seen))
            if document is None:
                break
            taken.append(decode(Notice, document))
        return taken

    async def settle_notice(self, notice_id: str, retry_s: int | None) -> None:
        """See `Store.settle_notice`. A notice that is not there is left so."""
        one = {"_id": notice_id}
        if retry_s is None:
            await self._run(lambda database: database.outbox.delete_one(one))
            return
        change = [{"$set": {"dueAt": _now_plus(retry_s)}}]
        await self._run(lambda database: database.outbox.update_one(one, change))

    async def take_turn(self, name: str, now: datetime, interval_s: int) -> bool:
        """See `Store.take_turn`."""
        now_s = int(now.timestamp())
        return await self._run(lambda database: documents.take_turn(database, name, now_s, interval_s))

    async def migrate(self) -> int:
        """See `Store.migrate`."""
        with translated():
            await self._db.hello()
            return await self._db.run(mongo_schema.migrate)

    async def check(self) -> list[str]:
        """See `Store.check`. Changes nothing."""
        with translated():
            await self._db.hello()
            return await self._db.run(mongo_schema.missing)

    async def close(self) -> None:
        """Close the connections of the running loop; the next use opens new ones."""
        await self._db.close()

    async def _claim(self, database: Database, run_id: str, lease_s: int, due_before: datetime | None) -> Claim | Busy:
        lease = {
            "token": {"$add": ["$lease.token", 1]},
            "claimedAt": _NOW,
            "until": _now_plus(lease_s),
        }
        # A null, which a released lease has, is below every text.
        is_free: dict[str, Any] = {"_id": run_id, "$expr": {"$lte": ["$lease.until", _NOW]}}
        if due_before is not None:
            is_free["nextTickAt"] = {"$lte": encode_time(due_before)}
        taken = await database.runs.find_one_and_update(
            is_free, [{"$set": {"lease": lease}}], return_document=ReturnDocument.AFTER
        )
        if taken is None:
            held = await database.runs.aggregate(
                [{"$match": {"_id": run_id}}, {"$project": {"until": "$lease.until", "now": _NOW}}]
            )
            found = await held.to_list()
            document = (found or _unknown(run_id))[0]
            # Released in between, or not due any more: the caller comes back in a second.
            until = decode_time(document["until"] or document["now"])
            return Busy(max(1, math.ceil((until - decode_time(document["now"])).total_seconds())))
        # Whoever holds the lease is the only one to write these.
        run = (await documents.with_parts(database, None, [taken]))[0]
        return Claim(run=run, token=taken["lease"]["token"], now=decode_time(taken["lease"]["claimedAt"]))

    async def _runs(self, condition: dict[str, Any], limit: int = 1) -> list[Run]:
        async def read(database: Database, session: Session) -> list[Run]:
            found = database.runs.find(condition, session=session).sort([("createdAt", -1), ("_id", -1)]).limit(limit)
            return await documents.with_parts(database, session, await found.to_list())

        await self._prepare()
        with translated():
            return await self._db.snapshot(read)

    async def _run(self, work: Callable[[Database], Awaitable[ResultT]]) -> ResultT:
        await self._prepare()
        with translated():
            return await self._db.run(work)

    async def _transaction(
        self, work: Callable[[Database, Session], Awaitable[ResultT]], durable: bool = False
    ) -> ResultT:
        await self._prepare()
        with translated():
            return await self._db.transaction(work, durable=durable)

    async def _prepare(self) -> None:
        """Once in a process: is this a replica set, and of this program's version?"""
        if self._ready:
            return
        with translated():
            await self._db.hello()
            version = await self._db.run(mongo_schema.stored_version)
        if version < mongo_schema.VERSION:
            await self.migrate()
        self._ready = True


def _now_plus(seconds: int) -> dict[str, Any]:
    return {"$dateToString": {"date": {"$add": ["$$NOW", seconds * 1_000]}, "format": _TEXT_FORMAT}}


async def _take_notice(database: Database, lease_s: int, seen: list[str]) -> dict[str, Any] | None:
    return await database.outbox.find_one_and_update(
        {"_id": {"$nin": seen}, "$expr": {"$lte": ["$dueAt", _NOW]}},
        [{"$set": {"attempts": {"$add": ["$attempts", 1]}, "dueAt": _now_plus(lease_s)}}],
        sort=[("dueAt", 1), ("_id", 1)],
        return_document=ReturnDocument.AFTER,
    )


def _known(run_id: str) -> str:
    return run_id if is_id(run_id) else _unknown("of such an id")


def _unknown(run_id: str) -> Any:
    raise UnknownRun(f"there is no run {run_id}")
