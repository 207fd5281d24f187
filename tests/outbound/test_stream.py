"""The answer that is read as it comes, under the client's guards, against servers that misbehave on a real socket."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from outbound.http import BadAddress, Broken, HttpClient, TimedOut, TooLarge, Unreachable
from tests.outbound.test_http import saying, server

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


async def read(url: str, silence_s: float = 5.0) -> tuple[int, bytes]:
    async with HttpClient().stream("POST", url, headers={}, content=b"{}", silence_s=silence_s) as answer:
        return answer.status, b"".join([chunk async for chunk in answer.chunks])


async def test_an_answer_is_there_before_its_body_and_comes_as_it_is_sent() -> None:
    go_on = asyncio.Event()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        await go_on.wait()
        writer.write(b"3\r\none\r\n")
        go_on.clear()
        await go_on.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    async with (
        server(answer) as url,
        HttpClient().stream("POST", url, headers={}, content=b"{}", silence_s=5) as reply,
    ):
        assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream")
        chunks = aiter(reply.chunks)
        for expected in (b"one", b"two"):
            go_on.set()
            assert await anext(chunks) == expected
        assert await anext(chunks, None) is None


@pytest.mark.parametrize("status", [302, 404, 500])
async def test_any_status_is_an_answer_and_no_redirect_is_followed(status: int) -> None:
    said = b"HTTP/1.1 %d X\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 2\r\n\r\nno" % status
    async with server(saying(said)) as url:
        assert await read(url) == (status, b"no")


@pytest.mark.parametrize("begun", [b"", OK, CHUNKED, CHUNKED + b"1\r\nx\r\n"])
async def test_a_server_that_falls_silent_is_given_up(begun: bytes) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(begun)
        await reader.read()

    async with server(hang) as url:
        with pytest.raises(TimedOut) as caught:
            await read(url, silence_s=0.2)
    assert not isinstance(caught.value, Broken)


async def test_a_head_that_drips_does_not_last_longer_than_the_silence() -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with server(drip) as url:
        with pytest.raises(TimedOut, match=r"0\.3 s"):
            await read(url, silence_s=0.3)


async def test_a_body_lasts_as_long_as_it_comes() -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED)
        for _ in range(20):
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.write(b"0\r\n\r\n")

    async with server(drip) as url:
        assert await read(url, silence_s=0.5) == (200, b"x" * 20)


@pytest.mark.parametrize("said", [b"", b"no http\r\n\r\n", CHUNKED + b"9\r\nhalf", OK + b"Content-Length: 9\r\n\r\nx"])
async def test_an_answer_that_breaks_off_is_told_from_a_silent_one(said: bytes) -> None:
    async with server(saying(said)) as url:
        with pytest.raises(Broken):
            await read(url)


async def test_headers_have_their_limit() -> None:
    async with server(saying(OK + b"X-Big: " + b"x" * 40_000 + b"\r\n\r\n")) as url:
        with pytest.raises(TooLarge):
            await read(url)


async def test_nobody_there_and_no_address_are_known_before_anything_is_sent() -> None:
    async with server(saying(b"")) as url:
        pass
    with pytest.raises(Unreachable):
        await read(url)
    with pytest.raises(BadAddress):
        await read("ftp://host/")


async def left(leave: Callable[[asyncio.Task[None], asyncio.Event], Awaitable[None]]) -> None:
    """Read from a server that sends for ever, `leave`, and wait until it hears of it."""
    gone, came = asyncio.Event(), asyncio.Event()

    async def forever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + b"1\r\nx\r\n")
        await reader.read()
        gone.set()

    async def reading(url: str) -> None:
        async with HttpClient().stream("POST", url, headers={}, content=b"{}", silence_s=20) as answer:
            async for _ in answer.chunks:
                came.set()

    async with server(forever) as url, asyncio.timeout(10):
        task = asyncio.create_task(reading(url))
        await came.wait()
        await leave(task, gone)
        await gone.wait()


async def test_who_leaves_hangs_up() -> None:
    async def leave(task: asyncio.Task[None], gone: asyncio.Event) -> None:
        assert not gone.is_set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    await left(leave)


async def test_what_goes_wrong_while_it_is_read_stays_what_it_is() -> None:
    async with server(saying(CHUNKED + b"1\r\nx\r\n0\r\n\r\n")) as url:
        with pytest.raises(TimeoutError, match="mine"):
            async with HttpClient().stream("POST", url, headers={}, content=b"{}", silence_s=5):
                raise TimeoutError("mine")
