"""What another server says, or fails to say, as the clients of this API are told of it."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from gpu_worker.edges.engines.upstream_ollama import OllamaEngine
from gpu_worker.edges.engines.upstream_openai import OpenAiUpstream
from outbound.http import HttpClient
from tests.fixtures.ollama import Said, fake_ollama, model
from tests.fixtures.openai_upstream import Answer, FakeUpstream, Reply, upstream, usage
from tests.gpu_worker.openai.doors import CHATS, HELLO, LOOK, MODELS, Door, door_of, events_of, is_idle, until

SECRET = "sk-hidden at /srv/models"
CHAT: dict[str, Any] = {"messages": HELLO}


def _nobody(*_: Any) -> None:
    pass


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server


@pytest.fixture
async def door(fake: FakeUpstream) -> AsyncIterator[Door]:
    engine = OpenAiUpstream(fake.url, None, HttpClient(), silence_s=0.5)
    await engine.open(_nobody)
    async with door_of(engine) as found:
        yield found


def status(code: int) -> Answer:
    async def answer(reply: Reply) -> None:
        await reply.json({"error": {"message": SECRET}}, code)

    return answer


async def silence(reply: Reply) -> None:
    await reply.gone.wait()


async def page(reply: Reply) -> None:
    await reply.head(200, "text/html")
    await reply.raw(f"<html>{SECRET}</html>".encode())


@pytest.mark.parametrize(
    ("answer", "told", "code", "retries"),
    [
        (status(429), 429, "rate_limit_exceeded", True),
        (status(500), 502, "upstream_error", True),
        (status(502), 502, "upstream_error", True),
        (status(401), 502, "upstream_error", True),
        (status(503), 503, "server_not_ready", True),
        (status(504), 504, "upstream_timeout", True),
        (status(400), 400, "invalid_argument", False),
        (status(413), 413, "too_large", False),
        (silence, 504, "upstream_timeout", True),
        (page, 502, "upstream_error", True),
    ],
    ids=["429", "500", "502", "401", "503", "504", "400", "413", "silence", "page"],
)
@pytest.mark.parametrize("streams", [False, True])
async def test_a_servers_fault_has_a_status_and_none_of_its_words(
    door: Door, fake: FakeUpstream, answer: Answer, told: int, code: str, retries: bool, streams: bool
) -> None:
    fake.answer = answer
    reply = await door.post(CHATS, {**CHAT, "stream": streams})
    if streams and answer is page:
        # Its head was well: the fault is told in the stream, which has no end.
        assert events_of(reply.text)[-1]["error"]["code"] == code
        assert "[DONE]" not in reply.text
    else:
        assert (reply.status_code, reply.json()["error"]["code"]) == (told, code)
        assert reply.headers["x-should-retry"] == ("true" if retries else "false")
        assert ("retry-after" in reply.headers) == ("retry-after-ms" in reply.headers) == (told in (429, 503))
    assert "hidden" not in reply.text + str(reply.headers)
    await until(lambda: is_idle(door))


async def test_the_list_of_models_asks_nobody(door: Door, fake: FakeUpstream) -> None:
    asked = len(fake.asked)
    fake.answer = fake.listing = status(500)
    for path in (MODELS, f"{MODELS}/small"):
        assert (await door.client.get(path)).status_code == 200
    assert len(fake.asked) == asked


async def test_what_is_thought_aloud_is_told_apart_and_counted(door: Door, fake: FakeUpstream) -> None:
    async def thinks(reply: Reply) -> None:
        await reply.head()
        for delta in ({"reasoning_content": "One"}, {"reasoning_content": " two"}, {"content": "Three"}):
            await reply.event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        await reply.end(usage=usage(7, 3, 4))

    fake.answer = thinks
    told = await door.answer(CHATS, CHAT)
    ChatCompletion.model_validate(told, strict=True)
    message = told["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("One two", "Three")
    assert told["usage"] == {
        "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 2},
    }  # fmt: skip
    chunks = await door.events(CHATS, {**CHAT, "stream_options": {"include_usage": True}})
    assert chunks[-1]["usage"] == told["usage"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[1:-2]]
    assert deltas == [{"reasoning_content": "One"}, {"reasoning_content": " two"}, {"content": "Three"}]


async def test_an_ollama_that_thinks_is_counted_as_well() -> None:
    said = Said(thinking=("Well", " then"), words=("Yes",))
    async with fake_ollama(model("tiny", capabilities=["completion", "thinking"]), say=lambda *_: said) as fake:
        engine = OllamaEngine(fake.base_url, HttpClient(), ["tiny"])
        await engine.open(_nobody)
        try:
            async with door_of(engine) as door:
                told = await door.answer(CHATS, CHAT)
        finally:
            await engine.close()
    assert told["choices"][0]["message"]["reasoning_content"] == "Well then"
    assert told["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


@pytest.mark.parametrize(
    "field", [{"parallel_tool_calls": False}, {"tool_choice": LOOK | {"function": {"name": "look"}}}]
)
async def test_one_call_is_one_also_where_the_server_makes_several(
    door: Door, fake: FakeUpstream, field: dict[str, Any]
) -> None:
    async def calls(reply: Reply) -> None:
        await reply.head()
        for index in range(3):
            function = {"name": "look", "arguments": json.dumps({"at": "sea"})}
            delta = {"tool_calls": [{"index": index, "id": f"c{index}", "type": "function", "function": function}]}
            await reply.event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        await reply.end("tool_calls", usage(7, 30))

    fake.answer = calls
    several = await door.answer(CHATS, {**CHAT, "tools": [LOOK]})
    assert [call["id"] for call in several["choices"][0]["message"]["tool_calls"]] == ["c0", "c1", "c2"]
    one = await door.answer(CHATS, {**CHAT, "tools": [LOOK], **field})
    assert [call["id"] for call in one["choices"][0]["message"]["tool_calls"]] == ["c0"]
    chunks = await door.events(CHATS, {**CHAT, "tools": [LOOK], **field})
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert {part["index"] for part in parts} == {0}


async def test_an_answer_that_breaks_off_raises_in_the_official_client(door: Door, fake: FakeUpstream) -> None:
    async def cut(reply: Reply) -> None:
        await reply.head()
        await reply.chunks("one", " two")

    async def read() -> None:
        async for chunk in await door.official.chat.completions.create(model="small", messages=HELLO, stream=True):
            seen.append(chunk.choices[0].delta.content)

    fake.answer, seen = cut, []
    with pytest.raises(openai.APIError) as broken:
        await read()
    assert (seen, broken.value.code) == (["", "one", " two"], "upstream_error")
    with pytest.raises(openai.APIStatusError) as whole:
        await door.official.chat.completions.create(model="small", messages=HELLO)
    assert whole.value.status_code == 502
