"""The door of a run's files: whole or nothing, by the job's own token, and what is resumed from stays."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from agent.checkpoints import folder_of, grant_of, read_checkpoints
from agent.core.model import Artifact, Checkpoint, Job, JobState, Run, RunStatus
from agent.edges.artifacts_folder import FolderArtifacts
from agent.edges.file_tokens import SecretTokens
from agent.files import FILES_MAX, close_files
from agent.inputs import once_through
from agent.ports import Agent, Usage
from api.config import ApiSettings
from api.door import create_app
from livery.client import Client, ProblemError
from tests.agent.core.values import a_job, a_run, at
from tests.api.conftest import door_of
from tests.api.problems import problem
from wire.checkpoint import PART_BYTES_MAX, CheckpointFile, Manifest, Part
from wire.control import JobRequest

SECRETS = "gpu_vendor_1=first-secret,gpu_vendor_2=second-secret"


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Door:
    """A control plane with one run of two jobs, and what a job sends it."""

    def __init__(self, agent: Agent, run: Run, client: httpx.AsyncClient) -> None:
        self.agent, self.run, self.client = agent, run, client

    def headers(self, job: Job, **more: str) -> dict[str, str]:
        grant = grant_of(self.agent, self.run, job)
        assert grant is not None
        return {"authorization": f"Bearer {grant.token}", "content-type": "application/octet-stream", **more}

    async def put(
        self, name: str, body: bytes, job: int = 0, by: int | None = None, announced: str | None = None
    ) -> httpx.Response:
        target, sender = self.run.jobs[job], self.run.jobs[job if by is None else by]
        url = f"/api/agent-files/{self.run.run_id}/{target.job_id}/{name}"
        return await self.client.put(
            url, content=body, headers=self.headers(sender, **{"x-content-sha256": announced or sha(body)})
        )

    async def get(self, name: str, job: int = 0, by: int | None = None, **more: str) -> httpx.Response:
        target, sender = self.run.jobs[job], self.run.jobs[job if by is None else by]
        url = f"/api/agent-files/{self.run.run_id}/{target.job_id}/{name}"
        return await self.client.get(url, headers=self.headers(sender, **more))

    async def push(self, step: int, job: int = 0) -> bytes:
        """Push a whole checkpoint; return its manifest."""
        body = f"weights after {step}".encode()
        manifest = a_manifest(step, body).to_json()
        assert (await self.put(f"{step}-model.0", body, job)).status_code == 201
        assert (await self.put("checkpoint.json", manifest, job)).status_code == 201
        return manifest

    async def kept(self, job: int = 0) -> set[str]:
        """Return which parts of checkpoints are kept."""
        names = [f"{step}-model.{number}" for step in range(0, 60, 5) for number in range(2)]
        return {name for name in (*names, "unnumbered") if (await self.get(name, job)).status_code == 200}

    async def end(self, status: RunStatus) -> None:
        """End the run, as a tick does."""
        self.run = replace(self.run, status=status, completed_at=await self.agent.store.now())
        await self.store(*self.run.jobs)
        await close_files(self.agent, self.run)

    async def store(self, *jobs: Job) -> None:
        """Store the run with these jobs."""
        self.run = replace(self.run, jobs=jobs)
        claim = await self.agent.store.claim(self.run.run_id, 1)
        await self.agent.store.save(claim.token, self.run)  # type: ignore[union-attr]
        await self.agent.store.release(self.run.run_id, claim.token, None)  # type: ignore[union-attr]


def a_manifest(step: int, body: bytes, **changes: Any) -> Manifest:
    part = Part(name=f"{step}-model.0", bytes=len(body), sha256=sha(body))
    file = CheckpointFile(name="model.safetensors", bytes=len(body), sha256=sha(body), parts=(part,))
    values = {"job_id": "v-1", "step": step, "steps": 100, "model_hash": "aa" * 32, "spec_hash": "bb" * 32}
    return Manifest.model_validate({**values, "created_at": at(0), "files": (file,), **changes})


@pytest.fixture
async def files(agent: Agent, tmp_path: Path) -> AsyncIterator[Door]:
    kept = FolderArtifacts(tmp_path / "artifacts")
    agent = replace(agent, artifacts=kept, callback_base_url="http://livery", file_tokens=SecretTokens(SECRETS))
    first = a_job(1, status="running", vendor_job_id="v-1", vendor_id="gpu_vendor_1", slot=0)
    other = a_job(2, status="running", vendor_job_id="v-2", vendor_id="gpu_vendor_2", slot=1)
    run = a_run(created_at=await agent.store.now())
    await agent.store.insert_run(run, (), None, "")
    async with door_of(agent) as client:
        door = Door(agent, run, client)
        await door.store(first, other)
        yield door


async def test_a_checkpoint_is_seen_when_its_manifest_is_there_and_comes_back_byte_for_byte(files: Door) -> None:
    job = files.run.jobs[0]
    body = b"weights after 10"
    reply = await files.put("10-model.0", body)
    assert (reply.status_code, reply.json()) == (201, {"name": "10-model.0", "bytes": len(body), "sha256": sha(body)})
    assert await read_checkpoints(files.agent, files.run, files.run.jobs) == ()
    manifest = await files.push(10)
    found = Checkpoint(
        job_id=job.job_id,
        step=10,
        steps=100,
        bytes=len(body),
        model_hash="aa" * 32,
        spec_hash="bb" * 32,
        sha256=sha(manifest),
    )
    assert await read_checkpoints(files.agent, files.run, files.run.jobs) == (found,)
    assert (await files.get("10-model.0")).content == body
    assert (await files.get("checkpoint.json")).content == manifest
    part = await files.get("10-model.0", range="bytes=8-")
    assert (part.status_code, part.content) == (206, b"after 10")


async def test_an_upload_that_is_cut_or_changed_keeps_nothing(files: Door) -> None:
    assert problem(await files.put("a", b"half of i", announced=sha(b"half of it")), "upload_incomplete")
    assert (await files.get("a")).status_code == 404
    manifest = a_manifest(10, b"never sent").to_json()
    assert problem(await files.put("checkpoint.json", manifest), "upload_incomplete")
    assert (await files.put("10-model.0", b"shorter")).status_code == 201
    assert problem(await files.put("checkpoint.json", manifest), "upload_incomplete")
    assert problem(await files.put("checkpoint.json", b"{}"), "upload_incomplete")
    assert problem(await files.put("checkpoint.json", b"no JSON"), "upload_incomplete")
    assert (await files.get("checkpoint.json")).status_code == 404
    assert await read_checkpoints(files.agent, files.run, files.run.jobs) == ()


async def test_a_connection_that_ends_in_the_middle_of_a_part_keeps_nothing(files: Door) -> None:
    """Not every server says how much was to come: the end of the connection says that it is not all."""
    job = files.run.jobs[0]
    path = f"/api/agent-files/{files.run.run_id}/{job.job_id}/a"
    headers = files.headers(job, host="livery", **{"x-content-sha256": sha(b"half of i")})
    scope = {
        "type": "http",
        "method": "PUT",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
        "scheme": "http",
        "server": ("livery", 80),
        "asgi": {"version": "3.0"},
    }
    coming = iter(({"type": "http.request", "body": b"half of i", "more_body": True}, {"type": "http.disconnect"}))
    sent: list[Any] = []

    async def receive() -> Any:
        return next(coming)

    async def send(message: Any) -> None:
        sent.append(message)

    await create_app(lambda: files.agent, hosts=("livery",))(scope, receive, send)
    assert [message["status"] for message in sent if "status" in message] == [422]
    assert (await files.get("a")).status_code == 404


async def test_no_manifest_names_what_another_job_pushed_and_no_name_leaves_the_job(files: Door) -> None:
    body = b"weights after 10"
    assert (await files.put("10-model.0", body, job=1)).status_code == 201
    folder = folder_of(files.run.jobs[1].job_id)
    for name in ("10-model.0", f"../{folder}/10-model.0", f"{folder}/10-model.0", "x" * 300):
        whole = a_manifest(10, body).to_json().replace(b'"10-model.0"', f'"{name}"'.encode())
        assert problem(await files.put("checkpoint.json", whole), "upload_incomplete")
        for asked in (name, name.replace("/", "%2F"), f"inputs/{name}", "inputs/" + "../" * 3 + name):
            assert (await files.get(asked)).status_code in (403, 404, 422)
    assert (await files.get("checkpoint.json")).status_code == 404


async def test_a_token_of_another_run_opens_nothing(files: Door) -> None:
    """Jobs are numbered in each run, and vendors have one secret: neither makes one token good for two."""
    run = replace(files.run, run_id="run_2", jobs=())
    await files.agent.store.insert_run(run, (), None, "")
    there = Door(files.agent, run, files.client)
    await there.store(replace(files.run.jobs[0], job_id="run_2-job-1"))
    url = "/api/agent-files/run_2/run_2-job-1/a"
    for sender in (files.run.jobs[0], replace(files.run.jobs[0], job_id="run_2-job-1")):
        headers = files.headers(sender, **{"x-content-sha256": sha(b"x")})
        assert problem(await files.client.put(url, content=b"x", headers=headers), "upload_refused")
    assert (await there.put("a", b"x")).status_code == 201


async def test_a_token_is_good_for_its_own_job_and_no_other(files: Door) -> None:
    await files.push(10)
    assert problem(await files.put("a", b"x", job=0, by=1), "upload_refused")
    assert problem(await files.get("10-model.0", job=0, by=1), "upload_refused")
    url = f"/api/agent-files/{files.run.run_id}/{files.run.jobs[0].job_id}/10-model.0"
    for headers in ({}, {"authorization": "Bearer "}, {"authorization": "Basic x"}, {"authorization": "Bearer ü"}):
        given = {name: value.encode() for name, value in headers.items()}
        assert problem(await files.client.get(url, headers=given), "upload_refused")
    # Nor is a stranger told which runs there are.
    nowhere = url.replace(files.run.run_id, "run_2")
    assert problem(await files.client.get(nowhere, headers=files.headers(files.run.jobs[0])), "upload_refused")


async def test_a_job_that_resumes_reads_what_it_was_told_of_however_often_the_other_pushes(files: Door) -> None:
    first, other = files.run.jobs
    told = await files.push(10)
    (checkpoint,) = await read_checkpoints(files.agent, files.run, (first,))
    twin = replace(other, slot=0, hedges=first.job_id, resumes=first.job_id, checkpoint=checkpoint)
    await files.store(first, twin)
    for step in (20, 30, 40, 50):
        await files.push(step)
        assert (await files.get("checkpoint.json", job=0, by=1)).content == told
        assert (await files.get("10-model.0", job=0, by=1)).content == b"weights after 10"
    assert (await files.get("checkpoint.json")).content != told
    # It may read, and not write.
    assert problem(await files.put("a", b"x", job=0, by=1), "upload_refused")


async def test_of_the_checkpoints_of_a_job_the_last_two_stay(files: Door) -> None:
    for step in (10, 20, 30, 40):
        manifest = await files.push(step)
        # Sent again, it is the same one.
        assert (await files.put("checkpoint.json", manifest)).status_code == 201
    kept = [step for step in (10, 20, 30, 40) if (await files.get(f"{step}-model.0")).status_code == 200]
    assert kept == [30, 40]


async def test_of_a_push_that_was_cut_off_nothing_stays_once_a_later_one_is_whole(files: Door) -> None:
    """Its worker died: it goes on from the checkpoint before, and makes others than it would have made."""
    for step in (10, 20):
        await files.push(step)
    for name in ("25-model.0", "30-model.1", "45-model.0", "unnumbered"):
        assert (await files.put(name, b"half")).status_code == 201
    await files.push(30)
    # What is of a later step may be of a push that goes on.
    assert await files.kept() == {"20-model.0", "30-model.0", "45-model.0"}
    await files.push(50)
    assert await files.kept() == {"30-model.0", "50-model.0"}


async def test_a_plane_that_died_before_it_tidied_does_so_when_the_manifest_comes_again(files: Door) -> None:
    await files.push(10)
    manifest = await files.push(20)
    await files.put("15-model.0", b"half")
    assert (await files.put("checkpoint.json", manifest)).status_code == 201
    assert await files.kept() == {"10-model.0", "20-model.0"}


async def test_what_is_resumed_from_stays_until_the_job_that_resumes_has_ended(files: Door) -> None:
    first, other = files.run.jobs
    await files.push(10)
    (checkpoint,) = await read_checkpoints(files.agent, files.run, (first,))
    twin = replace(other, slot=0, hedges=first.job_id, resumes=first.job_id, checkpoint=checkpoint)
    await files.store(first, twin)
    for step in (20, 30, 40):
        await files.push(step)
    assert await files.kept() == {"10-model.0", "30-model.0", "40-model.0"}
    await files.store(first, replace(twin, status="failed", completed_at=await files.agent.store.now()))
    await files.push(50)
    assert await files.kept() == {"40-model.0", "50-model.0"}
    folder = folder_of(first.job_id)
    assert (await files.agent.artifacts.usage(files.run.run_id, folder)).files == 4


@pytest.mark.parametrize(
    ("run_ends", "job_ends", "checkpoint"),
    [
        ("completed", "completed", set()),
        ("completed", "failed", set()),
        ("failed", "failed", {"20-model.0"}),
        ("cancelled", "cancelled", {"20-model.0"}),
        ("cancelled", "completed", set()),
    ],
)
async def test_of_a_run_that_has_ended_stay_its_results_and_the_last_checkpoint_of_what_was_not_done(
    files: Door, run_ends: RunStatus, job_ends: JobState, checkpoint: set[str]
) -> None:
    for step in (10, 20):
        await files.push(step)
    await files.put("30-model.0", b"cut off")
    first, other = files.run.jobs
    listed = Artifact(name="model.safetensors", bytes=1, sha256=sha(b"x"))
    for name in (listed.name, "fetched.and.not.stored"):
        await files.agent.artifacts.put(files.run.run_id, first.job_id, name, once_through(b"x"))
    await files.store(replace(first, status=job_ends, artifacts=(listed,)), other)
    await files.end(run_ends)
    await files.end(run_ends)
    assert await files.kept() == checkpoint
    usage = await files.agent.artifacts.usage(files.run.run_id, folder_of(first.job_id))
    assert usage.files == (2 if checkpoint else 0)
    assert await files.agent.artifacts.usage(files.run.run_id, first.job_id) == Usage(1, 1)
    for name in ("40-model.0", "checkpoint.json"):
        assert problem(await files.put(name, b"late"), "job_ended")
    assert (await files.get("checkpoint.json")).status_code == (200 if checkpoint else 404)


class Ending:
    """A store during whose next put the run ends and its files are closed: before the upload is entered, or after."""

    def __init__(self, door: Door, moment: str) -> None:
        self._door, self._inner, self._moment = door, door.agent.artifacts, moment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def put(self, run_id: str, job_id: str, name: str, chunks: AsyncIterator[bytes]) -> None:
        async def last() -> AsyncIterator[bytes]:
            async for chunk in chunks:
                yield chunk
            await self._door.end("completed")

        if self._moment == "before":
            await self._door.end("completed")
        await self._inner.put(run_id, job_id, name, last() if self._moment == "after" else chunks)


@pytest.mark.parametrize(("moment", "code"), [("before", "job_ended"), ("after", "artifacts_unavailable")])
@pytest.mark.parametrize("name", ["20-model.0", "checkpoint.json"])
async def test_an_upload_that_is_under_way_when_the_run_ends_leaves_nothing(
    files: Door, moment: str, code: str, name: str
) -> None:
    body = b"weights after 20"
    await files.put("20-model.0", body)
    agent = replace(files.agent, artifacts=Ending(files, moment))
    async with door_of(agent) as client:
        reply = await Door(agent, files.run, client).put(name, a_manifest(20, body).to_json())
        assert problem(reply, code)
    for job in files.run.jobs:
        assert await files.agent.artifacts.usage(files.run.run_id, folder_of(job.job_id)) == Usage(0, 0)


async def test_files_are_taken_for_a_minute_after_the_end_and_read_for_longer(files: Door) -> None:
    await files.push(10)
    first, other = files.run.jobs
    now = await files.agent.store.now()
    await files.store(replace(first, status="failed", completed_at=now - timedelta(seconds=50)), other)
    await files.push(20)
    await files.store(replace(first, status="failed", completed_at=now - timedelta(seconds=61)), other)
    assert problem(await files.put("a", b"x"), "job_ended")
    assert (await files.get("checkpoint.json")).status_code == 200


class Full:
    """A store that keeps very much of every job already."""

    def __init__(self, inner: Any, usage: Usage) -> None:
        self._inner, self._usage = inner, usage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def usage(self, run_id: str, job_id: str) -> Usage:
        return self._usage


@pytest.mark.parametrize("usage", [Usage(FILES_MAX, 1), Usage(1, 4 * 1024**3)])
async def test_a_job_keeps_no_more_than_it_may(files: Door, usage: Usage) -> None:
    await files.push(10)
    agent = replace(files.agent, artifacts=Full(files.agent.artifacts, usage))
    async with door_of(agent) as client:
        full = Door(agent, files.run, client)
        assert problem(await full.put("another", b"x"), "body_too_large")
        # What is there may come again, and be no longer than it was where there is no room.
        assert (await full.put("10-model.0", b"weights after 10")).status_code == 201
        longer = await full.put("10-model.0", b"weights after 100")
        assert longer.status_code == (201 if usage.bytes == 1 else 413)


async def test_no_body_is_larger_than_a_part_and_no_name_leaves_the_folder(files: Door) -> None:
    assert (await files.put("a", bytes(PART_BYTES_MAX))).status_code == 201
    assert problem(await files.put("b", bytes(PART_BYTES_MAX + 1)), "body_too_large")
    for name in (".hidden", "%2e%2e", "a%00", "ü"):
        assert (await files.put(name, b"x")).status_code in (404, 405, 422)
    assert problem(await files.put("a", b"x", announced="no hash"), "invalid_field")


async def test_a_dataset_is_uploaded_by_its_owner_and_read_by_the_runs_jobs_alone(files: Door, tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000
    assert len(data) > PART_BYTES_MAX
    (tmp_path / "text.jsonl").write_bytes(data)
    transport = httpx.ASGITransport(create_app(lambda: files.agent, hosts=("livery",)))
    async with Client("http://livery", transport=transport) as client:
        named = await client.upload(tmp_path / "text.jsonl")
        assert named == f"input:{sha(data)}"
        # What is whole is not sent again; an empty file is a file.
        sent: list[int] = []
        await client.upload(tmp_path / "text.jsonl", sent.append)
        assert sent == [PART_BYTES_MAX]
        (tmp_path / "empty.txt").write_bytes(b"")
        assert await client.upload(tmp_path / "empty.txt") == f"input:{sha(b'')}"
        run = await client.start("train", 1, job=JobRequest(dataset=named))
        assert run.job.dataset == named
    inputs = f"inputs/{sha(data)}"
    assert problem(await files.get(inputs), "artifact_not_found")
    files.run = replace(files.run, job=replace(files.run.job, dataset=named))
    await files.store(*files.run.jobs)
    reply = await files.get(inputs)
    assert (reply.status_code, sha(reply.content)) == (200, sha(data))
    assert await files.agent.artifacts.usage("inputs", sha(data)) == Usage(1, len(data))


async def test_a_dataset_that_is_not_what_its_hash_says_is_not_kept(files: Door) -> None:
    async def put(body: bytes, place: str, sha256: str) -> httpx.Response:
        headers = {"content-type": "application/octet-stream"} | ({"content-range": place} if place else {})
        return await files.client.put(f"/api/agent-input?sha256={sha256}", content=body, headers=headers)

    whole = b"a" * PART_BYTES_MAX + b"b"
    first = await put(whole[:-1], f"bytes 0-{PART_BYTES_MAX - 1}/{len(whole)}", sha(whole))
    assert (first.status_code, first.json()["isWhole"]) == (201, False)
    last = f"bytes {PART_BYTES_MAX}-{PART_BYTES_MAX}/{len(whole)}"
    assert problem(await put(b"c", last, sha(whole)), "upload_incomplete")
    assert await files.agent.artifacts.usage("inputs", sha(whole)) == Usage(0, 0)
    assert problem(await put(b"half", "", sha(b"half of it")), "upload_incomplete")
    assert problem(await put(b"b", "bytes 1-1/2", sha(b"ab")), "upload_incomplete")
    assert problem(await put(b"ab", "bytes 0-0/2", sha(b"ab")), "upload_incomplete")
    assert problem(await put(b"ab", "all of it", sha(b"ab")), "invalid_field")
    assert problem(await put(b"a", "bytes 0-0/9999999999999", sha(b"ab")), "body_too_large")
    assert problem(await put(b"a", "", "no hash"), "invalid_field")
    assert folder_of("job") == "job-files"


async def test_the_owners_secret_is_asked_of_the_owner_and_the_jobs_token_of_the_job(files: Door) -> None:
    app = create_app(lambda: files.agent, settings=ApiSettings(_env_file=None, secret=SecretStr("the-owners")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://livery") as client:
        door = Door(files.agent, files.run, client)
        await door.push(10)
        assert (await door.get("checkpoint.json")).status_code == 200
        headers = door.headers(door.run.jobs[0])
        refused = await client.put(f"/api/agent-input?sha256={sha(b'a')}", content=b"a", headers=headers)
        assert problem(refused, "forbidden")
        assert problem(await client.delete("/api/agent-files/a/b/c", headers=headers), "forbidden")
        async with Client("http://localhost", secret="wrong", transport=httpx.ASGITransport(app)) as stranger:
            with pytest.raises(ProblemError):
                await stranger.runs()
