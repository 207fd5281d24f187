"""`livery audit`: the books against the chain and the vendors. It asks and reads; it changes nothing."""

from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from cli import local
from cli.console import Json, run, show, table

# What could not be checked neither agrees nor differs: a code of its own, for whoever runs this by cron.
UNCHECKED = 3

RunOption = Annotated[
    str | None, typer.Option("--run", metavar="RUN", help="One run alone; without it all runs, and the wallets.")
]


def audit(run_id: RunOption = None, as_json: Json = False) -> None:
    """
    Hold this environment's books against the chain and the vendors, and each run's log against its record.

    Exit code 0: all agree. 1: there are differences, a line each. 3: there is none, and something could not be checked.

    Example: livery audit --json | jq .differences
    """
    report = run(local.audit(run_id), as_json=as_json)
    show(report, lambda: _picture(report), as_json=as_json)
    if report["differences"]:
        raise typer.Exit(1)
    if report["unchecked"]:
        raise typer.Exit(UNCHECKED)


def _picture(report: dict[str, Any]) -> Group:
    parts: list[Any] = []
    if report["differences"]:
        columns = ("difference", "run", "of", "the books say", "the world says", report["currency"])
        names = ("code", "runId", "subject", "books", "world", "by")
        parts.append(table(columns, [[one[name] for name in names] for one in report["differences"]]))
    if report["unchecked"]:
        rows = [(one["runId"], one["subject"], one["why"]) for one in report["unchecked"]]
        parts.append(table(("run", "could not be checked", "why"), rows))
    return Group(*parts, Text(_summary(report)))


def _summary(report: dict[str, Any]) -> str:
    counted = f"{_count(report['runs'], 'run')}, {_count(report['payments'], 'payment')}"
    head = f"{counted}, {report['spent']} {report['currency']}"
    found, left = len(report["differences"]), len(report["unchecked"])
    if not found and not left:
        return f"{head}: books, chain and vendors agree"
    told = _count(found, "difference") if found else "no difference"
    return (
        f"{head}: {told}, {'and' if found else 'but'} {_count(left, 'thing')} could not be checked"
        if left
        else f"{head}: {told}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
