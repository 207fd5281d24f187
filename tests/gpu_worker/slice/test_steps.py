"""The table of rules for a run, against the sentences it was made from."""

from itertools import product

import pytest

from gpu_worker.core.inference.codes import CODES
from gpu_worker.core.inference.step import Run
from gpu_worker.core.inference.steps import Known, Verdict, after, judge

EPOCHS, LENGTHS, COUNTS = range(3), range(5), range(1, 4)


def sentences(known: Known | None, run: Run) -> Verdict:
    """Say what is to be done as the protocol says it, one rule after the other, on sets of positions."""
    if known is None:
        return Verdict.UNKNOWN
    cached = set(range(known.length))
    rows = set(range(run.position, run.position + run.count))
    if run.epoch < known.epoch:
        return Verdict.STALE
    if not set(range(run.position)) <= cached:
        return Verdict.GAP
    if run.epoch == known.epoch and rows <= cached:
        return Verdict.REPEAT
    return Verdict.CUT if rows & cached or cached - set(range(run.position)) else Verdict.GO


@pytest.mark.parametrize("epoch", EPOCHS)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_run_is_judged_as_the_protocol_says(epoch: int, length: int) -> None:
    known = Known(epoch, length)
    for new, position, count in product(EPOCHS, LENGTHS, COUNTS):
        run = Run(session="s", epoch=new, position=position, count=count)
        assert judge(known, run) is sentences(known, run), (known, run)


@pytest.mark.parametrize("epoch", EPOCHS)
@pytest.mark.parametrize("length", LENGTHS)
def test_what_is_known_afterwards_is_what_the_cache_holds(epoch: int, length: int) -> None:
    """A cache is the list of its rows' positions; nothing but a computed run changes it."""
    for new, position, count in product(EPOCHS, LENGTHS, COUNTS):
        cache = [*range(length)]
        run = Run(session="s", epoch=new, position=position, count=count)
        verdict = judge(Known(epoch, length), run)
        if verdict in (Verdict.GO, Verdict.CUT):
            cache = [*cache[:position], *range(position, run.end)]
        assert cache == [*range(len(cache))], "no hole, nothing twice"
        assert after(Known(epoch, length), run, verdict) == Known(max(epoch, new), len(cache))


def test_nothing_is_done_for_a_session_that_is_not_open() -> None:
    assert judge(None, Run(session="s", epoch=0, position=0, count=1)) is Verdict.UNKNOWN


def test_what_is_refused_has_its_code() -> None:
    assert {each.value for each in (Verdict.STALE, Verdict.GAP, Verdict.UNKNOWN)} <= CODES.keys()
