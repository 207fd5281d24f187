"""Embeddings, from each engine that makes some: a model that pools in llama.cpp, a server, an Ollama."""

import base64
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import CreateEmbeddingResponse

from gpu_worker.edges.engines.gguf_engine import GgufEngine
from gpu_worker.edges.engines.gguf_setup import GgufSetup
from gpu_worker.edges.engines.upstream_ollama import OllamaEngine
from gpu_worker.edges.engines.upstream_openai import OpenAiUpstream
from outbound.http import HttpClient
from tests.fixtures.broken_gguf import rewritten
from tests.fixtures.ollama import fake_ollama, model
from tests.fixtures.openai_upstream import Reply, upstream
from tests.fixtures.tiny_gguf import TinyGguf
from tests.gpu_worker.openai.doors import ALIAS, CHATS, EMBEDDINGS, HELLO, Door, door_of

pytestmark = pytest.mark.slow

TEXTS = ["def main() -> None:", "a horse", "the worker pays"]


def _nobody(*_: Any) -> None:
    pass


@asynccontextmanager
async def _gguf(tiny: TinyGguf, folder: Path) -> AsyncIterator[Door]:
    path = rewritten(tiny.gguf("f32"), folder / "embedder.gguf", fields={"llama.pooling_type": 1})
    engine = GgufEngine([GgufSetup(name="embedder", path=path, context=64, slots=2, threads=1)], HttpClient())
    await engine.open(_nobody)
    try:
        async with door_of(engine) as door:
            yield door
    finally:
        await engine.close()


@asynccontextmanager
async def _server(tiny: TinyGguf, folder: Path) -> AsyncIterator[Door]:
    async def embeds(reply: Reply) -> None:
        asked = reply.asked.body
        assert (asked["encoding_format"], isinstance(asked["input"], list)) == ("float", True)
        data = [{"index": at, "embedding": [float(len(each)), 0.1]} for at, each in enumerate(asked["input"])]
        await reply.json({"data": data[::-1], "usage": {"prompt_tokens": 5 * len(data)}})

    async with upstream(embeds) as fake:
        engine = OpenAiUpstream(fake.url, None, HttpClient())
        await engine.open(_nobody)
        async with door_of(engine) as door:
            yield door


@asynccontextmanager
async def _ollama(tiny: TinyGguf, folder: Path) -> AsyncIterator[Door]:
    async with fake_ollama(model("embedder", capabilities=["embedding"])) as fake:
        engine = OllamaEngine(fake.base_url, HttpClient(), ["embedder"], context=512)
        await engine.open(_nobody)
        try:
            async with door_of(engine) as door:
                yield door
        finally:
            await engine.close()


Places = Callable[[TinyGguf, Path], AbstractAsyncContextManager[Door]]
PLACES: dict[str, Places] = {"gguf": _gguf, "openai": _server, "ollama": _ollama}


@pytest.fixture(params=list(PLACES))
async def embedder(request: pytest.FixtureRequest, tiny_gguf: TinyGguf, tmp_path: Path) -> AsyncIterator[Door]:
    async with PLACES[request.param](tiny_gguf, tmp_path) as door:
        yield door


async def test_inputs_become_vectors_as_numbers_and_as_base64(embedder: Door) -> None:
    told = await embedder.answer(EMBEDDINGS, {"model": ALIAS, "input": TEXTS, "user": "me"})
    CreateEmbeddingResponse.model_validate(told, strict=True)
    assert (told["object"], told["model"]) == ("list", embedder.model)
    assert [each["index"] for each in told["data"]] == [0, 1, 2]
    assert told["usage"]["prompt_tokens"] == told["usage"]["total_tokens"] > 0
    vectors = [each["embedding"] for each in told["data"]]
    width = len(vectors[0])
    packed = await embedder.answer(EMBEDDINGS, {"input": TEXTS, "encoding_format": "base64", "dimensions": width})
    unpacked = [struct.unpack(f"<{width}f", base64.b64decode(each["embedding"])) for each in packed["data"]]
    assert [list(each) for each in unpacked] == [pytest.approx(each, abs=1e-6) for each in vectors]
    (one,) = (await embedder.answer(EMBEDDINGS, {"input": TEXTS[0]}))["data"]
    assert one["embedding"] == pytest.approx(vectors[0], abs=1e-5)
    # It asks for base64, and reads it.
    read = await embedder.official.embeddings.create(model=embedder.model, input=TEXTS)
    assert [each.embedding for each in read.data] == [pytest.approx(each, abs=1e-6) for each in vectors]


async def test_what_is_not_done_is_refused(embedder: Door) -> None:
    wrong: list[tuple[dict[str, Any], str, str | None]] = [
        ({"input": "a", "dimensions": 7}, "dimensions", "invalid_argument"),
        ({"input": []}, "input", None),
        ({"input": [""]}, "input", None),
        ({"input": [[]]}, "input", None),
        ({"input": [-1]}, "input", None),
        ({"input": {"text": "a"}}, "input", None),
        ({"input": ["a"] * 2_049}, "input", None),
        ({"input": None}, "input", None),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", None),
    ]
    for fields, param, code in wrong:
        with pytest.raises(openai.BadRequestError) as refused:
            await embedder.official.embeddings.create(model=embedder.model, **fields)
        assert (refused.value.param, refused.value.code) == (param, code), fields
    missing = await embedder.post(EMBEDDINGS, {"input": "a", "model": "other"})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert (await embedder.client.get(EMBEDDINGS)).status_code == 405


async def test_tokens_are_an_input_where_the_engine_takes_them(embedder: Door) -> None:
    for tokens in ([5, 6, 7], [[5, 6, 7], [8]]):
        reply = await embedder.post(EMBEDDINGS, {"input": tokens})
        if embedder.service.engine and embedder.service.engine.kind == "ollama":
            assert (reply.status_code, reply.json()["error"]["param"]) == (400, "input")
        else:
            assert len(reply.json()["data"]) == (2 if isinstance(tokens[0], list) else 1)


async def test_an_input_over_the_context_is_blamed_by_its_name(tiny_gguf: TinyGguf, tmp_path: Path) -> None:
    async with _gguf(tiny_gguf, tmp_path) as door:
        for wrong in ("worker " * 200, [7] * 65, ["a", "worker " * 200]):
            error = (await door.post(EMBEDDINGS, {"input": wrong})).json()["error"]
            assert (error["param"], error["code"]) == ("input", "context_length_exceeded")
        text = await door.post(CHATS, {"messages": HELLO})
        assert (text.status_code, text.json()["error"]["param"]) == (400, "model")


async def test_numbers_that_no_vector_has_are_no_answer() -> None:
    async def embeds(reply: Reply) -> None:
        await reply.json({"data": [{"index": 0, "embedding": [1e300]}], "usage": {"prompt_tokens": 1}})

    async with upstream(embeds) as fake:
        engine = OpenAiUpstream(fake.url, None, HttpClient())
        await engine.open(_nobody)
        async with door_of(engine) as door:
            for form in ("float", "base64"):
                reply = await door.post(EMBEDDINGS, {"input": "a", "encoding_format": form})
                assert (reply.status_code, reply.json()["error"]["code"]) == (502, "upstream_error")
