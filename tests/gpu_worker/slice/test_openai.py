"""The OpenAI API, asked by OpenAI's own client over a real connection."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion_usage import CompletionUsage
from pydantic import BaseModel

from tests.fixtures.talker import (
    CHAT,
    EOS,
    GREETING,
    HASH,
    HELLO,
    MODEL,
    Talker,
    client_of,
    raw,
    served,
    service_of,
)


def events_of(text: str) -> list[Any]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize("base", ["/v1", ""])
async def test_a_chat_is_answered_whole(base: str) -> None:
    talker = Talker()
    async with served(service_of(talker)) as url, client_of(url + base) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0)
        listed = [model.id async for model in client.models.list()]
        one = await client.models.retrieve(MODEL)
    choice = answer.choices[0]
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (GREETING, "assistant", "stop")
    assert answer.usage is not None
    prompt, said = len("<user>Hello<assistant>"), len(GREETING.encode()) + 1
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, said)
    assert answer.usage.total_tokens == prompt + said
    assert (answer.model, answer.system_fingerprint) == (MODEL, f"fp_{HASH[:12]}")
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")
    assert listed == [one.id] == [MODEL]


async def test_the_synchronous_client_is_answered_as_well() -> None:
    def ask(url: str) -> tuple[str | None, str]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            whole = client.chat.completions.create(model=MODEL, messages=HELLO)
            pieces = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            return whole.choices[0].message.content, "".join(piece.choices[0].delta.content or "" for piece in pieces)

    async with served(service_of(Talker())) as url:
        assert await asyncio.to_thread(ask, url) == (GREETING, GREETING)


async def test_answers_have_the_shapes_of_the_official_types() -> None:
    async with served(service_of(Talker())) as url:
        chat = (await raw(url, "/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2})).json()
        plain = (await raw(url, "/v1/completions", {"prompt": "x", "logprobs": 1})).json()
        streamed = await raw(url, "/v1/chat/completions", {**CHAT, "stream": True, "logprobs": True})
        async with httpx.AsyncClient() as client:
            models = (await client.get(f"{url}/v1/models")).json()
    ChatCompletion.model_validate(chat, strict=True)
    Completion.model_validate(plain, strict=True)
    Model.model_validate(models["data"][0], strict=True)
    for chunk in events_of(streamed.text):
        ChatCompletionChunk.model_validate(chunk, strict=True)
        assert all(choice["delta"] is not None and choice["index"] == 0 for choice in chunk["choices"])
    assert chat["choices"][0]["message"]["refusal"] is None
    assert chat["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert chat["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}
    assert models["object"] == "list"


async def test_a_stream_has_its_chunks_in_order_and_no_half_characters() -> None:
    async with served(service_of(Talker())) as url:
        reply = await raw(url, "/v1/chat/completions", {**CHAT, "stream": True}, **{"x-request-id": "mine-1"})
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (reply.headers["cache-control"], reply.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert (reply.headers["x-request-id"], reply.headers["x-gpu-weights-hash"]) == ("mine-1", HASH)
    assert reply.headers["openai-processing-ms"].isdigit()
    assert reply.text.startswith(": keep-alive\n\n")
    assert reply.text.endswith("data: [DONE]\n\n")
    assert all(line == "" or line.startswith((": ", "data: ")) for line in reply.text.split("\n"))
    chunks = events_of(reply.text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    pieces = [chunk["choices"][0]["delta"]["content"] for chunk in chunks[1:-1]]
    assert pieces == list(GREETING)
    assert (chunks[-1]["choices"][0]["delta"], chunks[-1]["choices"][0]["finish_reason"]) == ({}, "stop")
    assert {(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks} == {
        (chunks[0]["id"], chunks[0]["created"], MODEL)
    }
    assert not any("usage" in chunk for chunk in chunks)


async def test_the_usage_of_a_stream_is_told_to_who_asks() -> None:
    async with served(service_of(Talker())) as url, client_of(f"{url}/v1") as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, stream=True, max_completion_tokens=5, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        reply = await raw(
            url, "/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
        )
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert isinstance(chunks[-1].usage, CompletionUsage)
    assert chunks[-1].usage.completion_tokens == 5
    assert chunks[-2].choices[0].finish_reason == "length"
    assert all("usage" in chunk for chunk in events_of(reply.text))


async def test_log_probabilities_are_those_of_the_tokens() -> None:
    talker = Talker(says="aü".encode())
    async with served(service_of(talker)) as url, client_of(f"{url}/v1") as client:
        whole = await client.chat.completions.create(model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2)
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2, stream=True
        )
        told = [
            token
            async for chunk in stream
            if chunk.choices[0].logprobs is not None
            for token in chunk.choices[0].logprobs.content or ()
        ]
        plain = await client.completions.create(model=MODEL, prompt="x", logprobs=2)
        without = await client.chat.completions.create(model=MODEL, messages=HELLO)
    assert whole.choices[0].logprobs is not None
    content = whole.choices[0].logprobs.content
    assert content is not None
    assert [bytes(token.bytes or ()) for token in content] == [b"a", b"\xc3", b"\xbc"]
    assert (content[0].token, content[0].logprob) == ("a", -0.25)
    assert [(each.token, each.logprob) for each in content[0].top_logprobs] == [("a", -0.25), ("b", -0.5)]
    assert told == content
    assert plain.choices[0].logprobs is not None
    assert plain.choices[0].logprobs.text_offset == [0, 1, 1]
    assert plain.choices[0].logprobs.top_logprobs is not None
    assert plain.choices[0].logprobs.top_logprobs[0] == {"a": -0.25, "b": -0.5}
    assert without.choices[0].logprobs is None
    assert [request.sampling.logprobs for request in talker.requests] == [2, 2, 2, None]


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        ("世界", "Grüße, "),
        (["day", "👋"], "Grüße, 世界! "),
        (["nothing of it"], GREETING),
        (["Good day.", "x"], GREETING[:-9]),
    ],
)
async def test_stop_strings_end_an_answer_over_the_borders_of_tokens(stop: Any, left: str) -> None:
    talker = Talker()
    async with served(service_of(talker)) as url, client_of(f"{url}/v1") as client:
        whole = await client.chat.completions.create(model=MODEL, messages=HELLO, stop=stop, logprobs=True)
        stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stop=stop, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (left, "stop")
    assert whole.choices[0].logprobs is not None
    told = b"".join(bytes(token.bytes or ()) for token in whole.choices[0].logprobs.content or ())
    assert told.decode() == left
    assert "".join(pieces) == left


async def test_what_is_asked_of_the_sampler_reaches_it() -> None:
    talker = Talker()
    asked: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.25, "seed": -1, "presence_penalty": 1, "frequency_penalty": -1,
        "logit_bias": {"65": -100, "66": 5},
    }  # fmt: skip
    more = {"top_k": 7, "min_p": 0.125, "repetition_penalty": 1.5, "ignore_eos": True, "cache_prompt": 1}
    async with served(service_of(talker)) as url, client_of(f"{url}/v1") as client:
        await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=3, extra_body=more, **asked)
        await client.chat.completions.create(model=MODEL, messages=HELLO)
        await client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, top_p=0)
        await client.completions.create(model=MODEL, prompt="x")
    first, second, third, fourth = (request.sampling for request in talker.requests)
    assert (first.temperature, first.top_p, first.top_k, first.min_p) == (0.5, 0.25, 7, 0.125)
    assert (first.repetition_penalty, first.presence_penalty, first.frequency_penalty) == (1.5, 1.0, -1.0)
    assert (first.seed, first.logit_bias, first.ignore_eos) == (2**64 - 1, {65: -100.0, 66: 5.0}, True)
    assert (second.temperature, second.top_p, second.eos, second.schema) == (1.0, 1.0, (EOS,), None)
    assert second.seed != third.seed
    assert (third.temperature, third.top_p) == (0.0, 0.0)
    assert [request.tokens_max for request in talker.requests] == [3, 4_096 - 22, 4_096 - 22, 16]
    assert fourth.logprobs is None


class City(BaseModel):
    name: str
    people: int


async def test_a_json_schema_reaches_the_sampler_and_its_answer_is_parsed() -> None:
    talker = Talker(says=b'{"name": "Bern", "people": 134}')
    async with served(service_of(talker)) as url, client_of(f"{url}/v1") as client:
        parsed = await client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=City)
        await client.chat.completions.create(model=MODEL, messages=HELLO, response_format={"type": "json_object"})
    assert parsed.choices[0].message.parsed == City(name="Bern", people=134)
    schema, any_object = (json.loads(request.sampling.schema or "") for request in talker.requests)
    assert set(schema["properties"]) == {"name", "people"}
    assert any_object == {"type": "object"}


async def test_tools_reach_a_template_that_knows_them_and_are_refused_by_others() -> None:
    tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    knowing = Talker()
    async with served(service_of(knowing, knows_tools=True)) as url, client_of(f"{url}/v1") as client:
        await client.chat.completions.create(model=MODEL, messages=HELLO, tools=[tool])
        await client.chat.completions.create(model=MODEL, messages=HELLO, tools=[tool], tool_choice="none")
    assert [b"weather" in bytes(request.prompt) for request in knowing.requests] == [True, False]
    async with served(service_of(Talker())) as url, client_of(f"{url}/v1") as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=HELLO, tools=[tool])
    assert refused.value.param == "tools"


async def test_completions_take_text_or_tokens_and_echo_them() -> None:
    talker = Talker(says=b" world")
    async with served(service_of(talker)) as url, client_of(f"{url}/v1") as client:
        text = await client.completions.create(model=MODEL, prompt="Hello", echo=True)
        tokens = await client.completions.create(model=MODEL, prompt=list(b"Hello"), echo=True)
        stream = await client.completions.create(model=MODEL, prompt=["Hello"], echo=True, stream=True)
        pieces = [chunk.choices[0].text async for chunk in stream]
        nothing = await client.completions.create(model=MODEL, prompt="Hello", max_tokens=0)
    assert text.choices[0].text == tokens.choices[0].text == "".join(pieces) == "Hello world"
    assert text.id.startswith("cmpl-")
    assert (nothing.choices[0].text, nothing.choices[0].finish_reason) == ("", "length")
    assert {request.prompt for request in talker.requests} == {tuple(b"Hello")}
    assert len(talker.requests) == 3


async def opened(url: str, body: dict[str, Any]) -> asyncio.StreamWriter:
    """Send a chat on a connection of which nothing is read."""
    content = json.dumps(body).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]), limit=1_024)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    return writer


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_ends_its_session_within_a_step(stream: bool) -> None:
    talker = Talker(says=b"x" * 1_000, pace=asyncio.Semaphore(3))
    async with served(service_of(talker)) as url:
        writer = await opened(url, {**CHAT, "stream": stream})
        await talker.until(lambda it: it.told == 3)
        assert not talker.cancelled.is_set()
        writer.close()
        await asyncio.wait_for(talker.cancelled.wait(), 5)
    # It waited for its fourth token, and did not get it.
    assert (talker.told, talker.stats.running) == (3, 0)


async def test_a_client_that_does_not_read_holds_up_nobody_else() -> None:
    talker = Talker(says=b"x" * 4_000, context=8_192)
    async with served(service_of(talker)) as url, client_of(f"{url}/v1") as client:
        writer = await opened(url, {**CHAT, "stream": True, "logprobs": True, "top_logprobs": 20})
        await talker.until(lambda it: bool(it.requests))
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=50)
        # Who does not read has not had all, and is not cut off.
        assert (talker.told < 4_000, talker.stats.running) == (True, 1)
        writer.close()
        await asyncio.wait_for(talker.cancelled.wait(), 5)
    assert answer.choices[0].message.content == "x" * 50
