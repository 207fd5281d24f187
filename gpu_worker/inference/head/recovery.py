"""How the sessions of a head go on when their route is another one, and how they leave the old one."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from gpu_worker.core.inference.batch import Batch, Hop, LinkFault, Route
from gpu_worker.core.inference.ring import Ring
from gpu_worker.core.inference.routes import fills
from gpu_worker.core.inference.tensor import may_send
from gpu_worker.inference.head.desk import Desk
from gpu_worker.inference.head.finder import Finder
from gpu_worker.inference.head.parts import HeadParts
from gpu_worker.inference.head.watch import Break
from gpu_worker.inference.sender import Sender

# A stage has so long to hear that sessions have left it; it would find out by itself, but late.
FAREWELL_S = 2.0


def resume(desk: Desk, ring: Ring, old: Sequence[Hop], new: Sequence[Hop], dtype: str) -> tuple[int, ...]:
    """
    Begin a new epoch of all open sessions, and return the places on `new` whose stages fill their next one's cache.

    A session goes on behind the last position that all stages of `old` have answered for, where each stage has those
    positions or gets them from the one before it; else its tokens are sent again. `dtype` is that of the head's slice.
    """
    places = fills(old, new)
    for session in desk.open.values():
        kept = session.acked if places is not None else 0
        if places and places[0] == 0:
            fits = may_send(ring.dtype(session.name), dtype, new[1].takes)
            kept = kept if fits and ring.length(session.name) >= kept else 0
        if session.acked:
            desk.stats.refilled_sessions += bool(kept and places)
            desk.stats.replayed_sessions += not kept
        session.begin_again(kept)
    return places or ()


def blame(finder: Finder, why: Break) -> None:
    """Avoid, for a while, the stages that a route broke over."""
    for endpoint in why.lost | why.suspect:
        finder.lost(endpoint)


@dataclass(frozen=True, slots=True)
class Left:
    """A stage that sessions have moved away from: its place on its last route, `hops`, which had that `epoch`."""

    hops: tuple[Hop, ...]
    epoch: int
    index: int
    names: tuple[str, ...]


def left(old: tuple[Hop, ...], epoch: int, new: Sequence[Hop], why: Break, names: tuple[str, ...]) -> list[Left]:
    """Return what of the route `old` is not on `new` and lives, as far as is known."""
    gone = [place for place, hop in enumerate(old) if hop not in new and hop.endpoint not in why.lost]
    return [Left(old, epoch, place, names) for place in gone if names]


async def farewell(parts: HeadParts, each: Left) -> None:
    """Close the sessions on a stage that they have left. Its next ones drop that: they know of a newer route."""

    async def ignore(_: Batch | LinkFault) -> None:
        return

    pipeline = parts.name
    passed = parts.registry.session_pass(pipeline, [(hop.start, hop.end) for hop in each.hops])
    sender = Sender(parts.links, each.hops[each.index].endpoint, back=ignore, lost=ignore, session_pass=passed)
    route = Route(pipeline=pipeline, epoch=each.epoch, hops=each.hops, index=each.index)
    try:
        await sender.send(Batch(pipeline=pipeline, epoch=each.epoch, route=route, closes=each.names))
        await asyncio.sleep(FAREWELL_S)
    finally:
        await sender.close()
