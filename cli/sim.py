"""`livery sim`: the deterministic simulation, which lives in a checkout and not in the installed program."""

import importlib
import importlib.util
from typing import Annotated

import typer

from cli.console import fail


def sim(
    seed: Annotated[
        int | None, typer.Option(help="The number that everything is drawn from; left out: a random one.")
    ] = None,
    ticks: Annotated[int, typer.Option(help="End after so many ticks.")] = 20_000,
    plant: Annotated[int | None, typer.Option(help="Build in this bug, which is to be found.", min=1, max=12)] = None,
    plants: Annotated[bool, typer.Option("--plants", help="Look for each planted bug, on five seeds.")] = False,
    world: Annotated[int | None, typer.Option(help="Only this world of the seed.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes of the operating system.", min=1)] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the line of JSON alone.")] = False,
    record: Annotated[bool, typer.Option("--record", help="Append the figures to docs/reliability.")] = False,
) -> None:
    """
    Let the whole agent live in simulated worlds with faults; exit code 1 where an invariant breaks.

    Examples: livery sim --seed 7 --ticks 5000 · livery sim --seed 7 --plant 3 · livery sim --plants
    """
    if importlib.util.find_spec("bench") is None:
        fail("the simulation needs a checkout of Livery; the installed program does not hold it")
    given = {"seed": seed, "ticks": ticks, "plant": plant, "world": world, "jobs": jobs}
    arguments = [f"--{name}={value}" for name, value in given.items() if value is not None]
    arguments += [f"--{name}" for name, is_set in (("plants", plants), ("json", json), ("record", record)) if is_set]
    raise typer.Exit(importlib.import_module("bench.sim.report").main(arguments))
