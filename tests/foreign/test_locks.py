"""The npm lock files: complete, exact, and without the address of any registry."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("folder", [ROOT, ROOT / "tests" / "foreign", ROOT / "tests" / "foreign_legacy"])
def test_a_lock_names_no_registry_and_leaves_no_version_open(folder: Path) -> None:
    packages = json.loads((folder / "package-lock.json").read_text())["packages"]
    assert not [name for name, entry in packages.items() if "resolved" in entry]
    wanted = json.loads((folder / "package.json").read_text())
    for name, version in {**wanted.get("dependencies", {}), **wanted.get("devDependencies", {})}.items():
        assert packages[f"node_modules/{name}"]["version"] == version


def test_the_lock_has_anvil_for_every_platform_or_npm_ci_refuses_it() -> None:
    packages = json.loads((ROOT / "package-lock.json").read_text())["packages"]
    platforms = packages["node_modules/@foundry-rs/anvil"]["optionalDependencies"]
    assert len(platforms) == 5
    for name, version in platforms.items():
        assert packages[f"node_modules/{name}"]["version"] == version
