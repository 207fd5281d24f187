"""Who goes with a step, in how many micro-batches, and when a step is late."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.inference.deadlines import FIRST_S, StepTimes
from gpu_worker.core.inference.schedule import Ask, Share, cost, groups, share, spread

ASKS = st.lists(st.builds(lambda rows: rows, st.integers(1, 700)), max_size=30).map(
    lambda all_rows: [Ask(f"s{came}", 0, rows, came) for came, rows in enumerate(all_rows)]
)
FLAT = {1: 0.011, 32: 0.024}
STEEP = {1: 0.01, 32: 0.32}


@given(ASKS)
def test_both_budgets_are_kept_and_nobody_sends_more_than_it_has(asks: list[Ask]) -> None:
    shares = share(asks, decode_rows=8, chunk_rows=64)
    rows = {each.session: each.rows for each in asks}
    decoded = [each for each in shares if rows[each.session] == 1]
    chunks = [each.rows for each in shares if rows[each.session] > 1]
    assert len(decoded) == min(8, sum(each.rows == 1 for each in asks))
    assert sum(chunks) == min(64, sum(each.rows for each in asks if each.rows > 1))
    assert all(0 < each.rows <= rows[each.session] for each in shares)
    assert len({each.session for each in shares}) == len(shares)


@given(st.integers(1, 40), st.integers(1, 6))
def test_nobody_starves(sessions: int, budget: int) -> None:
    served = dict.fromkeys(range(sessions), 0)
    for step in range(1, 4 * sessions + 1):
        asks = [Ask(str(each), 0, 1, each, last) for each, last in served.items()]
        for each in share(asks, decode_rows=budget, chunk_rows=64):
            served[int(each.session)] = step
        assert all(step - last <= -(-sessions // budget) for last in served.values())


def test_a_long_prompt_goes_in_chunks_beside_the_others_and_the_oldest_goes_first() -> None:
    asks = [Ask("late", 0, 30, 3), Ask("long", 256, 444, 1), Ask("decoding", 99, 1, 2, served=7)]
    assert share(asks, decode_rows=32, chunk_rows=256) == (Share("decoding", 99, 1), Share("long", 256, 256))
    rest = [Ask("late", 0, 30, 3), Ask("long", 512, 188, 1)]
    assert share(rest, decode_rows=32, chunk_rows=256) == (Share("long", 512, 188), Share("late", 0, 30))


def test_what_was_not_measured_lies_between_what_was() -> None:
    curve = {2: 2.0, 4: 3.0}
    assert [cost(curve, rows) for rows in (1, 2, 3, 4, 8)] == [2.0, 2.0, 2.5, 3.0, 6.0]
    assert cost({}, 3) == 0.0


@pytest.mark.parametrize(
    ("sessions", "curves", "way_s", "wanted"),
    [
        pytest.param(32, [FLAT, FLAT], 0.0, 2, id="flat-but-worth-it"),
        pytest.param(32, [{1: 0.02, 32: 0.021}] * 2, 0.0, 1, id="nearly-flat"),
        pytest.param(32, [STEEP] * 2, 0.0, 2, id="steep"),
        pytest.param(32, [STEEP] * 4, 0.0, 4, id="four-stages"),
        pytest.param(2, [STEEP] * 4, 0.0, 2, id="no-more-than-sessions"),
        pytest.param(1, [STEEP] * 2, 0.0, 1, id="one-session"),
        pytest.param(32, [STEEP, STEEP], 3.0, 1, id="the-way-is-all"),
        pytest.param(32, [], 0.0, 1, id="nothing-measured"),
    ],
)
def test_micro_batches_are_as_many_as_the_cost_curves_make_worth_it(
    sessions: int, curves: list[dict[int, float]], way_s: float, wanted: int
) -> None:
    assert groups(sessions, curves, way_s) == wanted


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30), st.integers(1, 4))
def test_groups_are_even_and_stable(members: list[tuple[int, bool]], count: int) -> None:
    sessions = [f"s{number}" for number in range(len(members))]
    now = {name: group for name, (group, known) in zip(sessions, members, strict=True) if known}
    then = spread(sessions, now, count)
    sizes = [list(then.values()).count(group) for group in range(count)]
    assert set(then) == set(sessions)
    assert max(sizes) - min(sizes) <= 1
    assert spread(sessions, then, count) == then
    # Who is one too many in its group moves, and who had none; nobody else.
    most = -(-len(sessions) // count)
    stays = sum(min(most, list(now.values()).count(group)) for group in range(count))
    assert sum(then[name] == group for name, group in now.items()) >= stays - count


def test_a_step_is_late_after_four_times_what_is_usual_and_never_before_the_least() -> None:
    times = StepTimes()
    assert times.deadline_s(1, 2.0) == FIRST_S
    assert times.percentile_s(0.5) == 0.0
    for _ in range(100):
        times.add(8, 0.01)
    assert times.deadline_s(8, 2.0) == 2.0
    assert times.suspect_s(8, 2.0) == 1.0
    for _ in range(10):
        times.add(8, 1.0)
    assert times.percentile_s(0.5) == 0.01
    assert times.deadline_s(8, 2.0) == 4.0
    assert times.deadline_s(16, 2.0) == 8.0
    assert times.deadline_s(4, 2.0) == 4.0
    assert times.suspect_s(16, 2.0) == 1.0
