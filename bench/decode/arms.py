"""
The engines that are timed, each in processes of its own that wait between its turns: ours and its peers.

Every arm generates dependent tokens of the same random model; time is taken from the first token to the last.
"""

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx

from bench.decode.client import Turn, ask
from bench.decode.config import environment

ROOT = Path(__file__).resolve().parents[2]
START_S = 600


class Arm(Protocol):
    name: str

    def start(self) -> None: ...

    def turn(self, prompts: Sequence[Sequence[int]], count: int) -> Turn:
        """Generate `count` tokens behind each prompt, all sessions together."""

    @property
    def processes(self) -> tuple[str, ...]:
        """The processes that compute: pid and threads, as text."""

    def stop(self) -> None: ...


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@dataclass
class Worker:
    """`livery worker start` with a model, or some `layers` of it, its gRPC door at `port`, its files in `home`."""

    model: Path
    layers: str
    port: int
    home: Path
    after: str = ""
    threads: int = 1
    options: tuple[str, ...] = ()
    url: str = ""

    def start(self) -> None:
        """Start it; `wait` returns when it is online."""
        self.home.mkdir(parents=True, exist_ok=True)
        self._log = self.home / "log"
        command = [sys.executable, "-m", "cli", "worker", "start", "--model", str(self.model)]
        command += ["--name", f"bench-{self.port}", "--data", str(self.home / "data")]
        command += ["--layers", self.layers] if self.layers else []
        command += ["--port", "0", "--grpc-port", str(self.port), *self.options]
        command += ["--next", self.after] if self.after else []
        more = {"LIVERY_WORKER_THREADS": str(self.threads), "HOME": str(self.home)}
        with self._log.open("wb") as said:
            self._process = subprocess.Popen(
                command,
                stdout=said,
                stderr=said,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env={**environment(self.threads), **more},
            )

    def wait(self) -> None:
        await_so(lambda: _online(self._log, self._process), self._log)
        self.url = _online(self._log, self._process) or ""

    @property
    def pid(self) -> int:
        return self._process.pid

    def status(self) -> dict[str, Any]:
        """Return what it says of its slice."""
        found: dict[str, Any] = httpx.get(f"{self.url}/api/v1/status").json()["slice"]
        return found

    def await_route(self) -> None:
        """Return when it has a way through all layers, as a head has."""
        await_so(lambda: any(hop["isUsed"] for hop in self.status()["route"]), self._log)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass
class Livery:
    """
    A pipeline of workers, one process for each of `slices`, in their order; asked over HTTP at the head.

    `dialled` says by what endpoint a stage is reached, by its place, where there is a proxy before it.
    """

    name: str
    model: Path
    slices: tuple[str, ...]
    threads: int = 1
    options: tuple[str, ...] = ()
    ports: list[int] = field(default_factory=list)
    dialled: dict[int, str] = field(default_factory=dict)

    def start(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        count = len(self.slices)
        self.ports = self.ports or free_ports(count)
        after = {index - 1: self.dialled.get(index, f"127.0.0.1:{self.ports[index]}") for index in range(1, count)}
        self.workers = [
            Worker(
                self.model,
                layers,
                self.ports[index],
                Path(self._folder.name) / str(index),
                after.get(index, ""),
                self.threads,
                self.options,
            )
            for index, layers in enumerate(self.slices)
        ]
        for worker in self.workers[::-1]:
            worker.start()
        for worker in self.workers:
            worker.wait()
        self.workers[0].await_route()

    @property
    def processes(self) -> tuple[str, ...]:
        return tuple(f"{worker.pid} {worker.layers}, threads: {self.threads}" for worker in self.workers)

    def turn(self, prompts: Sequence[Sequence[int]], count: int) -> Turn:
        return ask(self.workers[0].url, prompts, count, {"ignore_eos": True})

    def compute(self) -> tuple[int, float]:
        """Return the steps so far, and the milliseconds that all stages have computed in them."""
        said = self.workers[0].status()
        return said["steps"], sum(said["computeMs"])

    def stop(self) -> None:
        for worker in self.workers:
            worker.stop()
        self._folder.cleanup()


def _online(log: Path, worker: subprocess.Popen[bytes]) -> str | None:
    said = log.read_text()
    if worker.poll() is not None:
        raise RuntimeError(said[-2_000:])
    if "worker is online" not in said:
        return None
    found = re.search(r"http://127\.0\.0\.1:\d+", said)
    return found[0] if found else None


def await_so(is_so: Callable[[], Any], log: Path) -> None:
    """Return when it is so. Raises RuntimeError: not in time."""
    until_s = time.monotonic() + START_S
    while not is_so():
        if time.monotonic() > until_s:
            raise RuntimeError(f"not in time: {log.read_text()[-2_000:]}")
        time.sleep(0.1)


@dataclass
class Program:
    """A program of `bench.decode.programs` that decodes on its stdin's word, as many tokens as a line says."""

    name: str
    command: tuple[str, ...]
    threads: int = 1

    def start(self) -> None:
        self._program = subprocess.Popen(
            [sys.executable, *self.command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
            env=environment(self.threads),
        )
        self._said = self._line()

    def _line(self) -> Any:
        assert self._program.stdout is not None
        for line in self._program.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended with {self._program.wait()}")

    @property
    def processes(self) -> tuple[str, ...]:
        return tuple(f"{pid}, threads: {self.threads}" for pid in self._said["pids"])

    def turn(self, prompts: Sequence[Sequence[int]], count: int) -> Turn:
        assert self._program.stdin is not None
        self._program.stdin.write(json.dumps({"prompts": [list(prompt) for prompt in prompts], "count": count}) + "\n")
        self._program.stdin.flush()
        said = self._line()
        return Turn(said["tokens"], said["seconds"])

    def stop(self) -> None:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.close()
        try:
            self._program.wait(20)
        except subprocess.TimeoutExpired:
            self._program.kill()
            self._program.wait()
        self._program.stdout.close()
