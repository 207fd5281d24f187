"""Event streams: signs of life while nothing is said, an end with the client, and closing in any case."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from inbound.events import ALIVE, EventStream, while_connected


class Connection:
    """The server's side of a connection: what was sent, and a client that leaves when it is told to."""

    def __init__(self, *, enough: int | None = None) -> None:
        self.sent: list[Any] = []
        self.has_left = asyncio.Event()
        self.has_enough = asyncio.Event()
        self._enough = enough

    async def receive(self) -> Any:
        await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        if len(self.sent) == self._enough:
            self.has_enough.set()

    @property
    def body(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]


class Told:
    def __init__(self, *events: bytes, then: asyncio.Event | None = None) -> None:
        self.closed = self.cancelled = 0
        self._events = events
        self._then = then

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for event in self._events:
                yield event
            if self._then is not None:
                await self._then.wait()
                yield b"late"
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def close(self) -> None:
        self.closed += 1


async def tell(told: Told, connection: Connection, alive_s: float = 60.0) -> None:
    stream = EventStream(aiter(told), closing=told.close, alive_s=alive_s)
    await stream({"type": "http"}, connection.receive, connection.send)


async def test_a_stream_begins_with_a_sign_of_life_and_ends_whole() -> None:
    told, connection = Told(b"a", b"b"), Connection()
    await tell(told, connection)
    assert connection.body == [ALIVE, b"a", b"b", b""]
    assert [message.get("more_body") for message in connection.sent[1:]] == [True, True, True, False]
    headers = dict(connection.sent[0]["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert b"content-length" not in headers
    assert told.closed == 1


async def test_silence_is_filled_with_signs_of_life() -> None:
    late = asyncio.Event()
    told, connection = Told(b"a", then=late), Connection(enough=6)
    telling = asyncio.create_task(tell(told, connection, alive_s=0.001))
    await asyncio.wait_for(connection.has_enough.wait(), 10)
    late.set()
    await telling
    assert connection.body[:5] == [ALIVE, b"a", ALIVE, ALIVE, ALIVE]
    assert connection.body[-2:] == [b"late", b""]


async def test_a_client_that_leaves_ends_the_making_at_once() -> None:
    told, connection = Told(b"a", then=asyncio.Event()), Connection(enough=3)
    telling = asyncio.create_task(tell(told, connection))
    await asyncio.wait_for(connection.has_enough.wait(), 10)
    connection.has_left.set()
    await asyncio.wait_for(telling, 10)
    assert (told.cancelled, told.closed) == (1, 1)
    assert connection.body == [ALIVE, b"a"]


class Deaf(Connection):
    """A client that stays and takes nothing after the beginning."""

    async def send(self, message: Any) -> None:
        await super().send(message)
        if len(self.sent) > 2:
            await asyncio.Event().wait()


async def test_a_client_that_takes_nothing_is_given_up() -> None:
    told, connection = Told(b"data: 1\n\n", b"data: 2\n\n"), Deaf()
    stream = EventStream(aiter(told), closing=told.close, taken_s=0.05)
    async with asyncio.timeout(10):
        await stream({"type": "http"}, connection.receive, connection.send)
    assert (told.closed, connection.body) == (1, [ALIVE, b"data: 1\n\n"])


async def test_what_never_began_is_closed_as_well() -> None:
    told, connection = Told(b"a"), Connection()

    async def broken(message: Any) -> None:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await EventStream(aiter(told), closing=told.close)({"type": "http"}, connection.receive, broken)
    assert told.closed == 1


async def test_work_ends_with_its_client() -> None:
    connection = Connection()
    has_begun, was_cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()

    working = asyncio.create_task(while_connected(connection.receive, work()))
    await has_begun.wait()
    connection.has_left.set()
    with pytest.raises(ClientDisconnect):
        await working
    assert was_cancelled.is_set()


async def test_what_is_done_is_returned_also_to_who_has_just_left() -> None:
    connection = Connection()
    connection.has_left.set()

    async def work() -> int:
        return 3

    assert await while_connected(connection.receive, work()) == 3
