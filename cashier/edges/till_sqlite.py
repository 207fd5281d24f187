"""The till in SQLite: a row per payment taken, a row per refund, both written before what they speak of happens."""

import json
import sqlite3
from typing import Any

from cashier.core.claiming import Claim, Claimed, Row, decide_claim
from cashier.core.errors import RefundConflict, RefundTooLarge
from cashier.core.model import Answer, Lease, Refund, Taking
from cashier.edges import credit_sqlite
from storage.migrations import Schema
from storage.sqlite import Sqlite
from wire import decimal_json
from wire.money import Amount

SCHEMA = Schema(
    room="cashier",
    tables=("payments_taken", "refunds_made", *credit_sqlite.TABLES),
    steps=(
        (
            """CREATE TABLE payments_taken (
                payer TEXT NOT NULL,
                nonce TEXT NOT NULL,
                payment_id TEXT NOT NULL UNIQUE,
                fingerprint TEXT NOT NULL,
                pay_to TEXT NOT NULL,
                amount_atomic INTEGER NOT NULL,
                asset TEXT NOT NULL,
                network TEXT NOT NULL,
                valid_before_s INTEGER NOT NULL,
                payload TEXT NOT NULL,
                url TEXT NOT NULL,
                body BLOB NOT NULL,
                state TEXT NOT NULL CHECK (state IN ('claimed', 'settling', 'settled', 'served')),
                from_block INTEGER NOT NULL,
                settlement TEXT,
                answer_status INTEGER,
                answer_headers TEXT,
                answer_body BLOB,
                holder TEXT NOT NULL,
                lease_until_s INTEGER NOT NULL,
                PRIMARY KEY (payer, nonce)
            ) STRICT""",
            """CREATE TABLE refunds_made (
                key TEXT PRIMARY KEY,
                payment_id TEXT NOT NULL,
                pay_to TEXT NOT NULL,
                payer TEXT NOT NULL,
                amount_atomic INTEGER NOT NULL CHECK (amount_atomic > 0),
                state TEXT NOT NULL CHECK (state IN ('asked', 'signed', 'paid')),
                account_nonce INTEGER,
                raw TEXT,
                settlement TEXT
            ) STRICT""",
        ),
        ("ALTER TABLE payments_taken ADD COLUMN dialect TEXT NOT NULL DEFAULT 'x402-v2'",),
        ("ALTER TABLE payments_taken ADD COLUMN counter TEXT NOT NULL DEFAULT ''", *credit_sqlite.STEPS),
    ),
    indexes=(
        "CREATE INDEX payments_open ON payments_taken (pay_to) WHERE state != 'served'",
        "CREATE INDEX refunds_of_payment ON refunds_made (payment_id)",
        "CREATE UNIQUE INDEX refund_on_its_way ON refunds_made (pay_to) WHERE state = 'signed'",
        "CREATE UNIQUE INDEX refund_of_nonce ON refunds_made (pay_to, account_nonce)",
        *credit_sqlite.INDEXES,
    ),
)

# An open payment counts on being started: it is paid, may yet be paid, or is being looked at.
_RESERVED = """SELECT count(*) FROM payments_taken
    WHERE state != 'served' AND pay_to = :pay_to AND counter = :counter
        AND NOT (payer = :payer AND nonce = :nonce) AND (
        state = 'settled'
        OR (state = 'settling' AND valid_before_s > :now_s)
        OR (state = 'claimed' AND lease_until_s > :now_s)
    )"""

_INSERT = """INSERT INTO payments_taken (
        payer, nonce, payment_id, fingerprint, pay_to, amount_atomic, asset, network, valid_before_s, payload, url,
        body, dialect, counter, state, from_block, holder, lease_until_s
    ) VALUES (
        :payer, :nonce, :payment_id, :fingerprint, :pay_to, :amount_atomic, :asset, :network, :valid_before_s, :payload,
        :url, :body, :dialect, :counter, :state, :from_block, '', 0
    )"""

_SAVE = """UPDATE payments_taken SET
        state = :state, from_block = :from_block, settlement = :settlement, answer_status = :answer_status,
        answer_headers = :answer_headers, answer_body = :answer_body
    WHERE payer = :payer AND nonce = :nonce AND holder = :holder"""

# OR IGNORE: the indexes let one transfer of an address be on its way, and an account nonce pay one refund: two of one
# amount, signed with one nonce by two processes, would be the same transfer.
_SIGN = """UPDATE OR IGNORE refunds_made SET state = 'signed', account_nonce = ?, raw = ?, settlement = ?
    WHERE key = ? AND state = 'asked'"""
_PAID = "UPDATE refunds_made SET state = 'paid' WHERE key = ? AND state = 'signed' AND settlement = ?"
_OWED_AGAIN = """UPDATE refunds_made SET state = 'asked', account_nonce = NULL, raw = NULL, settlement = NULL
    WHERE key = ? AND state = 'signed' AND settlement = ?"""


class SqliteTill:
    """
    Implements `cashier.ports.Till`.

    Args:
        counter: where in the house its payments are taken. One at a counter has no part in the room and the recovery of
            another's; a cheque is taken once in the house, and its refunds leave by one door.
    """

    def __init__(self, db: Sqlite, counter: str = "") -> None:
        self._db = db
        self._counter = counter

    async def claim(self, taking: Taking, lease: Lease, *, insert: bool) -> Claim:
        return await self._db.write(lambda connection: _claim(connection, taking, lease, self._counter, insert))

    async def take_over(self, taking: Taking, lease: Lease) -> None:
        await self._db.write(lambda connection: _hold(connection, taking, lease))

    async def save(self, taking: Taking, lease: Lease, *, durable: bool = False) -> bool:
        values = {**_columns(taking), "holder": lease.holder}
        return await self._db.write(lambda connection: connection.execute(_SAVE, values).rowcount == 1, durable=durable)

    async def drop(self, taking: Taking, lease: Lease) -> bool:
        return await self._run("DELETE FROM payments_taken WHERE payer = ? AND nonce = ? AND holder = ?", taking, lease)

    async def release(self, taking: Taking, lease: Lease) -> None:
        await self._run(
            "UPDATE payments_taken SET lease_until_s = 0 WHERE payer = ? AND nonce = ? AND holder = ?", taking, lease
        )

    async def unfinished(self) -> list[Taking]:
        query = "SELECT * FROM payments_taken WHERE state != 'served' AND counter = ? ORDER BY rowid"
        return [_taking(row) for row in await self._db.read(lambda connection: _rows(connection, query, self._counter))]

    async def find_payment(self, payment_id: str) -> Taking | None:
        query = "SELECT * FROM payments_taken WHERE payment_id = ?"
        rows = await self._db.read(lambda connection: _rows(connection, query, payment_id))
        return _taking(rows[0]) if rows else None

    async def ask_refund(self, refund: Refund) -> Refund:
        return await self._db.write(lambda connection: _ask_refund(connection, refund))

    async def read_refund(self, key: str) -> Refund:
        query = "SELECT * FROM refunds_made WHERE key = ?"
        return _refund((await self._db.read(lambda connection: _rows(connection, query, key)))[0])

    async def signed_refund(self, pay_to: str) -> Refund | None:
        query = "SELECT * FROM refunds_made WHERE pay_to = ? AND state = 'signed'"
        rows = await self._db.read(lambda connection: _rows(connection, query, pay_to))
        return _refund(rows[0]) if rows else None

    async def sign_refund(self, refund: Refund) -> bool:
        values = (refund.account_nonce, refund.raw, refund.transaction, refund.key)
        return await self._db.write(lambda connection: connection.execute(_SIGN, values).rowcount == 1, durable=True)

    async def end_refund(self, refund: Refund, *, paid: bool) -> None:
        values = (refund.key, refund.transaction)
        await self._db.write(lambda connection: connection.execute(_PAID if paid else _OWED_AGAIN, values).rowcount)

    async def _run(self, statement: str, taking: Taking, lease: Lease) -> bool:
        values = (taking.payer, taking.nonce, lease.holder)
        return await self._db.write(lambda connection: connection.execute(statement, values).rowcount == 1)


def _rows(connection: sqlite3.Connection, query: str, *values: str) -> list[sqlite3.Row]:
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    return cursor.execute(query, values).fetchall()


def _claim(connection: sqlite3.Connection, taking: Taking, lease: Lease, counter: str, insert: bool) -> Claim:
    query = "SELECT * FROM payments_taken WHERE (payer = ? AND nonce = ?) OR payment_id = ?"
    found = _rows(connection, query, taking.payer, taking.nonce, taking.payment_id)
    claim = decide_claim(taking, [Row(_taking(row), row["lease_until_s"]) for row in found], lease, insert=insert)
    if not isinstance(claim, Claimed):
        return claim
    if not found:
        connection.execute(_INSERT, {**_columns(taking), "counter": counter})
    _hold(connection, claim.taking, lease)
    values = {**_columns(taking), "counter": counter, "now_s": lease.now_s}
    return Claimed(claim.taking, connection.execute(_RESERVED, values).fetchone()[0])


def _hold(connection: sqlite3.Connection, taking: Taking, lease: Lease) -> None:
    connection.execute(
        "UPDATE payments_taken SET holder = ?, lease_until_s = ? WHERE payer = ? AND nonce = ?",
        (lease.holder, lease.until_s, taking.payer, taking.nonce),
    )


def _ask_refund(connection: sqlite3.Connection, refund: Refund) -> Refund:
    rows = _rows(connection, "SELECT * FROM refunds_made WHERE key = ?", refund.key)
    if rows:
        found = _refund(rows[0])
        if (found.payment_id, found.amount_atomic) != (refund.payment_id, refund.amount_atomic):
            raise RefundConflict(f"the refund {refund.key} is {found.amount_atomic} of {found.payment_id}")
        return found
    paid, refunded = connection.execute(
        # What was put on an account is withdrawn from there.
        "SELECT (SELECT amount_atomic FROM payments_taken WHERE payment_id = :id)"
        " - (SELECT coalesce(sum(amount_atomic), 0) FROM credit_deposits WHERE payment_id = :id),"
        " (SELECT coalesce(sum(amount_atomic), 0) FROM refunds_made WHERE payment_id = :id)",
        {"id": refund.payment_id},
    ).fetchone()
    if refunded + refund.amount_atomic > paid:
        raise RefundTooLarge(f"of {paid} that were paid {paid - refunded} are left, not {refund.amount_atomic}")
    connection.execute(
        "INSERT INTO refunds_made (key, payment_id, pay_to, payer, amount_atomic, state) VALUES (?, ?, ?, ?, ?, ?)",
        (refund.key, refund.payment_id, refund.pay_to, refund.payer, refund.amount_atomic, refund.state),
    )
    return refund


def _columns(taking: Taking) -> dict[str, Any]:
    answer = taking.answer
    return {
        "payer": taking.payer,
        "nonce": taking.nonce,
        "payment_id": taking.payment_id,
        "fingerprint": taking.fingerprint,
        "pay_to": taking.pay_to,
        "amount_atomic": taking.amount.atomic,
        "asset": taking.amount.asset,
        "network": taking.amount.network,
        "valid_before_s": taking.valid_before_s,
        "payload": decimal_json.dumps(dict(taking.payload)).decode(),
        "url": taking.url,
        "body": taking.body,
        "dialect": taking.dialect,
        "state": taking.state,
        "from_block": taking.from_block,
        "settlement": taking.transaction,
        "answer_status": None if answer is None else answer.status,
        "answer_headers": None if answer is None else json.dumps(dict(answer.headers)),
        "answer_body": None if answer is None else answer.body,
    }


def _taking(row: sqlite3.Row) -> Taking:
    answer = None
    if row["answer_status"] is not None:
        answer = Answer(status=row["answer_status"], headers=json.loads(row["answer_headers"]), body=row["answer_body"])
    return Taking(
        payer=row["payer"],
        nonce=row["nonce"],
        payment_id=row["payment_id"],
        fingerprint=row["fingerprint"],
        pay_to=row["pay_to"],
        amount=Amount(row["amount_atomic"], row["asset"], row["network"]),
        valid_before_s=row["valid_before_s"],
        payload=decimal_json.loads(row["payload"]),
        url=row["url"],
        body=row["body"],
        dialect=row["dialect"],
        state=row["state"],
        from_block=row["from_block"],
        transaction=row["settlement"],
        answer=answer,
    )


def _refund(row: sqlite3.Row) -> Refund:
    return Refund(
        key=row["key"],
        payment_id=row["payment_id"],
        pay_to=row["pay_to"],
        payer=row["payer"],
        amount_atomic=row["amount_atomic"],
        state=row["state"],
        account_nonce=row["account_nonce"],
        raw=row["raw"],
        transaction=row["settlement"],
    )
