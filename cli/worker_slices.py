"""`livery worker` where layers of a model are served: what may be typed, and how it is shown."""

import logging
from typing import TYPE_CHECKING, Any

from cli.console import err, fail, table, words

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

    from gpu_worker.config import WorkerSettings

# What a worker tells who is not on its machine.
_FAR = {"health": "/health", "metrics": "/api/v1/metrics", "pipeline": "/api/v1/pipeline/status"}


def serving(settings: "WorkerSettings") -> "WorkerSettings":
    """Return the settings as they are meant: a model that no kind of job is there for is served."""
    from gpu_worker.config import listed

    if settings.served_model is None and settings.default_model and not listed(settings.kinds):
        return settings.model_copy(update={"model": settings.default_model})
    return settings


class Bar:
    """A progress bar while weights are loaded, on a terminal; elsewhere a line of the log for each quarter."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None
        self._quarter = -1

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that `done` of `total` parts are there; it is gone once they all are."""
        if err.is_terminal:
            self._draw(what, done, total)
        elif total and (quarter := 4 * done // total) != self._quarter:
            self._quarter = quarter
            logging.getLogger("livery.gpu_worker").info("%s: %d %% of %d parts", what, 25 * quarter, total)

    def _draw(self, what: str, done: int, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._progress is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("parts"))
            self._progress = Progress(*columns, TimeRemainingColumn(), console=err, transient=True)
            self._progress.start()
            self._task = self._progress.add_task(what, total=total)
        self._progress.update(self._task, description=what, completed=done, total=total)
        if done >= total:
            self.end()

    def end(self) -> None:
        """Take the bar away. Idempotent."""
        self._quarter = -1
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def status_of(api_url: str | None, as_json: bool) -> dict[str, Any]:
    """Return what the worker tells its owner, or, where it is not on this machine, what it tells with its secret."""
    from cli import worker_owner

    try:
        status, _, found = worker_owner.fetched("GET", "/api/v1/status", api_url, as_json)
        if status < 400:
            return dict(found)
        told = {}
        for name, path in _FAR.items():
            status, url, found = worker_owner.fetched("GET", path, api_url, as_json)
            if status in (401, 403):
                fail(
                    f"the worker at {url} asks for its API_SECRET",
                    "Set API_SECRET here to what it is there.",
                    "unauthorized",
                    as_json=as_json,
                )
            if status >= 400 or not isinstance(found, dict):
                raise worker_owner.NoWorker(f"what answers at {url} serves no model: status {status} for {path}")
            told[name] = found
        return told
    except worker_owner.NoWorker as error:
        fail(str(error), "Start one: livery worker start", "unreachable", as_json=as_json)


def far_page(found: dict[str, Any]) -> Any:
    """Return what a worker tells that is not on this machine."""
    health, done, here = found["health"], found["metrics"], found["pipeline"]["assignment"]
    layers = f"{here['start']}:{here['end']} of {here['total']}" if here else "not known yet"
    made = table(
        ("", ""),
        [
            ("status", f"{health['status']} ({health['state']}) for {float(health['uptime']):.0f} s"),
            ("model", health.get("model")),
            ("mode", health["mode"]),
            ("address", health.get("address") or "none"),
            ("layers", layers + (", the whole model" if here and here["is_full"] else "")),
            ("requests", done["total_requests"]),
            ("tokens", done["total_tokens_processed"]),
            ("latency", f"{done['avg_latency_ms']} ms a request"),
            ("throughput", f"{done['tokens_per_second']} tokens/s"),
        ],
    )
    made.show_header = False
    return made


def page(found: dict[str, Any]) -> "Group":
    """Return what the worker says of its slice, `found` being its status, for a terminal."""
    from rich.console import Group

    each = found["slice"]
    rows: list[tuple[str, object]] = [
        ("model", f"{each['model']}{kind_of(each)}"),
        ("mode", "the whole model, alone" if each["mode"] == "single" else "a stage of a pipeline"),
        ("layers", layers_of(each)),
        ("state", state_of(each)),
        ("stages reach it", each["endpoint"]),
    ]
    if each.get("isHead"):
        rows.append(("clients", f"OPENAI_BASE_URL={found['url']}/v1"))
    elif each.get("head"):
        rows.append(("clients", f"ask its head: {each['head']}/v1"))
    if each.get("cache"):
        cache = each["cache"]
        rows.append(("sessions", f"{cache['sessions']} open, {cache_of(cache)}"))
    rows.append(("served", f"{counted(each['requests'], 'request')}, {counted(each['tokens'], 'token')}"))
    if each["requests"]:
        rows.append(("latency", f"{each['avgLatencyMs']} ms a request, {each['tokensPerS']} tokens/s since it began"))
    made = table(("", ""), rows)
    made.show_header = False
    parts: list[RenderableType] = [made]
    if each.get("route"):
        parts.append(route(each))
    return Group(*parts)


def route(each: dict[str, Any]) -> Any:
    """Return the stages of the pipeline, a line each, replicas below each other."""

    def row(hop: dict[str, Any]) -> tuple[Any, ...]:
        # Only the head knows who is used and who waits.
        rests = each["isHead"] and not hop["isUsed"]
        about = "this one" if hop["endpoint"] == each["endpoint"] else "in reserve" if rests else ""
        layers, style = f"{hop['start']}:{hop['end']}", "dim" if rests else ""
        return words(layers, style or "bold"), words(hop["endpoint"], style), words(about, "dim")

    rows = [row(hop) for hop in each["route"]]
    return table(("layers", "stage", ""), rows)


def size(count: float) -> str:
    """Return bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def kind_of(each: dict[str, Any]) -> str:
    return f" ({each['family']}, {each['dtype']}, {each['backEnd']} on {each['device']})" if each.get("family") else ""


def layers_of(each: dict[str, Any]) -> str:
    layers = each.get("layers")
    return "not known yet" if layers is None else f"{layers['start']}:{layers['end']} of {layers['total']}"


def state_of(each: dict[str, Any]) -> str:
    progress = each.get("progress")
    if each["state"] != "ready" and progress and progress["total"]:
        return f"{each['state']}, {100 * progress['done'] // progress['total']} %"
    return str(each["state"])


def cache_of(cache: dict[str, Any]) -> str:
    return f"{cache['positions']:,} of {cache['positionsMax']:,} positions reserved ({size(cache['bytesMax'])})"


def counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
