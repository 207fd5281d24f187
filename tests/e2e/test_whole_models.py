"""Workers that serve whole models, as their owners start them: real processes, a real llama.cpp, official clients."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from gpu_worker.edges.engines.llama_process import PROGRAM
from tests.fixtures.ollama import fake_ollama, model
from tests.fixtures.server import WAIT_S, Server
from tests.fixtures.slice_worker import Worker, until
from tests.fixtures.tiny_gguf import TinyGguf

pytestmark = pytest.mark.slow
ASKED: Any = {"messages": [{"role": "user", "content": "import json"}], "max_tokens": 24, "temperature": 0}


@pytest.fixture(scope="module")
def gguf(tiny_gguf: TinyGguf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    worker = Worker(
        tmp_path_factory.mktemp("gguf"),
        tiny_gguf.gguf("q8_0"),
        "gguf",
        *("--max-jobs", "2", "--context", "1024", "--alias", "gpt-4o=tiny-gguf.q8_0", "--capability-port", "0"),
    )
    worker.start()
    worker.wait_until("worker is online")
    yield worker
    worker.stop()


def said(worker: Worker, **more: Any) -> str:
    with openai.OpenAI(base_url=f"{worker.url}/v1", api_key="none", max_retries=3, timeout=WAIT_S) as client:
        answer = client.chat.completions.create(model="gpt-4o", **ASKED, **more)
    assert answer.choices[0].message.content is not None
    return answer.choices[0].message.content


def children(worker: Worker) -> list[psutil.Process]:
    found: list[psutil.Process] = psutil.Process(worker.server.process.pid).children(recursive=True)
    # One that was killed is there until it is waited for, without a command line.
    return [each for each in found if each.status() != psutil.STATUS_ZOMBIE and PROGRAM[-1] in each.cmdline()]


def test_a_gguf_file_is_served_under_its_own_name_and_an_alias(gguf: Worker) -> None:
    told = gguf.status()["model"]
    assert (told["engine"], told["model"], told["state"], told["slots"]) == ("gguf", "tiny-gguf.q8_0", "ready", 2)
    assert (told["models"][0]["quant"], told["models"][0]["context"]) == ("Q8_0", 1_024)
    assert told["benchmarkTokPerSec"] > 0
    assert said(gguf) == said(gguf) != ""
    reply = httpx.get(f"{gguf.url}/v1/models", timeout=WAIT_S).json()
    assert [each["id"] for each in reply["data"]] == ["tiny-gguf.q8_0"]


def test_no_llama_cpp_is_reached_from_outside_without_its_key(gguf: Worker) -> None:
    child = children(gguf)[0]
    ports = [each.laddr for each in child.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert {port.ip for port in ports} == {"127.0.0.1"}
    for port in ports:
        reply = httpx.post(f"http://127.0.0.1:{port.port}/v1/completions", json={"prompt": "x"}, timeout=WAIT_S)
        assert reply.status_code == 401


def test_a_llama_cpp_that_is_killed_is_started_again_and_the_next_request_is_served(gguf: Worker) -> None:
    before = said(gguf)
    child = children(gguf)[0]
    child.kill()
    until(lambda: [each for each in children(gguf) if each.pid != child.pid], gguf)
    until(lambda: gguf.status()["model"]["restarts"] == 1, gguf)
    assert said(gguf) == before
    assert gguf.is_alive


@contextmanager
def front(folder: Path, *words: str) -> Iterator[str]:
    """Start a worker before something else; yields its URL once it is online, and ends it as an init system does."""
    settings = {
        name: "0" for name in ("LIVERY_WORKER_PORT", "LIVERY_WORKER_GRPC_PORT", "LIVERY_WORKER_CAPABILITY_PORT")
    }
    more = {
        "HOME": str(folder),
        "LIVERY_WORKER_DATA": str(folder / "data"),
        "LIVERY_WORKER_RPC_URL": "http://127.0.0.1:9",
    }
    server = Server(folder / "log", "cli", *words, **settings, **more)
    try:
        deadline_s = time.monotonic() + WAIT_S
        while "worker is online" not in server.log:
            assert server.process.poll() is None, server.log
            assert time.monotonic() < deadline_s, server.log
            time.sleep(0.02)
        yield server.url
    finally:
        assert server.stop() == 0


@pytest.mark.row(62)
def test_a_worker_before_an_openai_server_serves_what_that_has(gguf: Worker, tmp_path: Path) -> None:
    with (
        front(tmp_path, "llm-worker", "--backend", "openai", "--url", gguf.url) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=3, timeout=WAIT_S) as client,
    ):
        name = client.models.list().data[0].id
        answer = client.chat.completions.create(model=name, **ASKED)
    assert name == "tiny-gguf.q8_0"
    assert answer.choices[0].message.content == said(gguf)


async def test_a_worker_before_an_ollama_serves_its_models(tmp_path: Path) -> None:
    def asked(base_url: str) -> str | None:
        words = ("--engine", "ollama", "--model", "tiny:1b", "--ollama-url", base_url)
        with (
            front(tmp_path, "worker", "start", *words) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=WAIT_S) as client,
        ):
            return client.chat.completions.create(model="tiny:1b", **ASKED).choices[0].message.content

    async with fake_ollama(model("tiny:1b")) as fake:
        assert await asyncio.to_thread(asked, fake.base_url)


def test_its_last_request_is_answered_before_a_worker_goes_and_nothing_is_left(gguf: Worker) -> None:
    left = children(gguf)
    with httpx.stream(
        "POST", f"{gguf.url}/v1/chat/completions", json={**ASKED, "max_tokens": 200, "stream": True}, timeout=WAIT_S
    ) as stream:
        lines = (line for line in stream.iter_lines() if line.startswith("data: "))
        next(lines)
        httpx.post(f"{gguf.url}/api/v1/drain", timeout=WAIT_S)
        rest = list(lines)
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] in ("length", "stop")
    assert gguf.server.process.wait(WAIT_S) == 0
    assert not [each for each in left if each.is_running()]
