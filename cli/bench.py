"""`livery bench NAME`: benchmarks, which live in a checkout and not in the installed program."""

import importlib
import importlib.util
from typing import Annotated

import typer

from cli.console import fail

BENCHES = {
    "decode": "bench.decode.run",
    "import": "bench.import_time",
    "planner": "bench.planner",
    "serving": "bench.serving.run",
    "worker": "bench.worker",
}


def bench(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help=f"One of: {', '.join(BENCHES)}.")] = None,
    wants_help: Annotated[bool, typer.Option("--help", help="Show this, or behind a name what it takes.")] = False,
) -> None:
    """
    Measure something and print its tables and one JSON document; exit code 1 where it misses its goal.

    Import times:    livery bench import

    Layer slices:    livery bench decode --scene single --turns 3

    Whole models:    livery bench serving --scene door

    What one takes:  livery bench decode --help
    """
    if name is None and wants_help:
        typer.echo(context.get_help())
        raise typer.Exit
    if name not in BENCHES:
        what = "name a benchmark" if name is None else f"there is no benchmark {name}"
        raise typer.BadParameter(f"{what}; there is {', '.join(BENCHES)}")
    if importlib.util.find_spec("bench") is None:
        fail("benchmarks need a checkout of Livery; the installed program does not hold them")
    words = [*context.args, *(["--help"] if wants_help else [])]
    raise typer.Exit(importlib.import_module(BENCHES[name]).main(words))
