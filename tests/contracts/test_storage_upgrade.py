"""A store that an older program made: what it knew is known still, and the first use brings it up to date."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from typing import Any

import pytest

from agent.core import events
from agent.core.log import record
from agent.core.policy import once
from agent.core.replay import replay
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


async def test_many_first_uses_at_once_of_an_older_store_meet_well(older: Store, place: Place) -> None:
    stores = [older, *(place.open() for _ in range(3))]
    assert await asyncio.gather(*[store.migrate() for store in stores]) == [3] * 4
    assert await older.check() == []
    for store in stores:
        await store.close()
