"""`livery worker status --watch`: a worker that serves a model, or layers of one, shown anew each second."""

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cli import worker_whole
from cli.console import fail, out, words
from cli.worker_owner import NoWorker
from cli.worker_slices import cache_of, counted, kind_of, layers_of, route, state_of

if TYPE_CHECKING:
    from rich.console import RenderableType

# How many seconds the view looks back, and what it draws them with.
_RATES, _BARS = 30, " ▁▂▃▄▅▆▇█"


def watch(ask: Any, interval_s: float = 1.0) -> None:
    """Show the worker until Ctrl-C, anew each second; `ask` returns its status, and raises NoWorker once it is gone."""
    from rich.live import Live

    before: tuple[float, int] | None = None
    rates: deque[float] = deque(maxlen=_RATES)
    try:
        with Live(console=out, auto_refresh=False, screen=out.is_terminal) as live:
            while True:
                found, now_s = ask(), time.monotonic()
                served = found.get("slice") or found.get("model")
                tokens = served["tokens"] if served else 0
                if before is not None:
                    rates.append((tokens - before[1]) / max(0.001, now_s - before[0]))
                before = now_s, tokens
                live.update(view(found, rates), refresh=True)
                time.sleep(interval_s)
    except KeyboardInterrupt:
        pass  # who watches leaves by it
    except NoWorker as error:
        # Told where it stays to be read: the view's own screen is gone now.
        fail(str(error), "Start one: livery worker start", "unreachable")


def view(found: dict[str, Any], rates: Sequence[float]) -> Any:
    """
    Return one picture of the terminal view: sessions, tokens a second, how full the cache is, the route.

    `rates` are the tokens of each of the last seconds, the last one behind.
    """
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    each, whole = found.get("slice"), found.get("model")
    head = Text.assemble((found["name"], "bold"), "  ", (found["state"], _colour(found["state"])))
    made = Table.grid(padding=(0, 2))
    if whole:
        for row in worker_whole.watched(whole, rates, _rates):
            made.add_row(*row)
        notes = [words(f"! {note}", "yellow") for note in found["notes"]]
        return _panel(head, [made, Text(), worker_whole.models(whole), *notes])
    if not each:
        return Panel(words("it serves no model"), title=head, title_align="left")
    made.add_row(words("model", "dim"), words(f"{each['model']}{kind_of(each)}"))
    made.add_row(words("layers", "dim"), words(f"{layers_of(each)}, {state_of(each)}"))
    made.add_row(words("sessions", "dim"), _sessions(each))
    if each["isHead"]:
        made.add_row(words("tokens/s", "dim"), _rates(rates))
        step = f", a step takes {each['stepMs']:.1f} ms" if each.get("stepMs") else ""
        served = f"{counted(each['requests'], 'request')}, {counted(each['tokens'], 'token')}{step}"
        made.add_row(words("served", "dim"), words(served))
    elif each.get("head"):
        made.add_row(words("clients", "dim"), words(f"ask its head: {each['head']}/v1"))
    made.add_row(words("cache", "dim"), _cache_bar(each))
    parts: list[Any] = [made]
    if each.get("route"):
        parts += [Text(), route(each)]
    parts += [words(f"! {note}", "yellow") for note in found["notes"]]
    return _panel(head, parts)


def _panel(head: Any, parts: list[Any]) -> Any:
    from rich.console import Group
    from rich.panel import Panel

    return Panel(Group(*parts), title=head, title_align="left", subtitle="Ctrl-C leaves", subtitle_align="right")


def _sessions(each: dict[str, Any]) -> "RenderableType":
    sessions = (each.get("cache") or {"sessions": 0})["sessions"]
    waiting, lost = each.get("waiting", 0), each.get("failovers", 0)
    more = [f"{waiting} waiting"] * bool(waiting) + [f"stages lost so far: {lost}"] * bool(lost)
    return words(", ".join([f"{sessions} open", *more]), "bold")


def _rates(rates: Sequence[float]) -> "RenderableType":
    """Return the newest rate, and all of them as bars, the highest as high as the line."""
    from rich.text import Text

    if not rates:
        return words("-", "bold")
    highest = max(rates)
    bars = "".join(_BARS[round((len(_BARS) - 1) * each / highest)] if highest else _BARS[0] for each in rates)
    return Text.assemble((f"{rates[-1]:<8.1f}", "bold green" if rates[-1] else "bold"), (bars, "green"))


def _cache_bar(each: dict[str, Any]) -> "RenderableType":
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    cache = each.get("cache") or {"sessions": 0, "positions": 0, "positionsMax": 0, "bytesMax": 0}
    share = cache["positions"] / cache["positionsMax"] if cache["positionsMax"] else 0.0
    style = "red" if share > 0.9 else "yellow" if share > 0.7 else "green"
    made = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=1.0, completed=share, width=20, complete_style=style)
    made.add_row(bar, words(f"{100 * share:.1f} %"), words(cache_of(cache), "dim"))
    return made


def _colour(state: str) -> str:
    return {"online": "green", "draining": "yellow", "gone": "red"}.get(state, "cyan")
