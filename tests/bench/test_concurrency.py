"""What the processes of the concurrency benchmark saw, put together: two holders at once are seen as two."""

import pytest

from bench.concurrent.scenes import percentile
from bench.concurrent.witness import Held, Saved, disorder, holders_max


def held(token: int, since_s: float, until_s: float, lapses_s: float = 60, run_id: str = "run_1") -> Held:
    return Held(run_id=run_id, token=token, process=token, since_s=since_s, until_s=until_s, lapses_s=lapses_s)


@pytest.mark.parametrize(
    ("leases", "most"),
    [
        pytest.param([], 0, id="nobody"),
        pytest.param([held(1, 0, 5), held(2, 5, 9)], 1, id="one after the other, within one millisecond"),
        pytest.param([held(1, 0, 5), held(2, 4, 9)], 2, id="the second came before the first had gone"),
        pytest.param([held(1, 0, 5), held(2, 3, 3)], 2, id="a lease too short to measure, inside another"),
        pytest.param([held(1, 0, 5), held(2, 5, 5), held(3, 5, 7)], 1, id="one too short to measure, between two"),
        pytest.param([held(1, 0, 9, lapses_s=2), held(2, 2, 4)], 1, id="the first had lapsed"),
        pytest.param([held(1, 3, 9, lapses_s=2), held(2, 2, 4)], 1, id="lapsed before it was looked at"),
        pytest.param([held(1, 0, 5), held(1, 0, 5, run_id="run_2")], 1, id="two runs"),
        pytest.param([held(1, 0, 9), held(2, 1, 8), held(3, 2, 7)], 3, id="three"),
    ],
)
def test_holders_are_counted_by_what_they_held_at_one_moment(leases: list[Held], most: int) -> None:
    assert holders_max(leases) == most


def test_tokens_that_do_not_grow_are_told() -> None:
    in_order = [Saved(run_id="run_1", token=token, seq=seq) for token, seq in ((1, 3), (1, 5), (2, 6))]
    assert disorder([held(1, 0, 1), held(2, 2, 3)], in_order) == []
    assert disorder([held(2, 0, 1), held(1, 2, 3)], []) == ["run_1: the tokens were held in the order [2, 1]"]
    assert disorder([held(1, 0, 1), held(1, 2, 3)], []) == ["run_1: the tokens were held in the order [1, 1]"]
    late = [*in_order, Saved(run_id="run_1", token=1, seq=7)]
    assert disorder([], late) == ["run_1: the log was written by the tokens [1, 1, 2, 1]"]


def test_a_percentile_is_the_value_that_so_many_are_not_above() -> None:
    assert [percentile(list(range(1, 101)), percent) for percent in (50, 99, 100)] == [50, 99, 100]
    assert (percentile([7.0], 99), percentile([], 99)) == (7.0, 0.0)
