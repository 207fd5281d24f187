"""
The door of a run's files: jobs push checkpoints through it, part by part and the manifest last, and the job that goes
on from one fetches it. Who asks proves itself by a token that is good for one job.

What a resuming job was told of stays as long as it works, however often the job before it pushes meanwhile. When the
run has ended the door is shut, and what nobody goes on from is forgotten.
"""

import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from pydantic import ValidationError

from agent.artifacts import JOB_BYTES_MAX
from agent.checkpoints import folder_of, read_file
from agent.core.errors import JobOver, UnknownArtifact, UnknownRun, UploadIncomplete, UploadRefused, UploadTooLarge
from agent.core.model import Job, Run
from agent.core.states import JOB_ENDS, RUN_ENDS
from agent.inputs import DATA_NAME, INPUTS
from agent.ports import Agent
from wire.checkpoint import MANIFEST_BYTES_MAX, MANIFEST_NAME, PARTS_MAX, Manifest, wrong_manifest
from wire.control import FileReply
from wire.file_name import NotAFileName
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
        JobOver: the job ended more than a minute ago, or its run has ended.
        UploadIncomplete: these are other bytes than was said, or a part of the manifest is not there.
        UploadTooLarge: the job keeps too much already.
        ArtifactsUnavailable, StoreUnavailable
    """
    run, holders = await _holders(agent, run_id, job_id, token)
    job = next((one for one in holders if one.job_id == job_id), None)
    if job is None:
        raise UploadRefused("the token is not this job's")
    if run.status in RUN_ENDS:
        raise _run_over(run)
    if job.completed_at is not None and await agent.store.now() > job.completed_at + timedelta(seconds=AFTER_END_S):
        raise JobOver(f"{job_id} ended at {job.completed_at.isoformat(timespec='seconds')}")
    if hashlib.sha256(body).hexdigest() != sha256.lower():
        raise UploadIncomplete(f"{len(body)} bytes came, with another hash than was announced")
    folder = folder_of(job_id)
    replaced = await agent.artifacts.size(run_id, folder, name)
    usage = await agent.artifacts.usage(run_id, folder)
    has_no_room = replaced is None and usage.files >= FILES_MAX
    if has_no_room or usage.bytes - (replaced or 0) + len(body) > JOB_BYTES_MAX:
        raise UploadTooLarge(f"a job keeps {JOB_BYTES_MAX} bytes in {FILES_MAX} files")
    if name == MANIFEST_NAME:
        await _keep_manifest(agent, run, job, body)
    else:
        await agent.artifacts.put(run_id, folder, name, _before_the_end(agent, run_id, body))
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
    try:
        size = await agent.artifacts.size(run_id, folder, name)
    except NotAFileName as error:
        raise UnknownArtifact(str(error)) from None
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
    current, pins = await read_file(agent, run_id, job.job_id, MANIFEST_NAME), _pins(run, job)
    if current is not None and current != body:
        oldest = await read_file(agent, run_id, job.job_id, PREVIOUS)
        if oldest is not None and (pin := f".{hashlib.sha256(oldest).hexdigest()}") in pins:
            await store.put(run_id, folder, pin, _before_the_end(agent, run_id, oldest))
        await store.put(run_id, folder, PREVIOUS, _before_the_end(agent, run_id, current))
    if current != body:
        await store.put(run_id, folder, MANIFEST_NAME, _before_the_end(agent, run_id, body))
    staying = await _of_manifests(agent, run_id, job.job_id, {MANIFEST_NAME, PREVIOUS, *pins})
    # A part of a later step may be of a push that goes on.
    await store.sweep(run_id, folder, lambda name: name in staying or _step(name) > manifest.step)


def _pins(run: Run, job: Job) -> set[str]:
    """Return what the manifests are called that are kept for those who go on from `job`."""
    resuming = [one for one in run.jobs if one.resumes == job.job_id and one.status not in JOB_ENDS]
    return {f".{one.checkpoint.sha256}" for one in resuming if one.checkpoint is not None}


async def _of_manifests(agent: Agent, run_id: str, job_id: str, names: Iterable[str]) -> set[str]:
    """Return the manifests of these `names` that are there, and the parts that they name."""
    found: set[str] = set()
    for name in sorted(names):
        content = await read_file(agent, run_id, job_id, name)
        if content is not None:
            # What cannot be read any more is of no use: it was whole when it came.
            with suppress(ValueError):
                found |= {name, *(part.name for part in Manifest.from_json(content).parts())}
    return found


def _step(part_name: str) -> int:
    """Return the step of a checkpoint that a part is of, by its name: -1 where that does not say it."""
    step = part_name.partition("-")[0]
    return int(step) if step.isdecimal() else -1


async def close_files(agent: Agent, run: Run) -> None:
    """
    Forget what nobody needs of the files of a run that has ended; what is under way then is not kept any more.

    Of a job that left its work undone the last whole checkpoint stays, unless the run was completed without it.

    Raises:
        ArtifactsUnavailable: some may be there still.
    """
    for job in run.jobs:
        is_of_use = run.status != "completed" and job.status != "completed"
        names = {MANIFEST_NAME} if is_of_use else ()
        checkpoint = await _of_manifests(agent, run.run_id, job.job_id, names)
        await agent.artifacts.sweep(run.run_id, folder_of(job.job_id), checkpoint.__contains__, closing=True)
        fetched = {file.name for file in job.artifacts}
        await agent.artifacts.sweep(run.run_id, job.job_id, fetched.__contains__, closing=True)


async def _before_the_end(agent: Agent, run_id: str, body: bytes) -> AsyncIterator[bytes]:
    """
    Yield `body`, and end only if the run goes on.

    The upload is entered by the time it is looked: either it sees the run's end, or `close_files` sees it.
    """
    yield body
    if (run := await agent.store.read_run(run_id)).status in RUN_ENDS:
        raise _run_over(run)


def _run_over(run: Run) -> JobOver:
    return JobOver(f"the run is {run.status}")
