"""`livery worker`: this machine, rented out by the job: start, status, drain."""

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import hw, worker_models, worker_owner
from cli.console import Json, branch, fail, show, table
from cli.hw import facts, worker_settings

if TYPE_CHECKING:
    from gpu_worker.config import WorkerSettings
    from gpu_worker.lifecycle import Report
    from gpu_worker.ports import Worker

app = branch("worker", "This machine, rented out by the job: start it, look at it, limit it, see what it earns.")
logger = logging.getLogger("livery.gpu_worker")

ApiUrl = Annotated[
    str | None, typer.Option("--api-url", help="The worker's address; AGENT_API_URL. Unset: the one that runs here.")
]


def _never_typed(instead: str) -> Any:
    """Return the check of an option that takes a secret: it is refused, without a word of what was typed."""

    def refuse(typed: str | None) -> None:
        if typed is not None:
            raise typer.BadParameter(
                "a secret is not taken from a command line: everybody on this machine sees it there, and the shell "
                f"remembers it. {instead} If the one you typed is real, replace it."
            )

    return refuse


PrivateKey = Annotated[
    str | None,
    typer.Option(
        "--private-key",
        help="Refused: a key is not typed. Use a keystore (livery wallet new --worker) or LIVERY_WORKER_PRIVATE_KEY.",
        callback=_never_typed(
            "Make a keystore with `livery wallet new --worker`, or put the key into LIVERY_WORKER_PRIVATE_KEY or a "
            ".env file with mode 600."
        ),
    ),
]
HfToken = Annotated[
    str | None,
    typer.Option(
        "--hf-token",
        help="Refused: a token is not typed. Use HF_TOKEN.",
        callback=_never_typed("Put the token into HF_TOKEN, or into a .env file with mode 600."),
    ),
]
DEFAULT_ENV = Path(".env")
_UNUSED = "Read, not used: this version serves no layer slices."


@app.command("start")
def start(
    kinds: Annotated[
        str | None, typer.Option("--kinds", help="Jobs to sell: fine_tune,evaluate,generate,container.")
    ] = None,
    price: Annotated[str | None, typer.Option("--price", help="USDC an hour.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="What it is called; in lower case its vendor id.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Its folder: jobs, books, keys.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model of jobs that name none.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="auto, cuda, mps or cpu.")] = None,
    host: Annotated[str | None, typer.Option("--host", help="The address to listen at; 0.0.0.0: all it has.")] = None,
    port: Annotated[int | None, typer.Option("--port", "--api-port", min=0, max=65_535, help="The port.")] = None,
    rpc_url: Annotated[str | None, typer.Option("--rpc-url", help="A node of the chain.")] = None,
    public_url: Annotated[
        str | None, typer.Option("--public-url", "--node-endpoint", help="The address at which buyers reach it.")
    ] = None,
    env_file: Annotated[Path, typer.Option("--env-file", help="Settings, below the environment.")] = DEFAULT_ENV,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more in the log.")] = False,
    private_key: PrivateKey = None,
    hf_token: HfToken = None,
    oracle_url: Annotated[str | None, typer.Option("--oracle-url", help=_UNUSED)] = None,
    grpc_port: Annotated[int | None, typer.Option("--grpc-port", help=_UNUSED)] = None,
    grpc_endpoint: Annotated[str | None, typer.Option("--grpc-endpoint", help=_UNUSED)] = None,
    layer_start: Annotated[int | None, typer.Option("--layer-start", help=_UNUSED)] = None,
    layer_end: Annotated[int | None, typer.Option("--layer-end", help=_UNUSED)] = None,
) -> None:
    """
    Rent this machine out until Ctrl-C or SIGTERM, which let jobs make a checkpoint and pay their buyers back.

    Kinds are fine_tune, evaluate, generate and container (Docker or Podman); none is sold until you name it.
    What is typed wins over the environment, that over the file.

    Example: livery worker start --kinds fine_tune --price 0.50
    """
    from inbound.logs import configure_logs

    configure_logs(logging.DEBUG if verbose else logging.INFO)
    if env_file != DEFAULT_ENV and not env_file.is_file():
        fail(f"there is no file {env_file}", "Name another with --env-file.", "invalid_setting")
    settings = worker_settings(
        False,
        _env_file=env_file,
        kinds=kinds,
        price_per_hour=price,
        name=name,
        data=data,
        default_model=model,
        device=device,
        host=host,
        port=port,
        rpc_url=rpc_url,
        public_url=public_url,
        oracle_url=oracle_url,
        grpc_port=grpc_port,
        grpc_endpoint=grpc_endpoint,
        layer_start=layer_start,
        layer_end=layer_end,
    )
    _run(settings, env_file)


def _run(settings: "WorkerSettings", env_file: Path) -> None:
    from chain.errors import ChainError
    from cli.extras import need_worker
    from gpu_worker.core.errors import WorkerError
    from gpu_worker.lifecycle import live
    from gpu_worker.machine import loose_file
    from gpu_worker.wiring import open_worker
    from inbound.serve import stopped_by_signals
    from wire.loopback import is_loopback

    need_worker()
    # Those that are always looked for are told where the worker is opened.
    if env_file != DEFAULT_ENV and (sentence := loose_file(env_file, "the settings")) is not None:
        logger.warning("%s", sentence)

    async def serve(worker: "Worker") -> "Report":
        return await live(worker, stopped_by_signals())

    try:
        worker = open_worker(settings)
        # Bound already here: an address that is taken is told before anything else is.
        local_url, url = worker.door.local_url, worker.door.url
    except OSError as error:
        fail(f"{settings.folder} cannot be used: {error.strerror}", "Name another folder with --data.")
    except (WorkerError, ChainError, ValueError) as error:
        fail(str(error))
    logger.info("a buyer registers it with: livery vendors add %s %s", settings.vendor_id, url)
    place = "LIVERY_WORKER_SECRET" if settings.secret else settings.secret_file
    logger.info("its secret is in %s: the buyer's GPU_VENDOR_SECRET is %s=SECRET", place, settings.vendor_id)
    if url == local_url and is_loopback(settings.host):
        logger.info("only this machine reaches it; for others: --host 0.0.0.0 --public-url https://…")
    try:
        asyncio.run(serve(worker))
    except (WorkerError, ChainError) as error:
        fail(str(error))
    except BaseExceptionGroup as several:
        first = _first(several)
        if not isinstance(first, WorkerError | ChainError):
            raise
        fail(str(first))


def _first(several: BaseExceptionGroup[Any]) -> BaseException:
    one = several.exceptions[0]
    return _first(one) if isinstance(one, BaseExceptionGroup) else one


@app.command("status")
def status(api_url: ApiUrl = None, as_json: Json = False) -> None:
    """
    Show the worker that runs here: its state, what it sells and at which price, its jobs, what it earned.

    Example: livery worker status
    """
    found = worker_owner.ask("GET", "/api/v1/status", api_url, as_json)
    show(found, lambda: _page(found), as_json=as_json)


@app.command("drain")
def drain(api_url: ApiUrl = None, as_json: Json = False) -> None:
    """
    Let the worker finish its jobs, sell nothing more, and end.

    To end it at once, jobs after a checkpoint: Ctrl-C, or systemctl stop.
    """
    found = worker_owner.ask("POST", "/api/v1/drain", api_url, as_json)
    count = len(found["jobs"])
    left = "none is running" if count == 0 else "one job is left" if count == 1 else f"{count} jobs are left"
    show(found, lambda: f"{found['name']} sells nothing more and ends when its jobs have: {left}", as_json=as_json)


def _refunds(count: int | None) -> str:
    return "the chain does not answer: it is not known" if count is None else f"its ether is enough for {count}"


def _page(found: dict[str, Any]) -> Any:
    from rich.console import Group

    from cli.console import words

    device, speed, rest = found.get("device"), found.get("speed"), found.get("yielded")
    rows: list[tuple[str, object]] = [
        ("worker", f"{found['name']}, {found['state']} for {float(found['uptime']):.0f} s"),
        ("buyers reach it", f"livery vendors add {found['vendorId']} {found['url']}"),
        ("its secret", f"in {found['secretIn']}; the buyer's GPU_VENDOR_SECRET is {found['vendorId']}=SECRET"),
        ("paid at", found["address"] or "nothing yet: livery wallet new --worker makes a key"),
        *([("refunds", _refunds(found["refunds"]))] if found["address"] else []),
        ("sells", ", ".join(found["kinds"]) or "nothing: turn a kind on with --kinds or LIVERY_WORKER_KINDS"),
        ("price", f"{found['limits']['pricePerHour']} USDC an hour"),
        ("runs on", f"{device['gpuType']}, {device['memoryBytes'] / 1024**3:.1f} GiB" if device else "not known yet"),
        ("speed", f"{speed['tokensPerS']} tokens/s (training of the reference model)" if speed else "not measured yet"),
        ("earned", f"{found['earned']} USDC; jobs sold: {found['sold']}"),
    ]
    if rest:
        rows.append(("rests", rest["reason"]))
    if found.get("problem"):
        rows.append(("sells nothing", found["problem"]))
    parts: list[Any] = [facts(rows)]
    if found["jobs"]:
        columns = ("job", "kind", "status", "step", "of", "seconds", "USDC", "payer")
        names = ("jobId", "kind", "status", "step", "steps", "usedS", "cost", "payer")
        parts.append(table(columns, [[job.get(name) for name in names] for job in found["jobs"]]))
    parts.extend(words(f"! {note}", "yellow") for note in found["notes"])
    return Group(*parts)


app.command("why")(worker_owner.why)
app.command("earnings")(worker_owner.earnings)
app.command("models")(worker_models.models)
app.command("forecast")(worker_models.forecast)
app.command("stats")(hw.stats)
app.command("install")(worker_owner.install)
