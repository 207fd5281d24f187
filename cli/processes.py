"""
The world of a developer as processes of their own: control plane, vendors, facilitator, and the chain.

Each gets a socket that is bound already, so no port is raced for; its log goes to a file beside the others.
"""

import asyncio
import logging
import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx

from agent.config import AgentSettings
from inbound.logs import configure_logs
from inbound.serve import bound_socket, serve, stopped_by_signals
from vendor_mock.catalogue import VendorPlan
from vendor_mock.config import VendorMockSettings

if TYPE_CHECKING:
    from api.config import ApiSettings
    from gpu_worker.config import WorkerSettings

READY_S = 30.0
# A worker measures its device before it sells: seconds of work for a program that has to load torch first.
ONLINE_S = 200.0
STOP_S = 10.0


def end_on_sigterm() -> None:
    """From now on SIGTERM unwinds this process as Ctrl-C does, so that what it started is ended too."""

    def unwind(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, unwind)


class NotReady(Exception):
    """A process did not come up; the message ends with what it said last."""


def control_plane(server: socket.socket, settings: AgentSettings, api: "ApiSettings") -> None:
    from agent.wiring import open_agent
    from api.door import create_app

    serve(create_app(lambda: open_agent(settings), settings=api), server, name="control plane", drain_s=5)


def vendors(server: socket.socket, settings: VendorMockSettings, plans: tuple[VendorPlan, ...] | None) -> None:
    from vendor_mock.app import create_app

    serve(create_app(settings, plans=plans), server, name="vendor mock", drain_s=2)


def facilitator(server: socket.socket, rpc_url: str, private_key: str, network: str) -> None:
    from vendor_mock.facilitator import create_facilitator

    serve(create_facilitator(rpc_url, private_key, network), server, name="facilitator", drain_s=2)


def worker(server: socket.socket, settings: "WorkerSettings") -> None:
    from gpu_worker.lifecycle import live
    from gpu_worker.wiring.worker import open_worker

    async def lived() -> None:
        await live(open_worker(settings, server=server), stopped_by_signals())

    asyncio.run(lived())


def _main(serve_it: Callable[..., None], server: socket.socket, log: Path, arguments: tuple[Any, ...]) -> None:
    with log.open("a", buffering=1) as stream:
        sys.stderr = sys.stdout = stream
        configure_logs(logging.INFO)
        serve_it(server, *arguments)


def url_of(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}"


@dataclass(frozen=True, slots=True)
class _Child:
    name: str
    process: BaseProcess
    stop_s: float


@dataclass
class Processes:
    """Processes that end with this context, the last one started first. Logs are `folder/<name>.log`."""

    folder: Path
    _running: list[_Child] = field(default_factory=list)

    def start(
        self,
        serve_it: Callable[..., None],
        name: str,
        port: int | socket.socket,
        *arguments: Any,
        stop_s: float = STOP_S,
    ) -> str:
        """
        Start `serve_it` on a loopback socket of its own; return its URL. A taken `port` is replaced by a free one.

        It is not ready yet: `wait_until_ready`.

        Args:
            port: or the socket itself, where something had to know the address before.
            stop_s: the seconds that it has to end in, once it is asked to.
        """
        server = bound_socket("127.0.0.1", port, chosen=False) if isinstance(port, int) else port
        url = url_of(server)
        # A fresh interpreter: a fork would inherit threads, loops and connections.
        process = multiprocessing.get_context("spawn").Process(
            target=_main, args=(serve_it, server, self.folder / f"{name}.log", arguments), name=name, daemon=True
        )
        process.start()
        server.close()
        self._running.append(_Child(name, process, stop_s))
        return url

    def kill(self, name: str) -> None:
        """End a process as the kernel does when it takes one: no word, no time."""
        child = next(child for child in self._running if child.name == name)
        child.process.kill()
        child.process.join()
        self._running.remove(child)

    def wait_until_ready(self, *urls: str) -> None:
        """Return when every address answers /health. Raises NotReady when a process died or READY_S passed."""
        self._wait(urls, READY_S, lambda health: True)

    def wait_until_online(self, *urls: str) -> None:
        """Return when the workers at these addresses sell. Raises NotReady when one died or ONLINE_S passed."""
        self._wait(urls, ONLINE_S, lambda health: health.get("state") == "online")

    def _wait(self, urls: tuple[str, ...], limit_s: float, is_it: Callable[[dict[str, Any]], bool]) -> None:
        deadline = time.monotonic() + limit_s
        for url in urls:
            while (health := _health(url)) is None or not is_it(health):
                dead = next((child.name for child in self._running if not child.process.is_alive()), None)
                if dead is not None or time.monotonic() > deadline:
                    raise NotReady(f"{dead or url} did not come up: {self.last_words(dead)}")
                time.sleep(0.05)

    def last_words(self, name: str | None) -> str:
        """Return the end of a process's log."""
        log = self.folder / f"{name}.log"
        return log.read_text()[-1_500:].strip() if log.exists() else "it said nothing"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in reversed(self._running):
            child.process.terminate()
        for child in reversed(self._running):
            child.process.join(child.stop_s)
            if child.process.is_alive():
                child.process.kill()


def _health(url: str) -> dict[str, Any] | None:
    try:
        answer = httpx.get(f"{url}/health", timeout=2, trust_env=False)
    except httpx.TransportError:
        return None
    if answer.status_code != 200:
        return None
    try:
        return dict(answer.json())
    except (ValueError, TypeError):
        return {}
