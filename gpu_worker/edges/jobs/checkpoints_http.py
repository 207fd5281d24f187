"""
Checkpoints in the buyer's store, over its files door: parts first, the manifest last, so that what is there is whole.

Nothing that comes back is believed: every byte is counted and hashed before it is a checkpoint.
"""

import asyncio
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from gpu_worker.core import checkpoint
from gpu_worker.core import folder as names
from gpu_worker.core.checkpoint import Piece
from gpu_worker.core.errors import BadInput, OwnersFault, Unavailable
from gpu_worker.edges.jobs.job_folder import sha256_of, write_whole
from outbound.errors import OutboundError
from outbound.http import HttpClient
from wire.checkpoint import (
    MANIFEST_BYTES_MAX,
    MANIFEST_NAME,
    PART_BYTES_MAX,
    PARTS_MAX,
    CheckpointFile,
    Manifest,
    Part,
    wrong_manifest,
)
from wire.vendor import FilesGrant, ResumeFrom

RETRY_S = 0.5
PART_S = 60.0
ANSWER_BYTES_MAX = 64 * 1024
HASH_HEADER = "x-content-sha256"

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


class HttpCheckpoints:
    """Implements `gpu_worker.ports.Checkpoints`; `http` has the guard: a grant's address is a stranger's."""

    def __init__(self, http: HttpClient, *, retry_s: float = RETRY_S) -> None:
        self._http = http
        self._retry_s = retry_s

    async def push(self, grant: FilesGrant, manifest: Manifest, folder: Path) -> Manifest:
        part_bytes = min(grant.part_bytes_max, PART_BYTES_MAX)
        count = sum(-(-file.bytes // part_bytes) for file in manifest.files)
        if count > PARTS_MAX:
            # Parts of a byte each would be a flood of requests, to whatever address the buyer named.
            detail = f"in parts of {part_bytes} bytes the checkpoint has {count} of them, at most {PARTS_MAX} are put"
            raise BadInput("upload_refused", detail)
        files = []
        for file in manifest.files:
            parts = []
            for piece in checkpoint.pieces(file.bytes, part_bytes):
                content = await _disk(_slice, folder / file.name, piece)
                sha256 = hashlib.sha256(content).hexdigest()
                part = Part(
                    name=checkpoint.part_name(manifest.step, file.name, piece, sha256),
                    bytes=len(content),
                    sha256=sha256,
                )
                await self._put(grant, part.name, content)
                parts.append(part)
            files.append(file.model_copy(update={"parts": tuple(parts)}))
        pushed = manifest.model_copy(update={"files": tuple(files)})
        if (wrong := wrong_manifest(pushed, pushed=True)) is not None:
            # A file that shrank between its listing and its reading; the next look has another checkpoint.
            raise Unavailable(f"the checkpoint cannot be pushed: {wrong}")
        await self._put(grant, MANIFEST_NAME, pushed.to_json())
        return pushed

    async def pull(self, grant: FilesGrant, resume: ResumeFrom, into: Path) -> Manifest:
        content = await self._get(grant, resume.url, MANIFEST_NAME, MANIFEST_BYTES_MAX)
        manifest = _manifest(content, resume)
        draft = into.with_name(f".{into.name}.pulled")
        await _disk(_emptied, draft)
        for file in manifest.files:
            for part in file.parts:
                piece = await self._get(grant, resume.url, part.name, part.bytes)
                if len(piece) != part.bytes or hashlib.sha256(piece).hexdigest() != part.sha256:
                    raise BadInput("checkpoint_mismatch", f"the part {part.name} is not what its manifest says")
                await _disk(_append, draft / file.name, piece)
            await _disk(_check, draft / file.name, file)
        local = checkpoint.local(manifest)
        await _disk(_settle, draft, into, local.to_json())
        return local

    async def _put(self, grant: FilesGrant, name: str, content: bytes) -> None:
        headers = {
            "authorization": f"Bearer {grant.token}",
            "content-type": "application/octet-stream",
            HASH_HEADER: hashlib.sha256(content).hexdigest(),
        }

        async def once() -> int:
            reply = await self._http.request(
                "PUT",
                _url(grant.url, name),
                headers=headers,
                content=content,
                timeout_s=PART_S,
                body_bytes_max=ANSWER_BYTES_MAX,
            )
            return reply.status

        for last in (False, False, True):
            try:
                status = await once()
            except OutboundError as error:
                if last or not error.retryable:
                    raise Unavailable(f"the buyer's store does not answer: {error}") from error
                status = 0
            if status in (200, 201, 204):
                return
            if status in (401, 403, 404, 409, 413):
                raise BadInput("upload_refused", f"the buyer's store answered {status} to {name}")
            if last:
                raise Unavailable(f"the buyer's store answered {status} to {name}")
            await asyncio.sleep(self._retry_s)

    async def _get(self, grant: FilesGrant, base: str, name: str, bytes_max: int) -> bytes:
        headers = {"authorization": f"Bearer {grant.token}"}
        for last in (False, False, True):
            try:
                reply = await self._http.request(
                    "GET",
                    _url(base, name),
                    headers=headers,
                    content=None,
                    timeout_s=PART_S,
                    body_bytes_max=max(bytes_max, ANSWER_BYTES_MAX),
                )
            except OutboundError as error:
                if last or not error.retryable:
                    raise Unavailable(f"the checkpoint cannot be fetched: {error}") from error
            else:
                if reply.status == 200:
                    return reply.content
                if reply.status < 500:
                    raise BadInput("checkpoint_mismatch", f"the buyer's store answered {reply.status} to {name}")
                if last:
                    raise Unavailable(f"the buyer's store answered {reply.status} to {name}")
            await asyncio.sleep(self._retry_s)
        raise Unavailable(f"{name} cannot be fetched")


def _url(base: str, name: str) -> str:
    return f"{base.rstrip('/')}/{name}"


def _manifest(content: bytes, resume: ResumeFrom) -> Manifest:
    """Return the manifest that `resume` announced. Raises BadInput."""
    if hashlib.sha256(content).hexdigest() != resume.manifest_sha256:
        raise BadInput("checkpoint_mismatch", "the checkpoint's manifest is another one than was announced")
    try:
        manifest = Manifest.from_json(content)
    except ValueError:
        raise BadInput("checkpoint_mismatch", "the checkpoint's manifest cannot be read") from None
    wrong = wrong_manifest(manifest, pushed=True)
    found, announced = manifest.description(), resume
    if wrong is None and any(getattr(found, name) != getattr(announced, name) for name in type(found).model_fields):
        wrong = "it describes another checkpoint than was announced"
    if wrong is not None:
        raise BadInput("checkpoint_mismatch", f"the checkpoint's manifest is wrong: {wrong}")
    return manifest


async def _disk(work: Callable[P, ResultT], *args: P.args, **more: P.kwargs) -> ResultT:
    try:
        return await asyncio.to_thread(work, *args, **more)
    except FileNotFoundError as error:
        # The program keeps its two newest: an older one may go while it is read.
        raise Unavailable("the checkpoint is there no more") from error
    except OSError as error:
        raise OwnersFault(f"a checkpoint cannot be kept: {error.strerror or error}") from error


def _slice(path: Path, piece: Piece) -> bytes:
    with path.open("rb") as file:
        file.seek(piece.offset)
        return file.read(piece.bytes)


def _emptied(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, mode=0o700)


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)


def _check(path: Path, file: CheckpointFile) -> None:
    path.touch()
    if path.stat().st_size != file.bytes or sha256_of(path) != file.sha256:
        raise BadInput("checkpoint_mismatch", f"the file {file.name} is not what its manifest says")


def _settle(draft: Path, into: Path, manifest: bytes) -> None:
    """Make the folder what it is to be: the manifest last, the name after it."""
    for name in os.listdir(draft):
        with (draft / name).open("rb") as file:
            os.fsync(file.fileno())
    write_whole(draft / names.MANIFEST, manifest)
    shutil.rmtree(into, ignore_errors=True)
    os.replace(draft, into)
