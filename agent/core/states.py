"""
Every legal move of a run, a job and a payment. What is not in these tables cannot happen.

`apply` moves through `move`; a KeyError's worth of illegality is an IllegalMove, which is our bug.
"""

from collections.abc import Mapping
from typing import TypeVar

from agent.core.errors import IllegalMove
from agent.core.model import JobState, PaymentState, RunStatus

State = TypeVar("State", bound=str)

RUN_MOVES: Mapping[RunStatus, frozenset[RunStatus]] = {
    "pending": frozenset({"running", "failed", "cancelled"}),
    "running": frozenset({"awaiting_approval", "completed", "failed", "cancelled"}),
    "awaiting_approval": frozenset({"running", "failed", "cancelled"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

JOB_MOVES: Mapping[JobState, frozenset[JobState]] = {
    "quoted": frozenset({"submitted", "failed", "cancelled"}),
    "submitted": frozenset({"running", "completed", "failed", "cancelled"}),
    "running": frozenset({"completed", "failed", "cancelled"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

PAYMENT_MOVES: Mapping[PaymentState, frozenset[PaymentState]] = {
    "pending": frozenset({"unknown", "completed", "failed"}),
    "unknown": frozenset({"completed", "failed"}),
    "completed": frozenset({"refunded"}),
    "failed": frozenset(),
    "refunded": frozenset(),
}

RUN_ENDS: frozenset[RunStatus] = frozenset(state for state, moves in RUN_MOVES.items() if not moves)
JOB_ENDS: frozenset[JobState] = frozenset(state for state, moves in JOB_MOVES.items() if not moves)
OPEN_PAYMENTS: frozenset[PaymentState] = frozenset({"pending", "unknown"})
PAID_PAYMENTS: frozenset[PaymentState] = frozenset({"completed", "refunded"})


def move(moves: Mapping[State, frozenset[State]], state: State, to: State) -> State:
    """Return `to`. Raises IllegalMove where the table has no such move."""
    if to not in moves[state]:
        raise IllegalMove(f"there is no move from {state} to {to}")
    return to
