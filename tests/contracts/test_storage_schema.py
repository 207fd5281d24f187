"""The Store port, its schema: made at the first use, checked by name, never touched by an older program."""

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from agent.core.errors import StoreTooNew
from agent.edges.store_mongo import MongoStore
from agent.edges.store_sqlite import SqliteStore
from agent.ports import Store
from tests.contracts.store_values import Place, a_run, stored

INDEXES = [
    "vendors_vendor_id",
    "jobs_run_id_updated_at",
    "payments_run_id_updated_at",
    "payments_x402_tx_id",
    "observations_run_id_seq",
    "runs_next_tick_at",
    "runs_status_created_at",
    "runs_created_at",
    "runs_start_key",
    "outbox_due_at",
]
TABLES = ["runs", "jobs", "payments", "observations", "vendors", "wallets", "standings", "outbox"]


def alter(place: Place, sqlite: str, mongo: Callable[..., object]) -> None:
    """Change the store behind the program's back."""
    if place.kind == "sqlite":
        with closing(sqlite3.connect(place.where)) as connection, connection:
            connection.execute(sqlite)
        return
    from pymongo import MongoClient

    with MongoClient(place.where) as client:
        mongo(client[place.database])


@pytest.mark.row(25)
@pytest.mark.parametrize("index", INDEXES)
async def test_an_index_that_is_missing_is_named_and_made_again(store: Store, place: Place, index: str) -> None:
    assert await store.migrate() == 3
    assert await store.check() == []
    collection = index.split("_")[0]
    alter(place, f"DROP INDEX {index}", lambda database: database[collection].drop_index(index))
    assert await store.check() == [f"index {index}: missing"]
    assert await store.migrate() == 3
    assert await store.check() == []


async def test_an_index_of_another_shape_is_named(store: Store, place: Place) -> None:
    await store.migrate()
    alter(place, "DROP INDEX vendors_vendor_id", lambda database: database.vendors.drop_index("vendors_vendor_id"))
    alter(
        place,
        "CREATE INDEX vendors_vendor_id ON vendors (vendor_id)",
        lambda database: database.vendors.create_index("vendorId", name="vendors_vendor_id"),
    )
    (line,) = await store.check()
    assert line.startswith("index vendors_vendor_id: differs")


@pytest.mark.parametrize("table", TABLES)
async def test_a_table_that_is_missing_is_named(store: Store, place: Place, table: str) -> None:
    await store.migrate()
    alter(place, f"DROP TABLE {table}", lambda database: database.drop_collection(table))
    assert any(line.endswith(f" {table}: missing") for line in await store.check())


async def test_a_check_changes_nothing(store: Store, place: Place) -> None:
    assert await store.check()
    assert await store.check()
    if place.kind == "sqlite":
        assert not await asyncio.to_thread(os.path.exists, place.where)


async def test_the_first_use_needs_no_step_before_it(store: Store) -> None:
    await stored(store)
    assert await store.check() == []
    assert await store.migrate() == await store.migrate() == 3


async def test_many_first_uses_at_once_meet_well(place: Place) -> None:
    stores = [place.open() for _ in range(4)]
    await asyncio.gather(*[stored(store) for store in stores])
    assert await stores[0].check() == []
    for store in stores:
        await store.close()


async def test_an_older_program_refuses_a_newer_store(store: Store, place: Place) -> None:
    run = await stored(store)
    alter(
        place,
        "UPDATE schema SET version = 99",
        lambda database: database.schema.update_one({"_id": "agent"}, {"$set": {"version": 99}}),
    )
    older = place.open()
    with pytest.raises(StoreTooNew):
        await older.read_run(run.run_id)
    with pytest.raises(StoreTooNew):
        await older.insert_run(a_run(), (), None, "")
    with pytest.raises(StoreTooNew):
        await older.migrate()
    await older.close()


def test_making_a_store_touches_nothing(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "no" / "such" / "folder.db")
    MongoStore("mongodb://127.0.0.1:1/", "nothing")
    assert list(tmp_path.iterdir()) == []
