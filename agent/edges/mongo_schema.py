"""
Collections and indexes of the agent's MongoDB database, and the document that says how far it has come.

A migration makes sure that all of them exist. What a document lacks `decode` fills; what cannot be filled so is a step,
which may be taken twice, by two at once, and after one that was cut off.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pymongo import IndexModel
from pymongo.errors import OperationFailure

from agent.core.evidence import noted
from agent.core.policy import once
from storage.errors import TooNew
from storage.mongo import Database

VERSION = 3
COLLECTIONS = (
    "runs",
    "jobs",
    "payments",
    "observations",
    "vendors",
    "wallets",
    "standings",
    "outbox",
    "schema",
)

# Absent fields are null, and a null is not in a partial index of texts.
_TEXT = {"$type": "string"}
_NAMESPACE_EXISTS = 48
_POLLS = ("job_observed", "job_missed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    collection: str
    name: str
    keys: tuple[tuple[str, int], ...]
    unique: bool = False
    partial: Mapping[str, Any] = field(default_factory=dict)

    def model(self) -> IndexModel:
        more = {"partialFilterExpression": dict(self.partial)} if self.partial else {}
        return IndexModel(list(self.keys), name=self.name, unique=self.unique, **more)

    def is_like(self, found: Mapping[str, Any]) -> bool:
        """Return whether `found`, as the server lists it, does what this one is for."""
        return (
            list(found["key"].items()) == list(self.keys)
            and bool(found.get("unique")) == self.unique
            and dict(found.get("partialFilterExpression", {})) == dict(self.partial)
        )


INDEXES = (
    Index(collection="vendors", name="vendors_vendor_id", keys=(("vendorId", 1),), unique=True),
    Index(collection="jobs", name="jobs_run_id_updated_at", keys=(("runId", 1), ("updatedAt", 1))),
    Index(collection="payments", name="payments_run_id_updated_at", keys=(("runId", 1), ("updatedAt", 1))),
    Index(
        collection="payments",
        name="payments_x402_tx_id",
        keys=(("x402TxId", 1),),
        unique=True,
        partial={"x402TxId": _TEXT},
    ),
    Index(collection="observations", name="observations_run_id_seq", keys=(("runId", 1), ("seq", 1)), unique=True),
    Index(collection="runs", name="runs_next_tick_at", keys=(("nextTickAt", 1),), partial={"nextTickAt": _TEXT}),
    Index(collection="runs", name="runs_status_created_at", keys=(("status", 1), ("createdAt", 1))),
    Index(collection="runs", name="runs_created_at", keys=(("createdAt", 1),)),
    Index(collection="runs", name="runs_start_key", keys=(("startKey", 1),), unique=True, partial={"startKey": _TEXT}),
    Index(collection="outbox", name="outbox_due_at", keys=(("dueAt", 1),)),
)


async def stored_version(database: Database) -> int:
    """Return the version of the database, 0 where it was never migrated. Raises TooNew above this program's."""
    found = await database.schema.find_one({"_id": "agent"})
    version = 0 if found is None else int(found["version"])
    if version > VERSION:
        raise TooNew(f"the store has version {version}, this program knows {VERSION}: update the program")
    return version


async def migrate(database: Database) -> int:
    """Make every collection and index, write down the version and return it. Raises TooNew."""
    before = await stored_version(database)
    there = await database.list_collection_names()
    for name in COLLECTIONS:
        if name not in there:
            await _create(database, name)
    for name in dict.fromkeys(index.collection for index in INDEXES):
        await database[name].create_indexes([index.model() for index in INDEXES if index.collection == name])
    if 0 < before < 3:
        await _count_once(database)
    await database.schema.update_one({"_id": "agent"}, {"$max": {"version": VERSION}}, upsert=True)
    return VERSION


async def _count_once(database: Database) -> None:
    """
    Go to version 3: what counts once is a counter with a cap of 1, the refunds of version 1 and the vendors' jobs that
    were taken up; and a job keeps a mark for each of its last polls, which its log tells.
    """
    for refund in await database.refunds.find().to_list():
        await _taken(database, refund["_id"])
    # The marks come last: a job that has them is done.
    for job in await database.jobs.find({"polls": {"$exists": False}}).to_list():
        if job.get("vendorJobId") is not None:
            await _taken(database, f"{job['vendorId']}:{job['vendorJobId']}")
        polls = ""
        async for entry in database.observations.find({"runId": job["runId"], "jobId": job["_id"]}).sort("seq", 1):
            kind = json.loads(entry["data"]).get("kind")
            polls = noted(polls, "." if kind == "job_observed" else "x") if kind in _POLLS else polls
        await database.jobs.update_one({"_id": job["_id"], "polls": {"$exists": False}}, {"$set": {"polls": polls}})
    await database.drop_collection("refunds")


async def _taken(database: Database, key: str) -> None:
    await database.wallets.update_one({"_id": once(key).scope}, {"$setOnInsert": {"value": 1}}, upsert=True)


async def _create(database: Database, name: str) -> None:
    try:
        await database.create_collection(name, check_exists=False)
    except OperationFailure as error:
        # Another process was faster with the same.
        if error.code != _NAMESPACE_EXISTS:
            raise


async def missing(database: Database) -> list[str]:
    """Return one line per collection or index that the database lacks or has in another shape."""
    version = await stored_version(database)
    lines = [] if version == VERSION else [f"schema agent: version {version}, this program has {VERSION}"]
    there = await database.list_collection_names()
    lines += [f"collection {name}: missing" for name in COLLECTIONS if name not in there]
    for name in dict.fromkeys(index.collection for index in INDEXES):
        found = {str(index["name"]): index async for index in await database[name].list_indexes()}
        for index in (index for index in INDEXES if index.collection == name):
            if index.name not in found:
                lines.append(f"index {index.name}: missing")
            elif not index.is_like(found[index.name]):
                lines.append(f"index {index.name}: differs from {index}")
    return lines
