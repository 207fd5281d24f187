"""
The sweep: tick every run that is due, and count late refunds of runs that have ended. Cron calls it, or a server that
drives runs by itself.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import datetime

from agent.core.errors import AgentError, RunBusy, RunFinished
from agent.notify import notify
from agent.ports import Agent
from agent.tick import tick, watch_refunds

RUNS_PER_SWEEP_MAX = 100
# Ticks wait for vendors and the chain most of the time; more at once would crowd the store.
TICKS_AT_ONCE = 4
# What is left of the host's patience when no further tick is begun. One that is cut off is taken up by a later one.
TICK_ROOM_S = 10.0

# How long the driver waits: after it found work, after it found none, after the store was away.
BUSY_WAIT_S, IDLE_WAIT_S, TROUBLE_WAIT_S = 1.0, 5.0, 30.0

logger = logging.getLogger("livery.sweep")


@dataclass(frozen=True, slots=True)
class Swept:
    """One due run, and what became of it: a tick's message, or why there was none."""

    run_id: str
    message: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one sweep did; `more`: due runs or notices were left for the next."""

    swept: tuple[Swept, ...]
    more: bool


async def sweep(
    agent: Agent,
    *,
    limit: int = RUNS_PER_SWEEP_MAX,
    seconds_left: float | None = None,
    stop: asyncio.Event | None = None,
) -> Sweep:
    """
    Serve the runs that are due now, the longest due first; one run's trouble does not stop the others.

    Args:
        limit: the most runs to serve.
        seconds_left: how long the host lets this go on; None is forever.
        stop: once it is set no further tick is begun.

    Raises:
        StoreUnavailable: nobody can say what is due.
    """
    until = None if seconds_left is None else time.monotonic() + seconds_left - TICK_ROOM_S

    def is_over() -> bool:
        return (until is not None and time.monotonic() >= until) or (stop is not None and stop.is_set())

    now = await agent.store.now()
    due = await agent.store.due_runs(now, limit + 1)
    waiting = iter(due[:limit])
    swept: list[Swept] = []

    async def serve() -> None:
        while not is_over() and (run_id := next(waiting, None)) is not None:
            swept.append(Swept(run_id, await _served(agent, run_id, now)))

    async with asyncio.TaskGroup() as group:
        for _ in range(TICKS_AT_ONCE):
            group.create_task(serve())
    while (untold := await notify(agent)) and not is_over():
        continue
    return Sweep(tuple(swept), more=untold or len(swept) < len(due))


async def _served(agent: Agent, run_id: str, now: datetime) -> str:
    try:
        return await _serve(agent, run_id, now)
    except RunBusy:
        return "Served by another"
    except AgentError as error:
        return f"{error.code}: {error}"
    except Exception as error:
        logger.exception("a bug in the tick of %s", run_id)
        return f"internal: {type(error).__name__}"


async def _serve(agent: Agent, run_id: str, now: datetime) -> str:
    try:
        return (await tick(agent, run_id, due_before=now)).message
    except RunFinished:
        return "Refund received" if await watch_refunds(agent, run_id) else "Waiting for a refund"


async def drive(agent: Agent, stop: asyncio.Event) -> None:
    """Sweep until `stop` is set: often while there is work, more and more rarely while there is none."""
    wait_s = BUSY_WAIT_S
    while not stop.is_set():
        try:
            done = await sweep(agent, stop=stop)
        except Exception as error:
            wait_s = min(wait_s * 2, TROUBLE_WAIT_S)
            logger.warning("no sweep, again in %d s: %s", wait_s, error, exc_info=not isinstance(error, AgentError))
        else:
            for one in done.swept:
                logger.info("ticked", extra={"run": one.run_id, "tick": one.message})
            wait_s = BUSY_WAIT_S if done.swept else min(wait_s * 2, IDLE_WAIT_S)
        try:
            await asyncio.wait_for(stop.wait(), wait_s)
        except TimeoutError:
            continue
