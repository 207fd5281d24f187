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
    "worker": "bench.worker",
}


def bench(context: typer.Context, name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHES)}.")]) -> None:
    """
    Measure something and print one table and one JSON document; exit code 1 where it misses its goal.

    Examples: livery bench import · livery bench planner --seeds 30 · livery bench worker --json
    """
    if name not in BENCHES:
        raise typer.BadParameter(f"there is no benchmark {name}; there is {', '.join(BENCHES)}")
    if importlib.util.find_spec("bench") is None:
        fail("benchmarks need a checkout of Livery; the installed program does not hold them")
    raise typer.Exit(importlib.import_module(BENCHES[name]).main(context.args))
