"""
`livery demo-train`: a real training, rented from two workers on this machine, one of which is killed in the middle.

It ends with the loss as one curve, what each worker was paid, and the books beside the chain; with exit code 1 where
these disagree or the loss did not fall.
"""

import logging
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from chain.devchain import DevChain
from chain.errors import ChainError
from cli import extras, processes, training
from cli.books import conclude, line_of, table_of
from cli.console import Json, fail, out, print_json, run, table
from cli.driving import TooLong
from cli.training import BUDGET, GOAL, STEPS, Played, World, open_world

BAR = 40


def demo_train(
    restart: Annotated[
        bool, typer.Option("--restart", help="Start the killed worker again at the end: it pays back what it owes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """
    Show a training that outlives its worker: killed in the middle, it goes on elsewhere from its checkpoint.

    Needs what trains, the extra `worker`; no account, no GPU and no network. Ends in about a minute.
    """
    extras.need_worker(as_json=as_json)
    # What it would warn of happens here on purpose, and is told below.
    logging.getLogger("livery").addHandler(logging.NullHandler())
    processes.end_on_sigterm()
    try:
        with tempfile.TemporaryDirectory(prefix="livery-demo-train-") as folder, DevChain.start() as chain:
            if not as_json:
                out.print(f"[bold]Livery demo-train[/]  two workers; the one that has the job is killed\n{STARTING}")
            with open_world(Path(folder), chain) as world:
                if not as_json:
                    _introduce(world)
                played = run(training.play(world, says=not as_json, restart=restart), as_json=as_json)
    except (ChainError, processes.NotReady, TooLong) as error:
        fail(str(error), as_json=as_json)
    if as_json:
        print_json(document(played))
    else:
        out.print(story(played))
        conclude([*played.books, *played.books_after])
    if not played.is_well:
        raise typer.Exit(1)


STARTING = "[dim]making a tiny model, and looking how fast this machine trains …[/]"


def document(played: Played) -> dict[str, Any]:
    """Return all of it as JSON has it."""
    start, end = played.held_out
    return {
        "status": played.seen.document(),
        "killed": {
            "worker": played.killed.worker,
            "atStep": played.killed.at_step,
            "checkpointStep": played.killed.checkpoint_step,
        },
        "resumedStep": played.resumed_step,
        "curve": [
            {"step": point.step, "loss": point.loss, "heldOutLoss": point.held_out_loss, "worker": point.worker}
            for point in played.curve
        ],
        "heldOutLoss": {"start": start, "end": end},
        "costs": costs(played),
        "files": list(played.files),
        "books": [line_of(book) for book in played.books],
        "statusAfter": None if played.seen_after is None else played.seen_after.document(),
        "booksAfter": [line_of(book) for book in played.books_after],
        "seconds": round(played.seconds, 1),
        "isWell": played.is_well,
    }


def costs(played: Played) -> list[dict[str, Any]]:
    """Return what each worker was paid, what it paid back by the end, and for which steps."""
    seen = played.seen_after or played.seen
    return [
        {
            "worker": cost.vendor_id,
            "step": cost.step,
            "toStep": cost.to_step,
            "paid": cost.paid,
            "refunded": cost.refunded,
            "charged": cost.paid - cost.refunded,
        }
        for cost in seen.run.costs
    ]


def _introduce(world: World) -> None:
    rows = [("chain", world.chain.url), ("facilitator", world.paid_at), ("control plane", world.plane)]
    rows += [(name, f"{url}, {world.workers[name].price_per_hour} USDC an hour") for name, url in world.urls.items()]
    out.print(table(("", ""), rows))
    out.print(f'\n[bold]"{GOAL}"[/], {STEPS} steps, budget {BUDGET} USDC\n')


def story(played: Played) -> Group:
    """Return what happened, for a terminal: the curve, the costs, the books."""
    killed, seen, spent = played.killed, played.seen, (played.seen_after or played.seen).run.budget_spent
    start, end = played.held_out
    names = ("paid", "refunded", "charged")
    rows = [
        (cost["worker"], f"{cost['step']} to {cost['toStep']}", *(f"{cost[name]}" for name in names))
        for cost in costs(played)
    ]
    if played.seen_after is None:
        what = f"{killed.worker} keeps what it was paid until it comes back: then it pays back what it did not use."
    else:
        what = f"{killed.worker} was started again, and paid back what it had not used."
    blank = Text()
    return Group(
        blank,
        _curve(played),
        blank,
        Text.assemble(
            f"loss on the text that was held out: {start:.3f} at the start, {end:.3f} at the end, ",
            (f"{1 - end / start:.0%} less", "bold"),
        ),
        Text(f"kept: {', '.join(played.files)}", style="dim"),
        blank,
        table(("worker", "steps", "paid, USDC", "came back", "charged"), rows),
        Text(f"{spent} USDC of {seen.run.budget_total} spent. {what}"),
        blank,
        table_of(played.books_after or played.books),
    )


def _curve(played: Played) -> Any:
    start, _ = played.held_out
    rows: list[tuple[Any, ...]] = []
    killed, previous = played.killed, played.killed.worker
    for point in played.curve:
        if point.held_out_loss is None:
            continue
        if point.worker != previous:
            text = f"killed after step {killed.at_step}; {point.worker} goes on from step {played.resumed_step}"
            rows.append(("", "", "", Text(text, style="red"), ""))
            previous = point.worker
        full = round(BAR * point.held_out_loss / start)
        loss = "" if point.loss is None else f"{point.loss:.3f}"
        bar = Text("█" * full, style="cyan" if point.worker == killed.worker else "green")
        rows.append((point.step, loss, f"{point.held_out_loss:.3f}", bar, point.worker))
    return table(("step", "loss", "held out", "", "on"), rows)
