"""`livery wallet`: the key that pays."""

from typing import Annotated, Any

import typer

from agent.config import AgentSettings
from cli.console import Json, branch, err, fail, run, show
from wire.money import ASSETS, to_decimal

app = branch("wallet", "The key that pays: make one, see what it holds and how to fund it.")

Network = Annotated[str | None, typer.Option("--network", help="base-sepolia or base (real money).")]
MAINNET_WORDS = "pay with real money"


@app.command("new")
def new(
    network: Network = None,
    worker: Annotated[bool, typer.Option("--worker", help="The key of this machine's worker, which is paid.")] = False,
    as_json: Json = False,
) -> None:
    """Make a key in an encrypted keystore, never over an existing one."""
    if worker:
        _new_for_worker(as_json)
        return
    from agent.core.errors import WalletError
    from agent.wiring import create_wallet

    settings = _settings(network, as_json)
    try:
        address = create_wallet(settings)
    except WalletError as error:
        fail(str(error), "Use it, or name another with LIVERY_AGENT_KEYSTORE_PATH.", as_json=as_json)
    keystore = settings.keystore_path.expanduser()
    lines = (
        address,
        f"keystore {keystore}",
        f"password {settings.keystore_password_path.expanduser()}",
        _how_to_fund(settings, address),
    )
    show({"address": address, "keystore": str(keystore)}, lambda: "\n".join(lines), as_json=as_json)


def _new_for_worker(as_json: bool) -> None:
    from chain.errors import KeystoreError
    from cli.hw import worker_settings
    from gpu_worker.wiring.worker import create_wallet

    settings = worker_settings(as_json)
    try:
        address = create_wallet(settings)
    except KeystoreError as error:
        fail(str(error), "Use it, or name another with LIVERY_WORKER_KEYSTORE_PATH.", as_json=as_json)
    lines = (
        address,
        f"keystore {settings.keystore}",
        f"password {settings.password_file}",
        "it needs some ether: refunds are transfers, and a worker that cannot send them sells nothing",
        *([f"fund it: livery chain fund {address}"] if _is_local(settings.rpc_url) else []),
    )
    show({"address": address, "keystore": str(settings.keystore)}, lambda: "\n".join(lines), as_json=as_json)


@app.command("show")
def show_wallet(network: Network = None, as_json: Json = False) -> None:
    """Show the wallet's address, network and balances, and how to fund it."""
    from agent.wiring import open_wallet, token_reader
    from outbound.http import HttpClient

    settings = _settings(network, as_json)
    wallet = open_wallet(settings)
    if wallet is None:
        fail("there is no key to pay with", "Make one with `livery wallet new`.", "no_signer", as_json=as_json)

    async def read() -> dict[str, Any]:
        reader, address = token_reader(settings, HttpClient()), await wallet.address()
        return {
            "address": address,
            "network": settings.network,
            "usdc": to_decimal(await reader.balance(address), reader.asset),
            "etherWei": await reader.native_balance(address),
            "rpcUrl": settings.rpc_url,
        }

    found = run(read(), as_json=as_json)
    lines = (
        f"{found['address']} on {found['network']} ({settings.rpc_url})",
        f"{found['usdc']} USDC · it needs no ether: the facilitator pays the gas",
        _how_to_fund(settings, found["address"]),
    )
    show(found, lambda: "\n".join(lines), as_json=as_json)


def _settings(network: str | None, as_json: bool) -> AgentSettings:
    settings = AgentSettings()
    if network is not None:
        if network not in ASSETS:
            raise typer.BadParameter(f"a network is one of {', '.join(ASSETS)}")
        settings = settings.model_copy(update={"network": network})
    if settings.network == "base":
        _confirm_mainnet(settings, as_json)
    return settings


def _confirm_mainnet(settings: AgentSettings, as_json: bool) -> None:
    """Ask once, in words, before anything on mainnet; the answer is kept."""
    kept = settings.mainnet_confirmed_path.expanduser()
    if kept.exists():
        return
    err.print("[bold]base is mainnet: payments there are real and final.[/]")
    try:
        typed = typer.prompt(f"Type '{MAINNET_WORDS}' to go on", err=True)
    except typer.Abort:
        typed = ""
    if typed.strip() != MAINNET_WORDS:
        fail("mainnet was not confirmed", "Nothing was done; base-sepolia needs no confirmation.", as_json=as_json)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(MAINNET_WORDS + "\n")


def _is_local(rpc_url: str) -> bool:
    return any(host in rpc_url for host in ("localhost", "127.0.0.1"))


def _how_to_fund(settings: AgentSettings, address: str) -> str:
    asset = ASSETS[settings.network]
    if _is_local(settings.rpc_url):
        return f"fund it: livery chain fund {address} --usdc 100"
    return f"fund it: send USDC ({asset.address} on {settings.network}) to {address}"
