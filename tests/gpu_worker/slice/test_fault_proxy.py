"""The proxy with the faults of a network does what it says, or no test through it would show anything."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import pytest

from tests.fixtures.fault_proxy import FaultProxy, Faults, proxy_to


@pytest.fixture
async def echo() -> AsyncIterator[str]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await server.wait_closed()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def of(cls, proxy: FaultProxy) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    async def ask(self, data: bytes) -> tuple[bytes, float]:
        """Return what came back, and after how many seconds."""
        began = time.perf_counter()
        self.writer.write(data)
        return await self.reader.readexactly(len(data)), time.perf_counter() - began

    async def close(self) -> None:
        self.writer.transport.abort()


async def test_bytes_go_through_as_they_are(echo: str) -> None:
    async with proxy_to(echo) as proxy:
        client = await Client.of(proxy)
        data = bytes(range(256)) * 4096
        assert (await client.ask(data))[0] == data
        assert proxy.forwarded == 2 * len(data)
        await client.close()


async def test_delay_is_paid_once_each_way_by_what_is_sent_together(echo: str) -> None:
    async with proxy_to(echo, faults=Faults(delay_s=0.05)) as proxy:
        client = await Client.of(proxy)
        _, took_s = await client.ask(b"x")
        assert 0.1 <= took_s < 0.3
        # Many at once wait beside each other, not behind each other.
        began = time.perf_counter()
        for _ in range(20):
            client.writer.write(b"y" * 1000)
            await client.writer.drain()
        await client.reader.readexactly(20_000)
        assert 0.1 <= time.perf_counter() - began < 0.5
        await client.close()


async def test_jitter_never_lets_bytes_overtake(echo: str) -> None:
    async with proxy_to(echo, faults=Faults(jitter_s=0.01)) as proxy:
        client = await Client.of(proxy)
        sent = b""
        for number in range(30):
            part = f"{number:04}".encode()
            client.writer.write(part)
            await client.writer.drain()
            sent += part
        assert await client.reader.readexactly(len(sent)) == sent
        await client.close()


async def test_a_throttle_lets_so_many_bytes_through(echo: str) -> None:
    async with proxy_to(echo, faults=Faults(bytes_per_s=1_000_000)) as proxy:
        client = await Client.of(proxy)
        _, took_s = await client.ask(bytes(200_000))
        assert took_s >= 0.2
        await client.close()


async def test_half_open_keeps_the_connection_and_nothing_comes(echo: str) -> None:
    async with proxy_to(echo) as proxy:
        client = await Client.of(proxy)
        await client.ask(b"before")
        proxy.freeze()
        asking = asyncio.create_task(client.ask(b"during"))
        done, _ = await asyncio.wait({asking}, timeout=0.2)
        assert not done
        assert not client.reader.at_eof()
        proxy.thaw()
        assert (await asking)[0] == b"during"
        await client.close()


async def test_cut_resets_and_refusing_lets_nobody_in(echo: str) -> None:
    async with proxy_to(echo) as proxy:
        client = await Client.of(proxy)
        await client.ask(b"before")
        proxy.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await client.ask(b"after")
        proxy.is_refusing = True
        refused = await Client.of(proxy)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await refused.ask(b"again")
        await client.close()
        await refused.close()


async def test_one_byte_is_spoiled_once(echo: str) -> None:
    async with proxy_to(echo) as proxy:
        client = await Client.of(proxy)
        proxy.spoil(b"mark")
        assert (await client.ask(b"a markA"))[0] == b"a mark" + bytes([ord("A") ^ 0x40])
        assert (await client.ask(b"a markA"))[0] == b"a markA"
        assert proxy.spoiled == 1
        await client.close()


async def test_it_serves_as_a_process_of_a_benchmark(echo: str) -> None:
    command = [sys.executable, "-m", "tests.fixtures.fault_proxy", echo, "--rtt-ms", "20"]
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    port = int(await process.stdout.readline())
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    _, took_s = await client.ask(b"x")
    assert took_s >= 0.02
    await client.close()
    process.stdin.close()
    assert await process.wait() == 0
