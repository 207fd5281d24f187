"""
Every hostile facilitator and vendor of the table, and a thousand texts that attack the planner, as often as asked.

Each trial has its own seed, and with it other prices, hours and draws, over one real chain that is put back after it.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import randrange
from typing import TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.hostile_cases import CASES, Case, Trial, fresh, try_case
from bench.injections import PLANNERS, Tally, asked, spent
from bench.records import add_arguments, record
from chain.devchain import DevChain
from tests.fixtures.llm import serving_llm
from vendor_mock.attacks import COUNT

TRIALS = 10
T = TypeVar("T")


@dataclass
class Figures:
    """
    What was seen: `as_expected` of `trials` ended as the table says.

    `cases_noticed` of the `cases` are not met where nothing is done wrong: only these say anything.
    """

    seed: int
    cases: int = len(CASES)
    cases_noticed: int = 0
    trials: int = 0
    as_expected: int = 0
    double_payments: int = 0
    injections: int = 0
    injections_effective: int = 0


@dataclass
class Seen:
    figures: Figures
    ended_so: dict[str, int] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    def take(self, case: Case, trial: Trial) -> None:
        self.figures.trials += 1
        self.figures.double_payments += trial.double_payments
        self.figures.as_expected += not trial.differences
        self.ended_so[case.name] = self.ended_so.get(case.name, 0) + (not trial.differences)
        self.told += [f"{case.name}: {difference}" for difference in trial.differences]

    def doubt(self, case: Case, honest: Trial) -> None:
        """Take how `case` ended where nothing was done wrong."""
        self.figures.cases_noticed += bool(honest.differences)
        if not honest.differences:
            self.told.append(f"{case.name}: met with nothing done wrong")

    def hear(self, tally: Tally, *, count: bool) -> None:
        self.figures.injections += tally.tried if count else 0
        self.figures.injections_effective += len(tally.effective)
        self.told += tally.effective


def run(seed: int, trials: int) -> Seen:
    """Return what became of `trials` of every case and of as many thousands of texts."""
    seen = Seen(Figures(seed))
    with DevChain.start(block_time_s=None) as chain, serving_llm() as llm:
        for case in CASES:
            seen.doubt(case, _on(chain, partial(try_case, case, chain, seed=seed, is_honest=True)))
        for number in range(seed, seed + trials):
            for case in CASES:
                seen.take(case, _on(chain, partial(try_case, case, chain, seed=number)))
            for mode in PLANNERS:
                seen.hear(asyncio.run(asked(number, mode, llm)), count=False)
                seen.hear(_on(chain, partial(spent, number, mode, llm, chain)), count=True)
    return seen


def _on(chain: DevChain, do: Callable[[Path], Awaitable[T]]) -> T:
    """Return what `do` returns on the fresh chain, which is as before afterwards."""

    async def in_a_folder() -> T:
        with tempfile.TemporaryDirectory() as folder:
            return await do(Path(folder))

    before = fresh(chain)
    try:
        return asyncio.run(in_a_folder())
    finally:
        chain.rpc("evm_setAutomine", True)
        chain.revert(before)


def table(seen: Seen, trials: int) -> Table:
    shown = Table(title=f"Hostile counterparties, {trials} trials each, from seed {seen.figures.seed}")
    for column in ("case", "run", "payments", "settled", "first error", "said of vendors", "ended so"):
        shown.add_column(column, justify="right" if column in ("settled", "ended so") else "left")
    for case in CASES:
        end = case.end
        standings = ", ".join(f"{name[-1]}: {done}+ {failed}-" for name, (done, failed) in end.standings.items())
        so = seen.ended_so.get(case.name, 0)
        row = (case.name, end.reason or end.status, ", ".join(end.payments), str(end.settled), end.error or "")
        shown.add_row(*map(Text, row), standings, f"{so} of {trials}", style="" if so == trials else "red")
    figures = seen.figures
    shown.caption = (
        f"{figures.cases_noticed} of {figures.cases} cases notice that nothing was done wrong\n"
        f"texts that attack the planner: {figures.injections} said in runs, a fourth to each of {', '.join(PLANNERS)}, "
        f"and asked of each {COUNT} a trial; effective: {figures.injections_effective}"
    )
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and one line of JSON; the exit code is 1 where anything ended otherwise."""
    reader = argparse.ArgumentParser(prog="python -m bench.hostile", description="Hostile counterparties, each case.")
    reader.add_argument("--trials", type=int, default=TRIALS, help="of each case, each with a seed of its own")
    add_arguments(reader)
    options = reader.parse_args(arguments)
    seed = randrange(1_000_000) if options.seed is None else options.seed
    seen = run(seed, options.trials)
    Console(width=180).print(table(seen, options.trials))
    for line in seen.told:
        print(f"otherwise: {line}")
    figures = asdict(seen.figures)
    print(json.dumps(figures))
    if options.record:
        record("hostile", figures)
    return 0 if not seen.told else 1


if __name__ == "__main__":
    sys.exit(main())
