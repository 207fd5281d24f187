"""
`livery demo`: a whole run, paid on a local chain, by real processes over HTTP.

The first vendor fails at its third epoch and sends half back; the second is paid from what is left and completes.
It ends with the books beside the chain, and with exit code 1 where they disagree.
"""

import secrets
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr

from agent.config import AgentSettings
from chain.devchain import DevChain, dev_account
from chain.errors import ChainError
from cli import processes
from cli.books import WALLET, Books, balances, books_of, conclude, line_of, register, table_of
from cli.console import Json, fail, out, print_json, run, table
from cli.driving import TooLong, drive, start
from cli.watching import picture
from vendor_mock.catalogue import DEFAULT_PLANS, open_catalogue
from vendor_mock.config import VendorMockSettings
from wire.control import StatusReply
from wire.money import BASE_SEPOLIA_USDC

GOAL = "Fine-tune tiny-llm"
BUDGET = Decimal(5)
WALLET_USDC = 100 * 10**6
LIMIT_S = 60
STORE_AT = "livery.db"


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
    except (ChainError, processes.NotReady, TooLong) as error:
        fail(str(error), as_json=as_json)
    if as_json:
        lines = [line_of(book) for book in books]
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
        holders = {WALLET: payer.address} | {name: seller.pay_to for name, seller in sellers.items()}
        before = balances(chain, holders)
        at = {name: (sold_at, seller.pay_to) for name, seller in sellers.items()}
        run(register(settings, at), as_json=as_json)
        run_id = run(start(plane, GOAL, BUDGET), as_json=as_json)
        seen = run(drive(plane, run_id, limit_s=LIMIT_S, says=not as_json), as_json=as_json)
        after = balances(chain, holders)
    return seen, books_of(seen, holders, before, after)


def _introduce(chain: str, paid_by: str, sold_at: str, plane: str, settings: AgentSettings) -> None:
    out.print(
        f"[bold]Livery demo[/]  PLANNER_MODE={settings.planner_mode}: the first vendor that has not failed in the run"
    )
    rows = [("chain", chain), ("facilitator", paid_by), ("three vendors", sold_at), ("control plane", plane)]
    out.print(table(("", ""), rows))
    out.print(f'\n[bold]"{GOAL}"[/], budget {BUDGET} USDC\n')


def _tell(seen: StatusReply, books: list[Books]) -> None:
    out.print()
    out.print(picture(seen, payments=False, lines_max=0))
    payments = [
        (paid.vendor_id, f"{paid.amount} {paid.currency}", paid.status, paid.x402_tx_id, paid.refund_tx_id)
        for paid in reversed(seen.payments)
    ]
    out.print()
    out.print(table(("paid to", "amount", "state", "settled in", "refunded in"), payments))
    out.print()
    out.print(table_of(books))
    conclude(books)
