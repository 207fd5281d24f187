"""
The `Store` port on a SQLite file: every verb is one function of a connection, run in one transaction.

The clock is SQLite's, read inside the statement that needs it. What a save writes is in `sqlite_rows`.
"""

import math
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from agent.core.errors import UnknownRun
from agent.core.model import Entry, Notice, Outcome, Run, Standing, Vendor
from agent.core.states import RUN_ENDS
from agent.edges import sqlite_rows as rows
from agent.edges.documents import decode, decode_cursor, decode_time, encode_cursor, encode_time, is_id
from agent.edges.sqlite_schema import SCHEMA
from agent.edges.store_errors import HoldRefused, translated
from agent.ports import Busy, Claim, Hold, Page
from storage.sqlite import NOW, NOW_PLUS_S, Sqlite
from wire import decimal_json

ResultT = TypeVar("ResultT")

_ENDS = ", ".join(f"'{status}'" for status in sorted(RUN_ENDS))


class SqliteStore:
    """Runs in the file at `path`, made and migrated at its first use. The constructor does no I/O."""

    def __init__(self, path: str | Path) -> None:
        self._db = Sqlite(path, SCHEMA)

    async def now(self) -> datetime:
        """See `Store.now`."""
        return decode_time(await self._read(lambda connection: str(_row(connection, f"SELECT {NOW}")[0])))

    async def insert_run(self, run: Run, entries: Sequence[Entry], key: str | None, fingerprint: str) -> Run:
        """See `Store.insert_run`."""
        return await self._write(lambda connection: rows.insert_run(connection, run, entries, key, fingerprint))

    async def claim(self, run_id: str, lease_s: int, *, due_before: datetime | None = None) -> Claim | Busy:
        """See `Store.claim`."""
        return await self._write(lambda connection: _claim(connection, _known(run_id), lease_s, due_before))

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
        try:
            await self._write(
                lambda connection: rows.save(connection, token, run, entries, holds, outcomes, notices),
                durable,
            )
        except HoldRefused as refusal:
            return refusal.hold
        return None

    async def release(self, run_id: str, token: int, next_tick_at: datetime | None) -> None:
        """See `Store.release`. A cancel asked for since the claim keeps the run due."""
        if not is_id(run_id):
            return
        at = None if next_tick_at is None else encode_time(next_tick_at)
        await self._write(
            lambda connection: connection.execute(
                f"""
                UPDATE runs SET lease_until = NULL, next_tick_at = CASE
                    WHEN cancel_requested_at >= claimed_at AND status NOT IN ({_ENDS})
                    THEN min(coalesce(:at, cancel_requested_at), cancel_requested_at) ELSE :at END
                WHERE id = :id AND token = :token
                """,  # noqa: S608 - the names of the final states, no value of anybody's
                {"at": at, "id": run_id, "token": token},
            )
        )

    async def read_run(self, run_id: str) -> Run:
        """See `Store.read_run`."""
        return await self._read(lambda connection: rows.read_run(connection, _known(run_id)))

    async def list_runs(self, status: str | None, cursor: str | None, limit: int) -> Page:
        """See `Store.list_runs`."""
        return await self._read(lambda connection: _list_runs(connection, status, cursor, max(limit, 1)))

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
        if not is_id(run_id):
            return []
        return await self._read(lambda connection: _read_log(connection, run_id, types, newest, oldest, after))

    async def due_runs(self, now: datetime, limit: int) -> list[str]:
        """See `Store.due_runs`."""
        query = "SELECT id FROM runs WHERE next_tick_at <= ? ORDER BY next_tick_at, id LIMIT ?"
        return await self._read(
            lambda connection: [str(row[0]) for row in connection.execute(query, (encode_time(now), max(limit, 0)))]
        )

    async def request_cancel(self, run_id: str) -> Run:
        """See `Store.request_cancel`. A run that has ended is returned as it is."""
        return await self._write(lambda connection: _request_cancel(connection, _known(run_id)))

    async def put_vendor(self, vendor: Vendor, *, replace: bool) -> bool:
        """See `Store.put_vendor`. A vendor that is replaced keeps its place in the order."""
        conflict = "DO UPDATE SET document = excluded.document" if replace else "DO NOTHING"
        statement = f"INSERT INTO vendors (vendor_id, document) VALUES (?, ?) ON CONFLICT (vendor_id) {conflict}"  # noqa: S608 - one of two texts above
        values = (vendor.vendor_id, rows.text_of(vendor))
        return await self._write(lambda connection: connection.execute(statement, values).rowcount == 1)

    async def list_vendors(self) -> list[Vendor]:
        """See `Store.list_vendors`."""
        query = "SELECT document FROM vendors ORDER BY position"
        return await self._read(
            lambda connection: [decode(Vendor, decimal_json.loads(row[0])) for row in connection.execute(query)]
        )

    async def remove_vendor(self, vendor_id: str) -> bool:
        """See `Store.remove_vendor`. Returns whether there was one."""
        if not is_id(vendor_id):
            return False
        return await self._write(
            lambda connection: connection.execute("DELETE FROM vendors WHERE vendor_id = ?", (vendor_id,)).rowcount == 1
        )

    async def standings(self) -> list[Standing]:
        """See `Store.standings`."""
        query = "SELECT document FROM standings ORDER BY id"
        return await self._read(
            lambda connection: [decode(Standing, decimal_json.loads(row[0])) for row in connection.execute(query)]
        )

    async def take_notices(self, limit: int, lease_s: int) -> list[Notice]:
        """See `Store.take_notices`."""
        return await self._write(lambda connection: rows.take_notices(connection, max(limit, 0), lease_s))

    async def settle_notice(self, notice_id: str, retry_s: int | None) -> None:
        """See `Store.settle_notice`. A notice that is not there is left so."""
        if retry_s is None:
            await self._write(lambda connection: connection.execute("DELETE FROM outbox WHERE id = ?", (notice_id,)))
            return
        change = f"UPDATE outbox SET due_at = {NOW_PLUS_S} WHERE id = ?"  # noqa: S608 - the clock's expression
        await self._write(lambda connection: connection.execute(change, (retry_s, notice_id)))

    async def take_turn(self, name: str, now: datetime, interval_s: int) -> bool:
        """See `Store.take_turn`. Kept among the counters, as the second of the last turn."""
        statement = """
            INSERT INTO wallets (id, value) VALUES (:id, :now)
            ON CONFLICT (id) DO UPDATE SET value = :now WHERE value <= :now - :interval
        """
        values = {"id": f"turn/{name}", "now": int(now.timestamp()), "interval": interval_s}
        return await self._write(lambda connection: connection.execute(statement, values).rowcount == 1)

    async def migrate(self) -> int:
        """See `Store.migrate`."""
        with translated():
            return await self._db.migrate()

    async def check(self) -> list[str]:
        """See `Store.check`. Changes nothing."""
        with translated():
            return await self._db.check()

    async def close(self) -> None:
        """Close the file; the next use opens it again."""
        await self._db.close()

    async def _read(self, work: Callable[[sqlite3.Connection], ResultT]) -> ResultT:
        with translated():
            return await self._db.read(work)

    async def _write(self, work: Callable[[sqlite3.Connection], ResultT], durable: bool = False) -> ResultT:
        with translated():
            return await self._db.write(work, durable=durable)


def _known(run_id: str) -> str:
    if not is_id(run_id):
        raise UnknownRun("no run has such an id")
    return run_id


def _row(connection: sqlite3.Connection, query: str, values: tuple[object, ...] = ()) -> tuple[object, ...]:
    row: tuple[object, ...] = connection.execute(query, values).fetchone()
    return row


def _claim(connection: sqlite3.Connection, run_id: str, lease_s: int, due_before: datetime | None) -> Claim | Busy:
    due = None if due_before is None else encode_time(due_before)
    taken = connection.execute(
        f"""
        UPDATE runs SET token = token + 1, claimed_at = {NOW}, lease_until = {NOW_PLUS_S}
        WHERE id = ? AND (lease_until IS NULL OR lease_until <= {NOW}) AND (? IS NULL OR next_tick_at <= ?)
        RETURNING token, claimed_at
        """,  # noqa: S608 - the clock's expressions
        (lease_s, run_id, due, due),
    ).fetchall()
    if taken:
        token, claimed_at = taken[0]
        return Claim(run=rows.read_run(connection, run_id), token=token, now=decode_time(claimed_at))
    # A run that is free and not due has been served: the caller comes back in a second.
    query = f"SELECT coalesce(lease_until, {NOW}), {NOW} FROM runs WHERE id = ?"  # noqa: S608 - as above
    held = connection.execute(query, (run_id,)).fetchone()
    if held is None:
        raise UnknownRun(f"there is no run {run_id}")
    remaining = decode_time(held[0]) - decode_time(held[1])
    return Busy(max(1, math.ceil(remaining.total_seconds())))


def _request_cancel(connection: sqlite3.Connection, run_id: str) -> Run:
    connection.execute(
        f"""
        UPDATE runs SET cancel_requested_at = coalesce(cancel_requested_at, {NOW}),
            next_tick_at = min(coalesce(next_tick_at, {NOW}), {NOW})
        WHERE id = ? AND status NOT IN ({_ENDS})
        """,  # noqa: S608 - the clock's expressions and the names of the final states
        (run_id,),
    )
    return rows.read_run(connection, run_id)


def _list_runs(connection: sqlite3.Connection, status: str | None, cursor: str | None, limit: int) -> Page:
    conditions, values = [], []
    if status is not None:
        conditions.append("status = ?")
        values.append(status)
    if (place := decode_cursor(cursor)) is not None:
        conditions.append("(created_at, id) < (?, ?)")
        values += place
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    query = f"SELECT created_at, id FROM runs {where} ORDER BY created_at DESC, id DESC LIMIT ?"  # noqa: S608 - the texts above
    found = connection.execute(query, (*values, limit + 1)).fetchall()
    more = encode_cursor(*found[limit - 1]) if len(found) > limit else None
    return Page(runs=tuple(rows.read_run(connection, run_id) for _, run_id in found[:limit]), cursor=more)


def _read_log(
    connection: sqlite3.Connection,
    run_id: str,
    types: Sequence[str] | None,
    newest: int | None,
    oldest: int | None,
    after: int,
) -> list[Entry]:
    condition, values = "", list[str | int]((run_id, after))
    if types is not None:
        condition = f"AND type IN ({', '.join('?' * len(types))})"
        values += types
    limit, order = (newest, "DESC") if oldest is None else (oldest, "ASC")
    query = f"SELECT document FROM observations WHERE run_id = ? AND seq > ? {condition} ORDER BY seq {order} LIMIT ?"  # noqa: S608 - question marks and one of two words
    found = connection.execute(query, (*values, -1 if limit is None else max(limit, 0))).fetchall()
    return [decode(Entry, decimal_json.loads(row[0])) for row in (found if order == "ASC" else reversed(found))]
