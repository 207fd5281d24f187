"""A door that is one of several loops of a process: told to close, it lets what it has begun end."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from inbound.serve import CannotServe, bound_socket, serve_until


class Door:
    """An application whose request waits for `go`, and says when it has come."""

    def __init__(self, *, broken: bool = False) -> None:
        self.come, self.go, self.closed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.stop = asyncio.Event()
        self._broken = broken
        self.app = FastAPI(lifespan=self._live)
        self.app.get("/")(self._answer)
        self.app.get("/now")(lambda: "now")
        self._socket = bound_socket("127.0.0.1", 0, chosen=True)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"

    @asynccontextmanager
    async def _live(self, app: FastAPI) -> AsyncIterator[None]:
        if self._broken:
            raise RuntimeError("no database")
        yield
        self.closed.set()

    async def _answer(self) -> str:
        self.come.set()
        await self.go.wait()
        return "whole"

    async def serve(self, drain_s: int = 30) -> None:
        await serve_until(self.app, self._socket, self.stop, name="the door", drain_s=drain_s)


async def asked(url: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        return await client.get(url)


async def asked_for_ever(url: str) -> None:
    while True:
        await asked(url)


async def test_a_door_that_is_told_to_close_answers_what_has_come_and_takes_no_more() -> None:
    door = Door()
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    async with asyncio.TaskGroup() as group:
        serving = group.create_task(door.serve())
        answer = group.create_task(asked(door.url))
        await door.come.wait()
        # Whoever is served beside it hears the signals.
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
        door.stop.set()
        with pytest.raises(httpx.TransportError):
            await asked_for_ever(door.url + "now")
        assert not serving.done()
        door.go.set()
    assert answer.result().json() == "whole"
    assert door.closed.is_set()


async def test_a_request_without_an_end_is_cut_when_the_time_is_over() -> None:
    door = Door()
    async with asyncio.TaskGroup() as group:
        group.create_task(door.serve(drain_s=1))
        answer = asyncio.create_task(asked(door.url))
        await door.come.wait()
        door.stop.set()
    with pytest.raises(httpx.HTTPError):
        (await answer).raise_for_status()
    assert door.closed.is_set()


async def test_a_door_that_is_cancelled_closes() -> None:
    door = Door()
    door.go.set()
    serving = asyncio.create_task(door.serve())
    await asked(door.url)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert door.closed.is_set()
    with pytest.raises(httpx.ConnectError):
        await asked(door.url)


async def test_an_application_that_cannot_start_is_told_and_ends_nothing_else() -> None:
    with pytest.raises(CannotServe, match="the door could not start"):
        await Door(broken=True).serve()
