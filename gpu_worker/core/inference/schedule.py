"""Which rows go with the next step, and in how many micro-batches the sessions of a pipeline travel."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# A further micro-batch must shorten the cycle of a pipeline by a tenth, or it is only more to go wrong.
_WORTH = 0.9


class Ask(NamedTuple):
    """
    A session that could send `rows` rows from `position` on now.

    `came` counts sessions in the order they came, `served` is the step that it was last served in.
    """

    session: str
    position: int
    rows: int
    came: int
    served: int = 0


class Share(NamedTuple):
    """What a session sends with this step."""

    session: str
    position: int
    rows: int


def share(asks: Iterable[Ask], *, decode_rows: int, chunk_rows: int) -> tuple[Share, ...]:
    """
    Return who sends which rows: one row each for at most `decode_rows` sessions, and at most `chunk_rows` of prompts.

    The two have budgets of their own, so that neither keeps the other waiting: of single rows those served longest ago
    go first, of prompts those that came first.
    """
    asks = list(asks)
    decoding = sorted((each for each in asks if each.rows == 1), key=lambda each: (each.served, each.came))
    shares = [Share(each.session, each.position, 1) for each in decoding[:decode_rows]]
    left = chunk_rows
    for each in sorted((each for each in asks if each.rows > 1), key=lambda each: each.came):
        if left == 0:
            break
        rows = min(each.rows, left)
        shares.append(Share(each.session, each.position, rows))
        left -= rows
    return tuple(shares)


def cost(curve: Mapping[int, float], rows: int) -> float:
    """Return the seconds of a pass of `rows` rows: between two measured ones in proportion, 0 without any."""
    if not curve:
        return 0.0
    known = sorted(curve)
    below = max((each for each in known if each <= rows), default=None)
    above = min((each for each in known if each >= rows), default=None)
    if below is None:
        return curve[known[0]]
    if above is None:
        return curve[below] * rows / below
    if above == below:
        return curve[below]
    return curve[below] + (curve[above] - curve[below]) * (rows - below) / (above - below)


def groups(sessions: int, curves: Sequence[Mapping[int, float]], way_s: float = 0.0) -> int:
    """
    Return into how many micro-batches `sessions` sessions are split over the stages with these cost curves, at least 1.

    With m of them each stage has m passes to make in a cycle, and each micro-batch all the stages and the way, `way_s`.
    More are taken only where a pass of fewer rows costs so much less that the cycle is clearly shorter.
    """
    best, shortest = 1, _cycle_s(sessions, 1, curves, way_s)
    for count in range(2, min(len(curves), sessions) + 1):
        cycle_s = _cycle_s(sessions, count, curves, way_s)
        if cycle_s < shortest * _WORTH:
            best, shortest = count, cycle_s
    return best


def _cycle_s(sessions: int, count: int, curves: Sequence[Mapping[int, float]], way_s: float) -> float:
    passes = [cost(curve, -(-sessions // count)) for curve in curves]
    return max(sum(passes) + way_s, count * max(passes, default=0.0))


def spread(sessions: Sequence[str], now: Mapping[str, int], count: int) -> dict[str, int]:
    """Return the micro-batch of each session: sizes differ by at most one, and no more move than that takes."""
    most, rest = divmod(len(sessions), count)
    members: list[list[str]] = [[] for _ in range(count)]
    homeless = []
    for session in sessions:
        group = now.get(session, count)
        if group < count:
            members[group].append(session)
        else:
            homeless.append(session)
    # The fullest may be one larger than the others, where the number of sessions asks for it.
    larger = set(sorted(range(count), key=lambda group: (-len(members[group]), group))[:rest])
    for group, inside in enumerate(members):
        room = most + (group in larger)
        homeless.extend(inside[room:])
        del inside[room:]
    for group, inside in enumerate(members):
        while len(inside) < most + (group in larger):
            inside.append(homeless.pop(0))
    return {session: group for group, inside in enumerate(members) for session in inside}
