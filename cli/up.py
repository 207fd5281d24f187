"""
`livery up`: everything that a developer needs, until Ctrl-C.

Who sells is a worker on this machine, where what trains is installed; else the vendors that only pretend.
"""

import contextlib
import fcntl
import secrets
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import SecretStr, ValidationError

from cli.console import fail, out, table
from wire.model import first_error

if TYPE_CHECKING:
    from agent.config import AgentSettings
    from cli.processes import Processes

FUNDS_USDC = 100
Rows = list[tuple[str, str]]


def up(
    folder: Annotated[Path, typer.Option("--data", help="Where the books, the wallet and the logs are kept.")] = Path(
        "~/.livery"
    ),
) -> None:
    """
    Run everything a developer needs until Ctrl-C: chain, facilitator, control plane, a funded wallet, and who sells.

    That is one worker on this machine, which trains for whoever rents it from here, and whose switch for training is
    thus yours to turn on: `up` does. Where what trains is not installed, it is vendors that only pretend.

    Example: livery up   and, in another terminal,   livery run start "Fine-tune tiny-llm" --budget 5 --watch
    """
    from agent.core.errors import WalletError
    from chain.errors import ChainError
    from cli.processes import NotReady
    from inbound.serve import CannotServe

    folder = folder.expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _alone(folder):
            _up(folder)
    except ValidationError as error:
        fail(first_error(error), "See docs/environment.md.", "invalid_setting")
    except (ChainError, NotReady, CannotServe, WalletError) as error:
        fail(str(error))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder as long as this lasts: a second world would remove the books of the first one's sellers."""
    with (folder / "up.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fail(f"livery up runs already with {folder}", "End that one, or name another folder with --data.")
        yield


def _up(folder: Path) -> None:
    from agent.wiring import create_wallet
    from api.config import ApiSettings
    from chain.devchain import DevChain, dev_account
    from cli import extras, processes
    from cli.console import run
    from inbound.serve import bound_socket
    from wire.money import BASE_SEPOLIA_USDC

    processes.end_on_sigterm()
    _forget(folder)
    missing = extras.missing_for_worker()
    probe = bound_socket("127.0.0.1", 8545, chosen=False)
    chain_port = probe.getsockname()[1]
    probe.close()
    secret = secrets.token_urlsafe(16)
    with DevChain.start(chain_port, 1) as chain, processes.Processes(folder) as children:
        server = bound_socket("127.0.0.1", 3000, chosen=False)
        settings = _settings(folder, chain.url, secret, processes.url_of(server))
        if not settings.keystore_path.exists():
            create_wallet(settings)
        address = run(_address(settings))
        chain.mint(address, FUNDS_USDC * 10**6)
        network = BASE_SEPOLIA_USDC.network
        paid_at = children.start(processes.facilitator, "facilitator", 4021, chain.url, dev_account(9).key, network)
        plane = children.start(processes.control_plane, "control-plane", server, settings, ApiSettings())
        start = _start_mocks if missing else _start_worker
        sellers = start(folder, children, settings, paid_at, plane)
        rows = [
            ("control plane", plane),
            *sellers,
            ("facilitator", paid_at),
            ("chain", f"{chain.url} (id {BASE_SEPOLIA_USDC.chain_id})"),
            ("wallet", f"{address}, {FUNDS_USDC} test USDC, {settings.keystore_path}"),
            ("logs", str(folder)),
        ]
        out.print(table(("", ""), rows))
        if missing:
            out.print(
                f"\nnothing is trained here: {', '.join(missing)} not found, so the vendors only pretend. "
                f"What trains comes with: [bold]{extras.INSTALL.replace('[', chr(92) + '[')}[/]",
                soft_wrap=True,
            )
        url = "" if plane.endswith(":3000") else f" --url {plane}"
        out.print(f'\ntry, in another terminal:  livery run start "Fine-tune tiny-llm" --budget 5 --watch{url}')
        out.print("[dim]Ctrl-C ends it all[/]")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


def _forget(folder: Path) -> None:
    """Remove what sellers did on the chain before: it is a new one each time, and there it means nothing."""
    for old in (*folder.glob("vendor-mock.db*"), *_worker_folder(folder).glob("worker.db*")):
        old.unlink()
    shutil.rmtree(_worker_folder(folder) / "jobs", ignore_errors=True)


def _worker_folder(folder: Path) -> Path:
    # Not `worker`, which is the folder of a worker that earns real money.
    return folder / "up-worker"


def _settings(folder: Path, rpc_url: str, secret: str, plane: str) -> "AgentSettings":
    from agent.config import AgentSettings

    return AgentSettings(
        database_url=SecretStr(f"sqlite:///{folder / 'livery.db'}"),
        artifact_url=SecretStr(str(folder / "artifacts")),
        keystore_path=folder / "wallet.json",
        keystore_password_path=folder / "wallet.password",
        rpc_url=rpc_url,
        vendor_secrets=SecretStr(secret),
        network="base-sepolia",
        private_key=None,
        cdp_wallet_secret=None,
        # What jobs bring their checkpoints to, and call when they have ended.
        callback_url=plane,
    )


def _start_worker(folder: Path, children: "Processes", settings: "AgentSettings", paid_at: str, plane: str) -> Rows:
    """Start a worker and register it, the pretenders no more; return what is told of it."""
    from agent.vendors import register
    from cli import own_worker
    from cli.console import run
    from cli.local import with_agent
    from gpu_worker.config import DEFAULT_PORT
    from seeds.vendors import remove_seeds

    tiny = folder / "tiny"
    if not tiny.exists():
        out.print("[dim]the first start: making a tiny model, and looking how fast this machine trains …[/]")
    own_worker.make_tiny(tiny)
    secret = settings.vendor_secrets.get_secret_value()
    sells = own_worker.settings_of(
        _worker_folder(folder), tiny, number=0, secret=secret, chain_url=settings.rpc_url, paid_at=paid_at
    )
    url = own_worker.start(children, sells, DEFAULT_PORT)
    children.wait_until_ready(paid_at, plane)
    children.wait_until_online(url)
    run(with_agent(lambda agent: remove_seeds(agent.store), settings))
    worker = run(with_agent(partial(register, vendor_id=sells.vendor_id, endpoint=url), settings))
    told = (
        f"{url}, trains {own_worker.MODEL} on this machine's {worker.supported_gpu_types[0]}, "
        f"{sells.price_per_hour} USDC an hour; what is not used comes back"
    )
    return [
        ("worker", told),
        ("", "its switch for training (fine_tune) was turned on by you, with this command; no other kind is"),
        ("", f"look at it: livery worker status --api-url {url}"),
        ("GPU_VENDOR_SECRET", secret),
    ]


def _start_mocks(folder: Path, children: "Processes", settings: "AgentSettings", paid_at: str, plane: str) -> Rows:
    """Start the vendors that pretend and register them, the worker of other times no more; return what is told."""
    from agent.vendors import remove
    from cli import own_worker, processes
    from cli.console import run
    from cli.local import with_agent
    from seeds.vendors import seed_vendors
    from vendor_mock.config import VendorMockSettings

    secret = settings.vendor_secrets.get_secret_value()
    mock = VendorMockSettings.model_validate(
        {
            "secret": secret,
            "rpc_url": settings.rpc_url,
            "facilitator_url": paid_at,
            "database": folder / "vendor-mock.db",
        }
    )
    url = children.start(processes.vendors, "vendors", 4001, mock, None)
    children.wait_until_ready(paid_at, url, plane)
    run(with_agent(partial(remove, vendor_id=own_worker.NAMES[0]), settings))
    run(with_agent(lambda agent: seed_vendors(agent.store, agent.policy.asset, url, replace=True), settings))
    return [("vendors", f"{url}, GPU_VENDOR_SECRET={secret}")]


async def _address(settings: "AgentSettings") -> str:
    from agent.wiring import open_wallet

    wallet = open_wallet(settings)
    assert wallet is not None
    return await wallet.address()
