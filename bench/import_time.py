"""
What the base install costs: the import of `api.app`, its memory, and the packages and megabytes on disk.

The import is compared with that of the four libraries it cannot do without, in fresh
processes that take turns, so that a busy machine slows both alike.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

BASELINE = "fastapi, pymongo, httpx, mangum"
SUBJECT = "api.app"
RATIO_MAX = 1.2
ROUNDS = 9

_PROBE = """
import json, resource, sys, time
sys.dont_write_bytecode = False
started = time.perf_counter()
import {modules}
wall_ms = (time.perf_counter() - started) * 1000
cpu_ms = time.process_time() * 1000
unit = 1 if sys.platform == "darwin" else 1024
rss_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps([wall_ms, cpu_ms, rss_bytes, len(sys.modules)]))
"""


class Sample(NamedTuple):
    """One fresh process: how long it took, what it worked, what it held."""

    wall_ms: float
    cpu_ms: float
    rss_bytes: int
    module_count: int


@dataclass(frozen=True, slots=True)
class ImportCost:
    """The cost of importing `modules` in a fresh process; `cpu_ms` counts the interpreter's own start too."""

    modules: str
    wall_ms_median: float
    wall_ms_min: float
    cpu_ms_median: float
    cpu_ms_min: float
    rss_mb: float
    module_count: int


@dataclass(frozen=True, slots=True)
class InstallCost:
    """What the base install brings besides Livery itself."""

    package_count: int
    disk_mb: float


@dataclass(frozen=True, slots=True)
class Result:
    rounds: int
    baseline: ImportCost
    subject: ImportCost
    ratio: float
    ratio_max: float
    install: InstallCost


def run(rounds: int = ROUNDS) -> Result:
    """Return the costs, measured over `rounds` rounds after one thrown away, which writes the bytecode for both."""
    samples: dict[str, list[Sample]] = {BASELINE: [], SUBJECT: []}
    with tempfile.TemporaryDirectory(prefix="livery-bytecode-") as bytecode:
        for turn in range(rounds + 1):
            for modules, taken in samples.items():
                sample = _probe(modules, bytecode)
                if turn:
                    taken.append(sample)
    baseline, subject = (_import_cost(modules, taken) for modules, taken in samples.items())
    # The processor's time: waiting for other work on the machine is not what an import costs.
    ratio = round(subject.cpu_ms_median / baseline.cpu_ms_median, 3)
    return Result(rounds, baseline, subject, ratio, RATIO_MAX, install_cost())


def _probe(modules: str, bytecode: str) -> Sample:
    done = subprocess.run(
        [sys.executable, "-X", f"pycache_prefix={bytecode}", "-c", _PROBE.format(modules=modules)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if done.returncode:
        raise SystemExit(f"import {modules} fails:\n{done.stderr}")
    return Sample(*json.loads(done.stdout))


def _import_cost(modules: str, samples: list[Sample]) -> ImportCost:
    wall_ms = [sample.wall_ms for sample in samples]
    cpu_ms = [sample.cpu_ms for sample in samples]
    return ImportCost(
        modules=modules,
        wall_ms_median=round(statistics.median(wall_ms), 1),
        wall_ms_min=round(min(wall_ms), 1),
        cpu_ms_median=round(statistics.median(cpu_ms), 1),
        cpu_ms_min=round(min(cpu_ms), 1),
        rss_mb=round(statistics.median(sample.rss_bytes for sample in samples) / 2**20, 1),
        module_count=samples[-1].module_count,
    )


def install_cost() -> InstallCost:
    """Return packages and megabytes of Livery's base dependencies, as they are installed beside this interpreter."""
    found = _closure("livery")
    del found["livery"]
    return InstallCost(len(found), round(sum(_disk_bytes(package) for package in found.values()) / 2**20, 1))


def _closure(root: str) -> dict[str, Distribution]:
    """Return `root` and everything it needs without extras, by normalised name."""
    found: dict[str, Distribution] = {}
    todo = [(root, frozenset[str]())]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(f"{name} is not installed here: run `make setup` first") from None
        for line in found[name].requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
                todo.append((_normal(requirement.name), frozenset(requirement.extras)))
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _disk_bytes(package: Distribution) -> int:
    files = (Path(str(package.locate_file(file))) for file in package.files or ())
    return sum(file.stat().st_size for file in files if file.is_file())


def table(result: Result) -> Table:
    shown = Table(title="The base install", title_justify="left")
    for heading in ("import", "wall ms median", "min", "cpu ms median", "min", "RSS MB", "modules"):
        shown.add_column(heading, justify="left" if heading == "import" else "right")
    for cost in (result.baseline, result.subject):
        shown.add_row(*(str(value) for value in asdict(cost).values()))
    shown.caption = (
        f"cpu ratio {result.ratio} (at most {result.ratio_max}), {result.rounds} rounds; on disk "
        f"{result.install.package_count} packages, {result.install.disk_mb} MB"
    )
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and one line of JSON; the exit code is 1 where the ratio is above its limit."""
    reader = argparse.ArgumentParser(prog="livery bench import", description="What the base install costs.")
    reader.add_argument("--rounds", type=int, default=ROUNDS, help="fresh processes of each import")
    result = run(reader.parse_args(arguments).rounds)
    Console().print(table(result))
    print(json.dumps(asdict(result)))
    return 0 if result.ratio <= result.ratio_max else 1


if __name__ == "__main__":
    sys.exit(main())
