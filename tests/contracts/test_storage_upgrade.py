"""A store that an older program made: what it knew is known still, and the first use brings it up to date."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agent.core import events
from agent.core.costs import costs
from agent.core.invariants import of_run
from agent.core.log import record
from agent.core.policy import once
from agent.core.replay import replay
from agent.core.slots import done_count, open_slots
from agent.ports import Claim, Store
from agent.status import is_same
from tests.agent.core.values import EVENTS, STARTED, at
from tests.contracts.store_values import Place

REFUND = "0xab:3"
JOB = "run_1-job-1"
# Up to the first job's being taken up, polled twice; then more polls than are kept.
POLLED = (
    *EVENTS[:10],
    *(
        events.JobMissed(at=at(10 + number), job_id=JOB, detail="nobody there")
        if number % 3
        else events.JobObserved(at=at(10 + number), job_id=JOB, status="running", progress=Decimal("0.2"), cursor="1")
        for number in range(25)
    ),
)

# A run as the program before there were slots stored it: two jobs wanted, two failed and were refunded, chosen by the
# bandit and paid on a local chain. A line is a collection and a document of it.
BEFORE_SLOTS = Path(__file__).parent.parent / "fixtures" / "run_before_slots.jsonl"

TO_VERSION_2 = """
CREATE TABLE refunds (id TEXT PRIMARY KEY, run_id TEXT NOT NULL) STRICT;
INSERT INTO refunds VALUES ('0xab:3', 'run_0');
UPDATE jobs SET document = json_set(json_remove(document, '$.polls'), '$.misses', 2);
UPDATE schema SET version = 2;
"""


def on_mongo(place: Place, work: Callable[[Any], Any]) -> Any:
    from pymongo import MongoClient

    with MongoClient(place.where) as client:
        return work(client[place.database])


def put_back(place: Place) -> None:
    """Make the store one of version 2, which kept the refunds it had counted, and of polls a number."""
    if place.kind == "sqlite":
        with closing(sqlite3.connect(place.where)) as connection:
            connection.executescript(TO_VERSION_2)
        return

    def change(database: Any) -> None:
        database.refunds.insert_one({"_id": REFUND, "runId": "run_0"})
        database.jobs.update_many({}, {"$unset": {"polls": 1}, "$set": {"misses": 2}})
        database.schema.update_one({"_id": "agent"}, {"$set": {"version": 2}})

    on_mongo(place, change)


def names(place: Place) -> list[str]:
    if place.kind == "mongo":
        found: list[str] = on_mongo(place, lambda database: database.list_collection_names())
        return found
    with closing(sqlite3.connect(place.where)) as connection:
        return [name for (name,) in connection.execute("SELECT name FROM sqlite_master")]


@pytest.fixture
async def older(store: Store, place: Place) -> Store:
    run, entries = record(STARTED, POLLED)
    await store.insert_run(run, entries, None, "")
    put_back(place)
    return place.open()


async def test_what_was_counted_once_is_not_counted_again(older: Store, place: Place) -> None:
    assert (await older.check())[0] == "schema agent: version 2, this program has 3"
    claim = await older.claim("run_1", 60)
    assert isinstance(claim, Claim)
    assert await older.check() == []
    # Its refund, and the vendor's job that one of its purchases was served by.
    for key in (REFUND, "gpu_vendor_1:vjob-1"):
        assert await older.save(claim.token, claim.run, holds=[once(key)]) == once(key)
    assert await older.save(claim.token, claim.run, holds=[once("gpu_vendor_1:vjob-2")]) is None
    assert "refunds" not in names(place)
    await older.close()


async def test_a_run_that_was_polled_folds_to_what_is_stored(older: Store) -> None:
    stored, folded = await older.read_run("run_1"), replay(await older.read_log("run_1")).run
    assert len(folded.jobs[0].polls) == 20
    assert stored.jobs[0].polls == folded.jobs[0].polls
    assert is_same(stored, folded)
    await older.close()


def put_before_slots(place: Place) -> str:
    """Put the old documents in as they are; return the run's id."""
    stored = [json.loads(line) for line in BEFORE_SLOTS.read_text().splitlines()]
    run = next(document for name, document in stored if name == "runs")
    parts = {name: [one for kind, one in stored if kind == name] for name in ("jobs", "payments")}
    entries = [document for name, document in stored if name == "observations"]
    if place.kind == "mongo":
        beside = {"cancelRequestedAt": None, "nextTickAt": None, "startKey": None, "startFingerprint": None}
        lease = {"lease": {"token": 0, "claimedAt": None, "until": None}}

        def insert(database: Any) -> None:
            database.runs.insert_one({**run, **beside, **lease})
            for name, documents in parts.items():
                places = enumerate(documents)
                database[name].insert_many([{**one, "runId": run["_id"], "position": number} for number, one in places])
            database.observations.insert_many([{"_id": f"{one['runId']}:{one['seq']}", **one} for one in entries])

        on_mongo(place, insert)
        return str(run["_id"])
    with closing(sqlite3.connect(place.where)) as connection, connection:
        values = (run["_id"], run["status"], run["createdAt"], json.dumps(run))
        connection.execute("INSERT INTO runs (id, status, created_at, document) VALUES (?, ?, ?, ?)", values)
        for name, documents in parts.items():
            connection.executemany(
                f"INSERT INTO {name} (id, run_id, position, updated_at, document) VALUES (?, ?, ?, ?, ?)",  # noqa: S608
                [
                    (one["_id"], run["_id"], number, one["updatedAt"], json.dumps(one))
                    for number, one in enumerate(documents)
                ],
            )
        connection.executemany(
            "INSERT INTO observations (run_id, seq, type, document) VALUES (?, ?, ?, ?)",
            [(one["runId"], one["seq"], one["type"], json.dumps(one)) for one in entries],
        )
    return str(run["_id"])


async def test_a_run_of_before_there_were_slots_reads_and_replays_to_the_bit(place: Place) -> None:
    store = place.open()
    await store.migrate()
    run_id = put_before_slots(place)
    run, log = await store.read_run(run_id), await store.read_log(run_id)
    again = replay(log)
    assert (again.broken_at, again.differences) == (None, ())
    assert is_same(run, again.run)
    assert [(job.status, job.slot, job.resumes, job.hedges, job.checkpoint) for job in run.jobs] == [
        ("failed", None, None, None, None)
    ] * 2 + [("completed", None, None, None, None)] * 2
    assert (done_count(run), open_slots(run), of_run(run)) == (2, (), [])
    # Half of each failed job came back: 0.7 is what it cost.
    assert [cost.spent_atomic for cost in costs(run)] == [700_000, 700_000, 1_800_000, 1_800_000]
    # What is stored anew has the new fields, and is the same run.
    claim = await store.claim(run_id, 60)
    assert isinstance(claim, Claim)
    await store.save(claim.token, claim.run)
    assert await store.read_run(run_id) == claim.run
    await store.close()


async def test_many_first_uses_at_once_of_an_older_store_meet_well(older: Store, place: Place) -> None:
    stores = [older, *(place.open() for _ in range(3))]
    assert await asyncio.gather(*[store.migrate() for store in stores]) == [3] * 4
    assert await older.check() == []
    for store in stores:
        await store.close()
