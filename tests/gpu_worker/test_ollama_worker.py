"""A worker before an Ollama, started as its owner starts it."""

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from tests.fixtures.ollama import fake_ollama, model
from tests.fixtures.server import WAIT_S, Server
from tests.fixtures.talker import client_of
from tests.gpu_worker.test_ollama import USER

LLAMA, QWEN, GEMMA = "llama3.1:8b-instruct-q4_K_M", "qwen3:4b", "gemma3:1b"


def online(server: Server) -> None:
    """Return once the worker serves."""
    deadline_s = time.monotonic() + WAIT_S
    while '"online"' not in httpx.get(f"{server.url}/health", timeout=WAIT_S).text:
        assert time.monotonic() < deadline_s, server.log
        assert server.process.poll() is None, server.log
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.row(61)
@pytest.mark.row(63)
async def test_a_worker_pulls_what_its_owner_named_and_no_more_and_answers_for_all_of_it(tmp_path: Path) -> None:
    library = {name: model(name) for name in (QWEN, GEMMA, "other:1b")}
    async with fake_ollama(model(LLAMA), library=library) as fake:
        server = await asyncio.to_thread(
            Server,
            tmp_path / "worker.log",
            *("cli", "worker", "start", "--name", "o", "--engine", "ollama", "--model", "llama3.1:8b", "--port", "0"),
            *("--grpc-port", "0", "--data", str(tmp_path / "data")),
            HOME=str(tmp_path),
            OLLAMA_HOST=fake.base_url.removeprefix("http://"),
            SUPPORTED_MODELS=f"{QWEN},{GEMMA}",
            PRELOAD_MODELS=GEMMA,
            LIVERY_WORKER_ALIASES=f"gpt-4o={QWEN}",
            LIVERY_WORKER_CAPABILITY_PORT="0",
            LIVERY_WORKER_RPC_URL="http://127.0.0.1:9",
            MAX_CONCURRENT_JOBS="4",
        )
        try:
            await asyncio.to_thread(online, server)
            at_start = [body["model"] for body in fake.of("/api/pull")], list(fake.loaded)
            fake.asked.clear()
            async with client_of(f"{server.url}/v1") as client:
                names = ("gpt-4o", QWEN, "llama3.1", GEMMA)
                answers = await asyncio.gather(
                    *(client.chat.completions.create(model=name, messages=USER, max_tokens=3) for name in names)
                )
                listed = {each.id async for each in client.models.list()}
                with pytest.raises(Exception, match="does not exist"):
                    await client.chat.completions.create(model="other:1b", messages=USER)
            assert await asyncio.to_thread(server.stop) == 0, server.log
        except BaseException:
            server.process.kill()
            raise
    assert at_start == ([GEMMA], [LLAMA, GEMMA])
    assert [each.choices[0].message.content for each in answers] == ["It is a"] * 4
    assert fake.of("/api/pull") == [{"model": QWEN, "stream": True}]
    assert sorted(body["model"] for body in fake.made) == [GEMMA, LLAMA, QWEN, QWEN]
    assert {body["options"]["num_predict"] for body in fake.made} == {3}
    assert {QWEN, GEMMA, "llama3.1:8b"} <= listed
