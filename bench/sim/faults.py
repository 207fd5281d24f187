"""
What goes wrong, how often it is drawn, and how often it really happened: a fault that was drawn and had no effect is
not counted. Who draws it counts it, where it acts.
"""

import random
from collections import Counter
from collections.abc import Mapping

# Of each opportunity, how many in a thousand. Who draws one says what an opportunity is.
PER_MILLE: Mapping[str, float] = {
    # Of every call through a port: the process ends before or after it, or stands still beyond its lease.
    "crash_before_store": 2,
    "crash_after_store": 2,
    "crash_before_vendor": 4,
    "crash_after_vendor": 8,
    "crash_before_chain": 4,
    "crash_after_chain": 4,
    "crash_before_wallet": 20,
    "crash_after_wallet": 20,
    "frozen": 1,
    # Of every call to the store, the chain, the wallet.
    "store_away": 2,
    "store_answer_lost": 3,
    "chain_away": 8,
    "chain_node_lags": 30,
    "chain_reorganised": 80,
    "signer_away": 30,
    # Of every call to a vendor.
    "vendor_away": 8,
    "vendor_5xx": 15,
    "vendor_answer_lost": 15,
    "vendor_answer_late": 20,
    "vendor_called_twice": 15,
    # Of every quote and challenge.
    "quote_raised": 30,
    "price_raised": 40,
    "payee_changed": 30,
    "asset_changed": 30,
    "cheque_too_long": 20,
    # Of every new cheque that is sent.
    "settled_late": 60,
    "settled_in_the_last_second": 60,
    "never_settled": 60,
    "declined_then_settled": 50,
    "served_before_settled": 50,
    "settled_not_served": 40,
    "served_long_after": 80,
    "wrong_transaction": 40,
    "job_sold_twice": 60,
    # Of every job, of every status, of every cancellation.
    "job_failed": 150,
    "job_cancelled_by_vendor": 60,
    "job_without_end": 40,
    "job_slow": 60,
    "status_garbled": 15,
    "status_of_another_job": 12,
    "status_backwards": 20,
    "job_not_known": 15,
    "cancel_ignored": 250,
    "cancel_too_late": 450,
    # Of every refund that is owed.
    "refund_late": 150,
    "refund_never_sent": 150,
    "refund_of_another": 400,
    "refund_too_small": 150,
    # Of every world, of every step of its clocks.
    "clock_skewed": 400,
    "clock_jumped": 15,
    # Of every wish and every errand.
    "planner_strays": 80,
    # Of every quote that is to go on from a checkpoint, and of every look for one.
    "checkpoint_refused": 100,
    "files_away": 10,
    "cancel_asked": 12,
    "start_repeated": 150,
    "called_back": 40,
    "cheque_revoked": 60,
    "ticks_meet": 25,
    "files_not_kept": 400,
}

# What follows from others and is counted where it shows.
EFFECTS = ("stale_save", "cheque_repeated", "orphan_cancelled", "job_resumed", "job_hedged", "hedge_lost", "job_by_use")


# In calm worlds: what makes work late and the late go on, as often as anywhere, and all else seldom.
LATE = frozenset({"job_slow", "job_without_end", "job_failed", "cancel_ignored", "cancel_too_late"})
CALM = 0.1


class Faults:
    """Draws faults from one source of chance; `quiet` ends them, `calm` leaves few but those that make work late."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.quiet = False
        self.calm = False
        self.happened: Counter[str] = Counter()

    def draw(self, name: str) -> bool:
        """Return whether `name` is to happen now; who is told so and makes it happen calls `count`."""
        # Drawn even when it is quiet: one number each, whatever comes of it.
        return self.chance.random() * 1000 < self._per_mille(name) and not self.quiet

    def _per_mille(self, name: str) -> float:
        return PER_MILLE[name] * (CALM if self.calm and name not in LATE else 1)

    def hit(self, name: str) -> bool:
        """Return whether `name` happens now, and count it: of what acts whenever it is drawn."""
        if self.draw(name):
            self.happened[name] += 1
            return True
        return False

    def count(self, name: str) -> None:
        self.happened[name] += 1

    def one_of(self, names: tuple[str, ...]) -> str | None:
        """Return which of `names` is to happen now, at most one; who makes it happen calls `count`."""
        left = self.chance.random() * 1000
        if self.quiet:
            return None
        for name in names:
            left -= self._per_mille(name)
            if left < 0:
                return name
        return None
