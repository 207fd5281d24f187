"""What goes over the wire: a proxy between two stages that counts it, and may delay it."""

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path

from bench.decode.arms import ROOT, Livery, free_ports
from tests.fixtures.fault_proxy import Faults, proxy_to


class Proxy:
    """A proxy to `port` in a process of its own; `rtt_ms` is what it adds to the way there and back."""

    def __init__(self, port: int, rtt_ms: float = 0.0) -> None:
        command = [sys.executable, "-m", "bench.decode.wire", f"127.0.0.1:{port}", str(rtt_ms)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        self.endpoint = f"127.0.0.1:{self._ask('port')}"

    def _ask(self, word: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    @property
    def forwarded(self) -> int:
        """The bytes that went through it so far, both ways together."""
        return self._ask("bytes")

    def set_rtt(self, rtt_ms: float) -> None:
        self._ask(f"{rtt_ms}")

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def behind_proxy(folder: Path, slices: tuple[str, str]) -> tuple[Livery, Proxy]:
    """Return an arm of two stages, not started, and the proxy between them."""
    ports = free_ports(2)
    proxy = Proxy(ports[1])
    return Livery("ours through a proxy", folder, slices, ports=ports, dialled={1: proxy.endpoint}), proxy


def bytes_of_a_step(folder: Path, slices: tuple[str, str], prompt: list[int], count: int) -> float:
    """Return the bytes of a decode step of one session between two stages, both ways, gRPC's and HTTP/2's included."""
    arm, proxy = behind_proxy(folder, slices)
    try:
        arm.start()
        arm.turn([prompt], 2)
        sums = []
        for tokens in (2, 2 + count):
            before = proxy.forwarded
            arm.turn([prompt], tokens)
            sums.append(proxy.forwarded - before)
        return (sums[1] - sums[0]) / count
    finally:
        arm.stop()
        proxy.stop()


async def _main(arguments: argparse.Namespace) -> None:
    async with proxy_to(arguments.to, faults=Faults(arguments.rtt_ms / 2_000)) as proxy:
        while word := (await asyncio.to_thread(sys.stdin.readline)).strip():
            if word not in ("port", "bytes"):
                proxy.faults.delay_s = float(word) / 2_000
            print(proxy.port if word == "port" else proxy.forwarded, flush=True)


if __name__ == "__main__":
    reader = argparse.ArgumentParser()
    reader.add_argument("to")
    reader.add_argument("rtt_ms", type=float)
    asyncio.run(_main(reader.parse_args()))
