"""The book of credit in SQLite: every change is one transaction over what `core.credit` says it comes to."""

import sqlite3
from dataclasses import replace
from typing import Any

from cashier.core import credit
from cashier.core.credit import HOUR_S, Account, Deposit, Hindrance, Hold, Income, Key
from cashier.core.errors import CreditTooSmall
from cashier.core.model import Refund
from storage.sqlite import Sqlite
from wire.money import Asset

# They stand in the till's file: a withdrawal moves an account and asks for a refund in one transaction.
TABLES = ("credit_accounts", "credit_deposits", "credit_holds", "credit_keys", "credit_income")
STEPS = (
    """CREATE TABLE credit_accounts (
        asset TEXT NOT NULL,
        name TEXT NOT NULL,
        deposited INTEGER NOT NULL CHECK (deposited >= 0),
        held INTEGER NOT NULL CHECK (held >= 0),
        spent INTEGER NOT NULL CHECK (spent >= 0),
        withdrawn INTEGER NOT NULL CHECK (withdrawn >= 0),
        is_free INTEGER NOT NULL,
        moved_s INTEGER NOT NULL,
        CHECK (held + spent + withdrawn <= deposited),
        PRIMARY KEY (asset, name)
    ) STRICT""",
    """CREATE TABLE credit_deposits (
        payment_id TEXT PRIMARY KEY,
        asset TEXT NOT NULL,
        account TEXT NOT NULL,
        amount_atomic INTEGER NOT NULL CHECK (amount_atomic > 0)
    ) STRICT""",
    """CREATE TABLE credit_holds (
        id TEXT PRIMARY KEY,
        asset TEXT NOT NULL,
        account TEXT NOT NULL,
        amount_atomic INTEGER NOT NULL CHECK (amount_atomic >= 0),
        state TEXT NOT NULL CHECK (state IN ('running', 'spent', 'released')),
        cost_atomic INTEGER NOT NULL CHECK (cost_atomic BETWEEN 0 AND amount_atomic),
        is_payment INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE credit_keys (
        sha256 TEXT PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        asset TEXT NOT NULL,
        account TEXT NOT NULL,
        made_s INTEGER NOT NULL,
        revoked_s INTEGER
    ) STRICT""",
    """CREATE TABLE credit_income (
        asset TEXT NOT NULL,
        hour_s INTEGER NOT NULL,
        requests INTEGER NOT NULL,
        spent_atomic INTEGER NOT NULL,
        PRIMARY KEY (asset, hour_s)
    ) STRICT""",
)
INDEXES = (
    "CREATE INDEX credit_holds_open ON credit_holds (asset) WHERE state = 'running'",
    "CREATE INDEX credit_keys_of_account ON credit_keys (asset, account) WHERE revoked_s IS NULL",
    "CREATE INDEX credit_withdrawals_owed ON refunds_made (payment_id) WHERE state != 'paid'",
)

_SAVE_ACCOUNT = """INSERT INTO credit_accounts (asset, name, deposited, held, spent, withdrawn, is_free, moved_s)
    VALUES (:asset, :name, :deposited, :held, :spent, :withdrawn, :is_free, :moved_s)
    ON CONFLICT (asset, name) DO UPDATE SET deposited = excluded.deposited, held = excluded.held,
        spent = excluded.spent, withdrawn = excluded.withdrawn, moved_s = excluded.moved_s"""
_MAKE_HOLD = """INSERT INTO credit_holds (id, asset, account, amount_atomic, state, cost_atomic, is_payment)
    VALUES (:id, :asset, :account, :amount_atomic, :state, :cost_atomic, :is_payment)"""
_SAVE_HOLD = """UPDATE credit_holds SET amount_atomic = :amount_atomic, state = :state, cost_atomic = :cost_atomic
    WHERE id = :id AND asset = :asset"""
_EARN = """INSERT INTO credit_income (asset, hour_s, requests, spent_atomic) VALUES (?, ?, 1, ?)
    ON CONFLICT (asset, hour_s) DO UPDATE SET requests = requests + 1,
        spent_atomic = spent_atomic + excluded.spent_atomic"""
_KEYLESS = """SELECT * FROM credit_accounts AS a WHERE asset = ? AND moved_s <= ? AND name GLOB '0x*'
    AND deposited - held - spent - withdrawn >= ? AND NOT EXISTS (
        SELECT 1 FROM credit_keys AS k WHERE k.asset = a.asset AND k.account = a.name AND k.revoked_s IS NULL
    ) ORDER BY rowid"""


class SqliteCredit:
    """Implements `cashier.ports.CreditBook` for the credit in one `asset`."""

    def __init__(self, db: Sqlite, asset: Asset) -> None:
        self._db = db
        self._asset = f"{asset.network}/{asset.address.lower()}"

    async def deposit(self, deposit: Deposit, now_s: int, *, holds: bool = False) -> None:
        await self._db.write(lambda connection: self._deposit(connection, deposit, now_s, holds))

    async def reserve(self, hold: Hold, now_s: int) -> Hold | None:
        return await self._db.write(lambda connection: self._reserve(connection, hold, now_s))

    async def begin(self, hold_id: str, now_s: int) -> Hold | Hindrance:
        return await self._db.write(lambda connection: self._begin(connection, hold_id, now_s))

    async def end(self, hold_id: str, cost_atomic: int, now_s: int) -> int:
        return await self._db.write(lambda connection: self._end(connection, hold_id, cost_atomic, now_s))

    async def release_all(self, now_s: int) -> int:
        return await self._db.write(lambda connection: self._release_all(connection, now_s))

    async def account(self, name: str) -> Account | None:
        return await self._db.read(lambda connection: self._find(connection, name))

    async def accounts(self) -> list[Account]:
        query = "SELECT * FROM credit_accounts WHERE asset = ? ORDER BY rowid"
        return [_account(row) for row in await self._db.read(lambda connection: _rows(connection, query, self._asset))]

    async def keyless(self, least_atomic: int, before_s: int) -> list[Account]:
        values = (self._asset, before_s, max(1, least_atomic))
        rows = await self._db.read(lambda connection: _rows(connection, _KEYLESS, *values))
        return [_account(row) for row in rows if credit.is_address(row["name"])]

    async def open_account(self, account: Account) -> bool:
        return await self._db.write(lambda connection: self._open(connection, account))

    async def add_key(self, key: Key) -> None:
        values = (key.sha256, key.id, self._asset, key.account, key.made_s, key.revoked_s)
        statement = "INSERT OR IGNORE INTO credit_keys VALUES (?, ?, ?, ?, ?, ?)"
        await self._db.write(lambda connection: connection.execute(statement, values).rowcount)

    async def find_key(self, sha256: str) -> Key | None:
        query = "SELECT * FROM credit_keys WHERE sha256 = ? AND asset = ?"
        rows = await self._db.read(lambda connection: _rows(connection, query, sha256, self._asset))
        return _key(rows[0]) if rows else None

    async def keys(self) -> list[Key]:
        query = "SELECT * FROM credit_keys WHERE asset = ? ORDER BY rowid"
        return [_key(row) for row in await self._db.read(lambda connection: _rows(connection, query, self._asset))]

    async def revoke_key(self, key_id: str, now_s: int) -> bool:
        statement = "UPDATE credit_keys SET revoked_s = coalesce(revoked_s, ?) WHERE id = ? AND asset = ?"
        values = (now_s, key_id, self._asset)
        return await self._db.write(lambda connection: connection.execute(statement, values).rowcount == 1)

    async def withdraw(self, refund: Refund, now_s: int, least_atomic: int = 1) -> Refund:
        return await self._db.write(lambda connection: self._withdraw(connection, refund, now_s, least_atomic))

    async def income(self, since_s: int) -> list[Income]:
        query = "SELECT * FROM credit_income WHERE asset = ? AND hour_s + 3600 > ? ORDER BY hour_s"
        rows = await self._db.read(lambda connection: _rows(connection, query, self._asset, since_s))
        return [Income(**_without(row, "asset")) for row in rows]

    async def owed(self) -> list[str]:
        # A range, which the index serves; ';' follows ':'.
        query = "SELECT key FROM refunds_made WHERE state != 'paid' AND payment_id >= ? AND payment_id < ?"
        values = (f"credit:{self._asset}:", f"credit:{self._asset};")
        rows = await self._db.read(lambda connection: _rows(connection, f"{query} ORDER BY rowid", *values))
        return [row["key"] for row in rows]

    def _deposit(self, connection: sqlite3.Connection, deposit: Deposit, now_s: int, holds: bool) -> None:
        values = (deposit.payment_id, self._asset, deposit.account, deposit.amount_atomic)
        statement = "INSERT OR IGNORE INTO credit_deposits VALUES (?, ?, ?, ?)"
        if connection.execute(statement, values).rowcount == 0:
            return
        account = self._find(connection, deposit.account) or Account(name=deposit.account)
        account = credit.put_in(account, deposit.amount_atomic)
        if holds:
            # Its request begins it. One that never comes, after a crash, keeps nothing from its payer.
            name, amount = account.name, deposit.amount_atomic
            hold = Hold(id=deposit.payment_id, account=name, amount_atomic=amount, state="released", is_payment=True)
            self._save_hold(connection, _MAKE_HOLD, hold)
        self._save(connection, account, now_s)

    def _reserve(self, connection: sqlite3.Connection, hold: Hold, now_s: int) -> Hold | None:
        account = self._find(connection, hold.account)
        reserved = None if account is None else credit.reserve(account, hold)
        if reserved is None:
            return None
        self._save(connection, reserved[0], now_s)
        self._save_hold(connection, _MAKE_HOLD, reserved[1])
        return reserved[1]

    def _begin(self, connection: sqlite3.Connection, hold_id: str, now_s: int) -> Hold | Hindrance:
        found = self._find_hold(connection, hold_id)
        if found is None:
            return "short"
        begun = credit.begin(*found)
        if isinstance(begun, str):
            return begun
        self._save(connection, begun[0], now_s)
        self._save_hold(connection, _SAVE_HOLD, begun[1])
        return begun[1]

    def _end(self, connection: sqlite3.Connection, hold_id: str, cost_atomic: int, now_s: int) -> int:
        found = self._find_hold(connection, hold_id)
        if found is None or found[1].state != "running":
            return 0
        account, hold = credit.end(*found, cost_atomic)
        self._save(connection, account, now_s)
        if hold.cost_atomic and credit.is_address(account.name):
            # What nobody paid is no income.
            connection.execute(_EARN, (self._asset, now_s - now_s % HOUR_S, hold.cost_atomic))
        if hold.is_payment:
            self._save_hold(connection, _SAVE_HOLD, hold)
        else:
            # Nobody asks for it again: its request can come but once.
            connection.execute("DELETE FROM credit_holds WHERE id = ?", (hold.id,))
        return hold.cost_atomic

    def _release_all(self, connection: sqlite3.Connection, now_s: int) -> int:
        query = "SELECT id FROM credit_holds WHERE asset = ? AND state = 'running'"
        left = _rows(connection, query, self._asset)
        for row in left:
            self._end(connection, row["id"], 0, now_s)
        return len(left)

    def _open(self, connection: sqlite3.Connection, account: Account) -> bool:
        if self._find(connection, account.name) is not None:
            return False
        self._save(connection, account, account.moved_s)
        return True

    def _withdraw(self, connection: sqlite3.Connection, refund: Refund, now_s: int, least_atomic: int) -> Refund:
        refund = replace(refund, payment_id=f"credit:{self._asset}:{refund.payer}", pay_to=refund.pay_to.lower())
        query = "SELECT amount_atomic FROM refunds_made WHERE key = ? AND payment_id = ?"
        if rows := _rows(connection, query, refund.key, refund.payment_id):
            return replace(refund, amount_atomic=rows[0]["amount_atomic"])
        account = self._find(connection, refund.payer)
        if account is None or not credit.is_address(refund.payer):
            raise CreditTooSmall(f"the credit of {refund.payer} was paid by nobody whom it could be sent back to")
        refund = replace(refund, amount_atomic=refund.amount_atomic or account.available)
        left = credit.take_out(account, refund.amount_atomic)
        if left is None or refund.amount_atomic < least_atomic:
            raise CreditTooSmall(
                f"{account.available} atomic units are available, {refund.amount_atomic} cannot be withdrawn, "
                f"{least_atomic} is the least"
            )
        self._save(connection, left, now_s)
        connection.execute(
            "INSERT INTO refunds_made (key, payment_id, pay_to, payer, amount_atomic, state) VALUES (?, ?, ?, ?, ?, ?)",
            (refund.key, refund.payment_id, refund.pay_to, refund.payer, refund.amount_atomic, refund.state),
        )
        return refund

    def _find(self, connection: sqlite3.Connection, name: str) -> Account | None:
        rows = _rows(connection, "SELECT * FROM credit_accounts WHERE asset = ? AND name = ?", self._asset, name)
        return _account(rows[0]) if rows else None

    def _find_hold(self, connection: sqlite3.Connection, hold_id: str) -> tuple[Account, Hold] | None:
        rows = _rows(connection, "SELECT * FROM credit_holds WHERE id = ? AND asset = ?", hold_id, self._asset)
        if not rows:
            return None
        hold = _hold(rows[0])
        account = self._find(connection, hold.account)
        assert account is not None
        return account, hold

    def _save(self, connection: sqlite3.Connection, account: Account, now_s: int) -> None:
        values = {name: getattr(account, name) for name in Account.__slots__}
        connection.execute(_SAVE_ACCOUNT, {**values, "asset": self._asset, "moved_s": now_s})

    def _save_hold(self, connection: sqlite3.Connection, statement: str, hold: Hold) -> None:
        values = {name: getattr(hold, name) for name in Hold.__slots__}
        connection.execute(statement, {**values, "asset": self._asset})


def _rows(connection: sqlite3.Connection, query: str, *values: str | int) -> list[sqlite3.Row]:
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    return cursor.execute(query, values).fetchall()


def _without(row: sqlite3.Row, *names: str) -> dict[str, Any]:
    return {name: row[name] for name in row.keys() if name not in names}  # noqa: SIM118 - a Row has no items


def _account(row: sqlite3.Row) -> Account:
    return Account(**{**_without(row, "asset"), "is_free": bool(row["is_free"])})


def _hold(row: sqlite3.Row) -> Hold:
    return Hold(**{**_without(row, "asset"), "is_payment": bool(row["is_payment"])})


def _key(row: sqlite3.Row) -> Key:
    return Key(**_without(row, "asset"))
