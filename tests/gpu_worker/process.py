"""
A worker as a process of its own, whose programs obey a script: `python -m tests.gpu_worker.process SETTINGS [TRAP]`.

A trap is where it dies, as by SIGKILL: a name in TRAPS.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from gpu_worker.config import WorkerSettings
from gpu_worker.lifecycle import live
from gpu_worker.wiring.worker import open_worker
from inbound.logs import configure_logs
from outbound.http import HttpClient
from tests.gpu_worker.world import PACE, FixedHardware, FixedSpeed, scripted_programs
from wire import decimal_json

# Along a job's life: a method of a port that the worker dies in, or what it has sent and was answered when it dies.
TRAPS: dict[str, tuple[str, str] | bytes] = {
    "sold": ("folders", "spec"),
    "half pushed": b"PUT",
    "done": ("folders", "seal"),
    "ended": ("folders", "trim"),
    "refund sent": b"eth_sendRawTransaction",
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Dying:
    """Stands before a port and dies in one of its methods."""

    def __init__(self, port: Any, method: str) -> None:
        self._port = port
        self._method = method

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            die()
        return getattr(self._port, name)


class DyingTransport(httpx.AsyncHTTPTransport):
    """Carries requests, and dies when one of its kind was answered."""

    def __init__(self, kind: bytes | None) -> None:
        super().__init__(verify=False)
        self._kind = kind

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        said = request.method.encode() + b" " + await request.aread()
        if self._kind is not None and self._kind in said:
            await response.aread()
            die()
        return response


async def main(settings: WorkerSettings, script: Path, trap: str | None) -> None:
    point = None if trap is None else TRAPS[trap]
    worker = open_worker(
        settings,
        hardware=FixedHardware(),
        programs=scripted_programs(script),
        measure=FixedSpeed(),
        http=HttpClient(DyingTransport(point if isinstance(point, bytes) else None)),
        pace=PACE,
    )
    if isinstance(point, tuple):
        name, method = point
        # The bundle is frozen for those who use it; who tests it may put something before a port.
        object.__setattr__(worker, name, Dying(getattr(worker, name), method))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await live(worker, stop)


def end_with(parent: int) -> None:
    """Die where the test that started this was ended before it could end it."""
    while os.getppid() == parent:
        time.sleep(1)
    die()


if __name__ == "__main__":
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    configure_logs()
    path = Path(sys.argv[1])
    read = WorkerSettings.model_validate(decimal_json.loads(path.read_bytes()))
    asyncio.run(main(read, path.parent / "script.json", sys.argv[2] if len(sys.argv) > 2 else None))
