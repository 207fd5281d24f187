"""The rules of the house that no linter knows."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.house.tree import ROOT, is_test, module_of, name_of, source_files, tracked_files, tree_of

FILE_LINES_MAX = 320
FUNCTION_LINES_MAX = 70

# Written in halves: this file obeys the rule too.
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX|NotImplemented" r"Error)\b")
ADDRESSES = re.compile(
    r"(pypi\."
    r"org|python"
    r"hosted\.org|registry\."
    r"npmjs|npmjs\."
    r"org|deb\.debian|/opt/"
    r"pypi)"
    r"|(?<![\w.~-])(/wor"
    r"k/|/roo"
    r"t/|/hom"
    r"e/\w)"
)
EVASIONS = re.compile(
    r"pytest\.sk" r"ip|mark\.sk" r"ip|\bxf" r"ail\(|unittest\.mo" r"ck|monkeypatch\.set" r"attr\((?!sys,)"
)
# The last three are for other people's programs.
ENTRY_POINTS = {
    "api.aws",
    "cli.app",
    "docs.generate",
    "gpu_worker.model_manager",
    "gpu_worker.quantization",
    "gpu_worker.stats_collector",
}
PURE = ("wire", "agent/core", "cashier/core", "gpu_worker/core", "reputation")
CLOCKS = {"now", "utcnow", "today"}


def test_files_fit_in_one_reading() -> None:
    # What a compiler wrote is read by nobody.
    written = [path for path in source_files() if "_pb2" not in path.name]
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in written}
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX} == {}


def test_functions_fit_on_one_page() -> None:
    long = {
        f"{name_of(path)}:{node.lineno} {node.name}": lines
        for path in source_files()
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    }
    assert long == {}


def test_only_a_config_reads_the_environment() -> None:
    readers = [
        f"{name_of(path)}:{line}" for path in source_files() if path.name != "config.py" for line in _reads(path)
    ]
    assert readers == []


def _reads(path: Path) -> Iterator[int]:
    names = {"environ", "environb", "getenv", "putenv"}
    for node in ast.walk(tree_of(path)):
        from_os = isinstance(node, ast.ImportFrom) and node.module == "os"
        if from_os and names & {alias.name for alias in node.names}:
            yield node.lineno
        if isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) == "os":
            yield node.lineno


def test_every_module_is_used_by_another_or_is_an_entry_point() -> None:
    used = {name for path in source_files() for name in _imported(path)}
    # Programs are also started by name: `python -m bench.mutants`, "api.app:app".
    started = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (*source_files(), ROOT / "Makefile", ROOT / "pyproject.toml")
        if path.is_file()
    )
    dead = [
        name_of(path)
        for path in source_files()
        if path.name not in {"__init__.py", "__main__.py"}
        and (module := module_of(path)) not in used | ENTRY_POINTS
        and not re.search(rf"(-m {re.escape(module)}\b|[\"']{re.escape(module)}[:\"'])", started)
    ]
    assert dead == []


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_nothing_is_left_unfinished() -> None:
    written = (path for path in source_files() if "_pb2" not in path.name)
    assert _lines_with(UNFINISHED, (*written, *_tests())) == []


def test_tests_do_not_look_away() -> None:
    assert _lines_with(EVASIONS, _tests()) == []


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    assert _lines_with(ADDRESSES, tracked_files()) == []


def _tests() -> Iterator[Path]:
    return (path for path in tracked_files() if is_test(path) and path.suffix == ".py")


def _lines_with(pattern: re.Pattern[str], paths: Iterator[Path] | tuple[Path, ...]) -> list[str]:
    found = []
    for path in paths:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # a picture has no lines
        found += [
            f"{name_of(path)}:{number}: {line.strip()}" for number, line in enumerate(lines, 1) if pattern.search(line)
        ]
    return found


def test_what_is_pure_neither_waits_nor_looks_at_a_clock() -> None:
    impure = [
        f"{name_of(path)}:{node.lineno}"
        for path in source_files()
        if name_of(path).startswith(tuple(f"{room}/" for room in PURE))
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.AsyncFunctionDef | ast.Await)
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS)
    ]
    assert impure == []


def test_every_module_states_its_law() -> None:
    silent = [
        name_of(path)
        for path in source_files()
        if ast.get_docstring(tree_of(path)) is None and path.read_text(encoding="utf-8").strip()
    ]
    assert silent == []
