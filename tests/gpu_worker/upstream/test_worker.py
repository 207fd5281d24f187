"""A worker before somebody's server, started as its owner starts it: OpenAI's own client is served through both."""

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.fixtures.openai_upstream import FakeUpstream, Reply, models, says, upstream
from tests.fixtures.server import WAIT_S, Server
from tests.fixtures.talker import client_of

HELLO: Any = [{"role": "user", "content": "hello"}]
SECRET = "sk-hidden"


def online(server: Server) -> None:
    """Return once the worker serves."""
    deadline_s = time.monotonic() + WAIT_S
    while '"online"' not in httpx.get(f"{server.url}/health", timeout=WAIT_S).text:
        assert time.monotonic() < deadline_s, server.log
        assert server.process.poll() is None, server.log
        time.sleep(0.05)


async def wrong(reply: Reply) -> None:
    """Answer HTML with a secret in it."""
    await reply.head(kind="text/html")
    await reply.raw(f"<html>{SECRET}</html>".encode())


async def hangs(reply: Reply) -> None:
    await reply.head()
    await reply.chunks("one")
    await reply.gone.wait()


async def ask(client: openai.AsyncOpenAI, **fields: Any) -> str:
    answer = await client.chat.completions.create(**{"model": "small", "messages": HELLO, **fields})
    return answer.choices[0].message.content or ""


async def refused(client: openai.AsyncOpenAI) -> int:
    with pytest.raises(openai.APIStatusError) as caught:
        await ask(client)
    assert SECRET not in caught.value.response.text
    return caught.value.status_code


@pytest.mark.slow
@pytest.mark.row(62)
async def test_a_worker_serves_what_stands_behind_it_and_outlives_its_faults(tmp_path: Path) -> None:
    async with upstream(key="sk-1", listing=models("small", "/srv/large.gguf", max_model_len=4_096)) as fake:
        server = await asyncio.to_thread(
            Server,
            tmp_path / "worker.log",
            *("cli", "worker", "start", "--name", "u", "--engine", "openai", "--upstream-url", fake.url),
            *("--model", "small", "--port", "0", "--grpc-port", "0", "--data", str(tmp_path / "data")),
            HOME=str(tmp_path),
            SUPPORTED_MODELS="/srv/large.gguf",
            MAX_CONCURRENT_JOBS="1",
            LIVERY_WORKER_UPSTREAM_KEY="sk-1",
            LIVERY_WORKER_UPSTREAM_SILENCE_S="1",
            LIVERY_WORKER_CAPABILITY_PORT="0",
            LIVERY_WORKER_RPC_URL="http://127.0.0.1:9",
        )
        try:
            await asyncio.to_thread(online, server)
            async with client_of(f"{server.url}/v1") as client:
                await _served(client, fake)
            assert await asyncio.to_thread(server.stop) == 0, server.log
        except BaseException:
            server.process.kill()
            raise
    assert SECRET not in server.log


async def _served(client: openai.AsyncOpenAI, fake: FakeUpstream) -> None:
    assert [each.id async for each in client.models.list()] == ["small", "large.gguf"]
    assert await ask(client) == "one two three"
    await ask(client, model="large.gguf")
    assert fake.asked[-1].body["model"] == "/srv/large.gguf"
    stream = await client.chat.completions.create(
        model="small", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "one two three"
    assert chunks[-1].usage is not None
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (7, 3)
    # One slot: were it not given back, the next one would not be served.
    for answer, status in ((wrong, 502), (hangs, 504)):
        fake.answer = answer
        assert await refused(client) == status
        fake.answer = says
        assert await ask(client) == "one two three"
    fake.answer = hangs
    gone = fake.gone
    stream = await client.chat.completions.create(model="small", messages=HELLO, stream=True)
    await anext(aiter(stream))
    await stream.close()
    await fake.until(lambda fake: fake.gone == gone + 1)
    fake.answer = says
    assert await ask(client) == "one two three"
