"""Facilitators and vendors that do wrong on purpose, by name: every case of the bench's table ends as it says."""

from pathlib import Path

import pytest

from bench.hostile_cases import CASES, GAS, PAYER, SERVED, Case, Trial, try_case
from chain.devchain import DevChain
from tests.fixtures.hostile import hostile_world

pytestmark = pytest.mark.slow


def by_row(case: Case) -> pytest.MarkDecorator:
    """Return the row that a case shows: terms are checked, what never settled is never completed, or paid once."""
    if case.end.error == "terms_changed":
        return pytest.mark.row(19)
    return pytest.mark.row(21) if case.end.settled == 0 else pytest.mark.row(20)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=by_row(case)) for case in CASES])
async def test_whoever_does_wrong_the_run_ends_as_the_table_says(case: Case, chain: DevChain, tmp_path: Path) -> None:
    assert await try_case(case, chain, tmp_path, seed=1) == Trial((), 0)


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES if case.end == SERVED])
async def test_with_its_fault_taken_out_no_case_is_met(case: Case, chain: DevChain, tmp_path: Path) -> None:
    """Of those that end as an honest run does; the bench tries all."""
    assert (await try_case(case, chain, tmp_path, seed=1, is_honest=True)).differences


async def test_a_save_under_an_older_token_is_seen(chain: DevChain, tmp_path: Path) -> None:
    async with hostile_world(tmp_path, chain, PAYER, GAS) as world:
        run = await world.drive(await world.start("5"))
        assert await world.broken() == []
        world.store.writes.append((0, run))
        assert [line for line in await world.broken() if "after token" in line]
