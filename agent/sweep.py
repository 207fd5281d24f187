"""
The sweep: tick every run that is due, count late refunds of runs that have ended, and every few minutes cancel jobs
that nobody wants. Cron calls it, or a server that drives runs by itself.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from agent.core.errors import AgentError, RunBusy, RunFinished, is_bug
from agent.notify import notify
from agent.orphans import Orphans, cancel_orphans
from agent.ports import Agent
from agent.tick import tick, watch_refunds
from wire.control import OrphansDocument, SweepReply, SweptDocument

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
    """
    What one sweep did; `more`: due runs or notices were left for the next.

    `orphans` is None where vendors were asked for jobs that nobody wants not long ago, by this process or another.
    `bugs`: a line for each error of ours that was met, in ticks and in the search for orphans; they are logged whole.
    """

    swept: tuple[Swept, ...]
    more: bool
    orphans: Orphans | None = None
    bugs: tuple[str, ...] = ()


def sweep_reply(done: Sweep) -> SweepReply:
    """Return what a sweep did as it is told outside."""
    found = done.orphans or Orphans()
    seconds = sum(orphan.orphan_s for orphan in found.cancelled)
    orphans = OrphansDocument(
        cancelled=len(found.cancelled),
        minutes=(Decimal(round(seconds)) / 60).quantize(Decimal("0.1")),
        left=found.left,
        unknown=found.unknown,
    )
    return SweepReply(
        swept=tuple(SweptDocument(run_id=one.run_id, message=one.message) for one in done.swept),
        more=done.more,
        orphans=None if found == Orphans() else orphans,
    )


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
    bugs: list[str] = []

    async def serve() -> None:
        while not is_over() and (run_id := next(waiting, None)) is not None:
            swept.append(Swept(run_id, await _served(agent, run_id, now, bugs)))

    # Beside the ticks: neither do many due runs keep orphans alive, nor does a slow vendor hold up the ticks.
    async with asyncio.TaskGroup() as group:
        tended = group.create_task(_tend(agent, now, until, bugs)) if not is_over() else None
        for _ in range(TICKS_AT_ONCE):
            group.create_task(serve())
    while (untold := await notify(agent)) and not is_over():
        continue
    orphans = tended.result() if tended is not None else None
    return Sweep(tuple(swept), more=untold or len(swept) < len(due), orphans=orphans, bugs=tuple(bugs))


async def _tend(agent: Agent, now: datetime, until: float | None, bugs: list[str]) -> Orphans | None:
    """Cancel orphans, where it is this sweep's turn; what cannot be done now is the next round's."""
    try:
        if not await agent.store.take_turn("orphans", now, agent.limits.orphans_interval_s):
            return None
        found = await cancel_orphans(agent, None if until is None else max(0.0, until - time.monotonic()))
    except Exception as error:
        if is_bug(error):
            logger.exception("a bug in the search for orphans")
            bugs.append(f"orphans: {error!r}")
        else:
            logger.warning("no search for orphans: %s", error)
        return None
    bugs += found.bugs
    return found


async def _served(agent: Agent, run_id: str, now: datetime, bugs: list[str]) -> str:
    try:
        return await _serve(agent, run_id, now)
    except RunBusy:
        return "Served by another"
    except Exception as error:
        if isinstance(error, AgentError) and not is_bug(error):
            return f"{error.code}: {error}"
        logger.exception("a bug in the tick of %s", run_id)
        bugs.append(f"{run_id}: {error!r}")
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
            # None, not False: what writes the log as JSON takes False for an exception's parts.
            bug = error if is_bug(error) else None
            logger.warning("no sweep, again in %d s: %s", wait_s, error, exc_info=bug)
        else:
            for one in done.swept:
                logger.info("ticked", extra={"run": one.run_id, "tick": one.message})
            wait_s = BUSY_WAIT_S if done.swept else min(wait_s * 2, IDLE_WAIT_S)
        try:
            await asyncio.wait_for(stop.wait(), wait_s)
        except TimeoutError:
            continue
