"""Figures that add up over commits: each run of a long suite is one line of `docs/reliability/NAME.jsonl`."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reliability"


def add_arguments(reader: argparse.ArgumentParser) -> None:
    """Add what every suite has: --seed and --record."""
    reader.add_argument("--seed", type=int, default=None, help="repeat a run; drawn where not given")
    reader.add_argument("--record", action="store_true", help="append the figures to docs/reliability")


def record(name: str, document: dict[str, Any], folder: Path = FOLDER) -> None:
    """Append `document`, with the day, the commit and the command, to the file of `name` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    words = sys.argv[1:]
    called = ["livery"] if words[:1] == ["bench"] else ["python -m", f"bench.{name}"]
    line = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit_of(folder.parent.parent),
        "command": " ".join([*called, *words]),
        **document,
    }
    with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def commit_of(checkout: Path) -> str:
    """Return the commit that is checked out, with `+dirty` where anything but figures is otherwise than in it."""
    commit = _git(checkout, "rev-parse", "--short", "HEAD").strip()
    figures = [f":(exclude)docs/{name}" for name in ("reliability", "reliability.md", "decode", "serving")]
    changed = _git(checkout, "--no-optional-locks", "status", "--porcelain", "--", ".", *figures)
    return f"{commit}+dirty" if changed else commit


def _git(checkout: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True, check=True).stdout  # noqa: S607


def recorded(name: str) -> list[dict[str, Any]]:
    """Return every recorded run of `name`, oldest first."""
    path = FOLDER / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that `percent` of all do not exceed, 0.0 where there is none."""
    ordered = sorted(values)
    return float(ordered[max(0, -(-percent * len(ordered) // 100) - 1)]) if ordered else 0.0
