"""The engine of GGUF files as tests have it: opened over a file, asked, closed. `PACKAGE` carries its llama.cpp."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpu_worker.core.inference.llama import Package
from gpu_worker.edges.engines.gguf_engine import GgufEngine, package_of
from gpu_worker.edges.engines.gguf_setup import GgufSetup, GgufTimes
from gpu_worker.inference.text.engine import Ask, CallPart
from outbound.http import HttpClient
from wire.openai import ChatRequest, CompletionRequest
from wire.openai_answers import Told

# `make test-gguf-source` says the other one.
PACKAGE: Package = package_of(os.environ.get("LIVERY_TEST_GGUF_PACKAGE", "xllamacpp"))
# What llama-cpp-python does not: it computes one answer at a time, and tells no log probabilities.
BATCHES = PACKAGE == "xllamacpp"
NAME = "tiny"
CONTEXT = 512
UNTIL_S = 30.0


@dataclass
class Said:
    """What an answer told, whole."""

    text: str = ""
    told: list[Told] = field(default_factory=list)
    calls: list[CallPart] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    finish_reason: str | None = None
    model_hash: str = ""


def setup_of(path: Path, **more: Any) -> GgufSetup:
    return replace(GgufSetup(name=NAME, path=path, context=CONTEXT, slots=2), **more)


def engine_of(*setups: GgufSetup, **times: Any) -> GgufEngine:
    return GgufEngine(setups, HttpClient(), package=PACKAGE, times=GgufTimes(**times))


@asynccontextmanager
async def serving(path: Path, *, times: dict[str, Any] | None = None, **more: Any) -> AsyncIterator[GgufEngine]:
    """Yield the engine over one file, open."""
    engine = engine_of(setup_of(path, **more), **(times or {}))
    try:
        await engine.open(lambda what, done, total: None)
        yield engine
    finally:
        await engine.close()


def ask_of(**fields: Any) -> Ask:
    """Return a chat or a completion of the default model, whose answer is certain unless `fields` say otherwise."""
    kind = ChatRequest if "messages" in fields else CompletionRequest
    request = kind.model_validate({"temperature": 0, "max_tokens": 8, **fields})
    return Ask(request=request, model=NAME, session="session-1")


def chat(*words: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": each} for each in words or ("def main(",)]


async def until(is_so: Callable[[], bool]) -> None:
    """Return once it is so. Raises TimeoutError."""
    async with asyncio.timeout(UNTIL_S):
        while not is_so():  # noqa: ASYNC110 - another process does it, which sets no event
            await asyncio.sleep(0.01)


async def say(engine: GgufEngine, **fields: Any) -> Said:
    """Return the whole answer. Raises InferenceError."""
    answer = await engine.begin(ask_of(**fields))
    said = Said()
    try:
        async for piece in answer.pieces():
            said.text += piece.text
            said.told += piece.told
            said.calls += piece.calls
    finally:
        await answer.close()
    said.tokens, said.prompt_tokens, said.cached_tokens = answer.tokens, answer.prompt_tokens, answer.cached_tokens
    said.finish_reason, said.model_hash = answer.finish_reason, answer.model_hash
    return said


def child_of(engine: GgufEngine) -> int:
    """Return the process of the default model's llama.cpp."""
    kept = next(iter(engine._kept.values()))
    assert kept._child is not None
    return kept._child.process.pid
