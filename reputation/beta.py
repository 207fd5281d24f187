"""
What is known of a chance after some successes and failures: a Beta distribution, its quantiles and its bounds.

Plain floats: chances rank and inform, they are never money.
"""

import math
from dataclasses import dataclass
from functools import cache

# The continued fraction needs some √max(a, b) steps; where both are above this, the density is integrated instead.
_FRACTION_MAX = 30.0
_FRACTION_STEPS_MAX = 1_000_000
_NODES = 32
# Each step halves the error or the bracket; what takes more than so many lies beside the smallest floats.
_SEARCH_STEPS_MAX = 400
_TINY = 1e-300
_LAST = math.nextafter(1.0, 0.0)
# Halley's steps cube the error: from as near as this, in shares of the nearer tail, one more step is the last.
_CLOSE = 1e-4


@dataclass(frozen=True, slots=True)
class Beta:
    """A belief about a chance: as if `a` successes and `b` failures had been seen, both above zero."""

    a: float
    b: float

    def __post_init__(self) -> None:
        if not (0 < self.a < math.inf and 0 < self.b < math.inf):
            raise ValueError(f"Beta({self.a}, {self.b}) is no distribution")

    @property
    def mean(self) -> float:
        return self.a / (self.a + self.b)

    def sharpened(self, factor: float) -> "Beta":
        """Return a belief of the same mean, as if `factor` times as much had been seen."""
        return Beta(self.a * factor, self.b * factor)

    def cdf(self, x: float) -> float:
        """Return the probability that the chance is at most `x`: the regularised incomplete beta function."""
        if x <= 0 or x >= 1:
            return float(x >= 1)
        return _below(self.a, self.b, x, _log_beta(self.a, self.b))

    def quantile(self, u: float) -> float:
        """
        Return the `x` that the chance is at most with probability `u`: the inverse of `cdf`.

        Halley's steps from a normal approximation; where one does not halve the error, as far out in a tail, the
        bracket is halved instead.
        Source: Numerical Recipes, 3rd edition, 6.14.8 and 6.4; Abramowitz and Stegun 26.5.22.
        """
        if u <= 0 or u >= 1:
            return float(u >= 1)
        a, b, log_beta = self.a, self.b, _log_beta(self.a, self.b)
        close = _CLOSE * min(u, 1 - u)
        # A guess on an end says nothing: the search goes on from beside it.
        low, high, last, x = 0.0, 1.0, math.inf, min(max(_first_guess(a, b, u, log_beta), 2 * _TINY), _LAST)
        for _ in range(_SEARCH_STEPS_MAX):
            if x <= _TINY:
                return 0.0
            error = _below(a, b, x, log_beta) - u
            low, high = (low, x) if error > 0 else (x, high)
            density = math.exp((a - 1) * math.log(x) + (b - 1) * math.log1p(-x) - log_beta)
            step = error / density if density > 0 else math.inf
            bend = min(1.0, step * ((a - 1) / x - (b - 1) / (1 - x)))
            nearer = x - step / (1 - 0.5 * bend)
            if abs(error) <= close:
                return min(max(nearer, low), high)
            if not low < nearer < high or abs(error) > last / 2:
                nearer = (low + high) / 2
            if nearer in (low, high):
                return nearer
            x, last = nearer, abs(error)
        return x

    def interval(self, level: float) -> tuple[float, float]:
        """Return the bounds that hold `level` of the probability, as much below them as above."""
        return self.quantile((1 - level) / 2), self.quantile((1 + level) / 2)

    def lower_bound(self, confidence: float) -> float:
        """Return what the chance is above with probability `confidence`."""
        return self.quantile(1 - confidence)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _below(a: float, b: float, x: float, log_beta: float) -> float:
    """Return I_x(a, b); by symmetry the fraction is only asked for where it converges fast."""
    if min(a, b) > _FRACTION_MAX:
        return _area(a, b, x)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta)
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction of I_x(a, b) by Lentz's method. Source: DLMF 8.17.22."""
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > _TINY else _TINY)
    value = d
    for m in range(1, _FRACTION_STEPS_MAX):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d, c = 1 + even * d, 1 + even / c
        d = 1 / (d if abs(d) > _TINY else _TINY)
        c = c if abs(c) > _TINY else _TINY
        value *= d * c
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d, c = 1 + odd * d, 1 + odd / c
        d = 1 / (d if abs(d) > _TINY else _TINY)
        c = c if abs(c) > _TINY else _TINY
        value *= d * c
        if abs(d * c - 1) < 1e-13:
            break
    return value


def _area(a: float, b: float, x: float) -> float:
    """Return I_x(a, b) of a narrow bell, by integrating its nearer tail. Source: Numerical Recipes, 6.4.2."""
    mean, deviation = a / (a + b), math.sqrt(a * b / (a + b + 1)) / (a + b)
    if x > mean:
        end = min(1.0, max(mean + 10 * deviation, x + 5 * deviation))
    else:
        end = max(0.0, min(mean - 10 * deviation, x - 5 * deviation))
    log_mean, log_rest = math.log(mean), math.log1p(-mean)
    height = 0.0
    for node, weight in _legendre():
        t = x + (end - x) * node
        height += weight * math.exp((a - 1) * (math.log(t) - log_mean) + (b - 1) * (math.log1p(-t) - log_rest))
    scale = math.exp((a - 1) * log_mean + (b - 1) * log_rest - _log_beta(a, b))
    tail = abs(end - x) * height * scale
    return 1 - tail if x > mean else tail


@cache
def _legendre() -> tuple[tuple[float, float], ...]:
    """Return nodes and weights of Gauss-Legendre quadrature on [0, 1]."""
    found = []
    for number in range(_NODES):
        z = math.cos(math.pi * (number + 0.75) / (_NODES + 0.5))
        for _ in range(8):
            value, before = 1.0, 0.0
            for degree in range(1, _NODES + 1):
                value, before = ((2 * degree - 1) * z * value - (degree - 1) * before) / degree, value
            slope = _NODES * (z * value - before) / (z * z - 1)
            z -= value / slope
        found.append(((1 + z) / 2, 1 / ((1 - z * z) * slope * slope)))
    return tuple(found)


def _first_guess(a: float, b: float, u: float, log_beta: float) -> float:
    if a >= 1 and b >= 1:
        tail = math.sqrt(-2 * math.log(min(u, 1 - u)))
        z = tail - (2.30753 + tail * 0.27061) / (1 + tail * (0.99229 + tail * 0.04481))
        z = z if u > 0.5 else -z
        lift = (z * z - 3) / 6
        harmonic = 2 / (1 / (2 * a - 1) + 1 / (2 * b - 1))
        w = z * math.sqrt(lift + harmonic) / harmonic if lift + harmonic > 0 else 0.0
        w -= (1 / (2 * b - 1) - 1 / (2 * a - 1)) * (lift + 5 / 6 - 2 / (3 * harmonic))
        return a / (a + b * math.exp(min(2 * -w, 700.0)))
    # One end holds most of it, and there the distribution is a power.
    left = -math.log(a) + a * math.log(a / (a + b))
    right = -math.log(b) + b * math.log(b / (a + b))
    share = 1 / (1 + math.exp(min(right - left, 700.0)))
    if u < share:
        return math.exp(min((math.log(u) + math.log(a) + log_beta) / a, 0.0))
    return -math.expm1(min((math.log1p(-u) + math.log(b) + log_beta) / b, 0.0))
