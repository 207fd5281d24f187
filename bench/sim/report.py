"""
`livery sim`: worlds drawn from one seed, one after another, until so many ticks have been made; what really went wrong
in them, and what broke.

Exit code 1 where an invariant broke, where a kind of fault never happened in a run long enough for each, and where a
planted bug was not found.
"""

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count, islice
from multiprocessing import get_context

from rich.console import Console
from rich.table import Table

from agent.core.invariants import Broken
from bench.records import add_arguments, record
from bench.sim.clock import run_virtually
from bench.sim.faults import EFFECTS, PER_MILLE
from bench.sim.planted import PLANTS, planted
from bench.sim.world import Lived, World

TICKS = 20_000
# In so many ticks each kind of fault is to be expected several times.
TICKS_OF_ALL_FAULTS = 10_000
PLANT_SEEDS = 5
WORLDS_AT_ONCE = 4


@dataclass
class Simulated:
    """What became of the worlds of one seed; `broken` are those of `world`, the last one, each with what broke."""

    seed: int
    ticks: int = 0
    worlds: int = 0
    happened: Counter[str] = field(default_factory=Counter)
    broken: tuple[Broken, ...] = ()
    trace: str = ""
    wall_s: float = 0.0

    def add(self, lived: Lived) -> None:
        self.ticks += lived.ticks
        self.worlds += 1
        self.happened.update(lived.happened)
        self.broken = lived.broken
        self.trace = sha256((self.trace + lived.trace).encode()).hexdigest()

    def missing(self) -> list[str]:
        """Return the kinds of fault that never happened, where the run was long enough for each."""
        kinds = (*PER_MILLE, *EFFECTS)
        return [name for name in kinds if not self.happened[name]] if self.ticks >= TICKS_OF_ALL_FAULTS else []


def live_in(seed: int, number: int, plant: int | None = None) -> Lived:
    """Return what becomes of world `number` of `seed`."""

    async def live() -> Lived:
        return await World(f"{seed}:{number}").live()

    with planted(plant):
        return run_virtually(live())


def simulate(
    seed: int, ticks: int, plant: int | None = None, jobs: int = 1, worlds: Iterable[int] | None = None
) -> Simulated:
    """
    Return what became of the worlds of `seed` until one broke or `ticks` were made; the same whatever `jobs` is.

    Args:
        worlds: these alone; None is one after another, without end.
    """
    done, began_s = Simulated(seed), time.monotonic()
    for lived in _lives(seed, plant, jobs, count() if worlds is None else iter(worlds)):
        done.add(lived)
        if lived.broken or done.ticks >= ticks:
            break
    done.wall_s = time.monotonic() - began_s
    return done


def _lives(seed: int, plant: int | None, jobs: int, numbers: Iterator[int]) -> Iterator[Lived]:
    if jobs == 1:
        yield from (live_in(seed, number, plant) for number in numbers)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        while batch := list(islice(numbers, WORLDS_AT_ONCE * jobs)):
            yield from pool.map(live_in, [seed] * len(batch), batch, [plant] * len(batch))


def table(done: Simulated) -> Table:
    shown = Table(title=f"Faults of {done.ticks:,} ticks in {done.worlds} worlds", title_justify="left")
    shown.add_column("fault")
    shown.add_column("happened", justify="right")
    for name in (*PER_MILLE, *EFFECTS):
        shown.add_row(name.replace("_", " "), f"{done.happened[name]:,}")
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and one line of JSON; return the exit code."""
    reader = argparse.ArgumentParser(prog="livery sim", description="The agent in simulated worlds, from one seed.")
    reader.add_argument("--ticks", type=int, default=TICKS, help=f"end after so many (default {TICKS})")
    reader.add_argument(
        "--plant", type=int, choices=PLANTS, metavar=f"1..{len(PLANTS)}", help="build in a bug that is to be found"
    )
    reader.add_argument("--plants", action="store_true", help=f"build in each of them, on {PLANT_SEEDS} seeds")
    reader.add_argument("--world", type=int, help="only this world of the seed")
    reader.add_argument("--jobs", type=int, default=1, help="operating system processes (default 1)")
    reader.add_argument("--json", action="store_true", help="print the line of JSON alone")
    add_arguments(reader)
    options = reader.parse_args(arguments)
    if options.record and (options.plant is not None or options.world is not None):
        reader.error("--record is for whole runs without a planted bug: leave --plant and --world out")
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    if options.plants:
        return matrix(seed, options)
    only = None if options.world is None else (options.world,)
    done = simulate(seed, options.ticks, options.plant, options.jobs, only)
    missing = done.missing() if options.plant is None else []
    document = {
        "seed": seed,
        "ticks": done.ticks,
        "seeds": 1,
        "worlds": done.worlds,
        "broken_invariants": len(done.broken),
        "faults": {name: done.happened[name] for name in (*PER_MILLE, *EFFECTS)},
        "fault_kinds_max": len(PER_MILLE) + len(EFFECTS),
        "fault_kinds_missing": len(missing),
        "ticks_per_s": round(done.ticks / max(done.wall_s, 1e-9)),
        "trace": done.trace,
    }
    if not options.json:
        Console().print(table(done))
        if options.plant is not None:
            print(f"built in: {PLANTS[options.plant][0]}")
        for one in done.broken:
            print(f"broken: {one.invariant} {one.run_id} {one.detail}")
        for name in missing:
            print(f"never happened: {name}")
        if done.broken:
            plant = "" if options.plant is None else f" --plant {options.plant}"
            world = done.worlds - 1 if options.world is None else options.world
            print(f"again: livery sim --seed {seed} --world {world}{plant}")
    if options.record:
        record("sim", document)
    print(json.dumps(document))
    return 1 if done.broken or missing else 0


def matrix(seed: int, options: argparse.Namespace, plants: Sequence[int] = tuple(PLANTS)) -> int:
    """Look for each of `plants` on PLANT_SEEDS seeds; return the exit code."""
    shown = Table(title=f"Ticks until a planted bug was found, {PLANT_SEEDS} seeds", title_justify="left")
    shown.add_column("bug")
    shown.add_column("found by")
    for number in range(PLANT_SEEDS):
        shown.add_column(f"seed {seed + number}", justify="right")
    found, ticks, times = 0, 0, 0
    for plant in plants:
        runs = [simulate(seed + number, options.ticks, plant, options.jobs) for number in range(PLANT_SEEDS)]
        found += all(run.broken and run.ticks <= options.ticks for run in runs)
        times += sum(bool(run.broken) for run in runs)
        ticks = max([ticks, *(run.ticks for run in runs)])
        by = ", ".join(sorted({run.broken[0].invariant for run in runs if run.broken}))
        shown.add_row(
            f"{plant} {PLANTS[plant][0]}", by, *(f"{run.ticks:,}" if run.broken else "not found" for run in runs)
        )
    document = {
        "seed": seed,
        "plants_found": found,
        "plants": len(plants),
        "plant_seeds_max": PLANT_SEEDS,
        "plant_runs_found": times,
        "plant_runs": len(plants) * PLANT_SEEDS,
        "ticks_to_find_max": ticks,
    }
    if not options.json:
        Console(width=140).print(shown)
    if options.record:
        record("sim", document)
    print(json.dumps(document))
    return 0 if found == len(plants) else 1
