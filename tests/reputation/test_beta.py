"""The Beta posterior: its quantiles against mpmath's, and what must hold of every belief."""

import math

import mpmath
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reputation.beta import Beta

COUNTS = st.floats(1e-3, 1e6)
MODEST = st.floats(0.2, 500.0)
CHANCES = st.floats(1e-6, 1 - 1e-6)


@pytest.mark.parametrize("a", [0.3, 1.0, 2.5, 29.0, 31.0, 140.0])
@pytest.mark.parametrize("b", [0.4, 1.0, 7.0, 33.0, 90.0])
@pytest.mark.parametrize("x", [0.001, 0.2, 0.5, 0.81, 0.99])
def test_the_distribution_is_mpmaths(a: float, b: float, x: float) -> None:
    with mpmath.workdps(30):
        exact = float(mpmath.betainc(a, b, 0, x, regularized=True))
    assert Beta(a, b).cdf(x) == pytest.approx(exact, rel=1e-9, abs=1e-13)


def test_a_huge_record_is_a_narrow_bell() -> None:
    belief = Beta(3e8, 1e8)
    deviation = math.sqrt(0.75 * 0.25 / 4e8)
    assert belief.quantile(0.5) == pytest.approx(0.75, abs=1e-8)
    low, high = belief.interval(0.9)
    assert (high - low) / 2 == pytest.approx(1.6449 * deviation, rel=1e-3)


def test_nothing_seen_is_even() -> None:
    even = Beta(1, 1)
    assert [even.quantile(u) for u in (0.0, 0.1, 0.5, 0.9, 1.0)] == pytest.approx([0, 0.1, 0.5, 0.9, 1])
    assert [even.cdf(x) for x in (-1, 0, 0.25, 1, 2)] == pytest.approx([0, 0, 0.25, 1, 1])
    assert even.mean == 0.5
    assert even.interval(0.9) == pytest.approx((0.05, 0.95))
    assert even.lower_bound(0.95) == pytest.approx(0.05)


@pytest.mark.parametrize("a", [1e-3, 1e-6])
def test_hardly_anything_seen_is_one_end_or_the_other(a: float) -> None:
    assert Beta(a, a).quantile(0.4) < 1e-20
    assert Beta(a, a).quantile(0.6) > 1 - 1e-15
    assert Beta(a, 1.0).quantile(1e-6) == 0.0


@example(a=122.0, b=2.0, u=1e-6)
@given(MODEST, MODEST, CHANCES)
def test_the_quantile_is_where_the_distribution_says(a: float, b: float, u: float) -> None:
    belief = Beta(a, b)
    x = belief.quantile(u)
    # Nearer to 1 than a float can be, the best answer is the nearest float.
    steps = (math.nextafter(x, 0.0), math.nextafter(x, 1.0))
    near = 1e-6 * min(u, 1 - u)
    assert belief.cdf(steps[0]) - near <= u <= belief.cdf(steps[1]) + near


@example(a=0.1, b=3.9, u=0.95)
@given(st.floats(0.01, 1e6), st.floats(0.01, 1e6), CHANCES)
def test_no_record_is_too_lopsided_to_search(a: float, b: float, u: float) -> None:
    belief = Beta(a, b)
    x = belief.quantile(u)
    near = 1e-6 * min(u, 1 - u)
    # What lies beside the smallest floats is called 0.
    assert belief.cdf(math.nextafter(x, 0.0)) - near <= u <= belief.cdf(max(math.nextafter(x, 1.0), 2e-300)) + near


@example(a=0.1, b=3.9, u=0.05, v=0.95)
@given(COUNTS, COUNTS, CHANCES, CHANCES)
def test_quantiles_are_chances_and_rise(a: float, b: float, u: float, v: float) -> None:
    belief = Beta(a, b)
    low, high = sorted((u, v))
    x, y = belief.quantile(low), belief.quantile(high)
    assert 0 <= x <= 1
    assert x <= y + 1e-9


@given(COUNTS, COUNTS, st.floats(1.0, 1e3))
def test_a_sharper_belief_is_narrower_about_the_same_mean(a: float, b: float, factor: float) -> None:
    belief = Beta(a, b)
    sharp = belief.sharpened(factor)
    assert sharp.mean == pytest.approx(belief.mean)

    def variance(one: Beta) -> float:
        return one.mean * (1 - one.mean) / (one.a + one.b + 1)

    assert variance(sharp) <= variance(belief) * (1 + 1e-9)


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 0), (-1, 1), (math.inf, 1), (math.nan, 1)])
def test_what_is_no_distribution_is_refused(a: float, b: float) -> None:
    with pytest.raises(ValueError, match="no distribution"):
        Beta(a, b)
