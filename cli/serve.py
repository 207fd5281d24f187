"""`livery serve`, `vendor-mock`, `facilitator`: the servers, each by itself. All of them at once: `cli.up`."""

from typing import Annotated, Any

import typer
from pydantic import ValidationError

from cli.console import err, fail
from wire.model import first_error

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
