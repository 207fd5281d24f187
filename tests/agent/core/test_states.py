"""The state tables: every move in them is allowed, every other one is rejected."""

from itertools import product
from typing import get_args

import pytest

from agent.core.errors import IllegalMove
from agent.core.model import JobState, PaymentState, RunStatus
from agent.core.states import JOB_ENDS, JOB_MOVES, OPEN_PAYMENTS, PAYMENT_MOVES, RUN_ENDS, RUN_MOVES, move

LEGAL = {
    "run": {
        ("pending", "running"),
        ("pending", "failed"),
        ("pending", "cancelled"),
        ("running", "awaiting_approval"),
        ("running", "completed"),
        ("running", "failed"),
        ("running", "cancelled"),
        ("awaiting_approval", "running"),
        ("awaiting_approval", "failed"),
        ("awaiting_approval", "cancelled"),
    },
    "job": {
        ("quoted", "submitted"),
        ("quoted", "failed"),
        ("quoted", "cancelled"),
        ("submitted", "running"),
        ("submitted", "completed"),
        ("submitted", "failed"),
        ("submitted", "cancelled"),
        ("running", "completed"),
        ("running", "failed"),
        ("running", "cancelled"),
    },
    "payment": {
        ("pending", "unknown"),
        ("pending", "completed"),
        ("pending", "failed"),
        ("unknown", "completed"),
        ("unknown", "failed"),
        ("completed", "refunded"),
    },
}
TABLES = {
    "run": (RUN_MOVES, get_args(RunStatus)),
    "job": (JOB_MOVES, get_args(JobState)),
    "payment": (PAYMENT_MOVES, get_args(PaymentState)),
}
MOVES = [(of, state, to) for of, (_, states) in TABLES.items() for state, to in product(states, states)]
ILLEGAL = [(of, state, to) for of, state, to in MOVES if (state, to) not in LEGAL[of]]


@pytest.mark.row(4)
@pytest.mark.parametrize(("of", "state", "to"), ILLEGAL)
def test_an_illegal_move_is_rejected_by_name(of: str, state: str, to: str) -> None:
    with pytest.raises(IllegalMove, match=f"^there is no move from {state} to {to}$"):
        move(TABLES[of][0], state, to)


@pytest.mark.row(4)
@pytest.mark.parametrize(("of", "state", "to"), [(of, *pair) for of, pairs in LEGAL.items() for pair in sorted(pairs)])
def test_a_legal_move_arrives(of: str, state: str, to: str) -> None:
    assert move(TABLES[of][0], state, to) == to


def test_the_tables_know_every_state() -> None:
    assert all(set(moves) == set(states) for moves, states in TABLES.values())
    assert len(ILLEGAL) + sum(map(len, LEGAL.values())) == 6 * 6 + 6 * 6 + 5 * 5


def test_an_end_is_a_state_that_nothing_leaves() -> None:
    assert {"completed", "failed", "cancelled"} == RUN_ENDS == JOB_ENDS
    assert {"pending", "unknown"} == OPEN_PAYMENTS
