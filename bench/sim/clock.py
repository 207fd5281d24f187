"""
Time that passes only when nobody has anything to do: an event loop without I/O, so without waiting and without chance.

The same coroutines, started in the same order, run in the same order again.
Source: FoundationDB, "Simulation and Testing"; TigerBeetle, "VOPR".
"""

import asyncio
import gc
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")

# When every world begins, by a clock that is right.
START = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


class Deadlock(RuntimeError):
    """Everybody waits, for nobody."""


class _NoSelector:
    """What an event loop asks for input, that never has any: it moves the clock instead."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Deadlock("every coroutine waits and no timer is set")
        self.now_s += timeout
        return []

    def close(self) -> None:
        """Nothing is open."""


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop whose `time()` begins at 0 and jumps to the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = _NoSelector()
        # A timer strikes when less than this is left; a moment that cannot be told from now never comes.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self._selector.now_s

    def _process_events(self, event_list: list[Any]) -> None:
        """Nothing comes from outside."""

    def _write_to_self(self) -> None:
        """Nobody calls from another thread."""


def run_virtually(main: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Return what `main` returns; all that it waits for takes no time. Raises Deadlock."""
    # What is here already is nobody's garbage: a world that looks for its own has less to look through.
    gc.freeze()
    try:
        return _run(main)
    finally:
        # Before it is mixed with what lives long: that is looked through so seldom that worlds would pile up.
        gc.collect()
        gc.unfreeze()


def _run(main: Coroutine[Any, Any, ResultT]) -> ResultT:
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()


def at(seconds: float) -> datetime:
    """Return the right time, `seconds` after the world began."""
    return START + timedelta(seconds=seconds)
