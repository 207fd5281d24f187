"""
`livery demo`: a whole run, paid on a local chain, by real processes over HTTP.

The first vendor fails at its third epoch and sends half back; the second is paid from what is left and completes.
It ends with the books beside the chain, and with exit code 1 where they disagree.
"""

import asyncio
import secrets
import tempfile
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import SecretStr
from rich.text import Text

from agent.config import AgentSettings
from chain.devchain import DevChain, dev_account
from chain.errors import ChainError
from cli import processes
from cli.console import Json, err, fail, out, print_json, run, table, words
from cli.local import with_agent
from cli.watching import picture
from livery.client import Client
from vendor_mock.catalogue import DEFAULT_PLANS, Vendor, open_catalogue
from vendor_mock.config import VendorMockSettings
from wire.control import StatusReply
from wire.money import BASE_SEPOLIA_USDC, to_decimal

GOAL = "Fine-tune tiny-llm"
BUDGET = Decimal(5)
WALLET_USDC = 100 * 10**6
TICKS_MAX = 60
TICK_INTERVAL_S = 0.5
STORE_AT = "livery.db"


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


def demo(
    store: Annotated[
        str | None,
        typer.Option("--store", help="Keep the books there (mongodb://…); default: SQLite in a temporary folder."),
    ] = None,
    as_json: Json = False,
) -> None:
    """
    Show a whole run: a vendor fails and refunds, the next one completes, books and chain agree.

    Needs no account, no GPU and no network. Ends in under a minute.
    """
    processes.end_on_sigterm()
    try:
        with tempfile.TemporaryDirectory(prefix="livery-demo-") as folder, DevChain.start() as chain:
            seen, books = _play(Path(folder), chain, store, as_json)
    except (ChainError, processes.NotReady) as error:
        fail(str(error), as_json=as_json)
    if as_json:
        lines = [_line(book) for book in books]
        print_json({"status": seen.document(), "books": lines, "agree": all(line["agree"] for line in lines)})
    else:
        _tell(seen, books)
    if seen.run.status != "completed" or not all(book.agree for book in books):
        raise typer.Exit(1)


def _play(folder: Path, chain: DevChain, store: str | None, as_json: bool) -> tuple[StatusReply, list[Books]]:
    from api.config import ApiSettings

    payer = dev_account(1)
    chain.mint(payer.address, WALLET_USDC)
    names = [plan.vendor_id for plan in DEFAULT_PLANS]
    bearer = ",".join(f"{name}={secrets.token_urlsafe(16)}" for name in names)
    settings = AgentSettings(
        database_url=SecretStr(store or f"sqlite:///{folder / STORE_AT}"),
        private_key=SecretStr(payer.key),
        rpc_url=chain.url,
        vendor_secrets=SecretStr(bearer),
        network="base-sepolia",
        planner_mode="stub",
        artifact_url=SecretStr(str(folder / "artifacts")),
    )
    with processes.Processes(folder) as children:
        network = BASE_SEPOLIA_USDC.network
        paid_by = children.start(processes.facilitator, "facilitator", 4021, chain.url, dev_account(9).key, network)
        mock = VendorMockSettings.model_validate(
            {
                "secret": bearer,
                "rpc_url": chain.url,
                "facilitator_url": paid_by,
                "fail_vendor_id": names[0],
                "database": folder / "vendors.db",
            }
        )
        sold_at = children.start(processes.vendors, "vendors", 4001, mock, DEFAULT_PLANS)
        plane = children.start(processes.control_plane, "control-plane", 3000, settings, ApiSettings.model_construct())
        if not as_json:
            _introduce(chain.url, paid_by, sold_at, plane, settings)
        children.wait_until_ready(paid_by, sold_at, plane)
        sellers = open_catalogue(mock, DEFAULT_PLANS)
        before = _balances(chain, payer.address, sellers)
        run(_register(settings, sellers, sold_at), as_json=as_json)
        seen = run(_drive(plane, as_json), as_json=as_json)
        after = _balances(chain, payer.address, sellers)
    return seen, _books(seen, payer.address, sellers, before, after)


async def _register(settings: AgentSettings, sellers: dict[str, Vendor], endpoint: str) -> None:
    """Register the vendors as `livery vendors add` does, from their own offers."""
    from agent.vendors import register

    for vendor_id, seller in sellers.items():
        await with_agent(partial(register, vendor_id=vendor_id, endpoint=endpoint, pay_to=seller.pay_to), settings)


async def _drive(plane: str, as_json: bool) -> StatusReply:
    """Start the run over HTTP and tick it to its end, telling each new line as it comes."""
    async with Client(plane) as client:
        started = await client.start(GOAL, BUDGET)
        told = 0
        for _ in range(TICKS_MAX):
            seen = await client.status(started.id)
            if not as_json:
                told = _tell_lines(seen, told)
            if seen.run.status in ("completed", "failed", "cancelled"):
                return seen
            await client.tick(started.id)
            await asyncio.sleep(TICK_INTERVAL_S)
    fail(f"the run did not end in {TICKS_MAX} ticks", as_json=as_json)


def _introduce(chain: str, paid_by: str, sold_at: str, plane: str, settings: AgentSettings) -> None:
    out.print(
        f"[bold]Livery demo[/]  PLANNER_MODE={settings.planner_mode}: the first vendor that has not failed in the run"
    )
    rows = [("chain", chain), ("facilitator", paid_by), ("three vendors", sold_at), ("control plane", plane)]
    out.print(table(("", ""), rows))
    out.print(f'\n[bold]"{GOAL}"[/], budget {BUDGET} USDC\n')


_STYLES = {
    "agent_reasoning": "cyan",
    "payment_event": "green",
    "error": "red",
    "metric": "bold green",
    "job_log": "dim",
}


def _tell_lines(seen: StatusReply, told: int) -> int:
    for line in reversed(seen.observations):
        if line.seq > told:
            kind = Text(f"{line.type:16}", style=_STYLES.get(line.type, ""))
            out.print(Text.assemble(f"{line.timestamp:%H:%M:%S} ", kind, words(line.content)), soft_wrap=True)
    return max((line.seq for line in seen.observations), default=told)


def _balances(chain: DevChain, payer: str, sellers: dict[str, Vendor]) -> dict[str, int]:
    holders = {"payer": payer} | {name: seller.pay_to for name, seller in sellers.items()}
    return {name: chain.balance(address) for name, address in holders.items()}


def _books(
    seen: StatusReply, payer: str, sellers: dict[str, Vendor], before: dict[str, int], after: dict[str, int]
) -> list[Books]:
    def told(vendor_id: str | None) -> int:
        paid = [
            payment.amount - payment.refunded
            for payment in seen.payments
            if payment.status in ("completed", "refunded") and vendor_id in (None, payment.vendor_id)
        ]
        return int(sum(paid, Decimal(0)) * 10**BASE_SEPOLIA_USDC.decimals)

    spent_atomic = int(seen.run.budget_spent * 10**BASE_SEPOLIA_USDC.decimals)
    books = [Books("the wallet", payer, before["payer"], after["payer"], -spent_atomic)]
    for name, seller in sellers.items():
        books.append(Books(name, seller.pay_to, before[name], after[name], told(name)))
    return books


def _line(book: Books) -> dict[str, Any]:
    return {
        "holder": book.holder,
        "address": book.address,
        "chain": to_decimal(book.after_atomic - book.before_atomic, BASE_SEPOLIA_USDC),
        "ledger": to_decimal(book.ledger_atomic, BASE_SEPOLIA_USDC),
        "agree": book.agree,
    }


def _tell(seen: StatusReply, books: list[Books]) -> None:
    out.print()
    out.print(picture(seen, payments=False, lines_max=0))
    payments = [
        (paid.vendor_id, f"{paid.amount} {paid.currency}", paid.status, paid.x402_tx_id, paid.refund_tx_id)
        for paid in reversed(seen.payments)
    ]
    out.print()
    out.print(table(("paid to", "amount", "state", "settled in", "refunded in"), payments))
    rows = [
        (line["holder"], line["address"], f"{line['chain']:+f}", f"{line['ledger']:+f}", _verdict(line["agree"]))
        for line in map(_line, books)
    ]
    out.print()
    out.print(table(("holder", "address", "chain, USDC", "ledger, USDC", ""), rows))
    if all(book.agree for book in books):
        out.print("\n[bold green]books and chain agree[/]")
    else:
        err.print("\n[bold red]books and chain disagree[/]")


def _verdict(agree: bool) -> Text:
    return Text("equal") if agree else Text("DIFFER", style="bold red")
