"""`livery run explain`, `replay` and `release`: what a run did and why, and its reserved money back. They use this
environment's own store and wallet."""

from typing import Annotated, Any

import typer
from rich.console import Group
from rich.padding import Padding
from rich.text import Text

from cli import local
from cli.console import Json, run, show, table, words

RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]
OrNewest = Annotated[str | None, typer.Argument(metavar="[RUN]", help="The run's id; left out, the newest run.")]


def explain(run_id: OrNewest = None, as_json: Json = False) -> None:
    """
    Tell why a run chose each vendor, paid each price and ended as it did, from its log (this environment's store).

    Example: livery run explain run_0123
    """
    told = run(local.explain(run_id), as_json=as_json)
    show(told, lambda: Group(*_story(told["paragraphs"])), as_json=as_json)


def _story(paragraphs: list[dict[str, Any]]) -> list[Any]:
    parts: list[Any] = []
    for one in paragraphs:
        parts.append(words(f"{one['title']}  ·  {one['at'][:19].replace('T', ' ')} UTC", "bold"))
        # A line of its own for each candidate, flowing text for the rest.
        flowing: list[str] = []
        for sentence in one["sentences"]:
            if sentence.startswith("  "):
                parts += _flow(flowing)
                parts.append(Padding(words(f"· {sentence.strip()}"), (0, 0, 0, 4)))
            else:
                flowing.append(sentence)
        parts += [*_flow(flowing), Text("")]
    return parts


def _flow(sentences: list[str]) -> list[Any]:
    if not sentences:
        return []
    text = " ".join(sentences)
    sentences.clear()
    return [Padding(words(text), (0, 0, 0, 2))]


def replay(run_id: OrNewest = None, as_json: Json = False) -> None:
    """
    Fold a run's log again (this environment's store): the same run and decisions to the bit, or where they differ.

    Exit code 1 where anything does not repeat.

    Example: livery run replay run_0123 --json
    """
    report = run(local.replay(run_id), as_json=as_json)
    show(report, lambda: Group(*_replayed(report)), as_json=as_json)
    if not report["repeats"]:
        raise typer.Exit(1)


def _replayed(report: dict[str, Any]) -> list[Any]:
    parts: list[Any] = []
    if report["brokenAt"] is not None:
        parts.append(
            words(f"entry {report['brokenAt']} was changed, or stands in another place: its hash does not fit")
        )
    for one in report["differences"]:
        parts.append(words(f"the tick at entry {one['seq']} recorded {one['recorded']}, today it is {one['decided']}"))
    if not report["sameRun"]:
        parts.append(words("the log folds to another run than the stored one: see `livery audit`"))
    verdict = "all of them repeat" if report["repeats"] else "they do not repeat"
    return [*parts, words(f"{report['entries']} entries, {verdict}")]


def release(run_id: RunId, as_json: Json = False) -> None:
    """
    Take reserved money back early: cancel the run's open cheques on the chain (this environment's wallet pays the fee).

    Without it a cheque that nobody cashes lapses, and its money is free once a final block is later than that. The
    vendor may be faster: then it is paid. Nothing is free before the chain shows it in a final block; ticks look.

    Exit code 1 where any cheque could not be cancelled.

    Example: livery run release run_0123
    """
    found = run(local.release(run_id), as_json=as_json)
    if not found:
        show(found, lambda: "no payment of this run is open: nothing is reserved", as_json=as_json)
        return
    rows = [(one["paymentId"], one["vendorId"], f"{one['amount']} {one['currency']}", _meaning(one)) for one in found]
    show(found, lambda: table(("payment", "vendor", "amount", "what is known"), rows), as_json=as_json)
    if any(one["outcome"] == "cannot" for one in found):
        raise typer.Exit(1)


def _meaning(one: dict[str, Any]) -> str:
    return f"it cannot be cancelled: {one['why']}" if one["outcome"] == "cannot" else _MEANINGS[one["outcome"]]


_MEANINGS = {
    "paid": "the vendor was faster: it is paid",
    "not_paid": "it was never paid, and the money is free",
    "revoked": "the cancellation is sent; the money is free once its block is final (`livery run watch`)",
    "kept": "the vendor works on the job, so the cheque stays with it; cancel the run first",
}
