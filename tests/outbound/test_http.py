"""The guarded client against servers that misbehave on a real socket, each a few lines of asyncio."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
import pytest

from outbound.http import BadAddress, HttpClient, HttpReply, OutboundError, TimedOut, TooLarge, Unreachable

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(answer: Answer) -> AsyncIterator[str]:
    """Yield the URL of a server that reads the head of each request and hands the rest to `answer`."""

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(reader, writer)
            writer.close()
            await writer.wait_closed()
        except (ConnectionError, asyncio.CancelledError):
            writer.transport.abort()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        listener.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving)


def saying(data: bytes) -> Answer:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return answer


async def get(
    url: str, *, timeout_s: float = 5.0, body_bytes_max: int = 1_000, client: HttpClient | None = None
) -> HttpReply:
    return await (client or HttpClient()).request(
        "GET", url, headers={}, content=None, timeout_s=timeout_s, body_bytes_max=body_bytes_max
    )


async def test_an_answer_has_its_status_its_headers_in_lower_case_and_its_bytes() -> None:
    async with server(saying(b"HTTP/1.1 402 Pay\r\nX-Thing: Yes\r\nContent-Length: 2\r\n\r\nok")) as url:
        reply = await get(url)
    assert (reply.status, reply.headers["x-thing"], reply.content) == (402, "Yes", b"ok")


async def test_what_is_sent_is_the_body_given_and_no_wish_for_compression() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    client = HttpClient(httpx.MockTransport(answer))
    headers = {"Accept-Encoding": "gzip", "X-Key": "k"}
    await client.request("POST", "http://vendor/x", headers=headers, content=b"{}", timeout_s=1, body_bytes_max=1)
    assert seen[0].content == b"{}"
    assert seen[0].headers["accept-encoding"] == "identity"
    assert (seen[0].headers["x-key"], seen[0].headers["content-length"]) == ("k", "2")


async def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    async with server(saying(b"HTTP/1.1 302 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")) as url:
        reply = await get(url)
    assert (reply.status, reply.headers["location"]) == (302, "http://127.0.0.1:1/")


async def test_a_cookie_is_not_given_back() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, headers={"set-cookie": "a=b"})

    client = HttpClient(httpx.MockTransport(answer))
    for _ in range(2):
        await get("http://vendor/", client=client)
    assert [("cookie" in request.headers) for request in seen] == [False, False]


@pytest.mark.parametrize(("size", "fits"), [(1_000, True), (1_001, False)])
async def test_a_body_is_refused_from_the_first_byte_above_the_limit(size: int, fits: bool) -> None:
    async with server(saying(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * size)) as url:
        if fits:
            assert len((await get(url)).content) == size
        else:
            with pytest.raises(TooLarge, match="1000 bytes"):
                await get(url)


async def test_an_endless_body_is_cut_at_the_limit_and_not_at_the_timeout() -> None:
    written = 0

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            written += 65_536
            await writer.drain()

    async with server(answer) as url:
        with pytest.raises(TooLarge):
            await get(url, timeout_s=20, body_bytes_max=100_000)
    assert written < 50_000_000


async def test_a_gzip_bomb_stays_the_bytes_that_came() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with server(saying(head + bomb)) as url:
        reply = await get(url, body_bytes_max=100_000)
    assert reply.content == bomb


async def test_headers_above_the_limit_are_refused() -> None:
    async with server(saying(b"HTTP/1.1 200 OK\r\nX-Big: " + b"x" * 33_000 + b"\r\nContent-Length: 0\r\n\r\n")) as url:
        with pytest.raises(TooLarge, match="headers"):
            await get(url)


async def test_headers_without_an_end_are_not_collected() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"X-More: " + b"x" * 1_000 + b"\r\n")
            await writer.drain()

    async with server(answer) as url:
        with pytest.raises(TimedOut) as caught:
            await get(url, timeout_s=20)
    assert caught.value.sent


async def test_a_closed_port_is_unreachable_and_nothing_was_sent() -> None:
    async with server(saying(b"")) as url:
        pass
    with pytest.raises(Unreachable) as caught:
        await get(url)
    assert (caught.value.sent, caught.value.retryable) == (False, True)


async def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    with pytest.raises(Unreachable):
        await get("http://nowhere.invalid/")


async def test_a_server_that_takes_the_request_and_says_nothing_leaves_the_outcome_unknown() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with server(hang) as url:
        with pytest.raises(TimedOut) as caught:
            await get(url, timeout_s=0.2)
    assert (caught.value.sent, caught.value.retryable) == (True, True)


async def test_a_server_that_drips_cannot_outlast_the_total_time() -> None:
    never = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")
        while not never.is_set():
            writer.write(b"x")
            await writer.drain()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(never.wait(), 0.05)

    async with server(drip) as url:
        with pytest.raises(TimedOut):
            await get(url, timeout_s=0.3)


@pytest.mark.parametrize(
    "data", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", b"<html>not http</html>\r\n\r\n"]
)
async def test_a_broken_answer_leaves_the_outcome_unknown(data: bytes) -> None:
    async with server(saying(data)) as url:
        with pytest.raises(TimedOut):
            await get(url)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "file:///etc/passwd",
        "//host/x",
        "http://",
        "http://user:secret@host/",
        "http://host:99999/",
        "http://ho\nst/",
        "http://host/" + "x" * 2_048,
    ],
)
async def test_a_url_that_must_not_be_called_is_a_bad_address(url: str) -> None:
    with pytest.raises(BadAddress) as caught:
        await get(url)
    assert not caught.value.sent
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["a\r\nx: y", "é"])
async def test_a_header_that_cannot_be_sent_is_refused_before_anything_leaves(value: str) -> None:
    async with server(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as url:
        with pytest.raises(BadAddress):
            await HttpClient().request("GET", url, headers={"x": value}, content=None, timeout_s=1, body_bytes_max=1)


async def test_an_error_shows_scheme_host_and_port_and_neither_path_nor_query() -> None:
    async with server(saying(b"")) as url:
        for hidden in ("/v2/hidden", "/x?key=hidden", "?hidden", "#hidden"):
            with pytest.raises(OutboundError) as caught:
                await get(url + hidden)
            assert "hidden" not in str(caught.value)
            assert str(caught.value).startswith(f"GET {url}: ")


@pytest.mark.parametrize(
    "url",
    [
        "hidden",
        "//host/hidden",
        "ftp://host/hidden",
        "http://host:hidden/",
        "http://a:hidden@host/",
        "http://h\\hidden",
    ],
)
async def test_an_address_that_cannot_be_called_is_not_shown_whole(url: str) -> None:
    with pytest.raises(OutboundError) as caught:
        await get(url, timeout_s=1)
    assert "hidden" not in str(caught.value)


async def test_a_header_that_cannot_be_sent_is_not_shown() -> None:
    async with server(saying(b"")) as url:
        with pytest.raises(BadAddress) as caught:
            await HttpClient().request(
                "GET", url, headers={"x": "hidden\n"}, content=None, timeout_s=1, body_bytes_max=1
            )
    assert "hidden" not in str(caught.value)


def test_one_client_serves_two_event_loops_in_turn() -> None:
    client = HttpClient()

    async def once() -> int:
        async with server(saying(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) as url:
            return (await get(url, client=client)).status

    assert [asyncio.run(once()), asyncio.run(once())] == [200, 200]
