"""What a finished job costs: failures counted in, beliefs from every record, the shortlist of the best."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core.scoring import SHORTLIST, Record, beliefs, expected_cost, shortlist, spent_on_one
from reputation.beta import Beta

COUNTS = st.floats(0, 1_000)
RECORDS = st.builds(
    Record,
    score=st.floats(0, 1),
    completed=COUNTS,
    failed=COUNTS,
    completed_elsewhere=COUNTS,
    failed_elsewhere=COUNTS,
)
NEW = Record(score=0.5)


def test_failures_on_the_way_to_a_finished_job_are_paid_too() -> None:
    assert expected_cost(1.0, 10) == 10
    # Two jobs for one that is finished: 10 for it, 6 for the failed one.
    assert expected_cost(0.5, 10) == pytest.approx(16)
    assert spent_on_one(0.5, 10) == pytest.approx(8)


def test_a_new_vendor_is_believed_as_its_score_and_the_fleet_say() -> None:
    assert beliefs([NEW]) == [Beta(2, 2)]
    good, new = beliefs([replace(NEW, completed=96.0, failed=2.0), NEW])
    assert good.mean > 0.95
    assert 0.5 < new.mean < good.mean
    _, among_bad = beliefs([replace(NEW, completed=2.0, failed=96.0), NEW])
    assert among_bad.mean < 0.5


def test_a_vendors_other_gpus_inform_and_do_not_decide() -> None:
    new, proven = beliefs([NEW, replace(NEW, completed_elsewhere=1_000.0)])
    assert proven.mean > new.mean
    assert proven.a + proven.b == pytest.approx(new.a + new.b + 2)


@given(st.lists(RECORDS, min_size=1, max_size=5), st.data())
def test_a_better_record_never_lowers_the_mean(records: list[Record], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(records) - 1))
    one, more = records[place], data.draw(st.floats(0.1, 10))
    better = replace(one, completed=one.completed + more)
    before = beliefs(records)[place].mean
    after = beliefs([better if at == place else other for at, other in enumerate(records)])[place].mean
    assert after >= before - 1e-12


@given(
    st.lists(st.tuples(RECORDS, st.floats(1, 1e9), st.floats(1e-6, 1 - 1e-6)), min_size=1, max_size=6),
    st.floats(1, 1e12),
)
def test_the_shortlist_is_the_best_and_what_is_within_one_percent(
    arms: list[tuple[Record, float, float]], budget: float
) -> None:
    records, prices, draws = zip(*arms, strict=True)
    found = shortlist(beliefs(records), prices, budget, draws)
    costs = [cost for cost, _ in found]
    assert costs == sorted(costs)
    assert costs[-1] <= costs[0] * SHORTLIST
    assert len({place for _, place in found}) == len(found)
    # Whoever is left out would have had to be drawn worse: nobody's mean beats the best that was found.
    assert all(
        expected_cost(belief.mean, price) >= costs[0] * (1 - 1e-9)
        for belief, price in zip(beliefs(records), prices, strict=True)
    )


def test_the_last_purchase_goes_where_the_mean_is_best() -> None:
    known, prices = [Beta(80, 20), Beta(3, 3)], [1.0, 1.0]
    assert shortlist(known, prices, 1.0, [0.01, 0.99])[0][1] == 0
    # With many purchases ahead the one that is hardly known is worth a try, when it is drawn well.
    assert shortlist(known, prices, 1e9, [0.01, 0.99])[0][1] == 1
