"""Whether the stages of a route live: they are asked as soon as there is a reason to doubt it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from gpu_worker.core.errors import Unavailable
from gpu_worker.inference.ports import Links


@dataclass(frozen=True, slots=True)
class Break:
    """
    Why a route is over. `lost` do not answer, `suspect` were named in a fault or silent together; both empty: it moves.
    """

    lost: frozenset[str] = frozenset()
    suspect: frozenset[str] = frozenset()
    detail: str = ""


class Watch:
    """`broken` is why the route of `endpoints` is over, once it is."""

    def __init__(self, links: Links, endpoints: Sequence[str], ask_s: float) -> None:
        self.broken: asyncio.Future[Break] = asyncio.get_running_loop().create_future()
        self._links, self._endpoints, self._ask_s = links, endpoints, ask_s
        self._suspect: set[str] = set()
        self._is_overdue = False
        self._asking: asyncio.Task[None] | None = None

    def ask(self, detail: str, *suspect: str, is_overdue: bool = False) -> None:
        """
        Ask all stages at once whether they live. Who does not answer is lost.

        With a `suspect`, or where something `is_overdue`, the route is broken even if all of them do.
        """
        self._suspect.update(suspect)
        self._is_overdue |= is_overdue
        if not self.broken.done() and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask(detail))

    async def _ask(self, detail: str) -> None:
        seen = await asyncio.gather(*map(self._lives, self._endpoints))
        lost = frozenset(endpoint for endpoint, lives in zip(self._endpoints, seen, strict=True) if not lives)
        # Where nobody is lost or named, whoever is on the route may be what keeps it waiting.
        suspect = frozenset(self._suspect or (self._endpoints if self._is_overdue and not lost else ()))
        if (lost or suspect) and not self.broken.done():
            self.broken.set_result(Break(lost, suspect - lost, detail))

    async def _lives(self, endpoint: str) -> bool:
        try:
            await self._links.describe(endpoint, self._ask_s)
        except Unavailable:
            return False
        return True

    def close(self) -> None:
        if not self.broken.done():
            self.broken.set_result(Break(detail="closed"))
        if self._asking is not None:
            self._asking.cancel()
