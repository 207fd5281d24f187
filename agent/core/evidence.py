"""
What the last polls of a job say of it. Pure: the job keeps one mark per poll, here is what they mean.

    .  the vendor told how the job stands
    x  no answer, or none that tells: not known, which is not failed
    g  gone: the vendor answered, and twice over, that it has no such job

A vendor's word counts at once: a job that is gone in two polls with no answer between them is lost. Silence needs many
polls and much time: a job is lost when at least `misses_max` of the last POLLS_KEPT failed and none was answered for
`missed_s_max`. So an answer sets the clock back, whatever came before it: what answers once in ten minutes is alive.
But it does not wipe out the misses, which are weighed with the ones to come; and where polls are rare their number
decides, not the clock. With every second poll failing at random, a job is called lost needlessly in less than one
hour of a hundred, however often it is polled.

Source: SkyPilot #10155 (a clock that an answer did not set back: 24 needless recoveries); the phi accrual failure
detector, Hayashibara et al. 2004 (suspicion is a matter of degree).
"""

from datetime import datetime, timedelta
from typing import Literal

from agent.core.limits import Limits

Mark = Literal[".", "x", "g"]
Verdict = Literal["alive", "suspect", "lost"]

POLLS_KEPT = 20
GONE_MAX = 2
# So many failed of the last polls, and people are told that the job is suspect; it stops when they have gone by.
SUSPECT_MISSES = 3


def noted(polls: str, mark: Mark) -> str:
    """Return `polls` after one more, the newest last."""
    return (polls + mark)[-POLLS_KEPT:]


def misses(polls: str) -> int:
    """Return how many of the polls that are kept told nothing of the job."""
    return len(polls) - polls.count(".")


def is_suspect(polls: str, missed_since: datetime | None) -> bool:
    """Return whether the vendor is silent now, and has been often enough of late to be doubted."""
    return missed_since is not None and misses(polls) >= SUSPECT_MISSES


def verdict(polls: str, missed_since: datetime | None, now: datetime, limits: Limits) -> Verdict:
    """
    Return what the polls say.

    Args:
        polls: a mark for each, the newest last.
        missed_since: the first failed poll after the last answer, None where the last was answered.
    """
    since_answer = polls.rpartition(".")[2]
    if since_answer.count("g") >= GONE_MAX:
        return "lost"
    is_silent = missed_since is not None and now >= missed_since + timedelta(seconds=limits.missed_s_max)
    if is_silent and misses(polls) >= limits.misses_max:
        return "lost"
    return "suspect" if misses(polls) >= SUSPECT_MISSES else "alive"
