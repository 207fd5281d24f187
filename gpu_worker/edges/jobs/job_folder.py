"""
The jobs' folders on disk: what is in them is `gpu_worker.core.folder`.

What the program writes is read as it comes: a half line, a half checkpoint, a half state are not there yet.
"""

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import ParamSpec, TypeVar

from gpu_worker.core import folder as names
from gpu_worker.core import progress
from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.folder import ProgressLine, Spec, State
from gpu_worker.core.report import end_files
from storefront.model import KeptFile
from wire.checkpoint import MANIFEST_BYTES_MAX, Manifest, wrong_manifest
from wire.vendor import MetricPoint

CHUNK_BYTES = 256 * 1024
READ_BYTES_MAX = 4 * 1024 * 1024
LOG = "log.txt"
_LOG_BYTES_MAX = 16 * 1024 * 1024
_DRAFT = re.compile(r"\..+\.[0-9]+")

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


class DiskFolders:
    """The folders in `root`, one per job, named by its id."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def make(self, job_id: str, spec: Spec) -> Path:
        return await self._do(_make, self._path(job_id), spec)

    async def path(self, job_id: str) -> Path:
        return await self._do(_ready, self._path(job_id))

    async def spec(self, job_id: str) -> Spec | None:
        text = await self._do(_text, self._path(job_id) / names.SPEC, READ_BYTES_MAX)
        try:
            return None if text is None else Spec.from_json(text)
        except ValueError:
            return None

    async def lines(self, job_id: str, offset: int) -> tuple[tuple[ProgressLine, ...], int]:
        data = await self._do(_tail, self._path(job_id) / names.PROGRESS, offset)
        return progress.parse(data, offset)

    async def end(self, job_id: str) -> int:
        return await self._do(_size, self._path(job_id) / names.PROGRESS)

    async def state(self, job_id: str) -> State | None:
        return await self._do(_state, self._path(job_id))

    async def checkpoint(self, job_id: str) -> tuple[Manifest, Path] | None:
        return await self._do(_newest, self._path(job_id) / names.CHECKPOINTS)

    async def files(self, job_id: str) -> tuple[KeptFile, ...]:
        return await self._do(_listed, self._path(job_id) / names.RESULT)

    async def read(self, job_id: str, name: str) -> AsyncGenerator[bytes, None]:
        path = self._path(job_id) / names.RESULT / name
        if Path(name).name != name or not _is_plain(path):
            raise KeyError(name)
        offset = 0
        while chunk := await self._do(_slice, path, offset, CHUNK_BYTES):
            offset += len(chunk)
            yield chunk

    async def disk_bytes(self, job_id: str) -> int:
        return await self._do(
            lambda: sum(entry.stat(follow_symlinks=False).st_size for entry in _all(self._path(job_id)))
        )

    async def known(self) -> tuple[str, ...]:
        return await self._do(
            lambda: tuple(sorted(entry.name for entry in os.scandir(self._root)) if self._root.is_dir() else ())
        )

    async def seal(self, job_id: str) -> None:
        await self._do(_seal, self._path(job_id))

    async def trim(self, job_id: str) -> None:
        await self._do(_trim, self._path(job_id))

    async def remove(self, job_id: str) -> None:
        await self._do(shutil.rmtree, self._path(job_id), True)

    def _path(self, job_id: str) -> Path:
        if Path(job_id).name != job_id or job_id.startswith("."):
            raise KeyError(job_id)
        return self._root / job_id

    async def _do(self, work: Callable[P, ResultT], *args: P.args, **more: P.kwargs) -> ResultT:
        try:
            return await asyncio.to_thread(work, *args, **more)
        except OSError as error:
            raise OwnersFault(f"the folder of a job cannot be used: {error.strerror or error}") from error


def _ready(path: Path) -> Path:
    for name in (names.INPUT, names.CHECKPOINTS, names.RESULT):
        (path / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    return path.absolute()


def _make(path: Path, spec: Spec) -> Path:
    _ready(path)
    write_whole(path / names.SPEC, spec.to_json())
    return path.absolute()


def write_whole(path: Path, content: bytes) -> None:
    """Put `content` in the place of the file, whole or not at all, for its owner's eyes alone."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")  # as _DRAFT
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _tail(path: Path, offset: int) -> bytes:
    try:
        return _slice(path, offset, READ_BYTES_MAX)
    except FileNotFoundError:
        return b""


def _slice(path: Path, offset: int, bytes_max: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(bytes_max)


def _text(path: Path, bytes_max: int) -> bytes | None:
    try:
        return _slice(path, 0, bytes_max)
    except FileNotFoundError:
        return None


def _state(path: Path) -> State | None:
    text = _text(path / names.STATE, READ_BYTES_MAX)
    try:
        return None if text is None else State.from_json(text)
    except ValueError:
        return None


def _newest(checkpoints: Path) -> tuple[Manifest, Path] | None:
    """Return the newest whole checkpoint; one of a file's own writing is not believed before its hashes are."""
    found = [entry for entry in _entries(checkpoints) if entry.name.isdigit() and entry.is_dir(follow_symlinks=False)]
    for entry in sorted(found, key=lambda entry: int(entry.name), reverse=True):
        folder = Path(entry.path)
        manifest = read_manifest(folder)
        if manifest is not None and manifest.step == int(entry.name) and _holds(manifest, folder):
            return manifest, folder
    return None


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest in `folder`, None where there is none that can be read."""
    text = _text(folder / names.MANIFEST, MANIFEST_BYTES_MAX)
    try:
        manifest = None if text is None else Manifest.from_json(text)
    except ValueError:
        return None
    return None if manifest is None or wrong_manifest(manifest, pushed=False) else manifest


def _holds(manifest: Manifest, folder: Path) -> bool:
    for file in manifest.files:
        path = folder / file.name
        if not _is_plain(path) or path.stat().st_size != file.bytes or sha256_of(path) != file.sha256:
            return False
    return True


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_plain(path: Path) -> bool:
    """Return whether it is a file, not a link to one: the program may have been given anything to run."""
    return path.is_file() and not path.is_symlink()


def _listed(result: Path) -> tuple[KeptFile, ...]:
    found = (entry for entry in _entries(result) if not _DRAFT.fullmatch(entry.name))
    plain = sorted(entry.name for entry in found if _is_plain(Path(entry.path)))
    return tuple(
        KeptFile(name=name, bytes=(result / name).stat().st_size, sha256=sha256_of(result / name)) for name in plain
    )


def _entries(path: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(path))
    except FileNotFoundError:
        return []


def _all(path: Path) -> Iterator[os.DirEntry[str]]:
    """Yield every file below `path`; what goes away meanwhile is not there."""
    for entry in _entries(path):
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _all(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield entry
        except FileNotFoundError:
            continue


def _trim(path: Path) -> None:
    for name in (names.INPUT, names.CHECKPOINTS):
        shutil.rmtree(path / name, ignore_errors=True)
    # What the program, or `write_whole`, had begun when it was killed.
    shutil.rmtree(path / f"{names.RESULT}.new", ignore_errors=True)
    (path / f"{names.STATE}.new").unlink(missing_ok=True)
    for entry in (*_entries(path), *_entries(path / names.RESULT)):
        if _DRAFT.fullmatch(entry.name):
            Path(entry.path).unlink(missing_ok=True)


def _seal(path: Path) -> None:
    _ready(path)
    stderr = path / names.STDERR
    if stderr.exists() and (size := stderr.stat().st_size) > names.STDERR_BYTES_MAX:
        write_whole(stderr, _slice(stderr, size - names.STDERR_BYTES_MAX, names.STDERR_BYTES_MAX))
    logs: list[str] = []
    points: list[MetricPoint] = []
    offset = 0
    while True:
        lines, behind = progress.parse(_tail(path / names.PROGRESS, offset), offset)
        if behind == offset or behind > _LOG_BYTES_MAX:
            break
        offset = behind
        told = progress.told(lines)
        logs += told.logs
        points += told.metrics
    files = {LOG: "".join(f"{text}\n" for text in logs).encode()}
    text = _text(path / names.SPEC, READ_BYTES_MAX)
    if text is not None:
        files |= end_files(Spec.from_json(text), _state(path), points)
    for name, content in files.items():
        if not (path / names.RESULT / name).exists():
            write_whole(path / names.RESULT / name, content)
