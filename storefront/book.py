"""Quotes and jobs in SQLite: a restart forgets nothing, and a job moves in one transaction."""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Generic

from storage.migrations import Schema
from storage.sqlite import Sqlite
from storefront.model import TERMINAL, Template, is_owed
from storefront.ports import JobT

# Quotes cost nothing: of those that nobody has paid so many are kept, the newest.
QUOTES_MAX = 1_000

# JOBS stands for what a seller calls its table of jobs.
_STEPS = (
    (
        """CREATE TABLE templates (
                template_id TEXT PRIMARY KEY,
                vendor_id TEXT NOT NULL,
                gpu_type TEXT NOT NULL,
                hours TEXT NOT NULL,
                price_atomic INTEGER NOT NULL
            ) STRICT""",
        """CREATE TABLE JOBS (
                job_id TEXT PRIMARY KEY,
                vendor_id TEXT NOT NULL,
                payment_id TEXT NOT NULL UNIQUE,
                gpu_type TEXT NOT NULL,
                ended INTEGER NOT NULL,
                document TEXT NOT NULL
            ) STRICT""",
    ),
    (
        "ALTER TABLE templates ADD COLUMN job_type TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE templates ADD COLUMN terms_json TEXT NOT NULL DEFAULT '{}'",
        # What is yet to be seen to: a call of the buyer, a refund.
        "ALTER TABLE JOBS ADD COLUMN uncalled INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE JOBS ADD COLUMN owed INTEGER NOT NULL DEFAULT 0",
        """UPDATE JOBS SET
                uncalled = json_extract(document, '$.callback_url') IS NOT NULL
                    AND NOT coalesce(json_extract(document, '$.is_callback_done'), 0),
                owed = ended AND coalesce(json_extract(document, '$.refund_atomic'), 0) > 0
                    AND json_extract(document, '$.refund_transaction') IS NULL""",
    ),
    # Of an older program's quotes it is not known whether they were paid: they stay.
    ("ALTER TABLE templates ADD COLUMN sold INTEGER NOT NULL DEFAULT 1",),
)
_INDEXES = (
    "CREATE INDEX templates_unsold ON templates (sold) WHERE sold = 0",
    "CREATE INDEX JOBS_active ON JOBS (vendor_id, gpu_type) WHERE ended = 0",
    "CREATE INDEX JOBS_uncalled ON JOBS (job_id) WHERE uncalled = 1",
    "CREATE INDEX JOBS_owed ON JOBS (job_id) WHERE owed = 1",
)
_INSERT = """INSERT INTO JOBS (job_id, vendor_id, payment_id, gpu_type, ended, document)
    VALUES (?, ?, ?, ?, 0, '{}')"""
_FORGET = """DELETE FROM templates WHERE sold = 0 AND rowid <= (SELECT max(rowid) FROM templates) - ?
    AND template_id NOT IN (SELECT value FROM json_each(?))"""
_RENEW = "UPDATE templates SET rowid = (SELECT max(rowid) FROM templates) + 1 WHERE template_id = ?"
_DOCUMENTS = "SELECT document FROM JOBS"


def shop_schema(room: str, jobs: str) -> Schema:
    """Return the schema of a seller's book; `jobs` is what its table of jobs is called."""
    return Schema(
        room=room,
        tables=("templates", jobs),
        steps=tuple(tuple(statement.replace("JOBS", jobs) for statement in step) for step in _STEPS),
        indexes=tuple(index.replace("JOBS", jobs) for index in _INDEXES),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec(Generic[JobT]):
    """How a seller's job becomes JSON and is read again. Every field of `Sold` is a member under its own name."""

    write: Callable[[JobT], str]
    read: Callable[[str], JobT]


class SqliteBook(Generic[JobT]):
    """Implements `storefront.ports.Book`; `schema` is `shop_schema(...)`, with whatever steps its seller adds."""

    def __init__(self, database: Path, schema: Schema, codec: Codec[JobT]) -> None:
        self._db = Sqlite(database, schema)
        self._jobs = schema.tables[1]
        self._codec = codec
        self._listeners: set[asyncio.Event] = set()

    async def add_template(self, template: Template, keep: Collection[str] = ()) -> None:
        columns = ("template_id", "vendor_id", "gpu_type", "hours", "price_atomic", "job_type", "terms_json")
        values = [getattr(template, name) for name in columns]

        def add(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO templates (template_id, vendor_id, gpu_type, hours, price_atomic, job_type, terms_json,"
                " sold) VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
                tuple(str(value) if isinstance(value, Decimal) else value for value in values),
            )
            connection.execute(_FORGET, (QUOTES_MAX, json.dumps([*keep])))

        await self._db.write(add)

    async def renew_template(self, template_id: str) -> bool:
        return await self._db.write(lambda connection: connection.execute(_RENEW, (template_id,)).rowcount == 1)

    async def keep_template(self, template_id: str) -> None:
        mark = "UPDATE templates SET sold = 1 WHERE template_id = ?"
        await self._db.write(lambda connection: connection.execute(mark, (template_id,)))

    async def find_template(self, template_id: str) -> Template | None:
        query = """SELECT template_id, vendor_id, gpu_type, hours, price_atomic, job_type, terms_json
            FROM templates WHERE template_id = ?"""
        row = await self._db.read(lambda connection: connection.execute(query, (template_id,)).fetchone())
        if row is None:
            return None
        return Template(
            template_id=row[0],
            vendor_id=row[1],
            gpu_type=row[2],
            hours=Decimal(row[3]),
            price_atomic=row[4],
            job_type=row[5],
            terms_json=row[6],
        )

    async def start_job(self, payment_id: str, vendor_id: str, make: Callable[[int], JobT]) -> JobT:
        job = await self._db.write(partial(self._start, payment_id, vendor_id, make), durable=True)
        self._ring()
        return job

    async def update_job(self, job_id: str, change: Callable[[JobT], JobT]) -> JobT | None:
        job = await self._db.write(partial(self._update, job_id, change), durable=True)
        if job is not None and job.status in TERMINAL:
            self._ring()
        return job

    async def find_job(self, job_id: str) -> JobT | None:
        return next(iter(await self._select("WHERE job_id = ?", job_id)), None)

    async def find_paid(self, payment_id: str) -> JobT | None:
        return next(iter(await self._select("WHERE payment_id = ?", payment_id)), None)

    async def jobs(self) -> list[JobT]:
        return await self._select("ORDER BY rowid")

    async def list_active(self, vendor_id: str, after: str, limit: int) -> list[JobT]:
        where = "WHERE ended = 0 AND vendor_id = ? AND job_id > ? ORDER BY job_id LIMIT ?"
        return await self._select(where, vendor_id, after, limit)

    async def count_active(self, vendor_id: str, gpu_type: str, now_s: int) -> int:
        query = self._sql(
            """SELECT count(*) FROM JOBS WHERE ended = 0 AND vendor_id = ? AND gpu_type = ?
                AND coalesce(json_extract(document, '$.ends_by_s') > ?, 1)"""
        )
        values = (vendor_id, gpu_type, now_s)
        row = await self._db.read(lambda connection: connection.execute(query, values).fetchone())
        return int(row[0])

    async def to_call_back(self) -> list[JobT]:
        return await self._select("WHERE uncalled = 1")

    async def to_pay_back(self) -> list[JobT]:
        return await self._select("WHERE owed = 1")

    @contextmanager
    def listen(self) -> Iterator[asyncio.Event]:
        rung = asyncio.Event()
        self._listeners.add(rung)
        try:
            yield rung
        finally:
            self._listeners.discard(rung)

    async def close(self) -> None:
        await self._db.close()

    def _ring(self) -> None:
        for rung in self._listeners:
            rung.set()

    async def _select(self, where: str, *values: str | int) -> list[JobT]:
        query = self._sql(f"{_DOCUMENTS} {where}")
        rows = await self._db.read(lambda connection: connection.execute(query, values).fetchall())
        return [self._codec.read(row[0]) for row in rows]

    def _sql(self, text: str) -> str:
        return text.replace("JOBS", self._jobs)

    def _one(self, connection: sqlite3.Connection, column: str, value: str) -> JobT | None:
        query = self._sql(f"{_DOCUMENTS} WHERE {column} = ?")
        row = connection.execute(query, (value,)).fetchone()
        return None if row is None else self._codec.read(row[0])

    def _start(
        self, payment_id: str, vendor_id: str, make: Callable[[int], JobT], connection: sqlite3.Connection
    ) -> JobT:
        found = self._one(connection, "payment_id", payment_id)
        if found is not None:
            return found
        query = self._sql("SELECT count(*) FROM JOBS WHERE vendor_id = ?")
        job = make(int(connection.execute(query, (vendor_id,)).fetchone()[0]))
        connection.execute(
            self._sql(_INSERT),
            (job.job_id, vendor_id, payment_id, job.gpu_type),
        )
        self._write(connection, job)
        return job

    def _update(self, job_id: str, change: Callable[[JobT], JobT], connection: sqlite3.Connection) -> JobT | None:
        found = self._one(connection, "job_id", job_id)
        if found is None:
            return None
        job = change(found)
        self._write(connection, job)
        return job

    def _write(self, connection: sqlite3.Connection, job: JobT) -> None:
        is_uncalled = job.callback_url is not None and not job.is_callback_done
        connection.execute(
            self._sql("UPDATE JOBS SET ended = ?, uncalled = ?, owed = ?, document = ? WHERE job_id = ?"),
            (job.status in TERMINAL, is_uncalled, is_owed(job), self._codec.write(job), job.job_id),
        )
