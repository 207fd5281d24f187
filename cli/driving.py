"""A run that is driven from here to its end over HTTP, each new line of it told as it comes."""

import asyncio
import time
from decimal import Decimal

from rich.text import Text

from cli.console import out, words
from livery.client import Client
from wire.control import JobRequest, StatusReply

ENDED = ("completed", "failed", "cancelled")
_STYLES = {
    "agent_reasoning": "cyan",
    "payment_event": "green",
    "error": "red",
    "metric": "bold green",
    "job_log": "dim",
}


class TooLong(Exception):
    """The run did not end in time."""


async def start(plane: str, goal: str, budget: Decimal, job: JobRequest | None = None) -> str:
    """Start a run and return its id."""
    async with Client(plane) as client:
        return (await client.start(goal, budget, job=job)).id


async def drive(plane: str, run_id: str, *, limit_s: float, interval_s: float = 0.5, says: bool = True) -> StatusReply:
    """
    Tick a run to its end; return how it stands then.

    Args:
        says: print its lines as they come.

    Raises:
        TooLong: it did not end in `limit_s`.
    """
    until_s, told = time.monotonic() + limit_s, 0
    async with Client(plane) as client:
        while time.monotonic() < until_s:
            seen = await client.status(run_id)
            if says:
                told = _tell_lines(seen, told)
            if seen.run.status in ENDED:
                return seen
            await client.tick(run_id)
            await asyncio.sleep(interval_s)
    raise TooLong(f"the run did not end in {limit_s:.0f} s")


def _tell_lines(seen: StatusReply, told: int) -> int:
    for line in reversed(seen.observations):
        if line.seq > told:
            kind = Text(f"{line.type:16}", style=_STYLES.get(line.type, ""))
            out.print(Text.assemble(f"{line.timestamp:%H:%M:%S} ", kind, words(line.content)), soft_wrap=True)
    return max((line.seq for line in seen.observations), default=told)
