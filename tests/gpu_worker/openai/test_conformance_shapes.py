"""The shapes of the OpenAI API, by its official types: the same from every engine, whole and streamed."""

from typing import Any

import pytest
from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.contracts.text_engine_place import REAL
from tests.gpu_worker.openai.doors import ALIAS, CHATS, COMPLETIONS, HELLO, LOOK, MODELS, PROMPT, Door, events_of, said

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

real = pytest.mark.parametrize("door", REAL, indirect=True)
CHAT: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 6}
PLAIN: dict[str, Any] = {"prompt": PROMPT, "temperature": 0, "max_tokens": 6}
USAGE = {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details"}


@pytest.mark.parametrize(
    ("path", "body", "official", "kind", "prefix"),
    [(CHATS, CHAT, ChatCompletion, "chat.completion", "chatcmpl-"),
     (COMPLETIONS, PLAIN, Completion, "text_completion", "cmpl-")],
)  # fmt: skip
async def test_a_whole_answer(door: Door, path: str, body: Any, official: Any, kind: str, prefix: str) -> None:
    reply = await door.post(path, {**body, "model": door.model})
    told = reply.json()
    official.model_validate(told, strict=True)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    assert set(told) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    assert (told["object"], told["model"], told["id"].startswith(prefix)) == (kind, door.model, True)
    (choice,) = told["choices"]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    assert said(told)
    if path == CHATS:
        assert set(choice["message"]) == {"role", "content", "refusal"}
    usage = told["usage"]
    assert set(usage) == USAGE
    assert usage["completion_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + 6 > 6
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 0}
    # What answers has a name where it is known.
    card = door.service.cards()[0]
    assert told["system_fingerprint"] == (f"fp_{card.model_hash[:12]}" if card.model_hash else None)
    assert reply.headers.get("x-gpu-weights-hash", "") == card.model_hash


@pytest.mark.parametrize(("path", "body"), [(CHATS, CHAT), (COMPLETIONS, PLAIN)])
async def test_a_stream_says_the_same_in_chunks_of_one_answer(door: Door, path: str, body: Any) -> None:
    whole = await door.answer(path, body)
    reply = await door.post(path, {**body, "stream": True, "stream_options": {"include_usage": True}})
    chunks = events_of(reply.text)
    official: Any = ChatCompletionChunk if path == CHATS else Completion
    for chunk in chunks:
        official.model_validate(_ended(chunk) if path == COMPLETIONS else chunk, strict=True)
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (reply.headers["cache-control"], reply.headers["x-accel-buffering"]) == ("no-cache", "no")
    # Nothing but comments and data, each event ended by an empty line, one [DONE] and nothing behind it.
    events = reply.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith((": ", "data: {")) and "\n" not in event for event in events[:-2])
    *parts, usage = chunks
    assert "".join(said(chunk) for chunk in parts) == said(whole)
    assert [chunk["choices"][0]["finish_reason"] for chunk in parts] == [None] * (len(parts) - 1) + ["length"]
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in parts)
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 6)
    assert usage["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
    same = {(each["id"], each["created"], each["model"], each["object"], each["system_fingerprint"]) for each in chunks}
    assert len(same) == 1
    if path == CHATS:
        assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert parts[-1]["choices"][0]["delta"] == {}
        assert all("role" not in chunk["choices"][0]["delta"] for chunk in parts[1:])
        assert all(chunk["choices"][0]["delta"] is not None for chunk in parts)


def _ended(chunk: dict[str, Any]) -> dict[str, Any]:
    """Return a completion's chunk as if it were the last: the type has no other, though all servers send null."""
    return {
        **chunk,
        "choices": [{**each, "finish_reason": each["finish_reason"] or "stop"} for each in chunk["choices"]],
    }


@pytest.mark.parametrize(("path", "body"), [(CHATS, CHAT), (COMPLETIONS, PLAIN)])
async def test_who_does_not_ask_for_usage_gets_no_field_of_that_name(door: Door, path: str, body: Any) -> None:
    chunks = await door.events(path, body)
    assert not any("usage" in chunk for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)


async def test_models_are_listed_and_one_is_told_of_by_each_of_its_names(door: Door) -> None:
    listed = (await door.client.get(MODELS)).json()
    assert listed["object"] == "list"
    (model,) = listed["data"]
    Model.model_validate(model, strict=True)
    context = door.service.cards()[0].context
    assert (model["id"], model["object"], model["owned_by"]) == (door.model, "model", "livery")
    assert model["max_model_len"] == model["context_length"] == context
    for name in (door.model, ALIAS):
        assert (await door.client.get(f"{MODELS}/{name}")).json() == model
    told = await door.chat(model=ALIAS, max_tokens=1)
    assert told["model"] == door.model


@real
async def test_log_probabilities_of_a_chat_have_its_tokens(door: Door) -> None:
    asked = {**CHAT, "logprobs": True, "top_logprobs": 2}
    told = await door.answer(CHATS, asked)
    ChatCompletion.model_validate(told, strict=True)
    content = told["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(each["bytes"]) for each in content).decode() == said(told)
    assert [len(each["top_logprobs"]) for each in content] == [2] * 6
    # The likeliest was taken, and it is the first one told.
    assert all(each["logprob"] == each["top_logprobs"][0]["logprob"] <= 0 for each in content)
    chunks = await door.events(CHATS, asked)
    streamed = [each for chunk in chunks for each in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [each["token"] for each in streamed] == [each["token"] for each in content]
    bare = await door.answer(CHATS, {**CHAT, "logprobs": True})
    assert [each["top_logprobs"] for each in bare["choices"][0]["logprobs"]["content"]] == [[]] * 6


async def test_log_probabilities_of_a_completion_have_its_tokens(door: Door) -> None:
    told = await door.answer(COMPLETIONS, {**PLAIN, "logprobs": 2})
    Completion.model_validate(told, strict=True)
    found = told["choices"][0]["logprobs"]
    assert "".join(found["tokens"]) == said(told)
    assert [len(found[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [6] * 4
    ends = [0, *(sum(map(len, found["tokens"][: at + 1])) for at in range(6))]
    assert found["text_offset"] == ends[:-1]


@real
async def test_a_call_has_its_shape_whole_and_in_parts(door: Door) -> None:
    asked = {**CHAT, "tools": [LOOK], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 200}
    told = await door.answer(CHATS, asked)
    ChatCompletion.model_validate(told, strict=True)
    choice = told["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert (call["type"], call["function"]["name"]) == ("function", "look")
    chunks = await door.events(CHATS, asked)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
    parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", ())]
    first, *later = parts
    assert (first["index"], first["type"], first["function"]["name"]) == (0, "function", "look")
    assert first["id"]
    assert all(set(part) == {"index", "function"} and set(part["function"]) == {"arguments"} for part in later)
    assert "".join(part["function"]["arguments"] for part in parts) == call["function"]["arguments"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    # A client sends the call back, with what it found.
    results = [choice["message"], {"role": "tool", "tool_call_id": call["id"], "content": "It is wet."}]
    again = await door.chat(messages=[*HELLO, *results], tools=[LOOK], tool_choice="none", max_tokens=3)
    assert said(again)
    assert again["choices"][0]["message"].get("tool_calls") is None
