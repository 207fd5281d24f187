"""
Runs, jobs, payments, vendors and entries as documents, the same ones for every store.

Names are those of the model in camelCase, with `_id` and `x402TxId` where stores have these. Amounts are
integers of the asset's smallest unit, so names lose `_atomic`. Decimals are text. Times are RFC 3339 text of a
fixed width, which sorts as the times do: a BSON date stops at the millisecond, and a log whose hashes cover its
times must give back each microsecond. What others fill freely (parameters, metrics, an entry's data) is kept as
one JSON text: its keys and numbers are theirs, and a database has opinions on both.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar, cast, get_args, get_type_hints

from pydantic import TypeAdapter
from pydantic.alias_generators import to_camel

from agent.core import ledger
from agent.core.errors import Bug
from agent.core.model import Entry, Job, Notice, Payment, Run, Standing, Vendor
from wire import decimal_json

ModelT = TypeVar("ModelT", Run, Job, Payment, Vendor, Entry, Standing, Notice)
Document = dict[str, Any]

RUN_ID_BYTES_MAX = 256
_CURSOR_CHARS_MAX = 1_024
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")

_NAMES: dict[tuple[type, str], str] = {
    (Run, "run_id"): "_id",
    (Job, "job_id"): "_id",
    (Payment, "payment_id"): "_id",
    (Notice, "notice_id"): "_id",
    (Payment, "transaction"): "x402TxId",
}
# Kept in collections of their own, or written by verbs of their own (`request_cancel`, `release`).
_NOT_IN_RUN = ("jobs", "payments", "cancel_requested_at", "next_tick_at")
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}
_FREE_FORM = frozenset({"params", "env", "job_params", "final_metrics", "latest_metrics", "data"})
_DECIMAL = frozenset({"final_metrics", "latest_metrics"})


def encode(model: Run | Job | Payment | Vendor | Entry | Standing | Notice) -> Document:
    """Return `model` as a document of text, integers, booleans, lists and documents."""
    document = _encode_fields(model)
    if isinstance(model, Run):
        for name in _NOT_IN_RUN:
            del document[name_in_store(Run, name)]
    return document


def decode(kind: type[ModelT], document: Mapping[str, Any], **more: Any) -> ModelT:
    """
    Return the `kind` in `document`, with the fields in `more` added; names it does not know are left alone.

    Raises:
        Bug: the document is not one that `encode` made.
    """
    try:
        return cast(ModelT, _adapter(kind).validate_python(_decode_fields(kind, document) | more))
    except ValueError as error:
        raise Bug(f"a stored {kind.__name__} cannot be read: {error}") from error


def decode_run(document: Mapping[str, Any], jobs: list[Document], payments: list[Document]) -> Run:
    """Return the run in `document` with its jobs and payments, given in the order of their creation."""
    return decode(
        Run,
        document,
        jobs=tuple(decode(Job, job) for job in jobs),
        payments=tuple(decode(Payment, payment) for payment in payments),
    )


def name_in_store(kind: type, name: str) -> str:
    """Return what the field `name` of `kind` is called in a document."""
    return _NAMES.get((kind, name)) or to_camel(name.replace("_atomic", ""))


def encode_time(value: datetime) -> str:
    """Return `value` in UTC as `2026-01-31T09:00:00.000000Z`, always of this width."""
    if value.tzinfo is None:
        raise Bug("a time without a zone cannot be stored")
    return value.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


def decode_time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def standing_key(vendor_id: str, gpu_type: str) -> str:
    """Return the id of one vendor's standing on one GPU type; no two pairs share one."""
    return decimal_json.dumps([vendor_id, gpu_type]).decode()


def encode_cursor(created_at: str, run_id: str) -> str:
    """Return the opaque place after a run in the list of runs."""
    return base64.urlsafe_b64encode(f"{created_at} {run_id}".encode()).decode("ascii")


def decode_cursor(cursor: str | None) -> tuple[str, str] | None:
    """Return the (createdAt, _id) in a cursor, None for no cursor and for one that cannot be read."""
    if cursor is None or len(cursor) > _CURSOR_CHARS_MAX:
        return None
    try:
        created_at, _, run_id = base64.urlsafe_b64decode(cursor).decode().partition(" ")
    except ValueError:
        return None
    return (created_at, run_id) if _TIME.fullmatch(created_at) and is_id(run_id) else None


def is_id(text: object) -> bool:
    """Return whether `text` can be an id: what cannot is an unknown one, whatever a database would say to it."""
    if not isinstance(text, str) or not 0 < len(text) <= RUN_ID_BYTES_MAX or "\0" in text:
        return False
    try:
        return len(text.encode()) <= RUN_ID_BYTES_MAX
    except UnicodeEncodeError:
        return False


def check_books(run: Run, entries: Sequence[Entry]) -> None:
    """
    Let nothing be stored whose books do not balance.

    Raises:
        AssertionError: spent + reserved + available is not the total, or one of them is negative.
        Bug: an entry is another run's.
    """
    ledger.checked(run.budget)
    if any(entry.run_id != run.run_id for entry in entries):
        raise Bug(f"an entry of another run in the save of run {run.run_id}")


def _encode_fields(value: Any) -> Document:
    kind = type(value)
    return {
        name_in_store(kind, field.name): _encode_free(getattr(value, field.name))
        if field.name in _FREE_FORM
        else _encode_value(getattr(value, field.name))
        for field in fields(value)
    }


def _encode_free(value: Any) -> str | None:
    if value is None:
        return None
    try:
        return decimal_json.dumps(value).decode()
    except (TypeError, ValueError) as error:
        raise Bug(f"this has no JSON form: {error}") from error


def _encode_value(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case Decimal():
            return str(value)
        case datetime():
            return encode_time(value)
        case tuple():
            return [_encode_value(item) for item in value]
        case _ if is_dataclass(value):
            return _encode_fields(value)
    raise Bug(f"{type(value).__name__} has no place in a document")


def _decode_fields(kind: type, document: Mapping[str, Any]) -> Document:
    found = {}
    for field in fields(kind):
        name = name_in_store(kind, field.name)
        if name in document:
            value = document[name]
            inner = _NESTED.get((kind, field.name))
            if isinstance(value, list) and inner is not None:
                value = tuple(_decode_fields(inner, item) for item in value)
            elif value is not None and inner is not None:
                value = _decode_fields(inner, value)
            elif value is not None and field.name in _FREE_FORM:
                # Not `decimal_json.loads`: its limits are for strangers, and what `dumps` wrote may be deeper.
                value = json.loads(value, parse_float=Decimal)
                # As it went in: a log's hashes and its replay see 1e-7, not Decimal("1E-7").
                value = value if field.name in _DECIMAL else decimal_json.plain(value)
            found[field.name] = value
    return found


def _adapter(kind: type) -> TypeAdapter[Any]:
    # Made at the first document of its kind: building all of them costs an import milliseconds.
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def _nested(kind: type) -> dict[tuple[type, str], type]:
    """Return which fields of `kind`, and of what stands in them, are documents inside its own."""
    found: dict[tuple[type, str], type] = {}
    for name, hint in get_type_hints(kind).items():
        for option in (hint, *get_args(hint)):
            if isinstance(option, type) and is_dataclass(option):
                found |= {(kind, name): option} | _nested(option)
    return found


_NESTED: dict[tuple[type, str], type] = {}
for _kind in (Run, Job, Payment, Vendor, Entry, Standing, Notice):
    _NESTED |= _nested(_kind)
