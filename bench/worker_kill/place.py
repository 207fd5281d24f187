"""Where the kills happen: a chain, a facilitator, a control plane and two workers, each a process of its own."""

import asyncio
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from agent.config import AgentSettings
from agent.ports import Agent
from agent.vendors import register
from agent.wiring import open_agent
from chain.devchain import DevChain, dev_account
from gpu_worker.core.model import Job
from gpu_worker.edges.jobs.book_sqlite import open_jobs
from gpu_worker.edges.jobs.job_folder import DiskFolders
from storefront.book import SqliteBook
from tests.fixtures.server import Server

SECRET = "the-secret-of-both-workers"  # noqa: S105 - of workers that live as long as this program
PAYER = dev_account(1)
ACCOUNTS = (8, 4)
PAID_IN = 100_000_000_000
MODEL, TEXT = "tiny-llm", "house-text.jsonl"
ONLINE_S = 120.0
# A worker that says nothing for so long is lost, and its job goes on elsewhere.
LOST_AFTER_S, LOST_POLLS, LEASE_S = 8, 3, 6
# Below what the system gives to outgoing connections: a port stays free while its owner is dead.
PORTS = range(20_000, 32_000)


@dataclass
class Part:
    """A process that is killed and started again, on the same port and the same data."""

    name: str
    url: str
    command: tuple[str, ...]
    environment: dict[str, str]
    logs: Path
    starts: int = 0
    server: Server | None = None

    def start(self) -> None:
        self.starts += 1
        self.server = Server(self.logs / f"{self.name}-{self.starts}.log", *self.command, **self.environment)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self.server is not None
        return self.server.process

    @property
    def is_alive(self) -> bool:
        return self.server is not None and self.process.poll() is None

    def kill(self) -> bool:
        """Send SIGKILL to this process alone; return whether it died of that."""
        self.process.kill()
        return self.process.wait(30) == -signal.SIGKILL

    def stop(self) -> None:
        if self.is_alive and self.server is not None:
            with suppress(subprocess.TimeoutExpired):
                self.server.stop()

    @property
    def said(self) -> str:
        """What it has logged, in all its lives."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.logs.glob(f"{self.name}-*.log")))


@dataclass
class WorkerPart(Part):
    """A worker; `book` and `folders` are read beside it."""

    data: Path = Path()
    address: str = ""

    @property
    def book(self) -> SqliteBook[Job]:
        return open_jobs(self.data / "worker.db")

    @property
    def folders(self) -> DiskFolders:
        return DiskFolders(self.data / "jobs")

    async def is_online(self) -> bool:
        with suppress(httpx.TransportError, ValueError):
            async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
                reply = await client.get(f"{self.url}/health")
                return bool(reply.json().get("state") == "online")
        return False

    async def await_online(self) -> None:
        until_s = time.monotonic() + ONLINE_S
        while not await self.is_online():
            if not self.is_alive or time.monotonic() > until_s:
                raise RuntimeError(f"{self.name} is not online: {self.said[-2_000:]}")
            await asyncio.sleep(0.1)

    async def jobs(self) -> list[Job]:
        """Return every job that it has sold."""
        book = self.book
        try:
            return await book.jobs()
        finally:
            await book.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """`agent` reads the control plane's store beside it, it ticks nothing; `errands` are requests that go on."""

    folder: Path
    chain: DevChain
    plane: Part
    workers: tuple[WorkerPart, ...]
    agent: Agent
    errands: set[asyncio.Task[None]] = field(default_factory=set)

    def worker(self, vendor_id: str) -> WorkerPart:
        return next(worker for worker in self.workers if worker.name == vendor_id)


async def open_place(stack: ExitStack, tiny: Path | None = None) -> Place:
    """
    Return the place with everything started and the workers registered; `stack` ends it.

    Args:
        tiny: the folder that `gpu_worker.engine.tiny` has filled; None fills one.
    """
    folder = Path(tempfile.mkdtemp(prefix="livery-worker-kills-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    (folder / "logs").mkdir()
    if tiny is None:
        tiny = folder / "tiny"
        await asyncio.to_thread(_make_tiny, tiny)
    chain = stack.enter_context(DevChain.start(block_time_s=1))
    chain.mint(PAYER.address, PAID_IN - chain.balance(PAYER.address))
    facilitator = Part(
        "facilitator",
        "",
        ("cli", "facilitator", "--port", "0"),
        {"LIVERY_FACILITATOR_RPC_URL": chain.url},
        folder / "logs",
    )
    _started(stack, facilitator)
    assert facilitator.server is not None
    workers = tuple(
        _worker(folder, number, account, tiny, chain, facilitator.server.url)
        for number, account in enumerate(ACCOUNTS, start=1)
    )
    await _begun(stack, workers)
    plane, settings = _plane(folder, chain)
    agent = open_agent(AgentSettings.model_validate(settings))
    await agent.store.migrate()
    for worker in workers:
        await register(agent, worker.name, worker.url)
    _started(stack, plane)
    return Place(folder=folder, chain=chain, plane=plane, workers=workers, agent=agent)


def _make_tiny(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "gpu_worker.engine.tiny", str(folder)], check=True, capture_output=True)


def _started(stack: ExitStack, part: Part) -> None:
    part.start()
    stack.callback(part.stop)


async def _begun(stack: ExitStack, workers: tuple[WorkerPart, ...]) -> None:
    """Start the workers; what the first has measured of this machine is the second's as well."""
    first, *others = workers
    _started(stack, first)
    await first.await_online()
    for other in others:
        shutil.copytree(first.data / "devices", other.data / "devices")
        _started(stack, other)
        await other.await_online()


def _worker(folder: Path, number: int, account: int, tiny: Path, chain: DevChain, facilitator: str) -> WorkerPart:
    port, data = free_port(), folder / f"worker-{number}"
    data.mkdir()
    settings: dict[str, Any] = {
        "name": f"worker-{number}",
        "kinds": "fine_tune",
        "data": data,
        "models": tiny,
        "default_model": MODEL,
        "default_dataset": tiny / TEXT,
        "private_key": dev_account(account).key,
        "secret": SECRET,
        "rpc_url": chain.url,
        "facilitator_url": facilitator,
        "port": port,
        "price_per_hour": Decimal(1),
        "allow_private_urls": "true",
        "disk_reserve_mb": 0,
        "threads": 1,
        "yield_on": "none",
    }
    return WorkerPart(
        f"worker-{number}",
        f"http://127.0.0.1:{port}",
        ("cli", "worker", "start"),
        {f"LIVERY_WORKER_{name.upper()}": str(value) for name, value in settings.items()},
        folder / "logs",
        data=data,
        address=dev_account(account).address,
    )


def _plane(folder: Path, chain: DevChain) -> tuple[Part, dict[str, Any]]:
    """Return the control plane, and its settings for who reads its store."""
    port = free_port()
    settings: dict[str, Any] = {
        "database_url": f"sqlite:///{folder / 'livery.db'}",
        "artifact_url": str(folder / "artifacts"),
        "private_key": PAYER.key,
        "rpc_url": chain.url,
        "vendor_secrets": SECRET,
        "planner_mode": "stub",
        "vendor_day_max": 100_000,
        "wallet_day_max": 100_000,
        "lease_s": LEASE_S,
        "poll_interval_s": 1,
        "lost_polls": LOST_POLLS,
        "lost_after_s": LOST_AFTER_S,
        "callback_url": f"http://127.0.0.1:{port}",
    }
    environment = {f"LIVERY_AGENT_{name.upper()}": str(value) for name, value in settings.items()}
    environment |= {"LIVERY_API_PORT": str(port), "LIVERY_API_TICK": "true"}
    command = ("bench.worker_kill.plane",)
    return Part("control-plane", f"http://127.0.0.1:{port}", command, environment, folder / "logs"), settings


def free_port() -> int:
    """Return a port that nobody listens at."""
    chance = random.SystemRandom()
    while True:
        port = chance.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
