"""Facilitators and vendors that do wrong on purpose, by name: every case of the bench's table ends as it says."""

from pathlib import Path

import pytest

from bench.hostile_cases import CASES, Case, Trial, try_case
from chain.devchain import DevChain

pytestmark = pytest.mark.slow


def by_row(case: Case) -> pytest.MarkDecorator:
    """Return the row that a case shows: terms are checked, what never settled is never completed, or paid once."""
    if case.end.error == "terms_changed":
        return pytest.mark.row(19)
    return pytest.mark.row(21) if case.end.settled == 0 else pytest.mark.row(20)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=by_row(case)) for case in CASES])
async def test_whoever_does_wrong_the_run_ends_as_the_table_says(case: Case, chain: DevChain, tmp_path: Path) -> None:
    assert await try_case(case, chain, tmp_path, seed=1) == Trial((), 0)
