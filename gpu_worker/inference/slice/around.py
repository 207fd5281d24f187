"""What a slice knows of the stages around it: which there are, what is served by nobody, and where the head is."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

from gpu_worker.core.errors import Unavailable
from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.seen import Seen
from gpu_worker.core.inference.topology import hole_of
from gpu_worker.inference.ports import StageSeen
from gpu_worker.inference.slice.parts import SliceParts

DESCRIBE_S = 1.0

_LOG = logging.getLogger("livery.gpu_worker")


class Around:
    """
    `own` is this slice as others are told of it. `known` are the stages of the last look, replicas among them, and
    `hole` says which layers nobody serves, None where there is a way.
    """

    def __init__(self, parts: SliceParts, own: Callable[[], Seen]) -> None:
        self.known: Sequence[Hop] = ()
        self.hole: str | None = None
        self._parts, self._own = parts, own
        self._head_url: str | None = None

    def head_url(self) -> str | None:
        """Return where the head's HTTP door is, None where nobody has told."""
        return self._parts.head_url() or self._head_url

    async def look(self, layers: Layers) -> None:
        """Say where no pipeline can be made of the stages that are known, and find the head's HTTP door."""
        self.known = await self._stages()
        hole = hole_of(self.known, layers) if layers.is_first else None
        if hole != self.hole:
            _LOG.warning("no request can be served: %s", hole) if hole else _LOG.info("every layer is served")
            self.hole = hole
        if layers.is_first or self._parts.head_url() is not None:
            return
        for hop in (each for each in self.known if each.start == 0):
            with suppress(Unavailable):
                self._head_url = (await self._parts.links.describe(hop.endpoint, DESCRIBE_S)).http_url
                return

    async def _stages(self) -> Sequence[Hop]:
        try:
            return await self._parts.registry.stages()
        except Unavailable:
            return ()

    async def seen(self) -> Sequence[StageSeen]:
        """Return every stage that is known and answers, this one among them."""

        async def ask(hop: Hop) -> StageSeen | None:
            if hop.endpoint == self._parts.endpoint():
                return self._own()
            try:
                return await self._parts.links.describe(hop.endpoint, DESCRIBE_S)
            except Unavailable:
                return None

        found = await asyncio.gather(*(ask(hop) for hop in await self._stages()))
        return tuple(each for each in found if each is not None)
