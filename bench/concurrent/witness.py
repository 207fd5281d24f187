"""
What one process saw of the leases it held, and what all of them together prove: one holder of a run at a time.

A witness stands in front of the store and writes down; it changes nothing and decides nothing.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from agent.ports import Claim, Store
from bench.ports import Call, Moment, Watched


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One lease, in seconds of the store's clock: surely held from `since_s` to `until_s`, void from `lapses_s`."""

    run_id: str
    token: int
    process: int
    since_s: float
    until_s: float
    lapses_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """One save that the store took: which token wrote the run's log up to `seq`."""

    run_id: str
    token: int
    seq: int


@dataclass(slots=True)
class Seen:
    """All that one process has seen."""

    held: list[Held] = field(default_factory=list)
    saved: list[Saved] = field(default_factory=list)


class Witness:
    """
    Writes down the leases and saves of one process at `inner`.

    The clock is asked again after a claim and before a release, so what is written is within what was held: two
    holders that show here were two.
    """

    def __init__(self, inner: Store, process: int, seen: Seen) -> None:
        self._inner, self._process, self._seen = inner, process, seen
        self._open: dict[tuple[str, int], tuple[float, float]] = {}

    def store(self) -> Store:
        """Return `inner`, watched."""
        watched: Any = Watched(self._inner, self._look)
        return cast(Store, watched)

    async def end(self) -> None:
        """Write down what was never released: it is held until now, or until it lapsed."""
        for key in list(self._open):
            await self._ended(key)

    async def _look(self, moment: Moment, method: str, call: Call) -> None:
        if (moment, method) == ("after", "claim") and isinstance(call.result, Claim):
            run_id, lease_s = call.args
            since_s = (await self._inner.now()).timestamp()
            self._open[run_id, call.result.token] = (since_s, call.result.now.timestamp() + lease_s)
        elif (moment, method) == ("after", "save") and call.result is None:
            token, run = call.args[:2]
            self._seen.saved.append(Saved(run_id=run.run_id, token=token, seq=run.log.seq))
        elif (moment, method) == ("before", "release"):
            run_id, token, _ = call.args
            await self._ended((run_id, token))

    async def _ended(self, key: tuple[str, int]) -> None:
        since_s, lapses_s = self._open[key]
        until_s = (await self._inner.now()).timestamp()
        del self._open[key]
        held = Held(
            run_id=key[0], token=key[1], process=self._process, since_s=since_s, until_s=until_s, lapses_s=lapses_s
        )
        self._seen.held.append(held)


def holders_max(held: Iterable[Held]) -> int:
    """Return how many held one run at one moment, at most; a lease that has lapsed is held no more."""
    most = 0
    for of_run in _by_run(held).values():
        turns: list[tuple[float, int]] = []
        for one in of_run:
            end = min(one.until_s, one.lapses_s)
            # At one instant of the clock, which counts milliseconds, an end comes first and a beginning last.
            if one.since_s < end:
                turns += [(end, _ENDS), (one.since_s, _BEGINS)]
            elif one.since_s < one.lapses_s:
                turns.append((one.since_s, _INSTANT))
        now = 0
        for _, kind in sorted(turns):
            most = max(most, now + (kind != _ENDS))
            now += kind - _INSTANT
    return most


_ENDS, _INSTANT, _BEGINS = 0, 1, 2


def disorder(held: Iterable[Held], saved: Iterable[Saved]) -> list[str]:
    """Return where tokens do not grow: one given twice, an older one held or written after a newer one."""
    found = []
    for run_id, leases in _by_run(held).items():
        tokens = [one.token for one in sorted(leases, key=lambda one: (one.since_s, one.token))]
        if len(set(tokens)) != len(tokens) or tokens != sorted(tokens):
            found.append(f"{run_id}: the tokens were held in the order {tokens}")
    for run_id, saves in _by_run(saved).items():
        written = [one.token for one in sorted(saves, key=lambda one: one.seq)]
        if written != sorted(written):
            found.append(f"{run_id}: the log was written by the tokens {written}")
    return found


def _by_run(things: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for one in things:
        found[one.run_id].append(one)
    return found
