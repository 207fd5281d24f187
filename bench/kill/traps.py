"""Adapters that stand in front of a port: one stops its process at a point, one hurries the clock."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from agent.ports import Agent, Busy, Claim, Store
from bench.kill.points import Point
from bench.ports import Call, Moment, Watched
from vendor_mock.shop import MockShop


class Trap:
    """Says once, at the `call`-th meant call, that the point is reached, and waits there to be killed or let go."""

    def __init__(self, point: Point, call: int, stop: Callable[[], None]) -> None:
        self.point = point
        self._left = call
        self._stop = stop

    async def look(self, moment: Moment, method: str, call: Call) -> None:
        point = self.point
        if (moment, method) != (point.moment, point.method) or not point.is_meant(call):
            return
        self._left -= 1
        if self._left == 0:
            self._stop()


class Hasty:
    """A store whose leases lapse at once, for nobody waits for the dead, and whose clock can be set `ahead`."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.ahead = timedelta(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def now(self) -> datetime:
        return await self._inner.now() + self.ahead

    async def claim(self, run_id: str, lease_s: int, **more: Any) -> Claim | Busy:
        claim = await self._inner.claim(run_id, 0, **more)
        return replace(claim, now=claim.now + self.ahead) if isinstance(claim, Claim) else claim


def trapped_agent(agent: Agent, trap: Trap) -> Agent:
    """Return `agent` with the trap in front of the port that it is for."""
    port: Any = Watched(getattr(agent, trap.point.port), trap.look)
    return replace(agent, **{trap.point.port: port})


def trap_shop(shop: MockShop, trap: Trap) -> None:
    """Put the trap in front of the port of `shop` or of its cashier that it is for."""
    desk, port = shop.cashier.desk, trap.point.port
    if port == "shop":
        store: Any = Watched(shop.store, trap.look)
        shop.store = store
    elif port == "sender":
        senders: Mapping[str, Any] = {address: Watched(sender, trap.look) for address, sender in desk.senders.items()}
        shop.cashier.desk = replace(desk, senders=senders)
    else:
        found: Any = Watched(getattr(desk, port), trap.look)
        shop.cashier.desk = replace(desk, **{port: found})


def stop_by(tell: Callable[[], None], go: int) -> Callable[[], None]:
    """Return how a process stops: it tells that it is there and reads from `go`, which blocks all of it."""

    def stop() -> None:
        tell()
        os.read(go, 1)

    return stop
