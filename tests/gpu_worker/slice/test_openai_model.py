"""OpenAI's own client against a real model on its engine thread: what is asked of the sampler is what comes out."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.layers import Layers
from gpu_worker.edges.engines.engine_thread import start_engine
from gpu_worker.engine.slice.slice_engine import EngineOptions, open_engine
from gpu_worker.engine.slice.text import open_text
from gpu_worker.inference.head.head import Head
from gpu_worker.inference.text.service import Service
from gpu_worker.inference.text.token_engine import TokenEngine
from tests.fixtures.schemas import SLOW
from tests.fixtures.talker import HELLO, client_of, served
from tests.fixtures.tiny import Tiny
from tests.fixtures.toy_links import ToyNet, ToyRegistry

MODEL = "tiny-llm"
OPTIONS = EngineOptions(cache_bytes_max=64 << 20, threads=1, dtype="fp32", back_end="hf", model=MODEL)
HERE = "127.0.0.1:1"


@asynccontextmanager
async def model_client(folder: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    """Serve the tiny model in `folder` whole; a client that waits until it can be asked."""
    engine = await start_engine(lambda: open_engine(folder, Layers(0, 2, 2), OPTIONS))
    registry = ToyRegistry([Hop(endpoint=HERE, start=0, end=2)])
    head = Head(engine=engine, links=ToyNet().links_of(HERE), registry=registry, endpoint=HERE)
    leading = asyncio.create_task(head.serve())
    service = Service(model=MODEL, engine=TokenEngine(MODEL, head, open_text(folder)))
    try:
        async with served(service) as url, client_of(f"{url}/v1", retries=10) as client:
            yield client
    finally:
        await head.close()
        await leading
        await engine.close()


@pytest.fixture(scope="module")
def tooled(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a template that tells of tools."""
    folder = tmp_path_factory.mktemp("tooled") / "model"
    shutil.copytree(tiny.model, folder)
    template = folder / "chat_template.jinja"
    told = "{% for tool in tools or [] %}{{ tool.function.name }} <tool_call>{% endfor %}"
    template.write_text(told + template.read_text())
    return folder


async def text_of(client: openai.AsyncOpenAI, **asked: Any) -> str:
    answer = await client.chat.completions.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 12, **asked})
    return answer.choices[0].message.content or ""


class Verdict(BaseModel):
    is_good: bool


async def test_the_official_client_gets_what_it_asks_of_a_model(tiny: Tiny) -> None:
    async with model_client(tiny.model) as client:
        greedy = await text_of(client, temperature=0)
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=12, temperature=0, stream=True
        )
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == greedy != ""
        seeded = [await text_of(client, seed=seed) for seed in (7, 7, 8)]
        assert seeded[0] == seeded[1] != seeded[2]
        told = await client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=4, temperature=0, logprobs=True, top_logprobs=5
        )
        assert told.choices[0].logprobs is not None
        for token in told.choices[0].logprobs.content or ():
            assert (token.token, token.logprob) == (token.top_logprobs[0].token, token.top_logprobs[0].logprob)
            assert 0 > token.logprob == max(each.logprob for each in token.top_logprobs)
        prompts = [[{"role": "user", "content": "x" * (7 * count)}] for count in range(6)]
        alone = [await text_of(client, messages=each, temperature=0) for each in prompts]
        together = await asyncio.gather(*(text_of(client, messages=each, temperature=0) for each in prompts))
        assert together == alone


async def test_an_answer_matches_the_schema_that_was_sent(tiny: Tiny) -> None:
    async with model_client(tiny.model) as client:
        parsed = await client.chat.completions.parse(
            model=MODEL, messages=HELLO, max_tokens=100, seed=1, response_format=Verdict
        )
        assert isinstance(parsed.choices[0].message.parsed, Verdict)
        assert parsed.choices[0].finish_reason == "stop"
        free = await text_of(client, response_format={"type": "json_object"}, max_tokens=100, seed=1)
        assert free.lstrip().startswith("{")
        schema = {"name": "x", "schema": {"type": "nonsense"}}
        with pytest.raises(openai.BadRequestError) as refused:
            await text_of(client, response_format={"type": "json_schema", "json_schema": schema})
        assert refused.value.code == "invalid_argument"
        assert json.loads(parsed.choices[0].message.content or "") == parsed.choices[0].message.parsed.model_dump()


class Trip(BaseModel):
    """Where to go."""

    to: Literal["Bern", "Zürich"]
    nights: Annotated[int, Field(ge=1, le=9)]
    by: "Vehicle"


class Vehicle(BaseModel):
    kind: Literal["train", "boat"]


TRIP: Any = openai.pydantic_function_tool(Trip)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "Trip"}}])
async def test_a_demanded_call_comes_even_from_random_weights(tooled: Path, choice: Any) -> None:
    asked: dict[str, Any] = {
        "model": MODEL, "messages": HELLO, "tools": [TRIP], "tool_choice": choice, "parallel_tool_calls": False,
        "max_tokens": 200,
    }  # fmt: skip
    async with model_client(tooled) as client:
        for seed in range(3):
            whole = await client.chat.completions.parse(**asked, seed=seed)
            async with client.chat.completions.stream(**asked, seed=seed) as stream:
                streamed = await stream.get_final_completion()
            for answer in (whole, streamed):
                choice_made = answer.choices[0]
                assert (choice_made.finish_reason, choice_made.message.content or None) == ("tool_calls", None)
                (call,) = choice_made.message.tool_calls or ()
                assert isinstance(call.function.parsed_arguments, Trip)
                assert call.function.arguments == (whole.choices[0].message.tool_calls or ())[0].function.arguments


async def test_a_schema_that_takes_long_to_compile_holds_up_nobody_else(tiny: Tiny) -> None:
    slow = {"name": "slow", "schema": {**SLOW, "title": "one that nobody else has tried"}}
    async with model_client(tiny.model) as client, asyncio.timeout(60):
        await text_of(client)
        refused = asyncio.create_task(
            text_of(client, response_format={"type": "json_schema", "json_schema": slow}, stream=True)
        )
        answers = 0
        while not refused.done():
            await text_of(client, max_tokens=4)
            answers += 1
        with pytest.raises(openai.BadRequestError, match="to compile"):
            await refused
    assert answers > 3
