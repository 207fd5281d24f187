"""`livery worker start`: from what was typed to a worker that lives."""

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import worker_slices
from cli.console import fail
from cli.hw import worker_settings
from cli.worker_options import OPTIONS, takes

if TYPE_CHECKING:
    from gpu_worker.config import WorkerSettings
    from gpu_worker.lifecycle import Report
    from gpu_worker.ports import Worker

logger = logging.getLogger("livery.gpu_worker")


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


@takes(OPTIONS)
def start(
    env_file: Annotated[Path, typer.Option("--env-file", help="Settings, below the environment.")] = DEFAULT_ENV,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more in the log.")] = False,
    private_key: PrivateKey = None,
    hf_token: HfToken = None,
    **settings: Any,
) -> None:
    """
    Rent this machine out until Ctrl-C or SIGTERM, which move streams elsewhere, checkpoint jobs and pay back.

    It serves a model, whole or some layers of it beside other workers, and sells jobs: fine_tune, evaluate,
    generate and container (Docker or Podman), none until you name it.
    What is typed wins over the environment, that over the file.

    A whole model:   livery worker start --model ~/models/llama-3.1-8b-Q4_K_M.gguf

    Ollama, vLLM:    livery worker start --engine ollama --model llama3.1:8b   (or --upstream-url http://localhost:8000)

    Half of one:     livery worker start --model ~/models/llama --layers 0:16 --next 10.0.0.2:50051 --grpc-insecure

    By a file:       livery worker start --model ~/models/llama --topology who-serves-what.toml

    Jobs:            livery worker start --kinds fine_tune --price 0.50
    """
    from inbound.logs import configure_logs

    configure_logs(logging.DEBUG if verbose else logging.INFO)
    if env_file != DEFAULT_ENV and not env_file.is_file():
        fail(f"there is no file {env_file}", "Name another with --env-file.", "invalid_setting")
    # Where jobs are sold the model is the default of theirs; alone it is served.
    model = settings.pop("model")
    _run(worker_slices.serving(worker_settings(False, _env_file=env_file, default_model=model, **settings)), env_file)


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
    if settings.serves_model:
        if int((settings.layers_text or "0").partition(":")[0] or 0) == 0:
            logger.info("its model is served at %s/v1: OPENAI_BASE_URL=%s/v1", url, url)
        else:
            logger.info("it has layers %s; clients ask the worker with the first ones", settings.layers_text)
    if settings.kinds or not settings.serves_model:
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


def llm_worker(
    backend: Annotated[str, typer.Option("--backend", help="gguf, ollama or openai.")] = "openai",
    url: Annotated[str | None, typer.Option("--url", help="Where the upstream is.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="The model.")] = None,
) -> None:
    """The name that another system has for `livery worker start --engine`."""
    from inbound.logs import configure_logs

    configure_logs(logging.INFO)
    where = {"ollama": "ollama_url"}.get(backend, "upstream_url")
    _run(worker_settings(False, _env_file=DEFAULT_ENV, engine=backend, model=model, **{where: url}), DEFAULT_ENV)
