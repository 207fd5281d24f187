"""The wheel, built from the checkout and installed where nothing else is."""

import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.house.tree import ROOT, module_of, source_files, tracked_files

OUTSIDE = {"tests", "bench", "docs"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel built from a copy of the tracked files: building writes beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in tracked_files():
        copy = folder / "source" / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", folder / "made", folder / "source"], check=True)
    (made,) = (folder / "made").iterdir()
    return made


@pytest.fixture(scope="module")
def empty_home(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield the folder of an environment that holds the wheel and what it asks for."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home / "venv", with_pip=True)
    pip = [home / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    subprocess.run([*pip, "--constraint", ROOT / "constraints.txt", wheel], check=True, cwd=ROOT)
    yield home
    shutil.rmtree(home)


def names_in(wheel: Path) -> set[str]:
    with ZipFile(wheel) as opened:
        return set(opened.namelist())


@pytest.mark.slow
def test_the_wheel_holds_every_room_and_neither_tests_nor_bench(wheel: Path) -> None:
    names = names_in(wheel)
    rooms = {module_of(path).partition(".")[0] for path in source_files()} - OUTSIDE
    held = {name.partition("/")[0] for name in names if ".dist-info" not in name}
    assert held == rooms
    modules = {path.relative_to(ROOT).as_posix() for path in source_files()}
    assert {name for name in modules if name.partition("/")[0] in rooms} <= names


@pytest.mark.slow
def test_the_wheel_holds_the_contracts_that_were_built(wheel: Path) -> None:
    artifacts = {path.relative_to(ROOT).as_posix() for path in (ROOT / "chain/artifacts").glob("*.json")}
    assert artifacts
    assert artifacts <= names_in(wheel)


@pytest.mark.slow
def test_an_empty_environment_becomes_livery(empty_home: Path) -> None:
    livery = subprocess.run([empty_home / "venv/bin/livery", "--help"], cwd=empty_home, capture_output=True, text=True)
    assert livery.returncode == 0, livery.stderr
    assert "run" in livery.stdout
    rooms = sorted({module_of(path).partition(".")[0] for path in source_files()} - OUTSIDE)
    code = f"import {', '.join(rooms)}, api.app; import sys; assert not {{'bench', 'tests'}} & set(sys.modules)"
    imported = subprocess.run(
        [empty_home / "venv/bin/python", "-W", "error", "-c", code], cwd=empty_home, capture_output=True, text=True
    )
    assert imported.returncode == 0, imported.stderr
    consistent = subprocess.run([empty_home / "venv/bin/pip", "check"], capture_output=True, text=True)
    assert consistent.returncode == 0, consistent.stdout
