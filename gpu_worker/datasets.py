"""
What a job works on, from a stranger's address or the run's own files to `input/data.jsonl`: fetched within bounds,
hashed, unpacked and checked line by line (`core.unpacking`).
"""

import asyncio
import hashlib
import shutil
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from urllib.parse import urlsplit

from gpu_worker.core.dataset import InputForm, Limits, suffix_of, too_large, unusable
from gpu_worker.core.errors import BadInput, OwnersFault, Unavailable
from gpu_worker.core.folder import InputFile
from gpu_worker.core.unpacking import more_than, unpacked
from outbound.errors import BadAddress, NotServed, OutboundError, TooLarge
from outbound.http import HttpClient
from wire import decimal_json
from wire.jobs import input_hash
from wire.vendor import FilesGrant

DATA = "data.jsonl"
HEAD_S = 10.0
FETCH_S = 600.0
CHUNK_BYTES = 256 * 1024
_RAW = "download"
# What a server says to HEAD when it knows no HEAD: nothing is known then.
_NO_HEAD = (400, 403, 405, 501)


async def head(dataset: str, limits: Limits, http: HttpClient) -> None:
    """
    Ask for a dataset without fetching it: what is absent or too large is refused before anything is paid.

    Raises:
        BadInput: it is not there, may not be called, or is larger than `limits`.
        Unavailable: its server does not answer now.
    """
    if input_hash(dataset) is not None:
        return
    try:
        reply = await http.request(
            "HEAD", dataset, headers={}, content=None, timeout_s=HEAD_S, body_bytes_max=CHUNK_BYTES
        )
    except OutboundError as error:
        raise _refused(error, limits) from error
    if reply.status != 200 and reply.status not in _NO_HEAD:
        raise _answered(reply.status)
    said = reply.headers.get("content-length", "")
    if reply.status == 200 and said.isascii() and said.isdigit() and int(said[:20]) > limits.bytes_max:
        raise too_large(more_than(limits.bytes_max, "it has"))


async def fetch(
    dataset: str,
    form: InputForm,
    into: Path,
    limits: Limits,
    http: HttpClient,
    *,
    grant: FilesGrant | None = None,
    timeout_s: float = FETCH_S,
) -> InputFile:
    """
    Return what was fetched, unpacked and checked; it lies in the folder `into`, which is made anew.

    Args:
        grant: where a run's own dataset (`input:...`) is read.

    Raises:
        BadInput: it is not there, too large, not what its hash says, or no dataset of `form`.
        Unavailable: it cannot be had now.
        OwnersFault: the disk does not take it.
    """
    wanted, url, headers = input_hash(dataset), dataset, {}
    if wanted is not None:
        if grant is None:
            raise unusable("the dataset lies in the run's files, and the job was given no way to them")
        url, headers = f"{grant.url.rstrip('/')}/inputs/{wanted}", {"authorization": f"Bearer {grant.token}"}
    chunks = http.download(url, headers=headers, timeout_s=timeout_s, body_bytes_max=limits.bytes_max)
    try:
        await asyncio.to_thread(_make_anew, into)
        digest = await _download(chunks, into / _RAW)
        if wanted is not None and digest != wanted:
            raise unusable(f"what came has the SHA-256 {digest[:12]}, not {wanted[:12]}")
        return await _in_thread(into / _RAW, suffix_of(urlsplit(url).path), form, digest, limits)
    except OutboundError as error:
        raise _refused(error, limits) from error
    except OSError as error:
        raise OwnersFault(f"the dataset cannot be kept: {error.strerror or error}") from error


async def local(path: Path, form: InputForm, into: Path, limits: Limits) -> InputFile:
    """Return the owner's own dataset, as `fetch` does. Raises as it does."""
    try:
        await asyncio.to_thread(_make_anew, into)
        digest = await asyncio.to_thread(_copied, path, into / _RAW)
        return await _in_thread(into / _RAW, suffix_of(path.name), form, digest, limits)
    except OSError as error:
        raise OwnersFault(f"the dataset {path.name} cannot be read: {error.strerror or error}") from error


def _make_anew(into: Path) -> None:
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)


async def _download(chunks: AsyncGenerator[bytes, None], path: Path) -> str:
    digest = hashlib.sha256()
    with await asyncio.to_thread(path.open, "wb") as file:
        async with aclosing(chunks):
            async for chunk in chunks:
                digest.update(chunk)
                await asyncio.to_thread(file.write, chunk)
    return digest.hexdigest()


def _copied(source: Path, path: Path) -> str:
    shutil.copyfile(source, path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _in_thread(raw: Path, suffix: str, form: InputForm, digest: str, limits: Limits) -> InputFile:
    """Unpack in a thread, which ends soon where nobody waits for it any more."""
    is_left = threading.Event()
    try:
        return await asyncio.to_thread(_unpack, raw, suffix, form, digest, limits, is_left)
    finally:
        is_left.set()


def _unpack(
    raw: Path, suffix: str, form: InputForm, digest: str, limits: Limits, is_left: threading.Event
) -> InputFile:
    """Return the file of records made of `raw`, which is removed. Raises BadInput, OSError."""
    count, size, made = 0, 0, raw.parent / DATA
    with raw.open("rb") as source, made.open("wb") as file:
        for record in unpacked(source, suffix, form, limits, is_left.is_set):
            size += file.write(decimal_json.dumps(record) + b"\n")
            count += 1
            # A sign that is one byte in a text may be six in JSON.
            if size > limits.unpacked_bytes_max:
                raise too_large(more_than(limits.unpacked_bytes_max, "written as records it has"))
            if count > limits.records_max:
                raise too_large(f"it has more than the {limits.records_max} records that this worker takes")
    raw.unlink()
    if count == 0:
        raise unusable("the dataset is empty")
    return InputFile(name=DATA, sha256=digest, form=form, records=count, bytes=size)


def _refused(error: OutboundError, limits: Limits) -> BadInput | Unavailable:
    if isinstance(error, TooLarge):
        return too_large(more_than(limits.bytes_max, "it has"))
    if isinstance(error, NotServed):
        return _answered(error.status)
    if isinstance(error, BadAddress):
        return unusable(f"the dataset's address is not called: {error}")
    return Unavailable(f"the dataset cannot be fetched now: {error}")


def _answered(status: int) -> BadInput | Unavailable:
    if status >= 500 or status in (408, 425, 429):
        return Unavailable(f"the dataset's server answers {status}")
    return unusable(f"the dataset is not there: its server answers {status}")
