"""Hosts that gather an answer before they send it take no more than so much of one: what is longer comes in parts."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.ports import Agent, Claim
from api.door import create_app
from api.files import GATHERED_BYTES_MAX
from livery.client import Client, Damaged
from tests.api.problems import problem
from tests.api.test_events import END, Quick, a_run_so_far
from tests.api.test_files import client_of, ended_job
from tests.contracts.store_values import an_entry, log_of
from tests.fixtures.world import World


def on_lambda(app: Any, given: list[int]) -> httpx.ASGITransport:
    """Return what calls `app` as Mangum does; `given` is told how many bytes each answer had."""

    async def as_mangum_calls(scope: Any, receive: Any, send: Any) -> None:
        given.append(0)

        async def told(message: Any) -> None:
            given[-1] += len(message.get("body", b""))
            await send(message)

        await app({**scope, "aws.event": {}}, receive, told)

    return httpx.ASGITransport(as_mangum_calls)


async def test_an_answer_that_is_gathered_ends_where_a_host_takes_no_more_and_the_sdk_fetches_the_rest(
    agent: Agent,
) -> None:
    count = 30
    run = await a_run_so_far(agent, ())
    claim = await agent.store.claim(run.run_id, 60)
    assert isinstance(claim, Claim)
    entries = [an_entry(run.run_id, seq, type="job_log", content="x" * 100_000) for seq in range(1, count)]
    entries.append(an_entry(run.run_id, count, type="metric", data=END))
    await agent.store.save(claim.token, replace(run, status="completed", phase="done", log=log_of(count)), entries)
    app = create_app(lambda: agent, hosts=("livery",))
    given: list[int] = []
    async with Client("http://livery", transport=Quick(on_lambda(app, given), 65_536)) as client:
        told = [event.observation.seq async for event in client.events(run.run_id)]
    assert told == list(range(1, count + 1))
    assert [length < 1_200_000 for length in given] == [True] * 3


async def test_a_file_larger_than_a_host_answers_comes_in_parts(world: World, tmp_path: Path) -> None:
    content = bytes(range(256)) * 36_864 + b"the end"
    right = {"name": "big", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "url": "/big"}

    def meddle(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path == "/big":
            return httpx.Response(200, content=content)
        is_list = request.url.path.startswith("/artifacts/")
        return httpx.Response(200, json={"artifacts": [right]}) if is_list else response

    world.hosts.meddle = meddle
    job = await ended_job(world)
    given: list[int] = []
    transport = on_lambda(create_app(lambda: world.agent), given)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as door:
        problem(await door.get(job.artifacts[0].url), "too_large_for_host")
        cut = await door.get(job.artifacts[0].url, headers={"range": "bytes=1-"})
        assert (cut.status_code, cut.content) == (206, content[1 : GATHERED_BYTES_MAX + 1])
    given.clear()
    async with Client("http://localhost", transport=transport) as client:
        await client.download(job.run_id, job.id, job.artifacts[0], tmp_path / "big")
        assert (tmp_path / "big").read_bytes() == content
        assert given == [GATHERED_BYTES_MAX, GATHERED_BYTES_MAX, len(content) - 2 * GATHERED_BYTES_MAX]
        shorter = job.artifacts[0].model_copy(update={"bytes": len(content) - 1})
        with pytest.raises(Damaged):
            await client.download(job.run_id, job.id, shorter, tmp_path / "shorter")
    async with client_of(world) as client:
        await client.download(job.run_id, job.id, job.artifacts[0], tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == content
