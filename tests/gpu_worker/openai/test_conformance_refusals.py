"""What is not done is refused before anything is computed, by every engine alike, in OpenAI's words."""

import asyncio
from typing import Any

import openai
import pytest

from tests.contracts.text_engine_place import REAL
from tests.gpu_worker.openai.doors import (
    CHATS,
    COMPLETIONS,
    EMBEDDINGS,
    HELLO,
    LOOK,
    MODELS,
    PROMPT,
    Door,
    is_idle,
    until,
)

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

real = pytest.mark.parametrize("door", REAL, indirect=True)
LONG = "worker " * 5_000
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
# The path, what the request has besides, the field that is told, the code.
REFUSED: list[tuple[str, dict[str, Any], str | None, str | None]] = [
    (CHATS, {"n": 2}, "n", None),
    (CHATS, {"n": 0}, "n", None),
    (CHATS, {"messages": []}, "messages", None),
    (CHATS, {"messages": None}, "messages", None),
    (CHATS, {"messages": IMAGE}, "messages", None),
    (CHATS, {"messages": [{"role": "user"}]}, "messages", None),
    (CHATS, {"messages": [{"role": "god", "content": "x"}]}, "messages", None),
    (CHATS, {"messages": [{"role": "user", "content": LONG}]}, "messages", "context_length_exceeded"),
    (CHATS, {"max_tokens": 10**6}, "messages", "context_length_exceeded"),
    (CHATS, {"max_tokens": -1}, "max_tokens", None),
    (CHATS, {"max_completion_tokens": 2**31}, "max_completion_tokens", None),
    (CHATS, {"temperature": 2.1}, "temperature", None),
    (CHATS, {"top_p": -0.1}, "top_p", None),
    (CHATS, {"top_k": -2}, "top_k", None),
    (CHATS, {"min_p": 1.5}, "min_p", None),
    (CHATS, {"presence_penalty": 3}, "presence_penalty", None),
    (CHATS, {"frequency_penalty": -3}, "frequency_penalty", None),
    (CHATS, {"repetition_penalty": 0}, "repetition_penalty", None),
    (CHATS, {"seed": 2**64}, "seed", None),
    (CHATS, {"logit_bias": {"1": 101}}, "logit_bias", None),
    (CHATS, {"logit_bias": {"one": 1}}, "logit_bias", None),
    (CHATS, {"logit_bias": {"-1": 1}}, "logit_bias", None),
    (CHATS, {"logit_bias": {"9" * 30: 1}}, "logit_bias", None),
    (CHATS, {"stop": ["a"] * 5}, "stop", None),
    (CHATS, {"stop": [""]}, "stop", None),
    (CHATS, {"stop": 7}, "stop", None),
    (CHATS, {"top_logprobs": 2}, "top_logprobs", None),
    (CHATS, {"logprobs": True, "top_logprobs": 21}, "top_logprobs", None),
    (CHATS, {"response_format": {"type": "xml"}}, "response_format", None),
    (CHATS, {"response_format": {"type": "json_schema"}}, "response_format", None),
    (CHATS, {"tools": [{"type": "web_search"}]}, "tools", None),
    (CHATS, {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", None),
    (CHATS, {"tools": [LOOK] * 129}, "tools", None),
    (CHATS, {"tool_choice": "required"}, "tool_choice", None),
    (CHATS, {"tools": [LOOK], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice", None),
    (CHATS, {"functions": [{"name": "look"}]}, "functions", None),
    (CHATS, {"audio": {"voice": "alloy", "format": "mp3"}}, "audio", None),
    (CHATS, {"modalities": ["audio", "text"]}, "modalities", None),
    (CHATS, {"web_search_options": {}}, "web_search_options", None),
    (CHATS, {"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "invalid_argument"),
    (CHATS, {"context_overflow": "forget"}, "context_overflow", None),
    (COMPLETIONS, {"prompt": LONG}, "prompt", "context_length_exceeded"),
    (COMPLETIONS, {"max_tokens": 10**6}, "prompt", "context_length_exceeded"),
    (COMPLETIONS, {"prompt": ["a", "b"]}, "prompt", None),
    (COMPLETIONS, {"prompt": [[1], [2]]}, "prompt", None),
    (COMPLETIONS, {"prompt": []}, "prompt", None),
    (COMPLETIONS, {"prompt": ""}, "prompt", "invalid_argument"),
    (COMPLETIONS, {"prompt": [-1]}, "prompt", None),
    (COMPLETIONS, {"prompt": [2**40]}, "prompt", None),
    (COMPLETIONS, {"suffix": "x"}, "suffix", None),
    (COMPLETIONS, {"best_of": 2}, "best_of", None),
    (COMPLETIONS, {"n": 3}, "n", None),
    (COMPLETIONS, {"echo": True, "logprobs": 1}, "logprobs", None),
    (COMPLETIONS, {"logprobs": 21}, "logprobs", None),
    (EMBEDDINGS, {"input": "a"}, "model", "invalid_argument"),
    (EMBEDDINGS, {"input": []}, "input", None),
    (EMBEDDINGS, {"input": ""}, "input", None),
    (EMBEDDINGS, {"input": [""]}, "input", None),
    (EMBEDDINGS, {"input": "a", "encoding_format": "hex"}, "encoding_format", None),
    (EMBEDDINGS, {"input": "a", "dimensions": 0}, "dimensions", None),
]
# Where the model itself decides.
REFUSED_BY_MODELS: list[tuple[str, dict[str, Any], str | None, str | None]] = [
    (CHATS, {"logit_bias": {"1000000": 1}}, "logit_bias", "invalid_argument"),
    (COMPLETIONS, {"prompt": [10**6]}, "prompt", "invalid_argument"),
    (COMPLETIONS, {"logit_bias": {"1000000": 1}}, "logit_bias", "invalid_argument"),
]
BODIES: dict[str, dict[str, Any]] = {
    CHATS: {"messages": HELLO},
    COMPLETIONS: {"prompt": PROMPT},
    EMBEDDINGS: {"input": "a"},
}


async def refuses(door: Door, table: list[tuple[str, dict[str, Any], str | None, str | None]]) -> None:
    wrong = []
    for path, fields, param, code in table:
        for streams in (False, True):
            reply = await door.post(path, {**BODIES[path], **fields, "stream": streams})
            error = reply.json().get("error", {}) if reply.status_code != 200 else {}
            found = (reply.status_code, error.get("type"), error.get("param"), error.get("code"))
            if found != (400, "invalid_request_error", param, code) or not error["message"]:
                wrong.append((path, str(fields)[:100], found))
    assert wrong == []
    await until(lambda: is_idle(door))
    assert (await door.chat(max_tokens=1))["usage"]["completion_tokens"] == 1


async def test_what_is_not_done_is_refused_with_the_fields_name(door: Door) -> None:
    await refuses(door, REFUSED)


@real
async def test_what_the_model_has_not_is_refused_with_the_fields_name(door: Door) -> None:
    await refuses(door, REFUSED_BY_MODELS)


@pytest.mark.parametrize("door", ["gguf", "openai", "slice"], indirect=True)
@pytest.mark.parametrize("schema", [{"$ref": "#/nowhere"}, {"type": "nonsense"}], ids=str)
async def test_a_schema_that_cannot_be_kept_to_is_refused(door: Door, schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for path in (CHATS, COMPLETIONS):
        reply = await door.post(path, {**BODIES[path], "response_format": form})
        assert (reply.status_code, reply.json().get("error", {}).get("type")) == (400, "invalid_request_error"), path
    tool = {"type": "function", "function": {"name": "look", "parameters": {"properties": {"at": schema}}}}
    reply = await door.post(CHATS, {**BODIES[CHATS], "tools": [tool], "tool_choice": "required"})
    assert (reply.status_code, reply.json().get("error", {}).get("type")) == (400, "invalid_request_error")
    assert (await door.chat(max_tokens=1))["usage"]["completion_tokens"] == 1


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"messages": [{"role": "user", "content": "x"}], "tools": NaN}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "user": Infinity}', 400),
        (b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "json_schema", "json_schema": '
         b'{"name": "x", "schema": {"const": -Infinity}}}}', 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', 400),
        (b"[" * 100_000, 400),
        (b"null", 400),
        (b"", 400),
        (b'{"messages": [{"role": "user", "content": "NaN and Infinity"}], "max_tokens": 1}', 200),
    ],
    ids=range(9),
)  # fmt: skip
async def test_what_is_no_json_is_refused(door: Door, content: bytes, status: int) -> None:
    reply = await door.client.post(CHATS, content=content, headers={"content-type": "application/json"})
    assert reply.status_code == status, reply.text
    if status == 400:
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


async def test_the_servers_own_refusals_have_openais_body(door: Door) -> None:
    client, named = door.client, {"content-type": "application/json"}
    replies = {
        404: [
            await client.get("/v1/nothing"), await client.post("/v1/responses", json={}), await client.get("/v1"),
            await client.get(f"{MODELS}/other/one"), await door.post(CHATS, {"messages": HELLO, "model": "other"}),
            await door.post("/chat/completions/", {"messages": HELLO}), await door.post(f"{EMBEDDINGS}/", {}),
        ],
        405: [await client.get(CHATS), await client.delete(f"{MODELS}/{door.model}"), await client.put(EMBEDDINGS)],
        413: [await client.post(CHATS, content=b"x" * 40_000_000, headers=named)],
        415: [await client.post(path, content=b"{}", headers={"content-type": "text/plain"}) for path in BODIES],
    }  # fmt: skip
    for status, of in replies.items():
        for reply in of:
            assert reply.status_code == status, (reply.request.url, reply.text)
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
            assert reply.json()["error"]["type"] == "invalid_request_error"
            assert reply.headers["x-request-id"]
    allowed = [set(reply.headers["allow"].split(", ")) for reply in replies[405]]
    assert allowed == [{"POST"}, {"GET", "HEAD"}, {"POST"}]
    unknown = replies[404][4].json()["error"]
    assert (unknown["code"], unknown["param"]) == ("model_not_found", "model")


async def test_the_official_client_raises_its_own_errors(door: Door) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        await door.official.chat.completions.create(model=door.model, messages=HELLO, n=2)
    assert (bad.value.param, bad.value.type) == ("n", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        await door.official.models.retrieve("other")
    assert missing.value.code == "model_not_found"
    assert missing.value.request_id


async def test_who_finds_no_room_is_told_when_to_come_again(door: Door) -> None:
    turns = [await door.service.turns.enter() for _ in range(door.service.turns.slots)]
    waiting = [asyncio.create_task(door.service.turns.enter()) for _ in range(16)]
    try:
        await until(lambda: door.service.turns.waiting == 16)
        for path, body in BODIES.items():
            reply = await door.post(path, body)
            error = reply.json()["error"]
            assert (reply.status_code, error["code"], error["type"]) == (
                429,
                "rate_limit_exceeded",
                "rate_limit_exceeded",
            )
            assert (reply.headers["retry-after"], reply.headers["retry-after-ms"]) == ("1", "1000")
            assert reply.headers["x-should-retry"] == "true"
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for turn in turns:
            turn.leave()
    assert (await door.chat(max_tokens=1))["usage"]["completion_tokens"] == 1
