"""
Rows of a run and of what belongs to it, written and read inside a transaction of the caller's.

The first statement of a save is the one that its fencing token guards; what fails after it undoes it.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from agent.core import standing
from agent.core.errors import Bug, KeyConflict, StaleClaim, UnknownRun
from agent.core.model import Entry, Job, Notice, Outcome, Payment, Run, Standing, Vendor
from agent.edges.documents import check_books, decode, decode_run, encode, encode_time, standing_key
from agent.edges.store_errors import HoldRefused
from agent.ports import Hold
from storage.sqlite import NOW, NOW_PLUS_S
from wire import decimal_json


def text_of(model: Run | Job | Payment | Vendor | Entry | Standing | Notice) -> str:
    """Return the document of `model` as JSON text."""
    return decimal_json.dumps(encode(model)).decode()


def read_run(connection: sqlite3.Connection, run_id: str) -> Run:
    """Return the run with its jobs and payments. Raises UnknownRun."""
    row = connection.execute(
        "SELECT document, cancel_requested_at, next_tick_at FROM runs WHERE id = ?", (run_id,)
    ).fetchone()
    if row is None:
        raise UnknownRun(f"there is no run {run_id}")
    document = decimal_json.loads(row[0]) | {"cancelRequestedAt": row[1], "nextTickAt": row[2]}
    return decode_run(document, _of_run(connection, "jobs", run_id), _of_run(connection, "payments", run_id))


def insert_run(
    connection: sqlite3.Connection, run: Run, entries: Sequence[Entry], key: str | None, fingerprint: str
) -> Run:
    """Store a new run, or return the one `key` began. Raises KeyConflict."""
    check_books(run, entries)
    if key is not None:
        before = connection.execute("SELECT id, start_fingerprint FROM runs WHERE start_key = ?", (key,)).fetchone()
        if before is not None:
            if before[1] != fingerprint:
                raise KeyConflict("the key began a run with another body")
            return read_run(connection, before[0])
    connection.execute(
        """
        INSERT INTO runs
            (id, status, created_at, cancel_requested_at, next_tick_at, start_key, start_fingerprint, document)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)
        """,
        (
            run.run_id,
            run.status,
            encode_time(run.created_at),
            None if run.cancel_requested_at is None else encode_time(run.cancel_requested_at),
            None if run.next_tick_at is None else encode_time(run.next_tick_at),
            key,
            None if key is None else fingerprint,
            text_of(run),
        ),
    )
    _write_parts(connection, run, entries)
    return run


def save(
    connection: sqlite3.Connection,
    token: int,
    run: Run,
    entries: Sequence[Entry],
    holds: Sequence[Hold],
    outcomes: Sequence[Outcome],
    notices: Sequence[Notice],
) -> None:
    """See `Store.save`. Raises HoldRefused where that returns the hold."""
    check_books(run, entries)
    written = connection.execute(
        "UPDATE runs SET status = ?, document = ? WHERE id = ? AND token = ?",
        (run.status, text_of(run), run.run_id, token),
    )
    if written.rowcount != 1:
        raise StaleClaim(f"run {run.run_id} was claimed by another tick")
    for hold in holds:
        _count_hold(connection, hold)
    for outcome in outcomes:
        _count_outcome(connection, outcome)
    connection.executemany(
        "INSERT INTO outbox (id, due_at, attempts, document) VALUES (?, ?, 0, ?)",
        [(notice.notice_id, encode_time(notice.created_at), text_of(notice)) for notice in notices],
    )
    _write_parts(connection, run, entries)


def take_notices(connection: sqlite3.Connection, limit: int, lease_s: int) -> list[Notice]:
    """See `Store.take_notices`."""
    taken = connection.execute(
        f"""
        UPDATE outbox SET attempts = attempts + 1, due_at = {NOW_PLUS_S} WHERE id IN
            (SELECT id FROM outbox WHERE due_at <= {NOW} ORDER BY due_at, id LIMIT ?)
        RETURNING document, attempts
        """,  # noqa: S608 - the clock's expressions
        (lease_s, limit),
    ).fetchall()
    notices = [replace(decode(Notice, decimal_json.loads(text)), attempts=attempts) for text, attempts in taken]
    return sorted(notices, key=lambda notice: (notice.created_at, notice.notice_id))


def _count_outcome(connection: sqlite3.Connection, outcome: Outcome) -> None:
    key = standing_key(outcome.vendor_id, outcome.gpu_type)
    row = connection.execute("SELECT document FROM standings WHERE id = ?", (key,)).fetchone()
    before = (
        standing.opened(outcome.vendor_id, outcome.gpu_type, outcome.at)
        if row is None
        else decode(Standing, decimal_json.loads(row[0]))
    )
    connection.execute(
        "INSERT INTO standings (id, document) VALUES (?, ?)"
        " ON CONFLICT (id) DO UPDATE SET document = excluded.document",
        (key, text_of(standing.counted(before, outcome))),
    )


def _count_hold(connection: sqlite3.Connection, hold: Hold) -> None:
    connection.execute("INSERT INTO wallets (id, value) VALUES (?, 0) ON CONFLICT DO NOTHING", (hold.scope,))
    counted = connection.execute(
        """
        UPDATE wallets SET value = max(0, value + :amount)
        WHERE id = :id AND (:amount <= 0 OR value + :amount <= :cap)
        """,
        {"id": hold.scope, "amount": hold.amount_atomic, "cap": hold.cap_atomic},
    )
    if counted.rowcount != 1:
        raise HoldRefused(hold)


def _write_parts(connection: sqlite3.Connection, run: Run, entries: Sequence[Entry]) -> None:
    try:
        for position, job in enumerate(run.jobs):
            _own(
                connection.execute(
                    """
                INSERT INTO jobs (id, run_id, position, updated_at, document) VALUES (?, ?, ?, ?, ?)
                ON CONFLICT (id) DO UPDATE SET updated_at = excluded.updated_at, document = excluded.document
                WHERE run_id = excluded.run_id
                """,
                    (job.job_id, run.run_id, position, encode_time(job.updated_at), text_of(job)),
                ),
                job.job_id,
            )
        for position, payment in enumerate(run.payments):
            _own(
                connection.execute(
                    """
                INSERT INTO payments (id, run_id, position, updated_at, x402_tx_id, document) VALUES (?, ?, ?, ?, ?, ?)
                ON CONFLICT (id) DO UPDATE SET
                    updated_at = excluded.updated_at, x402_tx_id = excluded.x402_tx_id, document = excluded.document
                WHERE run_id = excluded.run_id
                """,
                    (
                        payment.payment_id,
                        run.run_id,
                        position,
                        encode_time(payment.updated_at),
                        payment.transaction,
                        text_of(payment),
                    ),
                ),
                payment.payment_id,
            )
        connection.executemany(
            "INSERT INTO observations (run_id, seq, type, document) VALUES (?, ?, ?, ?)",
            [(entry.run_id, entry.seq, entry.type, text_of(entry)) for entry in entries],
        )
    except sqlite3.IntegrityError as error:
        raise Bug(f"run {run.run_id} may not store this: {error}") from error


def _own(cursor: sqlite3.Cursor, part_id: str) -> None:
    if cursor.rowcount != 1:
        raise Bug(f"{part_id} belongs to another run")


def _of_run(connection: sqlite3.Connection, table: str, run_id: str) -> list[dict[str, Any]]:
    query = f"SELECT document FROM {table} WHERE run_id = ? ORDER BY position"  # noqa: S608 - one of two tables
    return [decimal_json.loads(row[0]) for row in connection.execute(query, (run_id,))]
