"""Asks an engine that stands before a server of tests."""

from typing import Any

import pytest

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.engines.upstream_openai import OpenAiUpstream
from gpu_worker.inference.text.engine import Ask, Piece
from outbound.http import HttpClient
from tests.fixtures.openai_upstream import MODEL, FakeUpstream
from wire.openai import ChatRequest, CompletionRequest

SECRET = "sk-hidden /srv/owner/model Traceback"


def told(*_: Any) -> None:
    pass


async def opened(fake: FakeUpstream, **settings: Any) -> OpenAiUpstream:
    engine = OpenAiUpstream(fake.url, settings.pop("key", None), HttpClient(), **{"silence_s": 5, **settings})
    await engine.open(told)
    return engine


def ask(model: str = MODEL, tokens_usual: int | None = None, **fields: Any) -> Ask:
    if "prompt" in fields:
        request: Any = CompletionRequest(**fields)
    else:
        request = ChatRequest(**{"messages": [{"role": "user", "content": "hello"}], **fields})
    return Ask(request=request, model=model, session="s" * 32, tokens_usual=tokens_usual)


async def answered(engine: OpenAiUpstream, asked: Ask | None = None) -> tuple[list[Piece], Any]:
    answer = await engine.begin(asked or ask())
    try:
        return [piece async for piece in answer.pieces()], answer
    finally:
        await answer.close()


async def refused(engine: OpenAiUpstream, asked: Ask | None = None) -> InferenceError:
    with pytest.raises(InferenceError) as caught:
        await answered(engine, asked)
    assert engine.load().running == 0
    assert "hidden" not in str(caught.value)
    return caught.value
