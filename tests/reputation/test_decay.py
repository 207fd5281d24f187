"""Old news weighs less: half of it after every half-life."""

from datetime import timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from reputation.decay import faded

MONTH = timedelta(days=30)


def test_a_count_halves_with_every_half_life() -> None:
    ages = (timedelta(0), MONTH, 2 * MONTH, 60 * MONTH)
    assert [faded(Decimal(8), age, MONTH) for age in ages] == [8, 4, 2, 0]


def test_news_from_the_future_is_as_good_as_new() -> None:
    assert faded(Decimal(3), -MONTH, MONTH) == 3


@given(st.integers(0, 10_000), st.integers(0, 10**8), st.integers(0, 10**8))
def test_a_count_never_grows_with_age(count: int, age_s: int, more_s: int) -> None:
    younger = faded(Decimal(count), timedelta(seconds=age_s), MONTH)
    older = faded(Decimal(count), timedelta(seconds=age_s + more_s), MONTH)
    assert 0 <= older <= younger <= count
