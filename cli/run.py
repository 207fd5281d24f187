"""`livery run`: start, tick, watch, status, list, cancel. What it did and why is `cli.accounts`'."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.live import Live

from cli import local
from cli.config import CliSettings
from cli.console import Json, branch, err, fail, out, print_json, run, show, table, words
from cli.watching import picture
from livery.client import Client, Exposed, ProblemError
from wire.control import JobRequest, RunDocument, StartRequest, StatusReply
from wire.model import first_error

app = branch("run", "Rent a GPU: one goal, one budget, watched until it is done.")

Url = Annotated[str | None, typer.Option("--url", help="The control plane (default: LIVERY_URL, then 127.0.0.1:3000).")]
Local = Annotated[bool, typer.Option("--local", help="Use this environment's store and wallet, without a server.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]
OrNewest = Annotated[str | None, typer.Argument(metavar="[RUN]", help="The run's id; left out, the newest run.")]
Interval = Annotated[float, typer.Option("--interval", min=0.1, max=3600, help="Seconds between ticks.")]

LOOK_AGAIN = ("run_busy", "run_finished", "chain_unavailable", "store_unavailable")
ENDED = ("completed", "failed", "cancelled")


@asynccontextmanager
async def control_plane(url: str | None, here: bool) -> AsyncIterator[Client]:
    """Yield a client of the control plane: over the network, or of one inside this process."""
    if not here:
        settings = CliSettings()
        secret = settings.secret.get_secret_value() if settings.secret else None
        if url is None and settings.mixes_sources:
            raise Exposed(f"the environment's secret is not sent to the address that .env names, {settings.url}")
        async with Client(url or settings.url, secret=secret) as client:
            yield client
        return
    import httpx

    from agent.config import AgentSettings
    from agent.wiring import open_agent
    from api.config import ApiSettings
    from api.door import create_app

    # Nobody else can ask a control plane inside this process: it needs no secret, whatever the environment has.
    app = create_app(partial(open_agent, AgentSettings()), settings=ApiSettings.model_construct())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with Client("http://localhost", transport=transport) as client, app.router.lifespan_context(app):
        yield client


async def named(client: Client, run_id: str | None) -> str:
    """Return `run_id`, or the newest run's where none is named; a store without runs ends the command."""
    if run_id is not None:
        return run_id
    page = await client.runs()
    if not page.runs:
        fail("there is no run yet", 'Start one: livery run start "Fine-tune tiny-llm" --budget 5 --watch')
    return page.runs[0].id


def _file_of(dataset: str | None) -> Path | None:
    """Return the file that a dataset names, None for a URL and for what was uploaded before."""
    path = None if dataset is None or "://" in dataset else Path(dataset).expanduser()
    return path if path is not None and path.is_file() else None


@app.command("start")
def start(
    goal: Annotated[str, typer.Argument(help="What the run is for.")],
    budget: Annotated[str, typer.Option("--budget", help="What it may spend in all, in USDC.")],
    kind: Annotated[str, typer.Option(help="The kind of job.")] = "fine_tune",
    gpu: Annotated[str | None, typer.Option("--gpu", help="The GPU type, e.g. A100.")] = None,
    hours: Annotated[str | None, typer.Option("--hours", help="The most hours to rent one job for.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many jobs must complete.")] = 1,
    model: Annotated[str | None, typer.Option(help="The model to work on.")] = None,
    dataset: Annotated[str | None, typer.Option(help="The dataset: a URL, or a file, which is uploaded.")] = None,
    max_price: Annotated[str | None, typer.Option("--max-price", help="The most to pay per hour, in USDC.")] = None,
    deadline: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%dT%H:%M:%S%z"], help="When to give up (RFC 3339).")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Idempotency key: the same key starts one run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Decide and quote; store, sign and pay nothing.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Tick and watch it until it ends.")] = False,
    interval: Interval = 1.0,
    url: Url = None,
    here: Local = False,
    as_json: Json = False,
) -> None:
    """
    Start a run.

    Example: livery run start "Fine-tune tiny-llm" --budget 5 --watch
    """
    try:
        request = StartRequest(
            goal=goal,
            budget_total=Decimal(budget),
            job=JobRequest(
                kind=kind,
                gpu_type=gpu,
                max_hours=None if hours is None else Decimal(hours),
                count=count,
                model=model,
                dataset=dataset,
            ),
            deadline=deadline,
            max_price_per_hour=None if max_price is None else Decimal(max_price),
        )
    except ValidationError as error:
        raise typer.BadParameter(first_error(error)) from None
    except InvalidOperation:
        raise typer.BadParameter("amounts and hours are decimal numbers, like 5 or 1.40") from None
    if dry_run:
        _show_preview(run(local.first_step(request), as_json=as_json), as_json)
        return

    async def begin() -> None:
        async with control_plane(url, here) as client:
            started = await _started(client, request, key)
            if watch:
                await _watch(client, started.id, interval, as_json)
            elif as_json:
                print_json(started)
            else:
                out.print(f"[bold]{started.id}[/]  {started.budget_total} {started.currency}")
                out.print(f"watch it: livery run watch {started.id}")

    run(begin(), as_json=as_json)


async def _started(client: Client, request: StartRequest, key: str | None) -> RunDocument:
    """Return the run of the request, begun; a dataset that is a file here is uploaded first."""
    job, file = request.job, _file_of(request.job.dataset)
    if file is not None:
        job = job.model_copy(update={"dataset": await client.upload(file)})
    return await client.start(
        request.goal,
        request.budget_total,
        job=job,
        deadline=request.deadline,
        max_price_per_hour=request.max_price_per_hour,
        key=key,
    )


@app.command("tick")
def tick(
    run_id: Annotated[str | None, typer.Argument(metavar="RUN", help="The run's id.")] = None,
    due: Annotated[bool, typer.Option("--due", help="Tick every run of this environment's store that is due.")] = False,
    url: Url = None,
    here: Local = False,
    as_json: Json = False,
) -> None:
    """Advance a run by one step; with --due every run whose time has come (for cron)."""
    if due == (run_id is not None):
        raise typer.BadParameter("name a run, or use --due")

    async def one() -> None:
        async with control_plane(url, here) as client:
            reply = await client.tick(str(run_id))
            chosen = f"  {reply.action.action}: {reply.action.reason}" if reply.action else ""
            show(reply, lambda: f"{reply.message}{chosen}", as_json=as_json)

    if due:
        swept = run(local.tick_due(), as_json=as_json)
        show(swept, lambda: table(("run", "tick"), [tuple(one.values()) for one in swept]), as_json=as_json)
    else:
        run(one(), as_json=as_json)


@app.command("watch")
def watch(
    run_id: OrNewest = None,
    run_option: Annotated[str | None, typer.Option("--run", hidden=True)] = None,
    interval: Interval = 1.0,
    url: Url = None,
    here: Local = False,
    as_json: Json = False,
) -> None:
    """Tick a run until it ends, and show it live. Exit code 0 if it completed, else 1."""

    async def follow() -> None:
        async with control_plane(url, here) as client:
            await _watch(client, await named(client, run_id or run_option), interval, as_json)

    run(follow(), as_json=as_json)


@app.command("status")
def status(run_id: OrNewest = None, url: Url = None, here: Local = False, as_json: Json = False) -> None:
    """Show a run with its jobs, payments and newest lines."""

    async def read() -> StatusReply:
        async with control_plane(url, here) as client:
            return await client.status(await named(client, run_id))

    found = run(read(), as_json=as_json)
    show(found, lambda: picture(found), as_json=as_json)


@app.command("list")
def list_runs(
    state_wanted: Annotated[str | None, typer.Option("--status", help="Only runs in this state.")] = None,
    cursor: Annotated[str | None, typer.Option(help="Where the last page ended.")] = None,
    url: Url = None,
    here: Local = False,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""

    async def read() -> Any:
        async with control_plane(url, here) as client:
            return await client.runs(state_wanted, cursor)

    page = run(read(), as_json=as_json)
    rows = [
        (one.id, one.status, one.phase, f"{one.budget_spent}/{one.budget_total} {one.currency}", one.goal[:50])
        for one in page.runs
    ]
    show(page, lambda: table(("run", "state", "phase", "spent", "goal"), rows), as_json=as_json)
    if page.cursor and not as_json:
        err.print(f"more: livery run list --cursor {page.cursor}")


@app.command("cancel")
def cancel(run_id: RunId, url: Url = None, here: Local = False, as_json: Json = False) -> None:
    """Ask a run to end: its jobs are cancelled by the next ticks, what the vendors refund comes back to the budget."""

    async def ask() -> Any:
        async with control_plane(url, here) as client:
            return await client.cancel(run_id)

    asked = run(ask(), as_json=as_json)
    show(
        asked,
        lambda: f"{asked.id} is to be cancelled; carry it out with `livery run watch {asked.id}`",
        as_json=as_json,
    )


async def _watch(client: Client, run_id: str, interval_s: float, as_json: bool) -> None:
    with Live(console=out, auto_refresh=False) if not as_json else nullcontext() as live:
        while True:
            try:
                found = await client.status(run_id)
                if live is None:
                    print_json(found.run)
                else:
                    live.update(picture(found), refresh=True)
                if found.run.status in ENDED:
                    break
                await client.tick(run_id)
            except ProblemError as error:
                # Somebody else ticks it, ended it since we looked, or the world is away for a moment: look again.
                if error.problem.code not in LOOK_AGAIN:
                    raise
                if error.problem.status == 503:
                    err.print(words(f"{error.problem.title}: {error.problem.detail}; trying again"))
            await asyncio.sleep(interval_s)
    if found.run.status != "completed":
        raise typer.Exit(1)


def _show_preview(seen: dict[str, Any], as_json: bool) -> None:
    hours = f" for {seen['maxHours']} h: {seen['price']} {seen['currency']}" if seen["price"] is not None else ""
    where = f" at {seen['vendorId']}" if seen["vendorId"] else ""
    show(seen, lambda: f"{seen['action']}{where}{hours}\n{seen['reason']}", as_json=as_json)
    if seen["refusal"]:
        fail(seen["refusal"], "Nothing was stored, signed or paid.", as_json=as_json)
