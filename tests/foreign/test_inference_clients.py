"""Clients that others wrote, unmodified and as processes, against the door of a real model."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.talker import served
from tests.fixtures.tiny_gguf import TinyGguf
from tests.foreign.inference_model import MODEL, model_service

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
PYTHON = HERE.parents[1] / ".venv" / "clients" / "bin" / "python"
KEY = "s3cret"
# No client asks anybody but us for anything.
_QUIET = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false", "NO_PROXY": "*"}


@pytest.fixture
async def url(tiny_gguf: TinyGguf, tmp_path: Path) -> AsyncIterator[str]:
    async with model_service(tiny_gguf, tmp_path, KEY) as service, served(service) as url:
        yield url


async def asked(client: str, url: str) -> dict[str, Any]:
    """Return what the client printed."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", ""), **_QUIET}
    program = await asyncio.create_subprocess_exec(
        str(PYTHON), str(HERE / "inference_clients.py"), client, url, MODEL, KEY,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment,
    )  # fmt: skip
    try:
        told, said = await asyncio.wait_for(program.communicate(), 120)
    finally:
        if program.returncode is None:
            program.kill()
    assert program.returncode == 0, said.decode()[-2_000:]
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    return found


@pytest.mark.row(69)
async def test_openai(url: str) -> None:
    found = await asked("openai_sync", url)
    assert (found["models"], found["model"]) == ([MODEL], MODEL)
    assert found["text"]
    assert found["usage"] == found["logprobs"]
    assert (found["parsed"], found["finish"], found["missing"]) == ("bool", "tool_calls", "model_not_found")
    assert found["call"]["city"] in ("Oslo", "Rome")
    assert found["plain"].startswith("Once")


@pytest.mark.row(69)
async def test_openai_asynchronous_streams_what_it_answers_whole(url: str) -> None:
    found = await asked("openai_async", url)
    assert found["streamed"] == found["whole"] != ""
    assert (found["usage"], found["finish"], found["ids"]) == (True, "length", 1)


async def test_langchain(url: str) -> None:
    found = await asked("langchain", url)
    assert found["text"] == found["streamed"] != ""
    assert found["usage"] > 0
    assert isinstance(found["structured"]["capital"], bool)
    assert found["call"]["city"] in ("Oslo", "Rome")


async def test_litellm(url: str) -> None:
    found = await asked("litellm", url)
    assert found["text"] == found["streamed"] != ""
    assert (found["usage"], found["finish"], found["refused"]) == (8, "length", "ContextWindowExceededError")
    assert found["plain"]
