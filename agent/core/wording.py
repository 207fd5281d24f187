"""Amounts, times and refusals in the words that people read."""

import re
from datetime import datetime, timedelta

from agent.core.model import Run
from wire.money import to_decimal
from wire.problems import REFUSALS

# Amounts inside a refusal's words: atomic units, not the digits of an address, a hash or a network.
_ATOMIC = re.compile(r"(?<![\w:.])\d{4,}(?![\w.])")
_SPEAKS_OF_MONEY = re.compile(r"over_|price_mismatch|wrong_|bad_timeout|unsupported_scheme")

# Why a job is asked to stop; any other reason is that its hours are over.
STOPPED = {
    "cancelled": "you cancelled the run",
    "deadline_passed": "its deadline had passed",
    "hedge_lost": "another had done its work",
}


def money(run: Run, atomic: int) -> str:
    """Return an amount of the run's asset: 1.4 USDC."""
    return f"{to_decimal(atomic, run.asset)} {run.asset.symbol}"


def clock(at: datetime) -> str:
    return f"{at:%H:%M:%S} UTC"


def lasted(span: timedelta) -> str:
    """Return how long `span` is, as exactly as people care."""
    seconds = max(0, round(span.total_seconds()))
    if seconds < 120:
        return f"{seconds} s" if seconds else "less than 1 s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def reason(run: Run, said: str | None) -> str:
    """Return the sentence of a refusal (`code: detail`) with what was seen, or somebody else's words, quoted."""
    code, _, detail = (said or "").partition(": ")
    if code not in REFUSALS:
        return f"“{said}”." if said else "no reason was given."
    if _SPEAKS_OF_MONEY.match(code):
        detail = _ATOMIC.sub(lambda found: money(run, int(found[0])), detail)
    return f"{REFUSALS[code].rstrip('.')}{f' ({detail})' if detail else ''}."
