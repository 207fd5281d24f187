"""`livery worker`: this machine, rented out by the job: start, status, drain."""

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import hw, worker_models, worker_owner, worker_slices, worker_watch
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


@app.command("start")
def start(
    context: typer.Context,
    model: worker_slices.Model = None,
    layers: worker_slices.Layers = None,
    layer_start: worker_slices.LayerStart = None,
    layer_end: worker_slices.LayerEnd = None,
    model_hash: worker_slices.ModelHash = None,
    dtype: worker_slices.Dtype = None,
    quant: worker_slices.Quant = None,
    back_end: worker_slices.BackEnd = None,
    kv_max_mb: worker_slices.KvMax = None,
    sessions_max: worker_slices.SessionsMax = None,
    next: worker_slices.Next = None,
    topology: worker_slices.TopologyFile = None,
    grpc_host: worker_slices.GrpcHost = None,
    grpc_port: worker_slices.GrpcPort = None,
    grpc_endpoint: worker_slices.GrpcEndpoint = None,
    grpc_tls_cert: worker_slices.TlsCert = None,
    grpc_tls_key: worker_slices.TlsKey = None,
    grpc_tls_ca: worker_slices.TlsCa = None,
    wire_dtype: worker_slices.WireDtype = None,
    grpc_insecure: worker_slices.Insecure = None,
    oracle_url: worker_slices.OracleUrl = None,
    kinds: Annotated[
        str | None, typer.Option("--kinds", help="Jobs to sell: fine_tune,evaluate,generate,container.")
    ] = None,
    price_per_hour: Annotated[str | None, typer.Option("--price", help="USDC an hour.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="What it is called; in lower case its vendor id.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Its folder: jobs, books, keys.")] = None,
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
) -> None:
    """
    Rent this machine out until Ctrl-C or SIGTERM, which move streams elsewhere, checkpoint jobs and pay back.

    It serves a model, or some layers of one beside other workers, and sells jobs: fine_tune, evaluate,
    generate and container (Docker or Podman), none until you name it.
    What is typed wins over the environment, that over the file.

    A whole model:   livery worker start --model ~/models/llama

    Half of one:     livery worker start --model ~/models/llama --layers 0:16 --next 10.0.0.2:50051 --grpc-insecure

    By a file:       livery worker start --model ~/models/llama --topology who-serves-what.toml

    Jobs:            livery worker start --kinds fine_tune --price 0.50
    """
    from inbound.logs import configure_logs

    configure_logs(logging.DEBUG if verbose else logging.INFO)
    if env_file != DEFAULT_ENV and not env_file.is_file():
        fail(f"there is no file {env_file}", "Name another with --env-file.", "invalid_setting")
    # Options are called as the settings that they set.
    others = {"env_file", "verbose", "private_key", "hf_token", "model"}
    typed = {key: value for key, value in context.params.items() if key not in others}
    _run(worker_slices.serving(worker_settings(False, _env_file=env_file, default_model=model, **typed)), env_file)


def _run(settings: "WorkerSettings", env_file: Path) -> None:
    from chain.errors import ChainError
    from cli.extras import need_worker
    from gpu_worker.core.errors import WorkerError
    from gpu_worker.lifecycle import live
    from gpu_worker.wiring.machine import loose_file
    from gpu_worker.wiring.worker import open_worker
    from inbound.serve import stopped_by_signals
    from wire.loopback import is_loopback

    need_worker()
    # Those that are always looked for are told where the worker is opened.
    if env_file != DEFAULT_ENV and (sentence := loose_file(env_file, "the settings")) is not None:
        logger.warning("%s", sentence)

    async def serve(worker: "Worker") -> "Report":
        return await live(worker, stopped_by_signals())

    try:
        worker = open_worker(settings, tell=worker_slices.Bar())
        # Bound already here: an address that is taken is told before anything else is.
        local_url, url = worker.door.local_url, worker.door.url
    except OSError as error:
        fail(f"{settings.folder} cannot be used: {error.strerror}", "Name another folder with --data.")
    except (WorkerError, ChainError, ValueError) as error:
        fail(str(error))
    if settings.serves_layers:
        if int((settings.layers_text or "0").partition(":")[0] or 0) == 0:
            logger.info("its model is served at %s/v1: OPENAI_BASE_URL=%s/v1", url, url)
        else:
            logger.info("it has layers %s; clients ask the worker with the first ones", settings.layers_text)
    if settings.kinds or not settings.serves_layers:
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
def status(
    api_url: ApiUrl = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it anew each second, until Ctrl-C.")] = False,
    as_json: Json = False,
) -> None:
    """
    Show the worker that runs here: its state, the layers that it serves, what it sells, its jobs, what it earned.

    One elsewhere tells less, and asks for its API_SECRET.

    Example: livery worker status --watch
    """
    if watch and not as_json:
        worker_watch.watch(lambda: worker_owner.asked("GET", "/api/v1/status", api_url, as_json))
        return
    found = worker_slices.status_of(api_url, as_json)
    show(found, lambda: _page(found) if "vendorId" in found else worker_slices.far_page(found), as_json=as_json)


@app.command("drain")
def drain(api_url: ApiUrl = None, as_json: Json = False) -> None:
    """
    Let the worker finish its jobs, sell nothing more, and end; streams of its layers go on elsewhere.

    To end it at once, jobs after a checkpoint: Ctrl-C, or systemctl stop.
    """
    found = worker_owner.ask("POST", "/api/v1/drain", api_url, as_json)
    show(found, lambda: _leaves(found), as_json=as_json)


def _leaves(found: dict[str, Any]) -> str:
    if found.get("slice") and not found["kinds"]:
        return f"{found['name']} takes no new requests and ends when its streams have ended or moved"
    count = len(found["jobs"])
    left = "none is running" if count == 0 else "one job is left" if count == 1 else f"{count} jobs are left"
    return f"{found['name']} sells nothing more and ends when its jobs have: {left}"


def _refunds(count: int | None) -> str:
    return "the chain does not answer: it is not known" if count is None else f"its ether is enough for {count}"


def _page(found: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.text import Text

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
    if found.get("slice"):
        # Who serves a model and sells no jobs is told of the model alone.
        parts = [worker_slices.page(found), *([Text(), *parts] if found["kinds"] else [])]
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
