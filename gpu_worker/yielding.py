"""Watches the machine, and says when jobs must rest for its owner and when they may go on."""

import asyncio
from collections.abc import Callable, Collection

from gpu_worker.core.hardware import Device, Machine
from gpu_worker.core.owner import Limits, Yield, decide_yield
from gpu_worker.ports import Hardware

BUSY_S = 2.0
IDLE_S = 5.0
# A program that pauses for a moment still needs the GPU, and a job's program takes seconds to start again.
QUIET_LOOKS = 5


async def watch(
    hardware: Hardware,
    device: Device,
    limits: Limits,
    *,
    own_sessions: Callable[[], Collection[int] | None],
    local_minute: Callable[[], int],
    tell: Callable[[Machine, Yield | None], None],
    stop: asyncio.Event,
    busy_s: float = BUSY_S,
    idle_s: float = IDLE_S,
) -> None:
    """
    Look at the machine every `busy_s` while there are jobs, every `idle_s` else, until `stop`; tell what was seen.

    Args:
        own_sessions: the process sessions of the jobs' programs; None: they cannot be told from the owner's.
        local_minute: minutes since midnight, by the owner's clock.
        tell: is called after each look with the machine, and why jobs must rest or None.
    """
    decided: Yield | None = None
    quiet = 0
    while not stop.is_set():
        machine = await hardware.read()
        sessions = own_sessions()
        found = decide_yield(
            machine, device, limits, own_sessions=sessions, minute=local_minute(), now_yielding=decided
        )
        quiet = quiet + 1 if found is None else 0
        if not (decided is not None and decided.cause == "gpu" and 0 < quiet < QUIET_LOOKS):
            decided = found
        tell(machine, decided)
        is_busy = sessions is None or len(sessions) > 0 or decided is not None
        try:
            async with asyncio.timeout(busy_s if is_busy else idle_s):
                await stop.wait()
        except TimeoutError:
            pass  # time to look again
