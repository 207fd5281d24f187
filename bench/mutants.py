"""
How sharp the tests are: small faults planted at random in `wire`, `agent/core` and `cashier`, one at a time.

Every mutant lives in a copy of the checkout; a mutant is killed when the room's tests fail or
take too long. The seed is printed and draws the same mutants again from the same source.
`|` in annotations is left out: those mutants die at import and would flatter the tests.
"""

import argparse
import contextlib
import json
import os
import random
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent

# What is mutated, and the tests that must notice, in the order they are tried.
ROOMS: dict[str, tuple[str, ...]] = {
    "wire": ("tests/wire",),
    "agent/core": ("tests/agent/core",),
    "cashier": ("tests/cashier",),
}
LEFT_OUT = "core/ReplaceBinaryOperator_BitOr_"
COUNT = 100
# A mutant that never ends is killed after PATIENCE times what the untouched tests took, and not before SLOWEST_S.
PATIENCE = 4
SLOWEST_S = 20.0

_NOT_COPIED = shutil.ignore_patterns(
    ".git", ".venv", "node_modules", "__pycache__", ".hypothesis", ".*_cache", "build", "dist", "*.egg-info"
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """The `occurrence`-th place in `path` where cosmic-ray's `operator` with `arguments` applies."""

    room: str
    path: str
    operator: str
    arguments: tuple[tuple[str, object], ...]
    occurrence: int
    line: int


@dataclass(frozen=True, slots=True)
class Verdict:
    mutant: Mutant
    killed: bool
    diff: str


def find_mutants(room: str) -> Iterator[Mutant]:
    """Yield every mutant of the files of `room`, in a fixed order."""
    from cosmic_ray.ast import ast_nodes, get_ast_from_path
    from cosmic_ray.commands.init import _operators

    for path in sorted(ROOT.glob(f"{room}/**/*.py")):
        tree = get_ast_from_path(path)
        for name, arguments, operator in _operators({}):
            if name.startswith(LEFT_OUT):
                continue
            places = (place for node in ast_nodes(tree) for place in operator.mutation_positions(node))
            for occurrence, (start, _) in enumerate(places):
                yield Mutant(
                    room, str(path.relative_to(ROOT)), name, tuple(sorted(arguments.items())), occurrence, start[0]
                )


@contextlib.contextmanager
def _copy_of_checkout() -> Iterator[Path]:
    """Yield a copy of the checkout and work there; node_modules is shared by a link."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="livery-mutants-") as folder:
        copy = Path(folder) / "livery"
        shutil.copytree(ROOT, copy, ignore=_NOT_COPIED)
        for modules in ("node_modules", "tests/foreign/node_modules"):
            if (ROOT / modules).is_dir() and (copy / modules).parent.is_dir():
                (copy / modules).symlink_to(ROOT / modules)
        os.chdir(copy)
        try:
            yield copy
        finally:
            os.chdir(before)


def _test_command(room: str) -> str:
    # `-P` and the copy's own pythonpath: the copy is tested, not an editable install.
    pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--durations=0", *ROOMS[room]]
    return shlex.join(pytest)


def _seconds_untouched(room: str) -> float:
    started = time.monotonic()
    done = subprocess.run(shlex.split(_test_command(room)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the tests of {room} fail without a mutant:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return time.monotonic() - started


def _try(mutant: Mutant, timeout_s: float) -> Verdict:
    from cosmic_ray.mutating import mutate_and_test
    from cosmic_ray.work_item import MutationSpec, WorkerOutcome

    spec = MutationSpec(
        module_path=mutant.path,
        operator_name=mutant.operator,
        operator_args=dict(mutant.arguments),
        occurrence=mutant.occurrence,
        start_pos=(1, 0),
        end_pos=(1, 1),
    )
    result = mutate_and_test([spec], _test_command(mutant.room), timeout_s)
    if result.worker_outcome is not WorkerOutcome.NORMAL:
        raise SystemExit(f"{mutant} could not be made: {result.output}")
    return Verdict(mutant, result.is_killed, result.diff or "")


def run(seed: int, count: int, rooms: list[str], console: Console) -> list[Verdict]:
    """Return what became of `count` mutants drawn by `seed` from `rooms`."""
    drawn = random.Random(seed)
    everything = [mutant for room in rooms for mutant in find_mutants(room)]
    sample = sorted(drawn.sample(everything, min(count, len(everything))), key=lambda one: (one.path, one.line))
    console.print(f"seed {seed}: {len(sample)} of {len(everything)} mutants")
    verdicts = []
    with _copy_of_checkout():
        timeout_s = {
            room: max(SLOWEST_S, PATIENCE * _seconds_untouched(room)) for room in {mutant.room for mutant in sample}
        }
        for mutant in sample:
            verdict = _try(mutant, timeout_s[mutant.room])
            verdicts.append(verdict)
            console.print(
                f"{'killed  ' if verdict.killed else 'SURVIVED'} {mutant.path}:{mutant.line} {mutant.operator}",
                highlight=False,
            )
    return verdicts


def table(verdicts: list[Verdict]) -> Table:
    shown = Table(title="Mutants", title_justify="left")
    for heading in ("room", "mutants", "killed", "survived"):
        shown.add_column(heading, justify="left" if heading == "room" else "right")
    for room in ROOMS:
        killed = [verdict.killed for verdict in verdicts if verdict.mutant.room == room]
        if killed:
            shown.add_row(room, str(len(killed)), str(sum(killed)), str(len(killed) - sum(killed)))
    return shown


def main(arguments: list[str] | None = None) -> int:
    """Print each mutant's fate, a table, the survivors' diffs and one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.mutants", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="draws the same mutants again")
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--room", choices=ROOMS, action="append", help="only this room; may be repeated")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    console = Console()
    verdicts = run(seed, options.count, options.room or list(ROOMS), console)
    survivors = [verdict for verdict in verdicts if not verdict.killed]
    for verdict in survivors:
        console.print(verdict.diff, markup=False, highlight=False)
    console.print(table(verdicts))
    print(json.dumps({"seed": seed, "mutants": len(verdicts), "survivors": [asdict(one) for one in survivors]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
