"""Quotes and jobs in SQLite: a restart forgets nothing, and a poll moves a job in one transaction."""

import sqlite3
from collections.abc import Callable
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path

from storage.migrations import Schema
from storage.sqlite import Sqlite
from vendor_mock.simulation import TERMINAL, Job, Template
from wire import decimal_json

SCHEMA = Schema(
    room="vendor_mock",
    tables=("templates", "mock_jobs"),
    steps=(
        (
            """CREATE TABLE templates (
                template_id TEXT PRIMARY KEY,
                vendor_id TEXT NOT NULL,
                gpu_type TEXT NOT NULL,
                hours TEXT NOT NULL,
                price_atomic INTEGER NOT NULL
            ) STRICT""",
            """CREATE TABLE mock_jobs (
                job_id TEXT PRIMARY KEY,
                vendor_id TEXT NOT NULL,
                payment_id TEXT NOT NULL UNIQUE,
                gpu_type TEXT NOT NULL,
                ended INTEGER NOT NULL,
                document TEXT NOT NULL
            ) STRICT""",
        ),
    ),
    indexes=("CREATE INDEX mock_jobs_active ON mock_jobs (vendor_id, gpu_type) WHERE ended = 0",),
)


class ShopStore:
    """What the vendors remember."""

    def __init__(self, database: Path) -> None:
        self._db = Sqlite(database, SCHEMA)

    async def add_template(self, template: Template) -> None:
        values = (*asdict(template).values(),)
        await self._db.write(
            lambda connection: connection.execute(
                "INSERT INTO templates (template_id, vendor_id, gpu_type, hours, price_atomic) VALUES (?, ?, ?, ?, ?)",
                tuple(str(value) if isinstance(value, Decimal) else value for value in values),
            )
        )

    async def find_template(self, template_id: str) -> Template | None:
        query = "SELECT template_id, vendor_id, gpu_type, hours, price_atomic FROM templates WHERE template_id = ?"
        row = await self._db.read(lambda connection: connection.execute(query, (template_id,)).fetchone())
        if row is None:
            return None
        return Template(
            template_id=row[0], vendor_id=row[1], gpu_type=row[2], hours=Decimal(row[3]), price_atomic=row[4]
        )

    async def start_job(self, payment_id: str, vendor_id: str, make: Callable[[int], Job]) -> Job:
        """Return the job of a payment, made by `make(number of the vendor's jobs so far)` if there is none yet."""
        return await self._db.write(lambda connection: _start(connection, payment_id, vendor_id, make), durable=True)

    async def update_job(self, job_id: str, change: Callable[[Job], Job]) -> Job | None:
        """Store and return `change(job)`, None where there is no such job."""
        return await self._db.write(lambda connection: _update(connection, job_id, change), durable=True)

    async def find_job(self, job_id: str) -> Job | None:
        query = "SELECT document FROM mock_jobs WHERE job_id = ?"
        return await self._db.read(lambda connection: _one(connection, query, job_id))

    async def find_paid(self, payment_id: str) -> Job | None:
        query = "SELECT document FROM mock_jobs WHERE payment_id = ?"
        return await self._db.read(lambda connection: _one(connection, query, payment_id))

    async def jobs(self) -> list[Job]:
        """Return every job that was ever sold, the oldest first."""
        query = "SELECT job_id FROM mock_jobs ORDER BY rowid"
        ids = await self._db.read(lambda connection: [row[0] for row in connection.execute(query)])
        found = [await self.find_job(job_id) for job_id in ids]
        return [job for job in found if job is not None]

    async def list_active(self, vendor_id: str, after: str, limit: int) -> list[Job]:
        """Return the vendor's jobs that have not ended, by id, from behind `after` on."""
        query = """
            SELECT job_id FROM mock_jobs WHERE ended = 0 AND vendor_id = ? AND job_id > ? ORDER BY job_id LIMIT ?
        """
        values = (vendor_id, after, limit)
        ids = await self._db.read(lambda connection: [row[0] for row in connection.execute(query, values)])
        found = [await self.find_job(job_id) for job_id in ids]
        return [job for job in found if job is not None]

    async def count_active(self, vendor_id: str, gpu_type: str, now_s: int) -> int:
        """Return how many jobs take up a GPU; one whose hours are over does not, looked at or not."""
        query = """
            SELECT count(*) FROM mock_jobs WHERE ended = 0 AND vendor_id = ? AND gpu_type = ?
                AND coalesce(json_extract(document, '$.ends_by_s') > ?, 1)
        """
        values = (vendor_id, gpu_type, now_s)
        row = await self._db.read(lambda connection: connection.execute(query, values).fetchone())
        return int(row[0])

    async def to_call_back(self) -> list[Job]:
        """Return the jobs whose buyers want to be called and were not yet, ended or not."""
        query = """
            SELECT job_id FROM mock_jobs
            WHERE json_extract(document, '$.callback_url') IS NOT NULL
                AND NOT coalesce(json_extract(document, '$.is_callback_done'), 0)
        """
        ids = await self._db.read(lambda connection: [row[0] for row in connection.execute(query)])
        found = [await self.find_job(job_id) for job_id in ids]
        return [job for job in found if job is not None]

    async def close(self) -> None:
        await self._db.close()


def _start(connection: sqlite3.Connection, payment_id: str, vendor_id: str, make: Callable[[int], Job]) -> Job:
    found = _one(connection, "SELECT document FROM mock_jobs WHERE payment_id = ?", payment_id)
    if found is not None:
        return found
    query = "SELECT count(*) FROM mock_jobs WHERE vendor_id = ?"
    job = make(int(connection.execute(query, (vendor_id,)).fetchone()[0]))
    connection.execute(
        "INSERT INTO mock_jobs (job_id, vendor_id, payment_id, gpu_type, ended, document) VALUES (?, ?, ?, ?, 0, ?)",
        (job.job_id, vendor_id, payment_id, job.gpu_type, _written(job)),
    )
    return job


def _update(connection: sqlite3.Connection, job_id: str, change: Callable[[Job], Job]) -> Job | None:
    found = _one(connection, "SELECT document FROM mock_jobs WHERE job_id = ?", job_id)
    if found is None:
        return None
    job = change(found)
    connection.execute(
        "UPDATE mock_jobs SET ended = ?, document = ? WHERE job_id = ?",
        (job.status in TERMINAL, _written(job), job_id),
    )
    return job


def _one(connection: sqlite3.Connection, query: str, value: str) -> Job | None:
    row = connection.execute(query, (value,)).fetchone()
    if row is None:
        return None
    document = decimal_json.loads(row[0])
    exact = {name: Decimal(document[name]) for name in ("hours", "progress")}
    return Job(**{**document, **exact, "logs": tuple(document["logs"])})


def _written(job: Job) -> str:
    return decimal_json.dumps(asdict(job)).decode()
