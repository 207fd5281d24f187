"""
The door of a run's files: jobs push checkpoints through it, part by part and the manifest last, and the job that goes
on from one fetches it. Who asks proves itself by a token that is good for one job.

What a resuming job was told of stays as long as it works, however often the job before it pushes meanwhile.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from pydantic import ValidationError

from agent.artifacts import JOB_BYTES_MAX
from agent.checkpoints import folder_of, read_file
from agent.core.errors import JobOver, UnknownArtifact, UnknownRun, UploadIncomplete, UploadRefused, UploadTooLarge
from agent.core.model import Job, Run
from agent.core.states import JOB_ENDS
from agent.inputs import DATA_NAME, INPUTS, once_through
from agent.ports import Agent
from wire.checkpoint import MANIFEST_BYTES_MAX, MANIFEST_NAME, PARTS_MAX, Manifest, wrong_manifest
from wire.control import FileReply
from wire.jobs import input_hash
from wire.model import first_error

# A worker that is shut down pushes a last checkpoint of the job that it gives up.
AFTER_END_S = 60
# No worker can write these: its names do not begin with a dot.
PREVIOUS = ".previous"
# Parts, manifests, and what is kept for jobs that resume.
FILES_MAX = 2 * PARTS_MAX
INPUT_PREFIX = "inputs/"


@dataclass(frozen=True, slots=True)
class Found:
    """A file of a run: where the artifact store has it, and its size."""

    run_id: str
    folder: str
    name: str
    bytes: int


async def keep_file(
    agent: Agent, run_id: str, job_id: str, name: str, token: str, body: bytes, sha256: str
) -> FileReply:
    """
    Keep one part, or the manifest of what was kept before it.

    Raises:
        UploadRefused: the token is not that job's.
        JobOver: the job ended more than a minute ago.
        UploadIncomplete: these are other bytes than was said, or a part of the manifest is not there.
        UploadTooLarge: the job keeps too much already.
        ArtifactsUnavailable, StoreUnavailable
    """
    run, holders = await _holders(agent, run_id, job_id, token)
    job = next((one for one in holders if one.job_id == job_id), None)
    if job is None:
        raise UploadRefused("the token is not this job's")
    if job.completed_at is not None and await agent.store.now() > job.completed_at + timedelta(seconds=AFTER_END_S):
        raise JobOver(f"{job_id} ended at {job.completed_at.isoformat(timespec='seconds')}")
    if hashlib.sha256(body).hexdigest() != sha256.lower():
        raise UploadIncomplete(f"{len(body)} bytes came, with another hash than was announced")
    folder = folder_of(job_id)
    if await agent.artifacts.size(run_id, folder, name) is None:
        usage = await agent.artifacts.usage(run_id, folder)
        if usage.files >= FILES_MAX or usage.bytes + len(body) > JOB_BYTES_MAX:
            raise UploadTooLarge(f"a job keeps {JOB_BYTES_MAX} bytes in {FILES_MAX} files")
    if name == MANIFEST_NAME:
        await _keep_manifest(agent, run, job, body)
    else:
        await agent.artifacts.put(run_id, folder, name, once_through(body))
    return FileReply(name=name, bytes=len(body), sha256=sha256.lower())


async def find_file(agent: Agent, run_id: str, job_id: str, name: str, token: str) -> Found:
    """
    Return where a file of the job, of the one that it resumes, or the run's dataset (`inputs/SHA-256`) is kept.

    Raises:
        UploadRefused: the token is of no job that may read it.
        UnknownArtifact: there is no such file.
        ArtifactsUnavailable, StoreUnavailable
    """
    run, holders = await _holders(agent, run_id, job_id, token)
    if not holders:
        raise UploadRefused("the token is not this job's")
    folder = folder_of(job_id)
    if name.startswith(INPUT_PREFIX):
        sha256 = name.removeprefix(INPUT_PREFIX)
        if run.job.dataset is None or input_hash(run.job.dataset) != sha256:
            raise UnknownArtifact("it is not this run's dataset")
        return await _found(agent, INPUTS, sha256, DATA_NAME)
    if name == MANIFEST_NAME and all(one.job_id != job_id for one in holders):
        pinned = next(one.checkpoint.sha256 for one in holders if one.checkpoint is not None)
        for place in (MANIFEST_NAME, PREVIOUS, f".{pinned}"):
            content = await read_file(agent, run_id, job_id, place)
            if content is not None and hashlib.sha256(content).hexdigest() == pinned:
                return Found(run_id, folder, place, len(content))
        raise UnknownArtifact("the checkpoint is no longer kept")
    return await _found(agent, run_id, folder, name)


async def _found(agent: Agent, run_id: str, folder: str, name: str) -> Found:
    size = await agent.artifacts.size(run_id, folder, name)
    if size is None:
        raise UnknownArtifact("there is no file of this name")
    return Found(run_id, folder, name, size)


async def _holders(agent: Agent, run_id: str, job_id: str, token: str) -> tuple[Run, tuple[Job, ...]]:
    """Return the run, and those of the job and of the jobs that resume it whose token this is."""
    tokens = agent.file_tokens
    try:
        run = await agent.store.read_run(run_id)
    except UnknownRun:
        # Who has no token is not told which runs there are.
        raise UploadRefused("the token is not this job's") from None
    able = (job for job in run.jobs if job.job_id == job_id or (job.resumes == job_id and job.checkpoint is not None))
    return run, tuple(
        job for job in able if tokens is not None and tokens.is_token(job.vendor_id, run_id, job.job_id, token)
    )


async def _keep_manifest(agent: Agent, run: Run, job: Job, body: bytes) -> None:
    """Let the checkpoint be the newest; of older ones stay the last, and those that a job at work goes on from."""
    if len(body) > MANIFEST_BYTES_MAX:
        raise UploadTooLarge(f"a manifest has at most {MANIFEST_BYTES_MAX} bytes")
    try:
        manifest = Manifest.from_json(body)
    except ValidationError as error:
        raise UploadIncomplete(f"the manifest: {first_error(error)}") from None
    except ValueError as error:
        raise UploadIncomplete(f"the manifest: {error}") from None
    if wrong := wrong_manifest(manifest, pushed=True):
        raise UploadIncomplete(f"the manifest: {wrong}")
    store, run_id, folder = agent.artifacts, run.run_id, folder_of(job.job_id)
    for part in manifest.parts():
        if await store.size(run_id, folder, part.name) != part.bytes:
            raise UploadIncomplete(f"{part.name} is not there, or not as long as the manifest says")
    current = await read_file(agent, run_id, job.job_id, MANIFEST_NAME)
    if current == body:
        return
    if current is not None:
        await _let_go(agent, run, job, (body, current))
        await store.put(run_id, folder, PREVIOUS, once_through(current))
    await store.put(run_id, folder, MANIFEST_NAME, once_through(body))


async def _let_go(agent: Agent, run: Run, job: Job, kept: Iterable[bytes]) -> None:
    """Remove the parts of the checkpoint before the last, but those of the ones that are `kept` or resumed from."""
    oldest = await read_file(agent, run.run_id, job.job_id, PREVIOUS)
    if oldest is None:
        return
    resuming = [one for one in run.jobs if one.resumes == job.job_id and one.status not in JOB_ENDS]
    pins = {one.checkpoint.sha256 for one in resuming if one.checkpoint is not None}
    folder, sha256 = folder_of(job.job_id), hashlib.sha256(oldest).hexdigest()
    if sha256 in pins:
        await agent.artifacts.put(run.run_id, folder, f".{sha256}", once_through(oldest))
    pinned = [await read_file(agent, run.run_id, job.job_id, f".{one}") for one in sorted(pins)]
    staying = {name for content in (*kept, *pinned) if content is not None for name in _parts(content)}
    for name in sorted(_parts(oldest) - staying):
        await agent.artifacts.remove(run.run_id, folder, name)


def _parts(content: bytes) -> set[str]:
    return {part.name for part in Manifest.from_json(content).parts()}
