"""
What a finished job can be expected to cost at each of several vendors, by Thompson sampling over what is known of them.

Chances and expected costs are floats: they rank vendors, no money is ever moved by them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from reputation.beta import Beta

# The share of the price that a failed job keeps: a vendor refunds what was not used, and jobs fail past their middle.
KEPT_BY_FAILURE = 0.6
# What the register says of a vendor weighs as much as this many jobs, and so does what is known of the whole fleet.
SCORE_JOBS = 2.0
FLEET_JOBS = 2.0
# However many jobs a vendor did on other GPU types, they weigh as much as this many on the one that is asked about.
OTHER_JOBS_MAX = 2.0
# With this many purchases ahead, exploring costs nothing that matters; with fewer, beliefs are taken for surer.
EXPLORING_PURCHASES = 10_000.0
# Candidates whose expected cost is this near the best are equally good: who chooses among them loses at most so much.
SHORTLIST = 1.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of one vendor on one GPU type: its registered score, its jobs there, its jobs elsewhere."""

    score: float
    completed: float = 0.0
    failed: float = 0.0
    completed_elsewhere: float = 0.0
    failed_elsewhere: float = 0.0


def beliefs(records: Sequence[Record]) -> list[Beta]:
    """Return what to believe of each: its own jobs, on top of its score, its other jobs and how the fleet does."""
    alone = []
    for record in records:
        elsewhere = record.completed_elsewhere + record.failed_elsewhere
        share = min(1.0, OTHER_JOBS_MAX / elsewhere) if elsewhere else 0.0
        score = min(max(record.score, 0.01), 0.99)
        a = SCORE_JOBS * score + record.completed_elsewhere * share + record.completed
        b = SCORE_JOBS * (1 - score) + record.failed_elsewhere * share + record.failed
        alone.append((a, b))
    fleet = sum(a / (a + b) for a, b in alone) / len(alone) if alone else 0.5
    return [Beta(a + FLEET_JOBS * fleet, b + FLEET_JOBS * (1 - fleet)) for a, b in alone]


def spent_on_one(chance: float, price: float) -> float:
    """Return what one job costs on average, finished or failed."""
    return price * (chance + KEPT_BY_FAILURE * (1 - chance))


def expected_cost(chance: float, price: float) -> float:
    """Return what a finished job costs on average, with the failures on the way to it."""
    return spent_on_one(chance, price) / chance


def shortlist(
    known: Sequence[Beta], prices: Sequence[float], budget: float, draws: Sequence[float]
) -> list[tuple[float, int]]:
    """
    Return the sampled cost and the place of the best and of those within SHORTLIST of it, the best first.

    Beliefs are sharpened as the purchases that `budget` allows run out, until their means decide; a sample below its
    mean counts as the mean (optimistic sampling), so a good record is never passed over by bad luck.

    Args:
        draws: one number in (0, 1) for each, the chance of this decision.

    Source: May, Korda, Lee and Leslie, Optimistic Bayesian Sampling in Contextual-Bandit Problems, JMLR 13 (2012).
    """
    by_mean = sorted(
        (expected_cost(belief.mean, price), place)
        for place, (belief, price) in enumerate(zip(known, prices, strict=True))
    )
    purchases = max(1.0, budget / spent_on_one(known[by_mean[0][1]].mean, prices[by_mean[0][1]]))
    factor = max(1.0, math.sqrt(EXPLORING_PURCHASES / purchases))
    best, found = by_mean[0][0], []
    for mean_cost, place in by_mean:
        price, draw = prices[place], draws[place]
        # Only who would have to be better than certain, or is not drawn that well, can be left unsampled.
        needed = _chance_for(best * SHORTLIST, price)
        passed_over = mean_cost > best * SHORTLIST
        if passed_over and needed >= 1:
            continue
        belief = known[place].sharpened(factor)
        if passed_over and belief.cdf(needed) > draw:
            continue
        cost = expected_cost(max(belief.mean, belief.quantile(draw)), price)
        best = min(best, cost)
        found.append((cost, place))
    return sorted(one for one in found if one[0] <= best * SHORTLIST)


def _chance_for(cost: float, price: float) -> float:
    """Return the chance at which a finished job at `price` costs `cost`: the inverse of `expected_cost`."""
    spare = cost - price * (1 - KEPT_BY_FAILURE)
    return price * KEPT_BY_FAILURE / spare if spare > 0 else math.inf
