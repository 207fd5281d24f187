"""
Keeping what a job left: its files are fetched, held against their size and hash, and kept, in the tick that sees the
job ended and, where that fails, in later ones within a bound.

No money depends on it. Whatever a vendor or the place that keeps files does wrong is a line in the run's log.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from agent.core.decide import ended_at, open_artifacts
from agent.core.errors import ArtifactsUnavailable, ForeignAddress, VendorError, VendorRefused
from agent.core.events import ArtifactsKept, ArtifactsMissed, Event
from agent.core.model import Artifact, Job, Vendor
from agent.turn import Turn
from wire import vendor as wire
from wire.file_name import NotAFileName, to_file_name

# When the files of a job are asked for, in seconds after its end; after the last try they are given up.
TRIES_S = (0, 5, 30, 120, 600)
# After so long they are given up untried: a host that ends each tick in the middle of a download holds up no run.
OPEN_S_MAX = 86_400
# A run that is to end without its work done waits so long after a job's end for the job's files: three tries.
END_WAIT_S = TRIES_S[2]
# How much of the lease is left to what comes after the files: refunds, the decision, the saves.
LEASE_RESERVE = 0.25
# Kept of one job.
FILES_MAX = 100
JOB_BYTES_MAX = 4 * 1024**3

# What vendors without artifacts answer.
_NO_SUCH_ROUTE = frozenset({404, 405, 410})
_NAME_CHARS_MAX = 80
_DETAIL_CHARS_MAX = 1_000


class Mismatch(Exception):
    """The bytes that came are not those that were listed."""


@dataclass
class _Haul:
    """One try: what was kept, what never will be, what may be had next time, and whether time ran out before more."""

    kept: list[Artifact] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    unfinished: bool = False


async def keep_artifacts(turn: Turn, vendors: dict[str, Vendor]) -> None:
    """Fetch and keep the files of the jobs that have ended, for as long as one tick may and its lease lasts."""
    time, limits = asyncio.get_running_loop().time, turn.agent.limits
    until = min(time() + limits.artifacts_s, turn.claimed_s + limits.lease_s * (1 - LEASE_RESERVE))
    for job in open_artifacts(turn.run):
        if _is_due(job, turn.now) and (time() < until or _is_old(job, turn.now)):
            turn.record(*await _try(turn, vendors.get(job.vendor_id), job, until))
            await turn.save()


def give_up(turn: Turn) -> list[Event]:
    """Return that what is still open is not asked for again: the run ends."""
    detail = "the run ended before they came"
    return [
        ArtifactsMissed(at=turn.now, job_id=job.job_id, detail=detail, closed=True) for job in open_artifacts(turn.run)
    ]


def _is_due(job: Job, now: datetime) -> bool:
    wait_s = TRIES_S[min(job.artifact_misses, len(TRIES_S) - 1)]
    return now >= ended_at(job) + timedelta(seconds=wait_s)


def _is_old(job: Job, now: datetime) -> bool:
    return now > ended_at(job) + timedelta(seconds=OPEN_S_MAX)


async def _try(turn: Turn, vendor: Vendor | None, job: Job, until: float) -> list[Event]:
    """Return what one try came to. `until` is of the loop's clock."""
    if _is_old(job, turn.now):
        detail = "they were not fetched in a day"
        return [ArtifactsMissed(at=turn.now, job_id=job.job_id, detail=detail, closed=True)]
    if vendor is None:
        haul = _Haul(failed=["the vendor is no longer registered"])
    else:
        haul = await _fetch(turn, vendor, job, until)
    is_last = job.artifact_misses + 1 >= len(TRIES_S)
    closed = is_last if haul.failed else not haul.unfinished
    # What is refused is said once, at the end.
    told = [*haul.failed, *(haul.refused if closed else ())]
    events: list[Event] = []
    if haul.kept or (closed and not told):
        kept = tuple(haul.kept)
        events.append(ArtifactsKept(at=turn.now, job_id=job.job_id, artifacts=kept, closed=closed and not told))
    if told:
        detail = "; ".join(told)[:_DETAIL_CHARS_MAX]
        events.append(ArtifactsMissed(at=turn.now, job_id=job.job_id, detail=detail, closed=closed))
    return events


async def _fetch(turn: Turn, vendor: Vendor, job: Job, until: float) -> _Haul:
    """Fetch what is listed and not kept yet, until the time is over."""
    assert job.vendor_job_id is not None
    haul = _Haul()
    try:
        async with asyncio.timeout_at(until):
            listed = (await turn.agent.vendors.artifacts(vendor, job.vendor_job_id)).artifacts
        for artifact in listed:
            await _take(turn, vendor, job, artifact, until, haul)
    except VendorError as error:
        if not (isinstance(error, VendorRefused) and error.status in _NO_SUCH_ROUTE):
            haul.failed.append(str(error))
    except ArtifactsUnavailable as error:
        haul.failed.append(f"they cannot be kept: {error}")
    except TimeoutError:
        # A try that kept something is taken up by the next tick; one that kept nothing would come no further then.
        haul.unfinished = bool(haul.kept)
        if not haul.kept:
            haul.failed.append(f"fetching took longer than {turn.agent.limits.artifacts_s} s")
    return haul


async def _take(turn: Turn, vendor: Vendor, job: Job, artifact: wire.Artifact, until: float, haul: _Haul) -> None:
    """Keep one file, or say in `haul` why not."""
    have = [*job.artifacts, *haul.kept]
    if artifact.name in {one.name for one in have}:
        return
    named = repr(artifact.name[:_NAME_CHARS_MAX])
    if refusal := _refusal(turn, have, artifact):
        haul.refused.append(f"{named}: {refusal}")
        return
    try:
        async with asyncio.timeout_at(until):
            await turn.agent.artifacts.put(
                turn.run.run_id, job.job_id, artifact.name, _checked(turn, vendor, artifact, until)
            )
    except ForeignAddress as error:
        haul.refused.append(f"{named}: {error}")
    except (VendorError, Mismatch) as error:
        haul.failed.append(f"{named}: {error}")
    else:
        haul.kept.append(Artifact(name=artifact.name, bytes=artifact.bytes, sha256=artifact.sha256))


def _refusal(turn: Turn, have: list[Artifact], artifact: wire.Artifact) -> str | None:
    """Return why a listed file is not even asked for, None where it is."""
    bytes_max = turn.agent.limits.artifact_bytes_max
    if artifact.bytes > bytes_max:
        return f"{artifact.bytes} bytes are more than the {bytes_max} that one file may have"
    if len(have) >= FILES_MAX:
        return f"a job keeps {FILES_MAX} files"
    if sum(one.bytes for one in have) + artifact.bytes > JOB_BYTES_MAX:
        return f"a job keeps {JOB_BYTES_MAX} bytes"
    try:
        to_file_name(artifact.name)
    except NotAFileName as error:
        return str(error)
    return None


async def _checked(turn: Turn, vendor: Vendor, artifact: wire.Artifact, until: float) -> AsyncIterator[bytes]:
    """
    Yield the file as it comes; the end of it is reached only by the bytes that were listed.

    Raises:
        Mismatch: what came is shorter, or has another hash.
        VendorError: it is longer, elsewhere, or did not come.
    """
    # One second beyond: of two clocks for one end, the tick's is to strike first.
    timeout_s = until - asyncio.get_running_loop().time() + 1
    digest, received = hashlib.sha256(), 0
    download = turn.agent.vendors.download(vendor, artifact.url, timeout_s=timeout_s, bytes_max=artifact.bytes)
    async with aclosing(download) as chunks:
        async for chunk in chunks:
            digest.update(chunk)
            received += len(chunk)
            yield chunk
    if received != artifact.bytes:
        raise Mismatch(f"{received} bytes came, {artifact.bytes} were listed")
    if digest.hexdigest() != artifact.sha256:
        raise Mismatch("hash mismatch")
