"""Who is answered now and who waits: so many answers at once as the engine has room for, a short queue before them."""

import asyncio
from collections import deque
from contextlib import suppress

from gpu_worker.core.inference.codes import InferenceError


class Turn:
    """The right to have one answer made. It must be left."""

    __slots__ = ("_turns",)

    def __init__(self, turns: "Turns") -> None:
        self._turns: Turns | None = turns

    def leave(self) -> None:
        """Give it to who waits longest. Idempotent."""
        if self._turns is not None:
            turns, self._turns = self._turns, None
            turns._left()


class Turns:
    """
    At most `slots` turns at once; at most `queue_max` requests wait for one, each at most `wait_s` seconds.

    Those with priority come first, else who came first. The patient come behind all others: they wait as long as it
    takes, in no queue that is bounded. `running` turns are had now. While a request waits no slot is
    free: what is left goes straight to it, and nobody comes in between.
    """

    def __init__(self, slots: int, queue_max: int, wait_s: float) -> None:
        self.slots = slots
        self.running = 0
        self._queue_max, self._wait_s = queue_max, wait_s
        self._first: deque[asyncio.Future[None]] = deque()
        self._others: deque[asyncio.Future[None]] = deque()
        self._patient: deque[asyncio.Future[None]] = deque()
        self._emptied = asyncio.Event()
        self._emptied.set()

    @property
    def waiting(self) -> int:
        """How many requests wait, the patient not among them."""
        return len(self._first) + len(self._others)

    @property
    def room(self) -> int:
        """How many requests more are taken now."""
        return max(0, self.slots - self.running) + max(0, self._queue_max - self.waiting)

    async def enter(self, is_priority: bool = False, *, is_patient: bool = False) -> Turn:
        """
        Return a turn, at once where a slot is free.

        Raises:
            InferenceError: no_capacity: too many wait, or it waited too long; and what `dismiss` is told.
        """
        if self.running < self.slots:
            self._grant()
            return Turn(self)
        if not is_patient and self.waiting >= self._queue_max:
            busy = f"{self.running} answers are being made and {self.waiting} requests wait"
            raise InferenceError("no_capacity", f"{busy}: ask again later")
        loop = asyncio.get_running_loop()
        place: asyncio.Future[None] = loop.create_future()
        queue = self._patient if is_patient else self._first if is_priority else self._others
        queue.append(place)
        late = InferenceError("no_capacity", f"no turn came within {self._wait_s:g} s: ask again later")
        timer = None if is_patient else loop.call_later(self._wait_s, _refuse, place, late)
        try:
            await place
        except BaseException:
            if _is_granted(place):
                self._left()  # it was cancelled in the moment its turn came
            raise
        finally:
            if timer is not None:
                timer.cancel()
            with suppress(ValueError):
                queue.remove(place)
        return Turn(self)

    def resize(self, slots: int) -> None:
        """Have `slots` from now on; turns that are had stay."""
        self.slots = slots
        self._call()

    def dismiss(self, error: InferenceError) -> None:
        """Refuse all that wait now, but for the patient."""
        for place in (*self._first, *self._others):
            _refuse(place, InferenceError(error.code, str(error)))

    async def emptied(self) -> None:
        """Return once no turn is had."""
        await self._emptied.wait()

    def _grant(self) -> None:
        self.running += 1
        self._emptied.clear()

    def _left(self) -> None:
        self.running -= 1
        self._call()
        if not self.running:
            self._emptied.set()

    def _call(self) -> None:
        """Give free slots to who waits."""
        while self.running < self.slots and (queue := self._first or self._others or self._patient):
            place = queue.popleft()
            if not place.done():  # else it was cancelled or refused just now
                self._grant()
                place.set_result(None)


def _refuse(place: "asyncio.Future[None]", error: InferenceError) -> None:
    if not place.done():
        place.set_exception(error)


def _is_granted(place: "asyncio.Future[None]") -> bool:
    return place.done() and not place.cancelled() and place.exception() is None
