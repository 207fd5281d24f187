"""What the tests of the house look at: the files of the checkout, read once."""

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@cache
def tracked_files() -> tuple[Path, ...]:
    """Return every file that is, or is about to be, in the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file())


@cache
def source_files() -> tuple[Path, ...]:
    """Return the Python of the house: every room, bench and docs, not the tests."""
    return tuple(path for path in tracked_files() if path.suffix == ".py" and not is_test(path))


def is_test(path: Path) -> bool:
    return path.is_relative_to(ROOT / "tests")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """Return the dotted name that imports `path`."""
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
