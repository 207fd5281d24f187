"""
Artifacts in a folder of this machine: one file each, at `run/job/name`, readable by its owner alone.

A file is written under a hidden name, brought to the disk, and then renamed: it is there whole or not at all. Hidden
files that nothing was written to for an hour are of killed uploads; they go with the next put of the same job.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

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
        for hidden in path.parent.glob(".*"):
            with suppress(FileNotFoundError):
                if hidden.stat().st_mtime < time.time() - ABANDONED_S:
                    hidden.unlink()
        descriptor, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
        os.close(descriptor)
        return open(temporary, "wb")


def _usage(folder: Path) -> Usage:
    try:
        # No kept file begins with a dot.
        sizes = [file.stat().st_size for file in os.scandir(folder) if not file.name.startswith(".")]
    except FileNotFoundError:
        return Usage(0, 0)
    return Usage(len(sizes), sum(sizes))


def _finish(file: BinaryIO, path: Path) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.replace(file.name, path)
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
