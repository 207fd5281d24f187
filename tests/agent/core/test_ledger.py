"""The ledger: whatever moves in whatever order, the budget balances and nothing in it is negative."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.ledger import checked, opened, refunded, released, reserved, spent
from agent.core.model import Budget
from wire.money import ATOMIC_MAX

MOVES = {"reserve": reserved, "spend": spent, "release": released, "refund": refunded}


@pytest.mark.row(18)
@given(
    st.integers(1, ATOMIC_MAX),
    st.lists(st.tuples(st.sampled_from(sorted(MOVES)), st.integers(0, 12), st.integers(1, 10)), max_size=40),
)
def test_no_interleaving_of_moves_unbalances_a_budget(total_atomic: int, moves: list[tuple[str, int, int]]) -> None:
    budget = opened(total_atomic)
    for name, part, of in moves:
        amount_atomic = total_atomic * part // of
        try:
            budget = MOVES[name](budget, amount_atomic)
        except AssertionError:
            source = {"reserve": budget.available_atomic, "refund": budget.spent_atomic}
            assert amount_atomic > source.get(name, budget.reserved_atomic)
        assert budget.total_atomic == total_atomic
        assert budget.spent_atomic + budget.reserved_atomic + budget.available_atomic == total_atomic
        assert budget.spent_atomic + budget.reserved_atomic <= total_atomic
        assert min(budget.spent_atomic, budget.reserved_atomic, budget.available_atomic) >= 0


def a_budget(available: int, reserved: int, spent: int) -> Budget:
    return Budget(
        total_atomic=available + reserved + spent,
        available_atomic=available,
        reserved_atomic=reserved,
        spent_atomic=spent,
    )


@pytest.mark.parametrize(
    ("name", "after"),
    [
        ("reserve", a_budget(7, 13, 10)),
        ("spend", a_budget(10, 7, 13)),
        ("release", a_budget(13, 7, 10)),
        ("refund", a_budget(13, 10, 7)),
    ],
)
def test_a_move_takes_from_one_part_and_gives_to_another(name: str, after: Budget) -> None:
    assert MOVES[name](a_budget(10, 10, 10), 3) == after


@pytest.mark.parametrize("name", sorted(MOVES))
def test_a_move_takes_all_there_is_and_not_one_unit_more(name: str) -> None:
    before = a_budget(10, 10, 10)
    after = MOVES[name](before, 10)
    assert sorted((after.available_atomic, after.reserved_atomic, after.spent_atomic)) == [0, 10, 20]
    with pytest.raises(AssertionError, match=r"the budget does not balance"):
        MOVES[name](before, 11)


def test_an_opened_budget_is_all_available() -> None:
    assert opened(5_000_000) == a_budget(5_000_000, 0, 0)


@pytest.mark.parametrize(
    ("total", "available", "reserved", "spent"),
    [(10, 9, 0, 0), (10, 11, 0, 0), (10, 10, 1, 0), (10, 10, 0, 1), (10, 11, -1, 0), (10, 11, 0, -1), (10, -1, 11, 0)],
)
def test_what_does_not_balance_or_is_negative_is_no_budget(
    total: int, available: int, reserved: int, spent: int
) -> None:
    budget = Budget(total_atomic=total, available_atomic=available, reserved_atomic=reserved, spent_atomic=spent)
    with pytest.raises(AssertionError, match=r"the budget does not balance: Budget"):
        checked(budget)
