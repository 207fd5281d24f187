"""The streamed download under the client's guards, against servers that misbehave on a real socket."""

import asyncio
from contextlib import aclosing

import pytest

from outbound.http import BadAddress, HttpClient, NotServed, TimedOut, TooLarge, Unreachable, joined
from tests.outbound.test_http import saying, server

OK = b"HTTP/1.1 200 OK\r\n"


async def download(url: str, *, timeout_s: float = 5.0, body_bytes_max: int = 1_000_000) -> bytes:
    coming = HttpClient().download(url, headers={"x-key": "k"}, timeout_s=timeout_s, body_bytes_max=body_bytes_max)
    async with aclosing(coming) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_a_body_comes_in_chunks_and_whole() -> None:
    body = bytes(range(256)) * 2_000
    async with server(saying(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)) as url:
        assert await download(url) == body


@pytest.mark.parametrize(("size", "fits"), [(1_000, True), (1_001, False)])
async def test_a_body_is_refused_from_the_first_byte_above_the_limit(size: int, fits: bool) -> None:
    async with server(saying(OK + b"Connection: close\r\n\r\n" + b"x" * size)) as url:
        if fits:
            assert len(await download(url, body_bytes_max=1_000)) == size
        else:
            with pytest.raises(TooLarge, match="1000 bytes"):
                await download(url, body_bytes_max=1_000)


@pytest.mark.parametrize("status", [206, 302, 404, 503])
async def test_any_other_status_is_no_file(status: int) -> None:
    answer = b"HTTP/1.1 %d X\r\nLocation: http://169.254.169.254/\r\nContent-Length: 2\r\n\r\nno" % status
    async with server(saying(answer)) as url:
        with pytest.raises(NotServed) as refused:
            await download(url)
    assert refused.value.status == status


async def test_a_body_that_breaks_off_did_not_come() -> None:
    async with server(saying(OK + b"Content-Length: 10\r\n\r\nhalf")) as url:
        with pytest.raises(TimedOut):
            await download(url)


async def test_a_server_that_drips_cannot_outlast_the_total_time() -> None:
    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: 1000000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with server(drip) as url:
        with pytest.raises(TimedOut, match=r"0\.3 s"):
            await download(url, timeout_s=0.3)


async def test_a_reader_that_is_slow_is_never_cut_but_its_next_chunk_is() -> None:
    body = b"x" * 300_000
    async with server(saying(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)) as url:
        coming = HttpClient().download(url, headers={}, timeout_s=0.2, body_bytes_max=len(body))
        async with aclosing(coming) as chunks:
            await anext(chunks)
            # The time is over here, in the reader's own work, which goes on.
            await asyncio.sleep(0.4)
            with pytest.raises(TimedOut):
                async for _ in chunks:
                    pass


async def test_nobody_there_and_no_address_send_nothing() -> None:
    with pytest.raises(Unreachable):
        await download("http://127.0.0.1:9/")
    with pytest.raises(BadAddress):
        await download("file:///etc/passwd")


@pytest.mark.parametrize(
    ("base", "url", "found"),
    [
        ("http://v", "/files/a?s=1", "http://v/files/a?s=1"),
        ("http://v/base", "files/a", "http://v/base/files/a"),
        ("http://v/base/", "/a", "http://v/a"),
        ("http://v", "http://V:80/a", "http://v/a"),
        ("https://v:8443", "//v:8443/a", "https://v:8443/a"),
    ],
)
def test_an_address_of_the_same_origin_is_joined(base: str, url: str, found: str) -> None:
    assert joined(base, url) == found


@pytest.mark.parametrize(
    "url",
    [
        "http://w/",
        "https://v/",
        "http://v:81/",
        "//w/",
        "http://v.w/",
        "ftp://v/",
        "http://v@w/",
        "http://[",
        "a" * 3_000,
    ],
)
def test_another_origin_is_refused(url: str) -> None:
    with pytest.raises(BadAddress):
        joined("http://v/base", url)
