"""storage.sqlite and storage.migrations: transactions, durability, what a broken file gets."""

import asyncio
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from storage.errors import Refused, TooNew, Unavailable
from storage.migrations import Schema
from storage.sqlite import NOW, NOW_PLUS_S, Sqlite

SCHEMA = Schema(
    room="room",
    steps=(("CREATE TABLE lines (line TEXT PRIMARY KEY, length INTEGER NOT NULL) STRICT",),),
    indexes=("CREATE INDEX lines_length ON lines (length)",),
    tables=("lines",),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "file.db"


@pytest.fixture
async def db(path: Path) -> AsyncIterator[Sqlite]:
    db = Sqlite(path, SCHEMA)
    yield db
    await db.close()


def insert(connection: sqlite3.Connection, line: str) -> None:
    connection.execute("INSERT INTO lines VALUES (?, ?)", (line, len(line)))


def count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM lines").fetchone()[0])


async def test_what_a_unit_of_work_raises_undoes_all_of_it(db: Sqlite) -> None:
    def half(connection: sqlite3.Connection) -> None:
        insert(connection, "first")
        raise LookupError("no second")

    with pytest.raises(LookupError):
        await db.write(half)
    assert await db.read(count) == 0


async def test_writers_at_once_wait_for_each_other(db: Sqlite) -> None:
    await asyncio.gather(*[db.write(lambda connection, n=n: insert(connection, f"line {n}")) for n in range(50)])
    assert await db.read(count) == 50


async def test_a_reader_sees_one_moment_and_writes_nothing(db: Sqlite) -> None:
    await db.write(lambda connection: insert(connection, "first"))
    counted, go_on = threading.Event(), threading.Event()

    def count_twice(connection: sqlite3.Connection) -> tuple[int, int]:
        first = count(connection)
        counted.set()
        go_on.wait(10)
        return first, count(connection)

    reading = asyncio.create_task(db.read(count_twice))
    await asyncio.to_thread(counted.wait, 10)
    await db.write(lambda connection: insert(connection, "second"))
    go_on.set()
    assert await reading == (1, 1)
    with pytest.raises(Unavailable, match="readonly"):
        await db.read(lambda connection: insert(connection, "third"))


async def test_a_durable_commit_is_synced_and_the_next_one_is_not(db: Sqlite) -> None:
    def level(connection: sqlite3.Connection) -> int:
        return int(connection.execute("PRAGMA synchronous").fetchone()[0])

    assert [await db.write(level, durable=durable) for durable in (False, True, False)] == [1, 2, 1]
    assert await db.read(lambda connection: connection.execute("PRAGMA journal_mode").fetchone()[0]) == "wal"


async def test_the_clock_is_text_that_sorts(db: Sqlite) -> None:
    query = f"SELECT {NOW}, {NOW_PLUS_S}, {NOW_PLUS_S}"
    now, later, before = await db.read(lambda connection: connection.execute(query, (1, -1)).fetchone())
    assert before < now < later
    assert len(now) == len("2026-01-31T09:30:00.123456Z")


async def test_the_file_is_its_owners_alone(db: Sqlite, path: Path) -> None:
    await db.write(lambda connection: insert(connection, "first"))
    for file in await asyncio.to_thread(lambda: list(path.parent.iterdir())):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_an_older_file_is_migrated_and_keeps_what_it_has(db: Sqlite, path: Path) -> None:
    await db.write(lambda connection: insert(connection, "first"))
    grown = replace(SCHEMA, steps=(*SCHEMA.steps, ("ALTER TABLE lines ADD COLUMN colour TEXT",)))
    newer = Sqlite(path, grown)
    assert await newer.check() == ["schema room: version 1, this program has 2"]
    assert await newer.read(lambda connection: connection.execute("SELECT * FROM lines").fetchall()) == [
        ("first", 5, None)
    ]
    assert await newer.migrate() == 2
    await newer.close()
    older = Sqlite(path, SCHEMA)
    with pytest.raises(TooNew, match="update the program"):
        await older.read(count)
    await older.close()


async def test_a_migration_that_fails_changes_nothing(db: Sqlite, path: Path) -> None:
    await db.write(lambda connection: insert(connection, "first"))
    broken = Sqlite(path, replace(SCHEMA, steps=(*SCHEMA.steps, ("DELETE FROM lines", "no SQL"))))
    with pytest.raises(Unavailable):
        await broken.migrate()
    await broken.close()
    assert await db.read(count) == 1
    assert await db.check() == []


async def test_rooms_share_a_file_with_a_version_each(db: Sqlite, path: Path) -> None:
    await db.write(lambda connection: insert(connection, "first"))
    other = Sqlite(
        path, Schema(room="other", steps=((), ("CREATE TABLE signs (sign TEXT) STRICT",)), tables=("signs",))
    )
    assert await other.migrate() == 2
    assert await db.migrate() == 1
    assert await other.check() == await db.check() == []
    await other.close()


async def test_a_file_without_a_schema_is_used_as_it_is(path: Path) -> None:
    db = Sqlite(path)
    await db.write(lambda connection: connection.execute("CREATE TABLE bare (n INTEGER)"))
    assert await db.migrate() == 0
    assert await db.check() == []
    await db.close()


@pytest.mark.parametrize("content", [b"<html>this is no database, and long enough to say so</html>" * 20])
async def test_what_is_no_database_is_unavailable_and_left_alone(path: Path, content: bytes) -> None:
    def write() -> None:
        path.parent.mkdir()
        path.write_bytes(content)

    await asyncio.to_thread(write)
    db = Sqlite(path, SCHEMA)
    with pytest.raises(Unavailable, match="not a database"):
        await db.read(count)
    await db.close()
    assert await asyncio.to_thread(path.read_bytes) == content


async def test_a_path_that_cannot_be_is_unavailable(tmp_path: Path) -> None:
    await asyncio.to_thread((tmp_path / "file").write_text, "in the way")
    for path in (tmp_path / "file" / "below.db", tmp_path):
        db = Sqlite(path, SCHEMA)
        with pytest.raises(Unavailable):
            await db.read(count)
        await db.close()


async def test_a_file_locked_for_too_long_is_unavailable(db: Sqlite, path: Path) -> None:
    await db.write(lambda connection: insert(connection, "first"))
    hasty = Sqlite(path, SCHEMA, busy_timeout_s=0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="locked"):
            await hasty.write(lambda connection: insert(connection, "second"))
        assert await hasty.read(count) == 1
    await hasty.write(lambda connection: insert(connection, "second"))
    await hasty.close()


@pytest.mark.parametrize("line", ["\ud800", 2**70, "first"])
async def test_what_a_table_does_not_take_is_refused(db: Sqlite, line: object) -> None:
    await db.write(lambda connection: insert(connection, "first"))
    with pytest.raises(Refused):
        await db.write(lambda connection: connection.execute("INSERT INTO lines VALUES (?, 1)", (line,)))


@pytest.mark.parametrize("path", ["", ":memory:"])
def test_a_database_in_memory_is_no_store(path: str) -> None:
    with pytest.raises(ValueError, match="is a file"):
        Sqlite(path, SCHEMA)


async def test_another_process_that_opens_and_closes_the_file_does_not_take_our_log_away(tmp_path: Path) -> None:
    db = Sqlite(tmp_path / "shared.db")
    await db.write(lambda connection: connection.execute("CREATE TABLE t (x)"))
    await db.read(lambda connection: connection.execute("SELECT * FROM t").fetchall())
    visit = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('INSERT INTO t VALUES (1)'); c.commit()"
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", f"{visit}; c.close()", str(db.path)], check=True)
    # SQLite's last connection removes the log; were our locks lost, the visitor would have thought itself the last.
    assert db.path.with_name("shared.db-wal").exists()
    assert await db.read(lambda connection: connection.execute("SELECT count(*) FROM t").fetchone()) == (1,)
    await db.close()
