"""
One HTTP request to another machine, whose answer is hostile until checked.

What keeps it safe: one total time, sizes refused while they stream, no redirect followed, no cookie kept,
no proxy or certificate taken from the environment, no compressed body asked for and none inflated.

A connection lives for one request. A kept one that its server has just closed looks the same as a request
received and never answered, which for a request that carries money is the difference between "not sent" and
"outcome unknown". It also leaves nothing behind that belongs to an event loop: any loop may call, in any order.
"""

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import cast

import httpx

from outbound.errors import BadAddress as BadAddress
from outbound.errors import Broken as Broken
from outbound.errors import NotServed as NotServed
from outbound.errors import OutboundError as OutboundError
from outbound.errors import TimedOut as TimedOut
from outbound.errors import TooLarge as TooLarge
from outbound.errors import Unreachable as Unreachable
from outbound.faults import shown, translated
from outbound.guard import Guard

URL_CHARS_MAX = 2_048
HEADER_BYTES_MAX = 32 * 1024
CONNECT_S = 5.0

_Content = bytes | AsyncIterable[bytes] | None

_OURS = (("user-agent", "livery"), ("accept-encoding", "identity"), ("connection", "close"))


@dataclass(frozen=True, slots=True)
class HttpReply:
    """An answer of any status. Header names are lower-case; `content` is as it came, never inflated."""

    status: int
    headers: Mapping[str, str]
    content: bytes


@dataclass(frozen=True, slots=True)
class HttpStream:
    """An answer of any status, whose body is read as it comes. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


class HttpClient:
    """
    The guarded client. It holds no connection and no state, so one serves every caller.

    Args:
        transport: what carries requests instead of the network (tests: `httpx.ASGITransport`); it is never closed here.
        guard: for addresses that strangers name: says which address a host is called at, or refuses it (BadAddress).
    """

    def __init__(self, transport: httpx.AsyncBaseTransport | None = None, guard: Guard | None = None) -> None:
        self._transport = transport
        self._guard = guard

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        content: bytes | None,
        timeout_s: float,
        body_bytes_max: int,
    ) -> HttpReply:
        """
        Return the answer to one request, whatever its status; a redirect is an answer like any other.

        `timeout_s` bounds the whole exchange, half of it (at most CONNECT_S) the making of the connection.

        Raises:
            BadAddress, Unreachable: nothing was sent.
            TimedOut: the request may have been served.
            TooLarge: the headers exceed HEADER_BYTES_MAX or the body `body_bytes_max`.
        """
        return await self._exchanged(method, url, headers, content, timeout_s, body_bytes_max)

    async def upload(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        chunks: AsyncIterable[bytes],
        size_bytes: int,
        timeout_s: float,
        body_bytes_max: int,
    ) -> HttpReply:
        """
        Return the answer to one request whose body is `chunks`, `size_bytes` in all, sent as they come.

        Raises:
            BadAddress, Unreachable: nothing was sent.
            TimedOut: the request may have been served; or the chunks were not `size_bytes`, and it was not sent whole.
            TooLarge: the headers exceed HEADER_BYTES_MAX or the answer `body_bytes_max`.
        """
        sent = {**headers, "content-length": str(size_bytes)}
        return await self._exchanged(method, url, sent, _exactly(chunks, size_bytes), timeout_s, body_bytes_max)

    async def _exchanged(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: _Content,
        timeout_s: float,
        body_bytes_max: int,
    ) -> HttpReply:
        received = bytearray()
        with translated(method, url, timeout_s):
            request = _request(method, url, headers, content, timeout_s)
            async with asyncio.timeout(timeout_s), self._answer(request) as response:
                async for chunk in _body(response):
                    received += chunk
                    _limit(url, len(received), body_bytes_max)
                return HttpReply(response.status_code, dict(response.headers), bytes(received))

    async def download(
        self, url: str, *, headers: Mapping[str, str], timeout_s: float, body_bytes_max: int
    ) -> AsyncGenerator[bytes, None]:
        """
        Yield the body of a GET that is answered 200, chunk by chunk; close it (`aclosing`) where it is not read whole.

        `timeout_s` bounds all of it, what is done with the chunks included.

        Raises:
            BadAddress, Unreachable: nothing was sent.
            TimedOut: the body did not come whole, or not in time.
            TooLarge: the headers exceed HEADER_BYTES_MAX or the body `body_bytes_max`.
            NotServed: another status.
        """
        deadline, received = asyncio.get_running_loop().time() + timeout_s, 0
        with translated("GET", url, timeout_s):
            async with AsyncExitStack() as stack:
                # A timeout may not stand around a `yield`: it would cancel whoever reads.
                async with asyncio.timeout_at(deadline):
                    request = _request("GET", url, headers, None, timeout_s)
                    response = await stack.enter_async_context(self._answer(request))
                if response.status_code != 200:
                    raise NotServed(response.status_code, f"GET {shown(url)}: answered {response.status_code}")
                chunks = _body(response)
                while True:
                    async with asyncio.timeout_at(deadline):
                        chunk = await anext(chunks, None)
                    if chunk is None:
                        return
                    received += len(chunk)
                    _limit(url, received, body_bytes_max)
                    yield chunk

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, *, headers: Mapping[str, str], content: bytes | None, silence_s: float
    ) -> AsyncIterator[HttpStream]:
        """
        Yield the answer to one request, whatever its status; leaving it ends the exchange, however much is to come.

        Its headers come within `silence_s`, then each part of its body does. How long all of it may take, and how much
        of it there may be, is for whoever reads.

        Raises, also while it is read:
            BadAddress, Unreachable: nothing was sent.
            TimedOut: nothing came for `silence_s`.
            Broken: the body did not come whole.
            TooLarge: the headers exceed HEADER_BYTES_MAX.
        """
        async with AsyncExitStack() as stack:
            with translated(method, url, silence_s):
                # A timeout may not stand around a `yield`: it would cancel whoever reads.
                async with asyncio.timeout(silence_s):
                    request = _request(method, url, headers, content, silence_s)
                    response = await stack.enter_async_context(self._answer(request))
            chunks = _translated_body(method, url, silence_s, response)
            yield HttpStream(response.status_code, dict(response.headers), chunks)

    @asynccontextmanager
    async def _answer(self, request: httpx.Request) -> AsyncIterator[httpx.Response]:
        """Yield the answer to `request`, its headers within their limit, its body not read."""
        async with AsyncExitStack() as stack:
            await self._direct(request)
            transport = self._transport
            if transport is None:
                transport = await stack.enter_async_context(httpx.AsyncHTTPTransport(verify=_tls(), trust_env=False))
            response = await transport.handle_async_request(request)
            stack.push_async_callback(response.aclose)
            if sum(len(name) + len(value) for name, value in response.headers.raw) > HEADER_BYTES_MAX:
                raise TooLarge(f"{shown(str(request.url))}: the headers exceed {HEADER_BYTES_MAX} bytes")
            yield response

    async def _direct(self, request: httpx.Request) -> None:
        """Send `request` to the address that the guard checked: its host stays what Host and TLS name."""
        if self._guard is None:
            return
        url, host = request.url, request.url.raw_host.decode("ascii")
        address = await self._guard(host, url.port or (443 if url.scheme == "https" else 80))
        request.url = url.copy_with(host=address)
        request.extensions["sni_hostname"] = host


async def _exactly(chunks: AsyncIterable[bytes], size_bytes: int) -> AsyncIterator[bytes]:
    """Yield `chunks`. Raises TimedOut at their end, or before what is too much, where they are not `size_bytes`."""
    left = size_bytes
    async for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            break
        yield chunk
    if left != 0:
        raise TimedOut(f"what was to be sent is not {size_bytes} bytes long, and was not sent whole")


def _body(response: httpx.Response) -> AsyncIterator[bytes]:
    """Return the body as it comes, never inflated."""
    return aiter(cast(httpx.AsyncByteStream, response.stream))


async def _translated_body(method: str, url: str, silence_s: float, response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the body as it comes. Each read of it has the request's own timeout."""
    with translated(method, url, silence_s):
        async for chunk in _body(response):
            yield chunk


def _limit(url: str, received: int, bytes_max: int) -> None:
    if received > bytes_max:
        raise TooLarge(f"{shown(url)}: the body exceeds {bytes_max} bytes")


def _request(method: str, url: str, headers: Mapping[str, str], content: _Content, timeout_s: float) -> httpx.Request:
    """Return the request to send. Raises BadAddress."""
    if len(url) > URL_CHARS_MAX:
        raise BadAddress(f"a URL has at most {URL_CHARS_MAX} characters")
    target = httpx.URL(url)
    if target.scheme not in ("http", "https") or not target.host:
        raise BadAddress(f"{shown(url)} is not an http or https URL")
    if target.port is not None and target.port > 65_535:
        raise BadAddress(f"{shown(url)} has a port above 65535")
    if target.userinfo:
        raise BadAddress("a URL with a name or password in it is not called")
    connect_s = min(CONNECT_S, timeout_s / 2)
    times = httpx.Timeout(timeout_s, connect=connect_s, pool=connect_s).as_dict()
    try:
        sent = {name.lower(): value for name, value in headers.items()} | dict(_OURS)
        return httpx.Request(method, target, headers=sent, content=content, extensions={"timeout": times})
    except UnicodeEncodeError:
        raise BadAddress("a header may hold ASCII only") from None


def joined(base: str, url: str) -> str:
    """
    Return `url`, which may be relative to `base`, where it has the scheme, host and port of `base`.

    Raises:
        BadAddress: it has others, or is no URL.
    """
    if len(url) > URL_CHARS_MAX:
        raise BadAddress(f"a URL has at most {URL_CHARS_MAX} characters")
    try:
        start = httpx.URL(base.rstrip("/") + "/")
        found = start.join(url)
    except (httpx.InvalidURL, ValueError):
        raise BadAddress("this is not a URL") from None
    if (found.scheme, found.host, found.port) != (start.scheme, start.host, start.port):
        raise BadAddress(f"{shown(str(found))} is another address than {shown(base)}")
    return str(found)


@cache
def _tls() -> ssl.SSLContext:
    """Return the one TLS context, made at the first request: reading the certificates takes about 20 ms."""
    return httpx.create_ssl_context(trust_env=False)
