"""How the mock's jobs are kept: its tables' names, and a job as JSON."""

from collections.abc import Mapping
from dataclasses import fields
from decimal import Decimal
from pathlib import Path

from storefront.book import Codec, SqliteBook, shop_schema
from vendor_mock.simulation import Job
from wire import decimal_json
from wire.model import Body
from wire.vendor import CheckpointSeen, FilesGrant, ResumeFrom

_BODIES: Mapping[str, type[Body]] = {"files": FilesGrant, "resume": ResumeFrom, "pushed": CheckpointSeen}
_NAMES = tuple(field.name for field in fields(Job))
SCHEMA = shop_schema("vendor_mock", "mock_jobs")


def open_book(database: Path) -> SqliteBook[Job]:
    """Return the book in a file; making it does no I/O."""
    return SqliteBook(database, SCHEMA, Codec(write=_written, read=_read))


def _written(job: Job) -> str:
    values = {name: getattr(job, name) for name in _NAMES}
    bodies = {name: body.document() for name in _BODIES if (body := values[name]) is not None}
    return decimal_json.dumps({**values, **bodies}).decode()


def _read(text: str) -> Job:
    document = decimal_json.loads(text)
    exact = {name: Decimal(document[name]) for name in ("hours", "progress")}
    bodies = {name: kind.model_validate(document[name]) for name, kind in _BODIES.items() if document.get(name)}
    return Job(**{**document, **exact, **bodies, "logs": tuple(document["logs"])})
