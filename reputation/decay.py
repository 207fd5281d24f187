"""
How old news loses weight: a count halves with every half-life that passes.
"""

from datetime import timedelta
from decimal import Decimal

_STEP = Decimal("0.001")


def faded(count: Decimal, age: timedelta, half_life: timedelta) -> Decimal:
    """Return what `count` still weighs after `age`, to three decimals; news from the future is as good as new."""
    share = 0.5 ** max(0.0, age / half_life)
    return (count * Decimal(str(share))).quantize(_STEP)
