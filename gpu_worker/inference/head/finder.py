"""The way through all layers, found among the stages that are known and asked whether they can."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from gpu_worker.core.errors import Unavailable
from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.routes import Cooling, best
from gpu_worker.core.inference.step import SliceInfo
from gpu_worker.inference.ports import Links, Registry

# How a stage computes, its dtype and its back end, and in what dtypes it takes rows. Another kind may draw other tokens
# from the same weights.
Kind = tuple[str, str, tuple[str, ...]]


class Finder:
    """
    `own` is the head's slice. Stages that were `lost` or are `leaving` are taken only where there are no others, for
    a while: one that is there again and says that it is ready is as good as before.
    """

    def __init__(
        self, *, info: SliceInfo, own: Hop, links: Links, registry: Registry, ask_s: float, clock: Callable[[], float]
    ) -> None:
        self.own = own
        self._info, self._links, self._registry, self._ask_s, self._clock = info, links, registry, ask_s, clock
        self._cooling, self._leaving = Cooling(), Cooling()
        self._kinds: dict[str, Kind] = {}
        # The dtypes of rows that each stage takes.
        self._takes: dict[str, tuple[str, ...]] = {}
        # Why each stage that was asked could not be taken, for whoever asks why there is no route.
        self.refused: dict[str, str] = {}

    def lost(self, endpoint: str) -> None:
        self._cooling.lost(endpoint, self._clock())

    def leaving(self, endpoint: str) -> None:
        self._leaving.lost(endpoint, self._clock())

    def is_leaving(self, hops: Sequence[Hop]) -> bool:
        gone = self._leaving.avoided(self._clock())
        return any(hop.endpoint in gone for hop in hops)

    def kinds(self, hops: Sequence[Hop]) -> tuple[Kind | None, ...]:
        """Return for each layer how it is computed on the route `hops`, None where that is not known."""
        return tuple(self._kinds.get(hop.endpoint) for hop in hops for _ in range(hop.start, hop.end))

    def is_strange(self, hop: Hop, like: Sequence[Kind | None]) -> bool:
        """Return whether a stage computes any of its layers in another way than `like` it, as far as is known."""
        kind = self._kinds.get(hop.endpoint)
        return kind is not None and any(each not in (None, kind) for each in like[hop.start : hop.end])

    async def find(self, now: Sequence[Hop] = (), like: Sequence[Kind | None] = ()) -> tuple[Hop, ...] | None:
        """
        Return the best route of stages that are ready and have the same model, None where there is none.

        Those that compute their layers `like` that (see `kinds`; empty: in any way) come before others.
        """
        total = self._info.layers.total
        if self.own.end == total:
            return (self.own,)
        refused: dict[str, str] = {}
        try:
            stages = list(await self._registry.stages())
        except Unavailable as why:
            refused["registry"] = str(why)
            stages = list(now)
        able = {self.own}
        while True:
            avoid = (*self._cooling.avoided(self._clock()), *self._leaving.avoided(self._clock()))
            strange = {hop.endpoint for hop in stages if self.is_strange(hop, like)}
            hops = best(stages, self.own, total, avoid=avoid, strange=strange, now=now)
            unasked = [hop for hop in hops or () if hop not in able]
            if not unasked:
                self.refused = refused
                return hops and tuple(replace(hop, takes=self._takes.get(hop.endpoint, ())) for hop in hops)
            for hop, flaw in zip(unasked, await asyncio.gather(*map(self._flaw, unasked)), strict=True):
                if flaw is None:
                    able.add(hop)
                else:
                    refused[hop.endpoint] = flaw
                    stages.remove(hop)

    async def _flaw(self, hop: Hop) -> str | None:
        """Return why the stage cannot be taken, None where it can."""
        try:
            seen = await self._links.describe(hop.endpoint, self._ask_s)
        except Unavailable as why:
            self.lost(hop.endpoint)
            return str(why)
        self._kinds[hop.endpoint] = (seen.dtype, seen.back_end, tuple(seen.wire_dtypes))
        self._takes[hop.endpoint] = tuple(seen.wire_dtypes)
        layers = seen.layers
        if (layers.start, layers.end, layers.total) != (hop.start, hop.end, self._info.layers.total):
            return f"it serves layers {layers} of {layers.total}"
        if seen.model_hash != self._info.model_hash:
            return "it has other weights"
        return None if seen.is_ready else "it is not ready"
