"""What a run of the chaos suite is worth: nothing without a kill, and wrong ends and payments fail it."""

from dataclasses import replace
from typing import Any

import pytest

from bench.chaos import Chaos, unexpected
from bench.chaos_books import Findings

CHAOS = Chaos(kills=3, elections={b"1", b"2", b"3"})
FOUND = Findings(
    acknowledged=40,
    unanswered=(),
    lost=(),
    broken=(),
    ends={("completed", None): 9, ("cancelled", "cancelled"): 1},
    payments=10,
    files=18,
    double_payments=0,
    lost_payments=0,
    overspend=0,
)


def test_runs_that_all_ended_well_under_kills_are_well() -> None:
    assert unexpected(CHAOS, 10, 10, FOUND) == []
    assert unexpected(CHAOS, 9, 10, FOUND) == ["9 of 10 runs have ended"]


@pytest.mark.parametrize(
    ("chaos", "said"),
    [
        (replace(CHAOS, kills=0), "no kills: nothing was tried"),
        (replace(CHAOS, elections={b"1"}), "no fail-overs: nothing was tried"),
        (replace(CHAOS, elections=set()), "no fail-overs: nothing was tried"),
    ],
)
def test_without_a_kill_nothing_was_shown(chaos: Chaos, said: str) -> None:
    assert unexpected(chaos, 10, 10, FOUND) == [said]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"ends": {("failed", "attempts_exhausted"): 10}}, "10 runs are failed: attempts_exhausted"),
        ({"ends": {("cancelled", None): 10}}, "10 runs are cancelled: None"),
        ({"double_payments": 1}, "double_payments: 1"),
        ({"lost_payments": 2}, "lost_payments: 2"),
        ({"overspend": 7}, "overspend: 7"),
    ],
)
def test_ends_and_payments_that_must_not_be_are_told(wrong: dict[str, Any], said: str) -> None:
    assert unexpected(CHAOS, 10, 10, replace(FOUND, **wrong)) == [said]
