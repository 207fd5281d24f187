"""Answers whose making takes a while: work that ends with its client, and Server-Sent Events with signs of life."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

ALIVE_S = 10.0
# Who takes nothing of its answer for so long is gone: what is made for it is given up.
TAKEN_S = 60.0
# A comment: clients skip it, and what stands between sees that the answer goes on.
ALIVE = b": keep-alive\n\n"

T = TypeVar("T")


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """
    Return what `work` makes; the request's body must have been read.

    Raises:
        ClientDisconnect: the client went away first. The work was cancelled, and has ended.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """
    A text/event-stream that is told as it is made: a comment at once, and again after each silence of `alive_s`.

    A client that goes away cancels `events` at once; one that reads slowly holds up nobody else, and one that takes
    nothing for `taken_s` is taken as gone. `closing` is awaited in the end, however it ends, also where `events` never
    began.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        *,
        closing: Callable[[], Awaitable[None]],
        headers: Mapping[str, str] | None = None,
        alive_s: float = ALIVE_S,
        taken_s: float = TAKEN_S,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        del self.headers["content-length"]
        self._events = events
        self._closing = closing
        self._alive_s, self._taken_s = alive_s, taken_s
        self._told = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await while_connected(receive, self._tell(send))
        except ClientDisconnect:
            pass  # nobody is left to be told
        finally:
            await self._closing()

    async def _tell(self, send: Send) -> None:
        turn = asyncio.Lock()
        await send({"type": "http.response.body", "body": ALIVE, "more_body": True})
        living = asyncio.create_task(self._live(send, turn))
        try:
            async for event in self._events:
                async with turn:
                    await self._taken(send, event)
                self._told += 1
        finally:
            living.cancel()
            await asyncio.gather(living, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _taken(self, send: Send, event: bytes) -> None:
        """Return once the event is on its way. Raises ClientDisconnect: nothing before it was taken for long."""
        try:
            async with asyncio.timeout(self._taken_s):
                await send({"type": "http.response.body", "body": event, "more_body": True})
        except TimeoutError:
            raise ClientDisconnect from None

    async def _live(self, send: Send, turn: asyncio.Lock) -> None:
        while True:
            told = self._told
            await asyncio.sleep(self._alive_s)
            # Who has not taken the last event yet is only slow.
            if told == self._told and not turn.locked():
                async with turn:
                    await send({"type": "http.response.body", "body": ALIVE, "more_body": True})
