"""Faults have names: the ones that the programs take, that their help tells, and that the page for vendors lists."""

from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from cli.app import app
from vendor_mock.config import FacilitatorFault, FacilitatorSettings
from vendor_mock.faults import Faults
from vendor_mock.hostile import FAULTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "vendor-api.md"
# What says where and by which draw other faults happen.
_BESIDE = {"routes", "seed", "attacksFrom", "attacksCount"}


def names() -> set[str]:
    return {field.alias or name for name, field in Faults.model_fields.items()}


def test_every_fault_of_a_facilitator_can_be_asked_for_and_is_told_of() -> None:
    told = CliRunner().invoke(app, ["facilitator", "--help"], terminal_width=200).output
    assert set(get_args(FacilitatorFault)) == FAULTS.keys()
    assert [name for name in FAULTS if name not in told] == []
    with pytest.raises(ValidationError, match="settle_then_502"):
        FacilitatorSettings.model_validate({"fault": "settle_thrice"})


def test_every_fault_of_a_vendor_is_told_of() -> None:
    told = CliRunner().invoke(app, ["vendor-mock", "--help"], terminal_width=200).output
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in sorted(names()) if f"`{name}`" not in page] == []
    assert [name for name in sorted(names() - _BESIDE) if name not in told] == []
