"""The streamed upload under the client's guards, against servers on a real socket."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from outbound.http import HttpClient, HttpReply, TimedOut
from tests.outbound.test_http import server

OK = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok"


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def upload(url: str, chunks: AsyncIterator[bytes], size_bytes: int) -> HttpReply:
    return await HttpClient().upload(
        "PUT", url, headers={"x-key": "k"}, chunks=chunks, size_bytes=size_bytes, timeout_s=5, body_bytes_max=100
    )


async def test_what_is_sent_is_every_chunk_and_its_size_is_told_before() -> None:
    body = bytes(range(256)) * 1_000
    received = asyncio.get_running_loop().create_future()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.set_result(await reader.readexactly(len(body)))
        writer.write(OK)
        await writer.drain()

    async with server(take) as url:
        reply = await upload(url, pieces(body[:7], body[7:200_000], body[200_000:]), len(body))
    assert (reply.status, reply.content) == (201, b"ok")
    assert await received == body


@pytest.mark.parametrize("chunks", [[b"half"], [b"half", b"and too much"], []])
async def test_what_is_not_as_long_as_it_was_said_to_be_is_never_sent_whole(chunks: list[bytes]) -> None:
    received: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read())

    async with server(take) as url:
        with pytest.raises(TimedOut, match="not 8 bytes long"):
            await upload(url, pieces(*chunks), 8)
    assert all(len(body) < 8 for body in received)


async def test_an_answer_that_came_before_the_end_of_the_body_is_heard() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        await reader.read()

    async with server(refuse) as url:
        assert (await upload(url, pieces(*[b"x" * 65_536] * 100), 6_553_600)).status == 413
