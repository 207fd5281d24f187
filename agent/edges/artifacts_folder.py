"""
Artifacts in a folder of this machine: one file each, at `run/job/name`, readable by its owner alone.

A file is written under a hidden name, brought to the disk, and then renamed: it is there whole or not at all. Its lock
is held meanwhile. A hidden file that nobody holds, or that nothing was written to for an hour, is of a dead upload; it
goes with the next put of the same run.
"""

import asyncio
import fcntl
import os
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from agent.core.errors import ArtifactsUnavailable, UnknownArtifact
from agent.ports import Usage
from wire.file_name import to_file_name

CHUNK_BYTES = 256 * 1024
FOLDER_MODE = 0o700
ABANDONED_S = 3_600


class FolderArtifacts:
    """Files under `folder`, which is made when the first of them is put."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, run_id: str, job_id: str, name: str, chunks: AsyncIterator[bytes]) -> None:
        path = self._path(run_id, job_id, name)
        with _translated():
            file = await asyncio.to_thread(self._create, path)
        try:
            async for chunk in chunks:
                with _translated():
                    await asyncio.to_thread(file.write, chunk)
            with _translated():
                await asyncio.to_thread(_finish, file, path)
        except BaseException:
            # No await stands here: it is also the way out of a tick whose time is over.
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                os.unlink(file.name)
            raise

    async def size(self, run_id: str, job_id: str, name: str) -> int | None:
        with _translated():
            try:
                return (await asyncio.to_thread(self._path(run_id, job_id, name).stat)).st_size
            except FileNotFoundError:
                return None

    async def remove(self, run_id: str, job_id: str, name: str) -> bool:
        with _translated():
            try:
                await asyncio.to_thread(self._path(run_id, job_id, name).unlink)
            except FileNotFoundError:
                return False
        return True

    async def sweep(self, run_id: str, job_id: str, stays: Callable[[str], bool], *, closing: bool = False) -> None:
        with _translated():
            await asyncio.to_thread(_sweep, self._path(run_id, job_id, "any").parent, stays, closing)

    async def usage(self, run_id: str, job_id: str) -> Usage:
        with _translated():
            return await asyncio.to_thread(_usage, self._path(run_id, job_id, "any").parent)

    async def open(self, run_id: str, job_id: str, name: str, start: int = 0) -> AsyncGenerator[bytes, None]:
        with _translated():
            try:
                file = await asyncio.to_thread(self._path(run_id, job_id, name).open, "rb")
            except FileNotFoundError:
                raise UnknownArtifact(f"{name} is not kept") from None
        with file:
            file.seek(start)
            while True:
                with _translated():
                    chunk = await asyncio.to_thread(file.read, CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk

    async def close(self) -> None:
        """Do nothing: no file stays open."""

    def _path(self, run_id: str, job_id: str, name: str) -> Path:
        return self._folder / to_file_name(run_id) / to_file_name(job_id) / to_file_name(name)

    def _create(self, path: Path) -> BinaryIO:
        """Return a new hidden file beside `path`, its folders made; what killed uploads left there goes."""
        self._folder.mkdir(FOLDER_MODE, parents=True, exist_ok=True)
        for folder in (path.parent.parent, path.parent):
            folder.mkdir(FOLDER_MODE, exist_ok=True)
        # No kept file begins with a dot.
        for hidden in path.parent.parent.glob("*/.*"):
            with suppress(FileNotFoundError):
                _remove_dead(hidden)
        return _begun(path.parent)


def _begun(folder: Path) -> BinaryIO:
    """Return a new hidden file, locked as long as it is open."""
    while True:
        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=folder)
        os.close(descriptor)
        # Until it is locked another put may take it for a dead one's.
        with suppress(FileNotFoundError):
            file = open(temporary, "r+b")  # noqa: SIM115 - who puts closes it
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.exists(temporary):
                return file
            file.close()


def _remove_dead(hidden: Path) -> None:
    """Remove the file of an upload whose process has ended, or has been frozen for long."""
    with hidden.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if hidden.stat().st_mtime >= time.time() - ABANDONED_S:
                return
        hidden.unlink()


def _sweep(folder: Path, stays: Callable[[str], bool], closing: bool) -> None:
    # In this order: an upload that was renamed before it could be removed is found among the kept.
    if closing:
        _unlink(path for path in _names(folder) if path.name.startswith("."))
    # No kept file begins with a dot.
    _unlink(path for path in _names(folder) if not path.name.startswith(".") and not stays(unquote(path.name)))
    if closing:
        # It is no longer there, or something stays in it.
        with suppress(OSError):
            folder.rmdir()


def _names(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder)]
    except FileNotFoundError:
        return []


def _unlink(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _usage(folder: Path) -> Usage:
    # No kept file begins with a dot.
    sizes = []
    for path in _names(folder):
        with suppress(FileNotFoundError):
            if not path.name.startswith("."):
                sizes.append(path.stat().st_size)
    return Usage(len(sizes), sum(sizes))


def _finish(file: BinaryIO, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    os.replace(file.name, path)
    file.close()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _translated() -> Iterator[None]:
    """Turn the system's errors into ours; the words say which, never where: that is the operator's affair."""
    try:
        yield
    except OSError as error:
        raise ArtifactsUnavailable(f"the folder of ARTIFACT_URL: {error.strerror or type(error).__name__}") from error
