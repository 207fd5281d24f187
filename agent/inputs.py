"""
Datasets that the owner uploads: kept by their hash, sent in parts of 4 MiB, and there when every part is.

A run names one as `input:SHA-256`; the vendor's job fetches it through the door of the run's files.
"""

import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing

from agent.core.errors import UploadIncomplete, UploadTooLarge
from agent.ports import Agent
from wire.checkpoint import PART_BYTES_MAX
from wire.control import InputReply

# The artifact store's words for them: no run is called so, for the ids of runs begin otherwise.
INPUTS = "inputs"
DATA_NAME = "data"


async def once_through(body: bytes) -> AsyncIterator[bytes]:
    """Yield `body`: what a store takes is a stream."""
    yield body


async def keep_input(agent: Agent, sha256: str, start: int, total: int, body: bytes) -> InputReply:
    """
    Keep the bytes from `start` on of a file of `total` bytes; with the last part missing the file is made whole.

    Raises:
        UploadIncomplete: a part does not begin where one does or is not as long as one is; or all parts are there and
            are together not what `sha256` says: then none is kept.
        UploadTooLarge: it is larger than any file may be that is kept.
        ArtifactsUnavailable
    """
    if total > agent.limits.artifact_bytes_max:
        raise UploadTooLarge(f"a dataset has at most {agent.limits.artifact_bytes_max} bytes")
    if await agent.artifacts.size(INPUTS, sha256, DATA_NAME) == total:
        return InputReply(sha256=sha256, bytes=total, is_whole=True)
    number, begins_late = divmod(start, PART_BYTES_MAX)
    if begins_late or start > total or len(body) != min(PART_BYTES_MAX, total - start):
        raise UploadIncomplete(f"a part begins at a multiple of {PART_BYTES_MAX} bytes and has as many, but the last")
    await agent.artifacts.put(INPUTS, sha256, _part(number), once_through(body))
    count = max(1, -(-total // PART_BYTES_MAX))
    # The last one is mostly sent last: where it is missing nobody looks for the others.
    for one in reversed(range(count)):
        if await agent.artifacts.size(INPUTS, sha256, _part(one)) is None:
            return InputReply(sha256=sha256, bytes=total, is_whole=False)
    try:
        await agent.artifacts.put(INPUTS, sha256, DATA_NAME, _joined(agent, sha256, count))
    except UploadIncomplete:
        await _forget(agent, sha256, count)
        raise
    await _forget(agent, sha256, count)
    return InputReply(sha256=sha256, bytes=total, is_whole=True)


async def _forget(agent: Agent, sha256: str, count: int) -> None:
    for number in range(count):
        await agent.artifacts.remove(INPUTS, sha256, _part(number))


async def _joined(agent: Agent, sha256: str, count: int) -> AsyncIterator[bytes]:
    digest = hashlib.sha256()
    for number in range(count):
        async with aclosing(agent.artifacts.open(INPUTS, sha256, _part(number))) as chunks:
            async for chunk in chunks:
                digest.update(chunk)
                yield chunk
    if digest.hexdigest() != sha256:
        raise UploadIncomplete("all parts are there, and together they have another hash; none was kept")


def _part(number: int) -> str:
    return f"part-{number:06d}"
