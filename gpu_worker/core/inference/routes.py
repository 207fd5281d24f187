"""The way through the stages: which of them together are the whole model, and what a change of them takes."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from gpu_worker.core.inference.batch import Hop

COOL_S = 15.0
COOL_MAX_S = 600.0

# What makes one way better than another: first fewer to avoid, then none that was lost later, then fewer of another
# kind, then fewer stages, then fewer changes, then the names.
_Worth = tuple[int, int, int, int, int, tuple[str, ...]]


class _Way(NamedTuple):
    worth: _Worth
    hops: tuple[Hop, ...]


def best(
    stages: Sequence[Hop],
    own: Hop,
    total: int,
    *,
    avoid: Sequence[str] = (),
    strange: Collection[str] = (),
    now: Collection[Hop] = (),
) -> tuple[Hop, ...] | None:
    """
    Return the hops from `own`, the first, to layer `total`, None where some layer is served by nobody.

    Slices are taken whole: one begins where the last ended. `avoid` are endpoints that are taken only where there is no
    way without them, the first of them before the last, and so are, after those, `strange` ones; of ways with equally
    many stages the one with most hops of `now` is taken that are not to avoid.
    """
    if own.start != 0:
        return None
    ways: dict[int, _Way] = {own.end: _Way((0, 0, 0, 0, 0, ()), (own,))}
    late = {endpoint: place for place, endpoint in enumerate(avoid, 1)}
    others = [each for each in stages if each.endpoint != own.endpoint and 0 < each.start < each.end <= total]
    for hop in sorted(others, key=lambda each: (each.start, each.end, each.endpoint)):
        before = ways.get(hop.start)
        if before is None:
            continue
        avoided, latest, odd, count, changed, names = before.worth
        lateness = late.get(hop.endpoint, 0)
        is_avoided = lateness > 0
        worth = (
            avoided + is_avoided,
            max(latest, lateness),
            odd + (hop.endpoint in strange),
            count + 1,
            changed + (is_avoided or hop not in now),
            (*names, hop.endpoint),
        )
        if hop.end not in ways or worth < ways[hop.end].worth:
            ways[hop.end] = _Way(worth, (*before.hops, hop))
    return ways[total].hops if total in ways else None


def fills(old: Sequence[Hop], new: Sequence[Hop]) -> tuple[int, ...] | None:
    """
    Return the places on the route `new` whose stages are to fill their next one's cache, for sessions of `old`.

    A stage that was on the old route, and not its last, has kept the rows that it sent on. None: one that is new has
    another that is new before it, so the sessions' tokens are sent through all stages again.
    """
    if not old:
        return None
    fresh = [place for place, hop in enumerate(new) if hop not in old]
    if any(new[place - 1] not in old[:-1] for place in fresh):
        return None
    return tuple(place - 1 for place in fresh)


class Cooling:
    """Endpoints that were lost, and until when they are avoided: 15 s, and twice as long each time it happens again."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, float]] = {}

    def lost(self, endpoint: str, now: float) -> None:
        # Taken out first, so that the one that was lost last stands last.
        cool_s, until = self._until.pop(endpoint, (0.0, 0.0))
        # One that has been well for as long as it was avoided begins anew.
        again = cool_s and now < until + cool_s
        cool_s = min(COOL_MAX_S, cool_s * 2) if again else COOL_S
        self._until[endpoint] = (cool_s, now + cool_s)

    def avoided(self, now: float) -> tuple[str, ...]:
        """Return those to avoid, whoever was lost last at the end."""
        return tuple(endpoint for endpoint, (_, until) in self._until.items() if now < until)
