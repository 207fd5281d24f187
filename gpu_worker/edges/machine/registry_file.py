"""The worker's entry in its own data folder: one worker per folder, and a file that says where it is."""

import asyncio
import fcntl
import os
from collections.abc import Mapping
from pathlib import Path

from gpu_worker.core.errors import OwnersFault
from gpu_worker.edges.jobs.job_folder import write_whole
from wire import decimal_json

LOCK = "lock"
ENTRY = "running.json"


class FileRegistry:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: int | None = None

    async def claim(self) -> None:
        await asyncio.to_thread(self._claim)

    async def register(self, entry: Mapping[str, object]) -> None:
        content = decimal_json.dumps({**entry, "pid": os.getpid()})
        await asyncio.to_thread(write_whole, self._folder / ENTRY, content)

    async def deregister(self) -> None:
        await asyncio.to_thread(self._deregister)

    def _claim(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise OwnersFault(f"{self._folder} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise OwnersFault(
                f"another worker runs with {self._folder}: stop it, or give this one LIVERY_WORKER_DATA"
            ) from None
        self._lock = lock

    def _deregister(self) -> None:
        if self._lock is None:
            return
        (self._folder / ENTRY).unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = None


def read_entry(folder: Path) -> Mapping[str, object] | None:
    """Return the entry of the worker that runs with `folder`, None where none does; a dead one's is none."""
    try:
        lock = os.open(folder / LOCK, os.O_RDWR)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except OSError:
        pass  # it is held: somebody lives
    finally:
        os.close(lock)
    try:
        found = decimal_json.loads((folder / ENTRY).read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
