"""`livery keys`: the keys with which clients use this machine's worker, made by its owner."""

import re
import secrets
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from cli.console import Json, branch, fail, run, show, table
from cli.hw import worker_settings

if TYPE_CHECKING:
    from rich.table import Table

    from cashier.core.credit import Account, Key
    from cashier.ports import CreditBook
    from wire.money import Asset

T = TypeVar("T")
# Nobody's address, so that credit which nobody paid is sent nowhere; and no name of the worker's own callers.
_NAME = re.compile(r"(?!0x)(?!owner$)[a-z][a-z0-9._-]{0,63}")

app = branch("keys", "The keys with which clients use this machine's worker.")


class NoKey(Exception):
    """The message says what cannot be done with which key."""


def decimal(text: str) -> Decimal:
    """Return the number. Raises BadParameter."""
    try:
        return Decimal(text)
    except InvalidOperation:
        raise typer.BadParameter(f"{text!r} is not a number") from None


Credit = Annotated[
    Decimal | None,
    typer.Option(parser=decimal, metavar="USDC", help="Credit that it uses up. Unset: it costs nothing, or has some."),
]


@app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose key it is: a-z, digits, . _ -")],
    credit: Credit = None,
    as_json: Json = False,
) -> None:
    """
    Make a key and tell it once; the worker keeps its digest alone. A name may have several keys.

    Example: livery keys create alice --credit 5
    """
    if not _NAME.fullmatch(name):
        raise typer.BadParameter("a name is 1-64 of a-z, digits, . _ - and begins with a letter")

    async def made(book: "CreditBook", asset: "Asset") -> tuple[str, str]:
        from cashier.core.credit import Account, Deposit
        from cashier.credit import give_key
        from wire.money import to_atomic

        now_s = int(time.time())
        account = await book.account(name)
        if credit is not None:
            if account is not None and account.is_free:
                raise NoKey(f"nothing is charged to {name}, it needs no credit")
            amount = to_atomic(credit, asset)
            gift = f"gift:{secrets.token_hex(12)}"
            await book.deposit(Deposit(payment_id=gift, account=name, amount_atomic=amount), now_s)
        elif account is None:
            await book.open_account(Account(name=name, is_free=True, moved_s=now_s))
        key, secret = await give_key(book, name, now_s)
        assert key is not None
        assert secret is not None
        return key.id, secret

    key_id, secret = _with_book(made, as_json)
    lines = (secret, f"{key_id} of {name}; it is not shown again")
    show({"key": secret, "keyId": key_id, "account": name}, lambda: "\n".join(lines), as_json=as_json)


@app.command("list")
def list_keys(as_json: Json = False) -> None:
    """Show every key, whose it is, and what its credit is. Example: livery keys list --json"""

    async def found(book: "CreditBook", asset: "Asset") -> list[dict[str, Any]]:
        accounts = {account.name: account for account in await book.accounts()}
        return [_row(key, accounts[key.account], asset) for key in await book.keys() if key.account in accounts]

    rows = _with_book(found, as_json)
    show({"keys": rows}, lambda: _page(rows), as_json=as_json)


@app.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `livery keys list` shows it.")], as_json: Json = False
) -> None:
    """
    End a key: from now on it opens nothing. What its account has left stays; who paid for it gets it back.

    Example: livery keys revoke key_0a1b2c3d4e5f
    """

    async def ended(book: "CreditBook", asset: "Asset") -> None:
        if not await book.revoke_key(key_id, int(time.time())):
            raise NoKey(f"there is no key {key_id}")

    _with_book(ended, as_json)
    show({"keyId": key_id}, lambda: f"{key_id} opens nothing any more", as_json=as_json)


def _with_book(work: "Callable[[CreditBook, Asset], Awaitable[T]]", as_json: bool) -> T:
    from gpu_worker.wiring.paying import open_book

    settings = worker_settings(as_json)

    async def done() -> T:
        cashier = open_book(settings)
        try:
            return await work(cashier.credit, cashier.desk.asset)
        finally:
            await cashier.close()

    try:
        return run(done(), as_json=as_json)
    except NoKey as error:
        fail(str(error), "See `livery keys list`.", as_json=as_json)


def _row(key: "Key", account: "Account", asset: "Asset") -> dict[str, Any]:
    from wire.money import to_decimal

    made = datetime.fromtimestamp(key.made_s, UTC).isoformat()
    revoked = None if key.revoked_s is None else datetime.fromtimestamp(key.revoked_s, UTC).isoformat()
    return {
        "keyId": key.id,
        "account": account.name,
        "isFree": account.is_free,
        "available": to_decimal(account.available, asset),
        "spent": to_decimal(account.spent, asset),
        "currency": asset.symbol,
        "madeAt": made,
        "revokedAt": revoked,
    }


def _page(rows: list[dict[str, Any]]) -> "Table | str":
    if not rows:
        return "no keys; make one: livery keys create NAME"
    return table(
        ("key", "account", "credit", "spent", "made", "revoked"),
        [
            (
                row["keyId"],
                row["account"],
                "free" if row["isFree"] else f"{row['available']} {row['currency']}",
                str(row["spent"]),
                row["madeAt"],
                row["revokedAt"],
            )
            for row in rows
        ],
    )
