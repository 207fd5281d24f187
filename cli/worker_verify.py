"""`livery worker verify`: challenges a worker to prove what it says of its machine."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import Json, fail, run, show
from cli.hw import facts, worker_settings
from cli.worker_owner import is_near

if TYPE_CHECKING:
    from gpu_worker.verifying import Verdict

EXIT_NOT_BELIEVED, EXIT_UNKNOWN = 1, 3


def verify(
    url: Annotated[str, typer.Argument(metavar="URL", help="The worker's address, or that of its GPU check.")],
    address: Annotated[
        str | None, typer.Option("--address", help="The address of its key; another key is not believed.")
    ] = None,
    size: Annotated[int, typer.Option("--size", min=64, max=8_192, help="Numbers in a row of the matrix.")] = 4_096,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=128, help="How often it is multiplied.")] = 64,
    deadline_s: Annotated[int, typer.Option("--deadline", min=1, max=120, help="Seconds for the answer.")] = 30,
    with_secret: Annotated[
        bool, typer.Option("--with-secret", help="Send it API_SECRET: it is yours. This machine's is sent it anyway.")
    ] = False,
    as_json: Json = False,
) -> None:
    """
    Let a worker prove what it says of its machine: a signed report, and a product of matrices in so much time.

    The time is measured here: the speed is the least that it has.
    Exit code 1: it is not believed. 3: it cannot be asked.

    Example: livery worker verify https://gpu.example:9876 --address 0x… --size 8192 --rounds 128
    """
    from gpu_worker.core.attest import SIZE_STEP, is_size

    if not is_size(size):
        raise typer.BadParameter(f"a size is a multiple of {SIZE_STEP}", param_hint="--size")
    from gpu_worker.verifying import document

    may_tell = with_secret or is_near(url)
    verdict = _challenged(_post_to(url, may_tell, as_json), address, size, rounds, deadline_s, as_json)
    show(document(verdict), lambda: _page(verdict), as_json=as_json)
    if not verdict.is_believed:
        raise typer.Exit(EXIT_NOT_BELIEVED)


def _challenged(post: Any, address: str | None, size: int, rounds: int, deadline_s: int, as_json: bool) -> "Verdict":
    import secrets
    import time

    from chain.signed import signer_of
    from gpu_worker.core.attest import SEED_BYTES, Challenge
    from gpu_worker.verifying import NotAnswered, challenge_worker
    from outbound.errors import OutboundError

    challenge = Challenge(
        seed=secrets.token_bytes(SEED_BYTES), start=secrets.token_bytes(SEED_BYTES), size=size, rounds=rounds
    )

    async def challenged() -> "Verdict":
        return await challenge_worker(
            post,
            challenge,
            agent_id="livery worker verify",
            deadline_s=deadline_s,
            address=address,
            chance=secrets.token_bytes,
            signer_of=signer_of,
            monotonic=time.monotonic,
        )

    try:
        return run(challenged(), as_json=as_json)
    except (NotAnswered, OutboundError) as error:
        hint = "It needs a key and the extra [worker]; one that asks for its API_SECRET is sent it with --with-secret."
        fail(str(error), hint, "not_verified", exit_code=EXIT_UNKNOWN, as_json=as_json)


def _post_to(url: str, may_tell: bool, as_json: bool) -> Any:
    """Return what sends a body to a path of the worker. A stranger is not told the secret of a worker of ours."""
    from outbound.http import HttpClient
    from wire import decimal_json

    settings = worker_settings(as_json)
    secret = settings.api_secret.get_secret_value() if settings.api_secret and may_tell else ""
    sent = {"content-type": "application/json", **({"authorization": f"Bearer {secret}"} if secret else {})}

    async def post(path: str, body: dict[str, Any], timeout_s: float, bytes_max: int) -> tuple[int, bytes]:
        reply = await HttpClient().request(
            "POST",
            url.rstrip("/") + path,
            headers=sent,
            content=decimal_json.dumps(body),
            timeout_s=timeout_s,
            body_bytes_max=bytes_max,
        )
        return reply.status, reply.content

    return post


def _page(verdict: "Verdict") -> Any:
    from rich.console import Group

    rows: list[tuple[str, object]] = [
        ("believed", "yes" if verdict.is_believed else "no"),
        *(("because", fault) for fault in verdict.faults),
        ("its key", verdict.address),
        ("computed on", verdict.device),
        ("answered after", f"{verdict.seconds:.3f} s"),
        ("at least", f"{verdict.operations_per_s / 1e9:.1f} billion operations a second"),
        ("kept at least", f"{verdict.held_bytes / 1024**2:.0f} MiB"),
    ]
    if verdict.report is not None:
        rows.append(("says it has", _machine(verdict)))
        rows.append(("says it serves", verdict.report.model_name))
    return Group(facts(rows))


def _machine(verdict: "Verdict") -> str:
    assert verdict.report is not None
    gpus = [f"{gpu.name}, {gpu.vram_total_mb / 1024:.0f} GiB" for gpu in verdict.report.gpus]
    return "; ".join(gpus) or "no GPU"
