"""`livery up`, `serve`, `vendor-mock`, `facilitator`: the servers."""

import contextlib
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import SecretStr, ValidationError

from cli.console import err, fail, out, table
from wire.model import first_error

if TYPE_CHECKING:
    from agent.config import AgentSettings

Host = Annotated[str | None, typer.Option("--host", help="The address to bind.")]
Port = Annotated[int | None, typer.Option("--port", min=0, max=65_535, help="The port to bind.")]


def serve(
    host: Host = None,
    port: Port = None,
    tick: Annotated[bool, typer.Option("--tick", help="Drive due runs, without anybody asking for ticks.")] = False,
) -> None:
    """
    Serve the control plane (HTTP API) until Ctrl-C or SIGTERM.

    Example: livery serve --port 3000 --tick
    """
    from api.config import ApiSettings
    from api.door import create_app
    from wire.loopback import is_loopback

    try:
        settings = ApiSettings()
        settings = settings.model_copy(update={"tick": tick or settings.tick})
        app = create_app(settings=settings)
    except ValidationError as error:
        fail(first_error(error), "See docs/environment.md.")
    host = host or settings.host
    if not (is_loopback(host) or settings.secret):
        fail(
            f"the control plane does not bind {host}: it holds a wallet, and LIVERY_API_SECRET is not set",
            "Set it, and callers send it as a bearer; or bind 127.0.0.1.",
        )
    chosen = "port" in settings.model_fields_set
    _serve(app, host, port, settings.port, chosen, "control plane", settings.drain_s)


def vendor_mock(host: Host = None, port: Port = None) -> None:
    """
    Serve GPU vendors that are not real, for developers. Needs GPU_VENDOR_SECRET.

    Faults are scripted per vendor in the file that LIVERY_VENDOR_MOCK_VENDORS_FILE names: failAtEpoch,
    timeoutsAfterSettling, priceFactor, amountAtomic, payTo, asset, network, honestAsks, reuseJobIds, noArtifacts,
    falseRefunds, attacks, errors, errorShare, slowSeconds, answerHtml, headerBytes, lieAboutProgress, vanishAtEpoch,
    refuses (docs/vendor-api.md).

    Example: GPU_VENDOR_SECRET=s livery vendor-mock --port 4001
    """
    from vendor_mock.app import create_app
    from vendor_mock.catalogue import SetupError
    from vendor_mock.config import VendorMockSettings

    try:
        settings = VendorMockSettings()
        app = create_app(settings)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "missing":
            fail(
                "GPU_VENDOR_SECRET is not set",
                "It is the bearer secret that buyers must send: export GPU_VENDOR_SECRET=…",
            )
        fail(first_error(error))
    except SetupError as error:
        fail(str(error))
    if settings.keys is None:
        err.print("paid at the public test accounts of a local chain: use it with no other")
    _serve(app, host or settings.host, port, settings.port, settings.port_is_chosen, "vendor mock", 3)


def facilitator(
    host: Host = None,
    port: Port = None,
    fault: Annotated[str | None, typer.Option("--fault", help="What it does wrong; LIVERY_FACILITATOR_FAULT.")] = None,
) -> None:
    """
    Serve the official x402 facilitator over a local chain, for developers.

    Faults: settle_then_hang, settle_then_502, settle_late (28 s), wrong_hash settle the payment and do not say so
    rightly; never_settle, made_up_hash, replayed_receipt settle nothing; refuse_twice calls it invalid twice.

    Example: livery facilitator --fault settle_then_502
    """
    from chain.devchain import dev_account
    from vendor_mock.config import FacilitatorSettings
    from vendor_mock.facilitator import create_facilitator
    from vendor_mock.hostile import HostileFacilitator
    from wire.money import BASE_SEPOLIA_USDC

    try:
        settings = FacilitatorSettings.model_validate({} if fault is None else {"fault": fault})
    except ValidationError as error:
        fail(first_error(error))
    key = settings.private_key.get_secret_value() if settings.private_key else dev_account(9).key
    honest = create_facilitator(settings.rpc_url, key, BASE_SEPOLIA_USDC.network)
    app = HostileFacilitator(honest, settings.fault) if settings.fault is not None else honest
    if settings.fault is not None:
        err.print(f"it does wrong on purpose: {settings.fault}")
    _serve(app, host or settings.host, port, settings.port, "port" in settings.model_fields_set, "facilitator", 3)


def _serve(app: Any, host: str, port: int | None, default: int, default_chosen: bool, name: str, drain_s: int) -> None:
    from inbound import serve as serving
    from inbound.logs import configure_logs

    configure_logs()
    wanted, chosen = (default, default_chosen) if port is None else (port, True)
    try:
        server = serving.bound_socket(host, wanted, chosen=chosen)
    except serving.CannotServe as error:
        fail(str(error))
    bound = server.getsockname()[1]
    if bound != wanted and wanted:
        err.print(f"port {wanted} is taken, {name} is at {bound}")
    err.print(f"{name}: http://{host}:{bound}")
    serving.serve(app, server, name=name, drain_s=drain_s)


def up(
    folder: Annotated[Path, typer.Option("--data", help="Where the books, the wallet and the logs are kept.")] = Path(
        "~/.livery"
    ),
) -> None:
    """
    Run everything a developer needs until Ctrl-C: chain, facilitator, vendors, control plane, a funded wallet.

    Example: livery up   and, in another terminal,   livery run start "Fine-tune tiny-llm" --budget 5 --watch
    """
    from agent.core.errors import WalletError
    from chain.errors import ChainError
    from cli.processes import NotReady
    from inbound.serve import CannotServe

    try:
        _up(folder.expanduser())
    except (ChainError, NotReady, CannotServe, WalletError) as error:
        fail(str(error))


def _up(folder: Path) -> None:
    from agent.config import AgentSettings
    from agent.wiring import create_wallet
    from api.config import ApiSettings
    from chain.devchain import DevChain, dev_account
    from cli import processes
    from cli.console import run
    from cli.local import with_agent
    from inbound.serve import bound_socket
    from seeds.vendors import seed_vendors
    from vendor_mock.config import VendorMockSettings
    from wire.money import BASE_SEPOLIA_USDC

    processes.end_on_sigterm()
    folder.mkdir(parents=True, exist_ok=True)
    # The chain is a new one each time, and what vendors did on an old one means nothing on it.
    for old in folder.glob("vendor-mock.db*"):
        old.unlink()
    probe = bound_socket("127.0.0.1", 8545, chosen=False)
    chain_port = probe.getsockname()[1]
    probe.close()
    secret = secrets.token_urlsafe(16)
    with DevChain.start(chain_port, 1) as chain, processes.Processes(folder) as children:
        settings = AgentSettings(
            database_url=SecretStr(f"sqlite:///{folder / 'livery.db'}"),
            artifact_url=SecretStr(str(folder / "artifacts")),
            keystore_path=folder / "wallet.json",
            keystore_password_path=folder / "wallet.password",
            rpc_url=chain.url,
            vendor_secrets=SecretStr(secret),
            network="base-sepolia",
            private_key=None,
            cdp_wallet_secret=None,
        )
        if not settings.keystore_path.exists():
            create_wallet(settings)
        address = run(_address(settings))
        chain.mint(address, 100 * 10**6)
        paid_by = children.start(
            processes.facilitator,
            "facilitator",
            4021,
            chain.url,
            dev_account(9).key,
            BASE_SEPOLIA_USDC.network,
        )
        mock = VendorMockSettings.model_validate(
            {"secret": secret, "rpc_url": chain.url, "facilitator_url": paid_by, "database": folder / "vendor-mock.db"}
        )
        sold_at = children.start(processes.vendors, "vendors", 4001, mock, None)
        plane = children.start(processes.control_plane, "control-plane", 3000, settings, ApiSettings())
        children.wait_until_ready(paid_by, sold_at, plane)

        run(with_agent(lambda agent: seed_vendors(agent.store, agent.policy.asset, sold_at, replace=True), settings))
        rows = [
            ("control plane", plane),
            ("vendors", f"{sold_at}, GPU_VENDOR_SECRET={secret}"),
            ("facilitator", paid_by),
            ("chain", f"{chain.url} (id {BASE_SEPOLIA_USDC.chain_id})"),
            ("wallet", f"{address}, 100 test USDC, {settings.keystore_path}"),
            ("logs", str(folder)),
        ]
        out.print(table(("", ""), rows))
        url = "" if plane.endswith(":3000") else f" --url {plane}"
        out.print(f'\ntry, in another terminal:  livery run start "Fine-tune tiny-llm" --budget 5 --watch{url}')
        out.print("[dim]Ctrl-C ends it all[/]")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


async def _address(settings: "AgentSettings") -> str:
    from agent.wiring import open_wallet

    wallet = open_wallet(settings)
    assert wallet is not None
    return await wallet.address()
