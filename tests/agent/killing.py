"""
A process that ticks a run and kills itself, SIGKILL, before or after its n-th call of a port.

The parts are the real ones; in front of each stands an adapter that counts.
"""

import asyncio
import multiprocessing
import os
import signal
from dataclasses import replace
from typing import Any

from agent.config import AgentSettings
from agent.ports import Agent, Busy, Claim, Store
from agent.tick import tick
from agent.wiring import open_agent

PORTS = ("store", "artifacts", "vendors", "chain", "wallet", "planner")

# Loaded once, in the process that the others are forked from.
_HEAVY = (
    "tests.agent.killing",
    "eth_account",
    "x402",
    "pymongo",
    "agent.edges.store_mongo",
    "agent.edges.store_sqlite",
)


class Steps:
    """Counts the moments before and after each call of a port; at number `deadly` the process is no more."""

    def __init__(self, deadly: int | None = None) -> None:
        self.deadly = deadly
        self.taken: list[str] = []

    def take(self, moment: str) -> None:
        self.taken.append(moment)
        if len(self.taken) == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)


class Counted:
    """A port, each of whose calls is two steps."""

    def __init__(self, inner: Any, name: str, steps: Steps) -> None:
        self._inner, self._name, self._steps = inner, name, steps

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def counted(*args: Any, **more: Any) -> Any:
            self._steps.take(f"before {self._name}.{name}")
            result = await found(*args, **more)
            self._steps.take(f"after {self._name}.{name}")
            return result

        return counted


class Lapsing:
    """A store whose leases lapse at once: nobody waits for the dead."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def claim(self, run_id: str, lease_s: int, **more: Any) -> Claim | Busy:
        return await self._inner.claim(run_id, 0, **more)


def counting(agent: Agent, steps: Steps) -> Agent:
    """Return `agent` with its ports counted and its leases lapsing."""
    lapsing = replace(agent, store=Lapsing(agent.store))
    ports: dict[str, Any] = {name: Counted(getattr(lapsing, name), name, steps) for name in PORTS}
    return replace(agent, **ports)


def tick_and_die(settings: AgentSettings, run_id: str, deadly: int) -> int | None:
    """Tick the run in a process of its own that dies at step `deadly`; return its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_HEAVY))
    process = context.Process(target=_tick, args=(settings, run_id, deadly))
    process.start()
    process.join(60)
    return process.exitcode


def _tick(settings: AgentSettings, run_id: str, deadly: int) -> None:
    asyncio.run(tick(counting(open_agent(settings), Steps(deadly)), run_id))
