"""The files that jobs left, as the control plane serves them: the same bytes, never a page, and only what is kept."""

import hashlib

import httpx
import pytest

from agent.status import status
from api.door import create_app
from livery.client import Client, Damaged, ProblemError
from tests.api.problems import problem
from tests.fixtures.world import World
from wire.control import JobDocument


async def ended_job(world: World) -> JobDocument:
    run_id = await world.start()
    await world.until_ended(run_id)
    return (await status(world.agent, run_id)).jobs[0]


async def test_a_kept_file_is_downloaded_byte_for_byte(world: World, paid_door: httpx.AsyncClient) -> None:
    job = await ended_job(world)
    assert [file.name for file in job.artifacts] == ["model.json", "training.log"]
    for file in job.artifacts:
        for url in (file.url, file.url.removeprefix("/api")):
            reply = await paid_door.get(url)
            assert reply.status_code == 200
            assert (len(reply.content), hashlib.sha256(reply.content).hexdigest()) == (file.bytes, file.sha256)
            headers = reply.headers
            assert headers["content-type"] == "application/octet-stream"
            assert headers["content-disposition"] == f'attachment; filename="{file.name}"'
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["content-security-policy"] == "sandbox"
            assert headers["accept-ranges"] == "bytes"
            assert headers["content-length"] == str(file.bytes)
            assert headers["etag"] == f'"{file.sha256}"'


async def test_a_name_that_would_be_a_page_or_a_header_is_neither(world: World, paid_door: httpx.AsyncClient) -> None:
    evil = '../x"\r\nset-cookie: a=b\r\n\r\n<script>.html'
    right = {"name": evil, "bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest(), "url": "/abc"}

    def meddle(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path == "/abc":
            return httpx.Response(200, content=b"abc", headers={"content-type": "text/html"})
        is_list = request.url.path.startswith("/artifacts/")
        return httpx.Response(200, json={"artifacts": [right]}) if is_list else response

    world.hosts.meddle = meddle
    (file,) = (await ended_job(world)).artifacts
    assert file.name == evil
    reply = await paid_door.get(file.url)
    assert (reply.content, reply.headers["content-type"]) == (b"abc", "application/octet-stream")
    assert reply.headers["content-disposition"] == 'attachment; filename="_x___set-cookie__a_b_____script_.html"'
    assert "set-cookie" not in reply.headers


async def test_a_range_of_a_file_is_that_range(world: World, paid_door: httpx.AsyncClient) -> None:
    file = (await ended_job(world)).artifacts[1]
    whole = (await paid_door.get(file.url)).content
    for wanted, start, end in (
        ("0-0", 0, 1),
        ("5-9", 5, 10),
        ("7-", 7, file.bytes),
        ("-4", file.bytes - 4, file.bytes),
        ("0-9999999", 0, file.bytes),
        ("-9999999", 0, file.bytes),
    ):
        for condition in ({}, {"if-range": f'"{file.sha256}"'}):
            reply = await paid_door.get(file.url, headers={"range": f"bytes={wanted}", **condition})
            assert (reply.status_code, reply.content) == (206, whole[start:end])
            assert reply.headers["content-range"] == f"bytes {start}-{end - 1}/{len(whole)}"
            assert reply.headers["content-length"] == str(end - start)
            assert reply.headers["content-security-policy"] == "sandbox"


async def test_a_range_that_cannot_be_given_is_said_to_be_and_one_that_cannot_be_read_is_none(
    world: World, paid_door: httpx.AsyncClient
) -> None:
    file = (await ended_job(world)).artifacts[1]
    for beyond in (f"bytes={file.bytes}-", f"bytes={file.bytes}-{file.bytes + 1}", "bytes=-0"):
        reply = await paid_door.get(file.url, headers={"range": beyond})
        problem(reply, "range_not_satisfiable")
        assert reply.headers["content-range"] == f"bytes */{file.bytes}"
    for none in ("bytes=0-1,3-4", "bytes=4-1", "bytes=-", "lines=0-1", "bytes=x-", "0-1", "bytes=" + "9" * 40 + "-"):
        reply = await paid_door.get(file.url, headers={"range": none})
        assert (reply.status_code, len(reply.content)) == (200, file.bytes)
    changed = await paid_door.get(file.url, headers={"range": "bytes=0-1", "if-range": '"of another file"'})
    assert (changed.status_code, len(changed.content)) == (200, file.bytes)


async def test_what_is_not_kept_is_not_there(world: World, paid_door: httpx.AsyncClient) -> None:
    job = await ended_job(world)
    right = {"runId": job.run_id, "jobId": job.id, "name": "model.json"}
    for wrong, code in (
        ({"runId": "run_0"}, "run_not_found"),
        ({"runId": "../.."}, "run_not_found"),
        ({"runId": ""}, "run_not_found"),
        ({"jobId": "job"}, "artifact_not_found"),
        ({"jobId": "../.."}, "artifact_not_found"),
        ({"name": "../../../etc/passwd"}, "artifact_not_found"),
        ({"name": ""}, "artifact_not_found"),
        ({"name": "x" * 10_000}, "artifact_not_found"),
        ({"name": "\0"}, "artifact_not_found"),
    ):
        reply = await paid_door.get("/api/agent-artifact", params=right | wrong)
        assert (reply.status_code, reply.json()["code"]) == (404, code)
    assert (await paid_door.get("/api/agent-artifact", params={"runId": "x"})).status_code == 422


async def test_a_file_that_has_gone_since_is_said_to_be(world: World, paid_door: httpx.AsyncClient) -> None:
    job = await ended_job(world)

    async def nothing():
        for chunk in ():
            yield chunk

    await world.agent.artifacts.put(job.run_id, job.id, "model.json", nothing())
    reply = await paid_door.get(job.artifacts[0].url)
    assert (reply.status_code, reply.json()["code"]) == (404, "artifact_not_found")


def client_of(world: World) -> Client:
    return Client("http://localhost", transport=httpx.ASGITransport(create_app(lambda: world.agent)))


async def test_the_client_downloads_checks_and_writes_whole_files(world: World, tmp_path) -> None:
    job = await ended_job(world)
    log = job.artifacts[1]
    told: list[int] = []
    async with client_of(world) as client:
        await client.download(job.run_id, job.id, log, tmp_path / "log", told.append)
        content = (tmp_path / "log").read_bytes()
        assert (hashlib.sha256(content).hexdigest(), told[-1]) == (log.sha256, log.bytes)
        for change in ({"sha256": "0" * 64}, {"bytes": log.bytes - 1}, {"bytes": log.bytes + 1}):
            with pytest.raises(Damaged):
                await client.download(job.run_id, job.id, log.model_copy(update=change), tmp_path / "log")
        with pytest.raises(ProblemError) as refused:
            await client.download("run_0", job.id, log, tmp_path / "log")
        assert refused.value.problem.code == "run_not_found"
    assert (tmp_path / "log").read_bytes() == content
    assert not list(tmp_path.glob(".*"))
