"""The worker's jobs as the shop's book keeps them: one JSON document a job."""

from dataclasses import fields
from decimal import Decimal
from pathlib import Path
from typing import Any

from gpu_worker.core.model import Job
from storefront.book import Codec, SqliteBook, shop_schema
from wire import decimal_json
from wire.model import Body
from wire.vendor import CheckpointSeen, FilesGrant, ResumeFrom

SCHEMA = shop_schema("gpu_worker", "worker_jobs")

_BODIES: dict[str, type[Body]] = {"files": FilesGrant, "resume": ResumeFrom, "pushed": CheckpointSeen}
_DECIMALS = ("hours", "used_s")


def write_job(job: Job) -> str:
    """Return the job as JSON; `read_job` gives it back, number for number."""
    values = {field.name: getattr(job, field.name) for field in fields(job)}
    return decimal_json.dumps(
        {name: value.document() if isinstance(value, Body) else value for name, value in values.items()}
    ).decode()


def read_job(text: str) -> Job:
    # What a newer worker has written besides is left aside; what an older one has not takes its default.
    known = {field.name for field in fields(Job)}
    found: dict[str, Any] = {name: value for name, value in decimal_json.loads(text).items() if name in known}
    for name in _DECIMALS:
        if name in found:
            found[name] = Decimal(found[name])
    found["marks"] = {step: Decimal(seconds) for step, seconds in found.get("marks", {}).items()}
    for name, body in _BODIES.items():
        if found.get(name) is not None:
            found[name] = body.model_validate(found[name])
    return Job(**found)


def open_jobs(database: Path) -> SqliteBook[Job]:
    """Return the book in the file `database`; nothing is opened yet."""
    return SqliteBook(database, SCHEMA, Codec(write=write_job, read=read_job))
