"""Calls of tools, asked for and read by OpenAI's own client."""

import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.fixtures.talker import CHAT, HELLO, MODEL, Talker, client_of, raw, served, service_of

HERMES = "<tool_call>"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "description": "x", "parameters": PARAMETERS}}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
SECOND = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


def service_saying(text: str, template: str = HERMES) -> Any:
    return service_of(Talker(says=text.encode()), knows_tools=True, template=template)


async def test_a_call_is_told_whole_and_as_a_stream() -> None:
    async with served(service_saying(f"{CALL}\n{SECOND}")) as url, client_of(f"{url}/v1") as client:
        whole = await client.chat.completions.create(model=MODEL, messages=HELLO, tools=TOOLS)
        async with client.chat.completions.stream(model=MODEL, messages=HELLO, tools=TOOLS) as stream:
            final = await stream.get_final_completion()
        body = {**CHAT, "tools": TOOLS}
        plain = (await raw(url, "/v1/chat/completions", body)).json()
        events = (await raw(url, "/v1/chat/completions", {**body, "stream": True})).text
    for answer in (whole, final):
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        calls = choice.message.tool_calls
        assert calls is not None
        assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
            ("weather", {"city": "Zürich"}),
            ("clock", {}),
        ]
        assert len({call.id for call in calls}) == 2
        assert all(call.id.startswith("call_") and call.type == "function" for call in calls)
    assert whole.choices[0].message.content is None
    ChatCompletion.model_validate(plain, strict=True)
    chunks = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: {")]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    deltas = [each for chunk in chunks for each in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert [each["index"] for each in deltas] == [0, 0, 1, 1]
    first, rest = deltas[:2]
    assert (set(first), first["type"], first["function"]["name"]) == (
        {"index", "id", "type", "function"}, "function", "weather",
    )  # fmt: skip
    assert set(rest) == {"index", "function"}
    assert json.loads(first["function"]["arguments"] + rest["function"]["arguments"]) == {"city": "Zürich"}
    assert chunks[-1]["choices"][0]["delta"] == {}


async def test_what_names_no_offered_tool_stays_content() -> None:
    async with served(service_saying(CALL)) as url, client_of(f"{url}/v1") as client:
        foreign = await client.chat.completions.create(model=MODEL, messages=HELLO, tools=[CLOCK])
        none = await client.chat.completions.create(model=MODEL, messages=HELLO, tools=TOOLS, tool_choice="none")
        cut = await client.chat.completions.create(model=MODEL, messages=HELLO, tools=TOOLS, max_tokens=30)
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, tools=TOOLS, max_tokens=30, stream=True
        )
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    for answer, content, reason in ((foreign, CALL, "stop"), (none, CALL, "stop"), (cut, CALL[:30], "length")):
        choice = answer.choices[0]
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (content, None, reason)
    assert text == CALL[:30]


async def test_one_call_is_told_where_several_are_not_wanted() -> None:
    async with served(service_saying(CALL + SECOND)) as url, client_of(f"{url}/v1") as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=HELLO, tools=TOOLS, parallel_tool_calls=False
        )
    assert [call.function.name for call in answer.choices[0].message.tool_calls or ()] == ["weather"]


async def test_tokens_are_told_though_their_text_is_held_back() -> None:
    async with served(service_saying(f"So {CALL}")) as url, client_of(f"{url}/v1") as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=HELLO, tools=TOOLS, logprobs=True, stream=True
        )
        told = b""
        async for chunk in stream:
            logprobs = chunk.choices[0].logprobs
            told += b"".join(bytes(token.bytes or ()) for token in (logprobs and logprobs.content) or ())
    assert told.decode() == f"So {CALL}"


@pytest.mark.parametrize(
    ("choice", "names", "calls_max"),
    [("required", ["weather", "clock"], None), ({"type": "function", "function": {"name": "clock"}}, ["clock"], 1)],
)
async def test_a_demanded_call_is_held_to_a_schema(choice: Any, names: list[str], calls_max: int | None) -> None:
    talker = Talker(says=b'[{"name": "clock", "arguments": {}}]')
    async with served(service_of(talker, knows_tools=True)) as url, client_of(f"{url}/v1") as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO, tools=TOOLS, tool_choice=choice)
    (request,) = talker.requests
    schema = json.loads(request.sampling.schema or "")
    items = schema["items"].get("anyOf", [schema["items"]])
    assert [each["properties"]["name"]["const"] for each in items] == names
    assert schema.get("maxItems") == calls_max
    assert answer.choices[0].finish_reason == "tool_calls"
    assert [call.function.name for call in answer.choices[0].message.tool_calls or ()] == ["clock"]


async def test_ids_are_such_as_the_models_template_takes_back() -> None:
    says = '[TOOL_CALLS] [{"name": "clock", "arguments": {}}]'
    async with served(service_saying(says, "[TOOL_CALLS]")) as url, client_of(f"{url}/v1") as client:
        answer = await client.chat.completions.create(model=MODEL, messages=HELLO, tools=TOOLS)
    (call,) = answer.choices[0].message.tool_calls or ()
    assert (len(call.id), call.id.isalnum()) == (9, True)


@pytest.mark.parametrize(
    ("wrong", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "rocket"}}, "tools": TOOLS}, "tool_choice"),
        ({"tool_choice": "sometimes", "tools": TOOLS}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "no name"}}]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "array"}}}]}, "tools"),
    ],
)
async def test_tools_that_cannot_be_are_refused(wrong: dict[str, Any], param: str) -> None:
    async with served(service_of(Talker(), knows_tools=True)) as url, client_of(f"{url}/v1") as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model=MODEL, messages=HELLO, extra_body=wrong)
    assert refused.value.param == param
