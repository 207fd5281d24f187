"""`livery worker status` where whole models are served: how it is shown."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cli.console import table, words
from cli.worker_slices import counted, size

if TYPE_CHECKING:
    from rich.console import Group

_ENGINES = {
    "gguf": "llama.cpp, in a process of its own",
    "ollama": "an Ollama",
    "openai": "a server that speaks OpenAI's API",
}


def page(found: dict[str, Any]) -> "Group":
    """Return what the worker says of its models, `found` being its status, for a terminal."""
    from rich.console import Group

    each = found["model"]
    made = table(("", ""), [*_rows(each), ("clients", f"OPENAI_BASE_URL={found['url']}/v1")])
    made.show_header = False
    return Group(made, models(each))


def models(each: dict[str, Any]) -> Any:
    """Return the models, a line each."""
    names: dict[str, list[str]] = {}
    for alias, name in each["aliases"].items():
        names.setdefault(name, []).append(alias)

    def row(card: dict[str, Any]) -> tuple[Any, ...]:
        context = f"{card['context']:,}" if card["context"] else "?"
        loaded = words("loaded", "green") if card["is_loaded"] else words("when asked for", "dim")
        also = ", ".join(names.get(card["name"], ()))
        return card["name"], card["quant"], size(card["bytes"]) if card["bytes"] else "", context, loaded, also

    return table(("model", "quant", "size", "context", "", "also called"), [row(card) for card in each["models"]])


def watched(each: dict[str, Any], rates: Sequence[float], bars: Any) -> list[tuple[Any, Any]]:
    """Return the rows of the picture that is shown anew each second; `bars` draws rates."""
    return [(words(name, "dim"), words(str(value))) for name, value in _rows(each)] + [
        (words("tokens/s", "dim"), bars(rates))
    ]


def _rows(each: dict[str, Any]) -> list[tuple[str, object]]:
    waiting = f", {each['waiting']} waiting" if each["waiting"] else ""
    rows: list[tuple[str, object]] = [
        ("engine", _ENGINES.get(each["engine"], each["engine"])),
        ("state", each["state"]),
        ("answers", f"{each['running']} of {each['slots']} at once{waiting}"),
        ("served", f"{counted(each['requests'], 'request')}, {counted(each['tokens'], 'token')}"),
        ("gRPC", each["endpoint"]),
    ]
    if each["benchmarkTokPerSec"]:
        rows.append(("speed", f"{each['benchmarkTokPerSec']} tokens/s of one answer, measured at the start"))
    if each["requests"]:
        rows.append(("latency", f"{each['avgLatencyMs']} ms a request, {each['tokensPerS']} tokens/s since it began"))
    if each["restarts"]:
        rows.append(("restarts", f"its engine was started again {counted(each['restarts'], 'time')}"))
    return rows
