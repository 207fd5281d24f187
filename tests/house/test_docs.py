"""The pages made from code are current, and complete."""

import pytest

from docs.generate import PAGES, ROOT, settings_classes, stale_pages, variables
from wire.problems import PROBLEMS, REFUSALS


def test_the_generated_pages_are_current() -> None:
    assert stale_pages() == [], "run `make docs`"


def test_every_code_stands_in_the_errors_page() -> None:
    page = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    assert [code for code in (*PROBLEMS, *REFUSALS) if f"`{code}`" not in page] == []


@pytest.mark.parametrize(("room", "settings"), list(settings_classes()), ids=str)
def test_every_setting_is_documented_under_all_its_names(room: str, settings) -> None:
    environment = PAGES["docs/environment.md"]()
    example = PAGES[".env.example"]()
    listed = variables(settings)
    assert len(listed) == len(settings.model_fields)
    for variable in listed:
        assert variable.description.endswith("."), f"{variable.names[0]} has no description"
        assert all(f"`{name}`" in environment for name in variable.names)
        assert f"\n#{variable.names[0]}=" in example


@pytest.mark.parametrize(("room", "settings"), list(settings_classes()), ids=str)
def test_settings_are_frozen_and_named_after_their_room_or_program(room: str, settings) -> None:
    assert settings.model_config.get("frozen") is True
    program = settings.__name__.removesuffix("Settings")
    prefixes = (f"LIVERY_{room.upper()}_", f"LIVERY_{program.upper()}_")
    ours = [variable.names[0] for variable in variables(settings) if variable.names[0].startswith("LIVERY_")]
    assert ours
    assert [name for name in ours if not name.startswith(prefixes)] == []
