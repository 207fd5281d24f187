"""
The kill matrix: a process is killed at every named point, again and again, on every store; no payment may be made
twice or lost by it.

`make kill-matrix` kills 50 times per point and store. A trial is drawn from its seed: `--seed N --point P --store S
--kills 1` repeats one. What the points are stands in `bench/kill/points.py`, what is held against what in
`bench/kill/books.py`. Leaves with 1 where anything was wrong.
"""

import argparse
import json
import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.kill.books import WRONGS
from bench.kill.points import POINTS
from bench.records import add_arguments, record
from tests.fixtures.mongod import Mongod

STORES = ("sqlite", "mongo")
KILLS = 50
# One for each core.
LANES = 2
TOLD_EVERY = 200

Outcome = dict[str, Any]


class Lane:
    """A process of `bench.kill.lane`; leave it as a context manager."""

    def __init__(self, mongo_url: str | None) -> None:
        more = [] if mongo_url is None else ["--mongo", mongo_url]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.kill.lane", *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._is_ready = False

    def __enter__(self) -> "Lane":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def try_one(self, trial: dict[str, Any]) -> Outcome:
        """Return what came of `trial`. Raises RuntimeError when the lane is gone."""
        if not self._is_ready:
            self._hear()
            self._is_ready = True
        assert self._process.stdin
        self._process.stdin.write(json.dumps(trial) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> Outcome:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a lane ended with {self._process.wait()}")
        outcome: Outcome = json.loads(line)
        return outcome


def trials(points: Iterable[str], stores: Iterable[str], seeds: Iterable[int]) -> Iterator[dict[str, Any]]:
    """Yield every trial, all points of one seed before the next: wherever it is cut off, all were tried as often."""
    points, stores = tuple(points), tuple(stores)
    for seed in seeds:
        for point in points:
            for store in stores:
                yield {"point": point, "store": store, "seed": seed}


@contextmanager
def lanes_of(count: int, stores: Sequence[str]) -> Iterator[list[Lane]]:
    """Yield `count` lanes that start beside each other, and a MongoDB for them where one is asked for."""
    with ExitStack() as stack:
        url = None
        if "mongo" in stores:
            server = Mongod(replica_set=True)
            stack.callback(server.stop)
            url = server.url
        yield [stack.enter_context(Lane(url)) for _ in range(count)]


def run(lanes: Sequence[Lane], wanted: Iterator[dict[str, Any]], until: float | None = None) -> list[Outcome]:
    """Return the outcomes of `wanted`, tried by all lanes at once; after `until` (monotonic) none is begun."""
    outcomes: list[Outcome] = []
    guard = threading.Lock()
    failures: list[Exception] = []

    def work(lane: Lane) -> None:
        while not failures and (until is None or time.monotonic() < until):
            with guard:
                trial = next(wanted, None)
            if trial is None:
                return
            try:
                outcomes.append(lane.try_one(trial))
            except Exception as error:
                failures.append(error)
            if len(outcomes) % TOLD_EVERY == 0:
                print(f"{len(outcomes)} trials", file=sys.stderr)

    threads = [threading.Thread(target=work, args=(lane,)) for lane in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return outcomes


def counted(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Return the flat figures. `kills_at_each` is of the point and store with the fewest."""
    kills = Counter((one["point"], one["store"]) for one in outcomes if one["kills"])
    return {
        "kills": sum(kills.values()),
        "points": len({point for point, _ in kills}),
        "kills_at_each": min(kills[point, store] for point in POINTS for store in STORES),
        "not_killed": sum(not one["kills"] for one in outcomes),
        **{name: sum(one[name] for one in outcomes) for name in WRONGS},
    }


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """Return a row for each point, a column for each store: kills, then how many trials had which wrong."""
    table = Table("point", *STORES)
    for point in POINTS:
        cells = [_cell([one for one in outcomes if (one["point"], one["store"]) == (point, store)]) for store in STORES]
        if any(cells):
            table.add_row(point, *cells)
    return table


def _cell(outcomes: Sequence[Outcome]) -> str:
    if not outcomes:
        return ""
    wrong = [f"{sum(one[name] for one in outcomes)} {name}" for name in WRONGS if any(one[name] for one in outcomes)]
    if missed := sum(not one["kills"] for one in outcomes):
        wrong.append(f"{missed} not killed")
    return ", ".join([f"{sum(one['kills'] for one in outcomes)} kills", *(wrong or ["nothing wrong"])])


def is_wrong(outcome: Outcome) -> bool:
    """Return whether `outcome` broke anything, or killed nobody."""
    return bool(outcome["wrongs"]) or not outcome["kills"]


def main() -> None:
    """Run the matrix; print a table and one line of JSON."""
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(reader)
    reader.add_argument("--kills", type=int, default=KILLS, help="trials per point and store")
    reader.add_argument("--minutes", type=float, default=None, help="begin no trial after so long")
    reader.add_argument("--point", action="append", choices=list(POINTS), help="this point alone; may be repeated")
    reader.add_argument("--store", action="append", choices=STORES, help="this store alone")
    reader.add_argument("--lanes", type=int, default=LANES, help="trials beside each other")
    asked = reader.parse_args()
    seed = secrets.randbelow(10**9) if asked.seed is None else asked.seed
    stores = asked.store or STORES
    began = time.monotonic()
    until = None if asked.minutes is None else began + 60 * asked.minutes
    with lanes_of(asked.lanes, stores) as lanes:
        outcomes = run(lanes, trials(asked.point or POINTS, stores, range(seed, seed + asked.kills)), until)
    Console().print(table_of(outcomes))
    for one in filter(is_wrong, outcomes):
        print(f"--seed {one['seed']} --point '{one['point']}' --store {one['store']} --kills 1: {one['details']}")
    minutes = round((time.monotonic() - began) / 60, 1)
    document = {"seed": seed, **counted(outcomes), "minutes": minutes}
    print(json.dumps(document))
    if asked.record:
        record("kill_matrix", document)
    sys.exit(any(map(is_wrong, outcomes)))


if __name__ == "__main__":
    main()
