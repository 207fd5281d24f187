"""
What jobs left behind in the run's files: reading the newest checkpoint, and telling the next job where it lies.

A checkpoint is whole as soon as its manifest is there (`agent.files` sees to that).
"""

import hashlib
from collections.abc import Sequence
from contextlib import aclosing

from pydantic import ValidationError

from agent.core.errors import UnknownArtifact
from agent.core.model import Checkpoint, Job, Run
from agent.ports import Agent
from wire.checkpoint import MANIFEST_BYTES_MAX, MANIFEST_NAME, PART_BYTES_MAX, Manifest
from wire.control import files_url
from wire.vendor import CheckpointDescription, FilesGrant, ResumeFrom


def folder_of(job_id: str) -> str:
    """Return where the files that a job pushes are kept: never among those that are fetched when it has ended."""
    return f"{job_id}-files"


async def read_checkpoints(agent: Agent, run: Run, jobs: Sequence[Job]) -> tuple[Checkpoint, ...]:
    """Return the newest whole checkpoint of each of `jobs` that left one. Raises ArtifactsUnavailable."""
    if agent.file_tokens is None or agent.callback_base_url is None:
        return ()
    found = [await _read(agent, run.run_id, job.job_id) for job in jobs]
    return tuple(one for one in found if one is not None)


async def _read(agent: Agent, run_id: str, job_id: str) -> Checkpoint | None:
    content = await read_file(agent, run_id, job_id, MANIFEST_NAME)
    if content is None:
        return None
    try:
        manifest = Manifest.from_json(content)
    except (ValidationError, ValueError):
        return None
    return Checkpoint(
        job_id=job_id,
        step=min(manifest.step, manifest.steps),
        steps=manifest.steps,
        bytes=manifest.bytes,
        model_hash=manifest.model_hash,
        spec_hash=manifest.spec_hash,
        sha256=hashlib.sha256(content).hexdigest(),
    )


async def read_file(agent: Agent, run_id: str, job_id: str, name: str) -> bytes | None:
    """Return a manifest that a job pushed, None where there is none. Raises ArtifactsUnavailable."""
    folder = folder_of(job_id)
    size = await agent.artifacts.size(run_id, folder, name)
    if size is None or size > MANIFEST_BYTES_MAX:
        return None
    try:
        async with aclosing(agent.artifacts.open(run_id, folder, name)) as chunks:
            return b"".join([chunk async for chunk in chunks])
    except UnknownArtifact:
        return None


def can_leave_files(agent: Agent, run: Run, vendor_id: str) -> bool:
    """Return whether a job at `vendor_id` can push checkpoints: it reaches us and shares a secret with us."""
    return _url_and_token(agent, run, vendor_id, "") is not None


def grant_of(agent: Agent, run: Run, job: Job) -> FilesGrant | None:
    """Return where `job` may leave files and by which token, None where it cannot."""
    found = _url_and_token(agent, run, job.vendor_id, job.job_id)
    return None if found is None else FilesGrant(url=found[0], token=found[1], part_bytes_max=PART_BYTES_MAX)


def _url_and_token(agent: Agent, run: Run, vendor_id: str, job_id: str) -> tuple[str, str] | None:
    if agent.file_tokens is None or agent.callback_base_url is None:
        return None
    token = agent.file_tokens.token(vendor_id, run.run_id, job_id)
    return None if token is None else (files_url(agent.callback_base_url, run.run_id, job_id), token)


def described(checkpoint: Checkpoint) -> CheckpointDescription:
    return CheckpointDescription(
        model_hash=checkpoint.model_hash,
        spec_hash=checkpoint.spec_hash,
        step=checkpoint.step,
        steps=checkpoint.steps,
        bytes=checkpoint.bytes,
    )


def resume_from(agent: Agent, run: Run, checkpoint: Checkpoint) -> ResumeFrom | None:
    """Return what the next vendor is told of `checkpoint`, None where it could not fetch it."""
    if agent.callback_base_url is None:
        return None
    return ResumeFrom(
        **described(checkpoint).model_dump(),
        url=files_url(agent.callback_base_url, run.run_id, checkpoint.job_id),
        manifest_sha256=checkpoint.sha256,
    )
