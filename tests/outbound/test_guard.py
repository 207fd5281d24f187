"""What a stranger may make this machine call, and that the address which was checked is the one that is called."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from outbound.guard import Resolve, guard, public_address, resolved
from outbound.http import BadAddress, HttpClient, Unreachable
from tests.outbound.test_http import saying, server

PUBLIC = (
    "8.8.8.8",
    "1.0.0.1",
    "100.63.255.255",
    "100.128.0.1",
    "172.32.0.1",
    "192.0.1.1",
    "2001:4860:4860::8888",
    "2606:4700::1111",
    "64:ff9b::8.8.8.8",
    "::ffff:8.8.8.8",
)
OURS = (
    "127.0.0.1",
    "127.1.2.3",
    "::1",
    "::ffff:127.0.0.1",
    "64:ff9b::127.0.0.1",
)
PRIVATE = (
    "0.0.0.0",  # noqa: S104 - not bound
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::7f00:1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:db8::1",
    "2002:7f00:1::",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "localhost",
)


def saying_addresses(*answers: Sequence[str]) -> tuple[Resolve, list[str]]:
    """Return a resolver that gives one answer after the other, and the hosts that it was asked for."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return list(answers[len(asked) - 1])

    return resolve, asked


@pytest.mark.parametrize("address", PUBLIC)
async def test_what_the_whole_internet_reaches_is_called(address: str) -> None:
    resolve, _ = saying_addresses([address])
    assert await public_address("host", 443, resolve=resolve) == address


@pytest.mark.parametrize("address", [*OURS, *PRIVATE])
async def test_what_only_we_reach_is_not_called(address: str) -> None:
    resolve, _ = saying_addresses([address])
    with pytest.raises(BadAddress, match=r"^host is .*: only public addresses are called$") as refused:
        await public_address("host", 443, resolve=resolve)
    assert ("this machine" in str(refused.value)) is (address in OURS)


@pytest.mark.parametrize("mixed", [["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"], ["8.8.8.8", "::1"]])
async def test_a_name_with_one_address_of_ours_among_others_is_a_trap(mixed: list[str]) -> None:
    resolve, _ = saying_addresses(mixed)
    with pytest.raises(BadAddress):
        await public_address("host", 443, resolve=resolve)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "::ffff:7f00:1"])
async def test_a_spelling_of_this_machine_is_this_machine(host: str) -> None:
    """By the machine's own resolver: what it makes of the text is what would be called."""
    with pytest.raises((BadAddress, Unreachable)):
        await public_address(host, 80)


async def test_a_name_server_that_never_answers_keeps_no_thread_from_our_own_work() -> None:
    """Resolving waits in threads of its own: here those of everything else are all taken."""
    is_over = threading.Event()
    with ThreadPoolExecutor(max_workers=1) as ours:
        asyncio.get_running_loop().set_default_executor(ours)
        waiting = asyncio.create_task(asyncio.to_thread(is_over.wait))
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(5):
                assert await resolved("127.0.0.1", 80) == ["127.0.0.1"]
        finally:
            is_over.set()
            await waiting


async def test_a_name_without_an_address_is_not_reached() -> None:
    resolve, _ = saying_addresses([])
    with pytest.raises(Unreachable):
        await public_address("host", 80, resolve=resolve)
    with pytest.raises(Unreachable):
        await public_address("a" * 64 + ".example", 80)


async def test_the_name_is_asked_for_once_and_the_checked_address_is_called_under_its_name() -> None:
    resolve, asked = saying_addresses(["8.8.8.8"], ["127.0.0.1"])
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200)

    client = HttpClient(httpx.MockTransport(answer), guard(allow_private=False, resolve=resolve))
    await client.request(
        "GET", "https://rebinding.example:8443/x?y", headers={}, content=None, timeout_s=1, body_bytes_max=1
    )
    (request,) = seen
    assert asked == ["rebinding.example"]
    assert str(request.url) == "https://8.8.8.8:8443/x?y"
    assert request.headers["host"] == "rebinding.example:8443"
    # Whose certificate is asked for and checked.
    assert request.extensions["sni_hostname"] == "rebinding.example"


async def test_the_second_answer_of_a_rebinding_name_is_refused() -> None:
    resolve, _ = saying_addresses(["8.8.8.8"], ["127.0.0.1"])
    client = HttpClient(httpx.MockTransport(lambda _: httpx.Response(200)), guard(allow_private=False, resolve=resolve))
    url = "http://rebinding.example/"
    assert (await client.request("GET", url, headers={}, content=None, timeout_s=1, body_bytes_max=1)).status == 200
    with pytest.raises(BadAddress):
        await client.request("GET", url, headers={}, content=None, timeout_s=1, body_bytes_max=1)


async def test_nothing_is_sent_to_this_machine_but_where_its_owner_allows_it() -> None:
    called = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        await saying(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")(reader, writer)

    async with server(answer) as url:
        strange = HttpClient(guard=guard(allow_private=False))
        with pytest.raises(BadAddress, match=r"127\.0\.0\.1 is this machine"):
            await strange.request("GET", url, headers={}, content=None, timeout_s=5, body_bytes_max=1)
        with pytest.raises(BadAddress):
            await anext(strange.download(url, headers={}, timeout_s=5, body_bytes_max=1))
        assert not called.is_set()
        own = HttpClient(guard=guard(allow_private=True))
        assert (await own.request("GET", url, headers={}, content=None, timeout_s=5, body_bytes_max=1)).status == 200
        assert called.is_set()
