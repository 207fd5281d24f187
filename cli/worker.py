"""`livery worker`: this machine, rented out by the job: start, status, drain."""

from typing import Annotated, Any

import typer

from cli import hw, worker_models, worker_owner, worker_slices, worker_start, worker_verify, worker_watch, worker_whole
from cli.console import Json, branch, show, table
from cli.hw import facts

app = branch("worker", "This machine, rented out by the job: start it, look at it, limit it, see what it earns.")

ApiUrl = Annotated[
    str | None, typer.Option("--api-url", help="The worker's address; AGENT_API_URL. Unset: the one that runs here.")
]
app.command("start")(worker_start.start)


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
    if (found.get("slice") or found.get("model")) and not found["kinds"]:
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
        *([("GPU checks", found["capabilityUrl"])] if found.get("capabilityUrl") else []),
        ("runs on", f"{device['gpuType']}, {device['memoryBytes'] / 1024**3:.1f} GiB" if device else "not known yet"),
        ("speed", f"{speed['tokensPerS']} tokens/s (training of the reference model)" if speed else "not measured yet"),
        ("earned", f"{found['earned']} USDC; jobs sold: {found['sold']}"),
    ]
    if rest:
        rows.append(("rests", rest["reason"]))
    if found.get("problem"):
        rows.append(("sells nothing", found["problem"]))
    parts: list[Any] = [facts(rows)]
    for key, page in (("slice", worker_slices.page), ("model", worker_whole.page)):
        if found.get(key):
            # Who serves a model and sells no jobs is told of the model alone.
            parts = [page(found), *([Text(), *parts] if found["kinds"] else [])]
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
app.command("verify")(worker_verify.verify)
app.command("install")(worker_owner.install)
