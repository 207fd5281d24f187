"""`livery worker why, earnings, install`: what its owner wants to know and to set up."""

import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from cli.console import Json, fail, out, run, show, table
from cli.hw import probe, worker_settings

TIMEOUT_S = 10.0
BODY_BYTES_MAX = 4 * 1024 * 1024
DAY_S = 86_400


class NoWorker(Exception):
    """No worker answers; the message says where it was looked for."""


def ask(method: str, path: str, api_url: str | None, as_json: bool) -> dict[str, Any]:
    """Return what the worker answers; where none does, say so and end with exit code 1."""
    try:
        return asked(method, path, api_url, as_json)
    except NoWorker as error:
        fail(str(error), "Start one: livery worker start", "unreachable", as_json=as_json)


def asked(method: str, path: str, api_url: str | None, as_json: bool) -> dict[str, Any]:
    """Return what the worker answers. Raises NoWorker: none does, or it is another's."""
    status, url, found = fetched(method, path, api_url, as_json)
    if status >= 400 or not isinstance(found, dict):
        detail = found.get("detail") if isinstance(found, dict) else None
        raise NoWorker(f"what answers at {url} is no worker of yours: {detail or f'status {status}'}")
    return found


def fetched(method: str, path: str, api_url: str | None, as_json: bool) -> tuple[int, str, Any]:
    """Return the status, the worker's address and what it answers. Raises NoWorker: none answers with JSON."""
    from cli.config import CliSettings
    from gpu_worker.wiring.machine import running_at
    from outbound.errors import OutboundError
    from outbound.http import HttpClient
    from wire import decimal_json

    settings = worker_settings(as_json)
    url = api_url or CliSettings().worker_url or running_at(settings)
    if url is None:
        raise NoWorker(f"no worker runs with {settings.folder}")
    secret = settings.api_secret.get_secret_value() if settings.api_secret else ""
    # Who named the address meant it; from a file in this folder the secret goes to nobody but this machine.
    may_tell = secret and (api_url is not None or url.startswith("https://") or is_near(url))

    async def fetch() -> Any:
        return await HttpClient().request(
            method,
            url.rstrip("/") + path,
            headers={"authorization": f"Bearer {secret}"} if may_tell else {},
            content=None,
            timeout_s=TIMEOUT_S,
            body_bytes_max=BODY_BYTES_MAX,
        )

    try:
        reply = run(fetch(), as_json=as_json)
        return reply.status, url, decimal_json.loads(reply.content)
    except (OutboundError, ValueError):
        raise NoWorker(f"no worker answers at {url}") from None


def is_near(url: str) -> bool:
    from wire.loopback import is_loopback

    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:  # it is no address
        return False


def why(
    api_url: Annotated[str | None, typer.Option("--api-url", help="The worker's address.")] = None,
    as_json: Json = False,
) -> None:
    """
    Say why this machine earns nothing now, the first thing to mend first.

    Example: livery worker why
    """
    from cli.extras import missing_for_worker
    from gpu_worker.core.idle import why_idle
    from gpu_worker.core.owner import disk_bytes
    from gpu_worker.why import facts_of
    from gpu_worker.wiring.machine import limits_of, open_models

    settings = worker_settings(as_json)
    try:
        status = asked("GET", "/api/v1/status", api_url, as_json)
    except NoWorker:
        status = None
    machine = probe(settings, as_json)
    facts = facts_of(
        status,
        missing_packages=missing_for_worker(),
        models=run(open_models(settings).names(), as_json=as_json),
        disk_room_bytes=disk_bytes(machine, limits_of(settings)),
    )
    reasons = why_idle(facts)
    rows = [(one.sentence, one.remedy) for one in reasons]
    show([asdict(one) for one in reasons], lambda: table(("why", "what to do"), rows), as_json=as_json)


def earnings(
    days: Annotated[float | None, typer.Option("--days", min=0, help="Only jobs that ended in the last days.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a line for each job, for a spreadsheet.")] = False,
    as_json: Json = False,
) -> None:
    """
    Show what this machine earned, hour by hour (UTC): what was paid for jobs less refunds, and what answers cost those
    who paid for them. The gas of refunds is not counted.

    Example: livery worker earnings --csv > earnings.csv
    """
    from gpu_worker.core import earnings as core
    from gpu_worker.earnings import earned
    from gpu_worker.wiring.paying import open_book as open_credit
    from gpu_worker.wiring.worker import open_book
    from wire.money import to_decimal

    settings = worker_settings(as_json)
    from gpu_worker.wiring.machine import asset_of

    asset = asset_of(settings)
    since_s = 0 if days is None else int(time.time() - days * DAY_S)

    async def read() -> Any:
        if not settings.database.exists():
            return (), []
        book, cashier = open_book(settings), open_credit(settings)
        try:
            return await earned(book, since_s), await cashier.credit.income(since_s)
        finally:
            await book.close()
            await cashier.close()

    found, answers = run(read(), as_json=as_json)
    if as_csv:
        out.file.write(core.csv_text(found, asset))
        return
    whole, hours = core.total(found), core.per_hour(found, answers)
    kept = sum(one.kept_atomic for one in hours)
    document = {
        "jobs": whole.jobs,
        "answers": sum(one.answers for one in hours),
        "paid": to_decimal(whole.paid_atomic, asset),
        "refunded": to_decimal(whole.refunded_atomic, asset),
        "earned": to_decimal(kept, asset),
        "workedS": whole.used_s,
        "perHourOfWork": None if whole.per_hour_atomic is None else to_decimal(whole.per_hour_atomic, asset),
        "currency": asset.symbol,
        "hours": [
            {
                "hour": core.iso(one.start_s),
                "jobs": one.jobs,
                "answers": one.answers,
                "earned": to_decimal(one.kept_atomic, asset),
            }
            for one in hours
        ],
    }
    rows: list[tuple[object, ...]] = [
        (core.iso(one.start_s)[:16], one.jobs, one.answers, to_decimal(one.kept_atomic, asset)) for one in hours
    ]
    of_jobs = f"{document['earned']} (jobs: {document['perHourOfWork'] or 0} an hour of work)"
    rows.append(("in all", whole.jobs, document["answers"], of_jobs))
    show(
        document,
        lambda: table(("hour (UTC)", "jobs", "answers", asset.symbol), rows) if hours else "nothing was earned yet",
        as_json=as_json,
    )


def install(
    system: Annotated[
        bool, typer.Option("--system", help="A unit for the whole machine, to be copied by root.")
    ] = False,
    print_only: Annotated[bool, typer.Option("--print", help="Print the unit, write nothing.")] = False,
) -> None:
    """
    Write the systemd unit that starts the worker with the machine and lets it drain when it stops.

    Its settings come from `worker.env` in the worker's folder. Nothing is started: the commands are shown.
    """
    import getpass

    from gpu_worker.core.unit import Unit, systemd_unit

    settings = worker_settings(False)
    program = shutil.which("livery")
    command = [str(Path(program).absolute())] if program else [sys.executable, "-m", "cli"]
    env_file = settings.folder / "worker.env"
    try:
        text = systemd_unit(
            Unit(
                command=(*command, "worker", "start"),
                data=str(settings.folder),
                env_file=str(env_file),
                stop_s=settings.drain_s,
                user=getpass.getuser() if system else None,
            )
        )
    except ValueError as error:
        fail(str(error))
    if print_only or system:
        out.file.write(text)
        return
    path = Path("~/.config/systemd/user/livery-worker.service").expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not env_file.exists():
        env_file.touch(mode=0o600)
        env_file.write_text("# LIVERY_WORKER_KINDS=fine_tune\n# LIVERY_WORKER_PRICE_PER_HOUR=0.50\n")
    lines = (
        f"unit      {path}",
        f"settings  {env_file}",
        "start it  systemctl --user daemon-reload && systemctl --user enable --now livery-worker",
        "          loginctl enable-linger    (so that it runs while you are logged out)",
        "its log   journalctl --user -u livery-worker -f",
    )
    show({}, lambda: "\n".join(lines), as_json=False)
