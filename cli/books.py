"""The books beside the chain: what each holder's balance changed by, and what the ledger says that it did."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from chain.devchain import DevNode
from cli.console import err, out, table
from wire.control import StatusReply
from wire.money import BASE_SEPOLIA_USDC, to_decimal

if TYPE_CHECKING:
    from agent.config import AgentSettings

WALLET = "the wallet"


@dataclass(frozen=True, slots=True)
class Books:
    """One holder's change on the chain beside the change that the ledger tells, atomic."""

    holder: str
    address: str
    before_atomic: int
    after_atomic: int
    ledger_atomic: int

    @property
    def agree(self) -> bool:
        return self.after_atomic - self.before_atomic == self.ledger_atomic


async def register(settings: "AgentSettings", sellers: Mapping[str, tuple[str, str]]) -> None:
    """Register vendors, id -> (address, payee), as `livery vendors add` does, from their own offers."""
    from functools import partial

    from agent.vendors import register as registered
    from cli.local import with_agent

    for vendor_id, (endpoint, pay_to) in sellers.items():
        await with_agent(partial(registered, vendor_id=vendor_id, endpoint=endpoint, pay_to=pay_to), settings)


def balances(chain: DevNode, holders: Mapping[str, str]) -> dict[str, int]:
    """Return the balance of each holder, atomic; `holders` are their addresses by name."""
    return {name: chain.balance(address) for name, address in holders.items()}


def books_of(
    seen: StatusReply, holders: Mapping[str, str], before: Mapping[str, int], after: Mapping[str, int]
) -> list[Books]:
    """Return a line for each holder: the wallet, by its name, and vendors by their ids."""

    def told(holder: str) -> int:
        if holder == WALLET:
            return -_atomic(seen.run.budget_spent)
        paid = [
            payment.amount - payment.refunded
            for payment in seen.payments
            if payment.status in ("completed", "refunded") and payment.vendor_id == holder
        ]
        return _atomic(sum(paid, Decimal(0)))

    return [Books(name, address, before[name], after[name], told(name)) for name, address in holders.items()]


def _atomic(amount: Decimal) -> int:
    return int(amount * 10**BASE_SEPOLIA_USDC.decimals)


def line_of(book: Books) -> dict[str, Any]:
    return {
        "holder": book.holder,
        "address": book.address,
        "chain": to_decimal(book.after_atomic - book.before_atomic, BASE_SEPOLIA_USDC),
        "ledger": to_decimal(book.ledger_atomic, BASE_SEPOLIA_USDC),
        "agree": book.agree,
    }


def table_of(books: Iterable[Books]) -> Table:
    rows = [
        (line["holder"], line["address"], f"{line['chain']:+f}", f"{line['ledger']:+f}", _verdict(line["agree"]))
        for line in map(line_of, books)
    ]
    return table(("holder", "address", "chain, USDC", "ledger, USDC", ""), rows)


def conclude(books: Sequence[Books]) -> None:
    """Say whether books and chain agree."""
    if all(book.agree for book in books):
        out.print("\n[bold green]books and chain agree[/]")
    else:
        err.print("\n[bold red]books and chain disagree[/]")


def _verdict(agree: bool) -> Text:
    return Text("equal") if agree else Text("DIFFER", style="bold red")
