"""What a stage does with a run, by what it knows of the session: the rules that make a step safe to send twice."""

from enum import Enum
from typing import NamedTuple

from gpu_worker.core.inference.step import Run


class Verdict(Enum):
    """
    `go`: it begins where the cache ends. `cut`: it begins earlier, what is behind `position` is made anew.

    `repeat`: it has been done; `stale`: it is of a route that is gone, and is dropped without a word. The others are
    refused by their name, a key of `codes.CODES`.
    """

    GO = "go"
    CUT = "cut"
    REPEAT = "repeat"
    STALE = "stale_epoch"
    GAP = "position_gap"
    UNKNOWN = "unknown_session"


class Known(NamedTuple):
    """What a stage knows of a session: its newest epoch, and how many positions are in the cache."""

    epoch: int
    length: int


# (epoch against the known one, position against the length) -> verdict. Where two are named, the second is that of a
# run which ends within what is known.
_RULES: dict[tuple[int, int], tuple[Verdict, Verdict]] = {
    (-1, -1): (Verdict.STALE, Verdict.STALE),
    (-1, 0): (Verdict.STALE, Verdict.STALE),
    (-1, 1): (Verdict.STALE, Verdict.STALE),
    (0, -1): (Verdict.CUT, Verdict.REPEAT),
    (0, 0): (Verdict.GO, Verdict.GO),
    (0, 1): (Verdict.GAP, Verdict.GAP),
    (1, -1): (Verdict.CUT, Verdict.CUT),
    (1, 0): (Verdict.GO, Verdict.GO),
    (1, 1): (Verdict.GAP, Verdict.GAP),
}


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def judge(known: Known | None, run: Run) -> Verdict:
    """Return what to do with `run`, by what is known of its session; None: nothing is."""
    if known is None:
        return Verdict.UNKNOWN
    rules = _RULES[_sign(run.epoch - known.epoch), _sign(run.position - known.length)]
    return rules[run.end <= known.length]


def after(known: Known, run: Run, verdict: Verdict) -> Known:
    """Return what is known of the session from then on. A newer epoch is, even of a run that leaves a gap."""
    if verdict is Verdict.GO or verdict is Verdict.CUT:
        return Known(run.epoch, run.end)
    return Known(max(run.epoch, known.epoch), known.length)
