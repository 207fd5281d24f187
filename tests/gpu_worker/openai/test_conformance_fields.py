"""Every field of a request that changes an answer changes it, whatever the engine; the others change nothing."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.text_engine_place import NAME, REAL
from tests.gpu_worker.openai.doors import CHATS, HELLO, LOOK, PROMPT, Door, said
from wire.openai import ChatRequest

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

real = pytest.mark.parametrize("door", REAL, indirect=True)


@cache
def tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / NAME).backend_tokenizer


async def test_what_changes_no_answer_is_passed_over(door: Door) -> None:
    plain = await door.chat(max_tokens=6)
    nothing = dict.fromkeys(set(ChatRequest.model_fields) - {"messages", "temperature", "max_tokens"})
    stray = {
        "user": "me", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "prompt_cache_key": "k",
        "safety_identifier": "s", "reasoning_effort": "low", "verbosity": "low", "prediction": None, "n": 1,
        "session_id": "open-webui", "chat_id": 5, "features": {"web_search": False}, "stop": [], "tools": [],
        "tool_choice": "auto", "parallel_tool_calls": True, "response_format": {"type": "text"}, "logit_bias": {},
        "modalities": ["text"], "stream_options": {"include_obfuscation": True},
    }  # fmt: skip
    for fields in (nothing, stray):
        told = await door.chat(max_tokens=6, **fields)
        assert (said(told), told["usage"]["completion_tokens"]) == (said(plain), 6)
        assert told["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_both_names_of_the_limit(door: Door, field: str) -> None:
    for limit in (1, 4):
        told = await door.chat(**{field: limit})
        assert (told["usage"]["completion_tokens"], told["choices"][0]["finish_reason"]) == (limit, "length")
    both = await door.chat(**{"max_tokens": 9, "max_completion_tokens": 2})
    assert both["usage"]["completion_tokens"] == 2


async def test_no_token_is_an_answer_that_is_empty(door: Door) -> None:
    for told in (await door.chat(max_tokens=0), await door.complete(max_tokens=0)):
        assert (said(told), told["choices"][0]["finish_reason"]) == ("", "length")
        assert told["usage"]["completion_tokens"] == 0
    echoed = await door.complete(max_tokens=0, echo=True)
    assert said(echoed) == PROMPT
    chunks = await door.events(CHATS, {"messages": HELLO, "max_tokens": 0})
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, "length"]


async def test_a_completion_without_a_limit_has_sixteen_tokens_at_most(door: Door) -> None:
    told = await door.complete()
    assert 0 < told["usage"]["completion_tokens"] <= 16


@real
@pytest.mark.parametrize(
    "fields", [{"temperature": 0}, {"top_k": 1}, {"top_p": 0.0}, {"top_p": 1e-9}, {"min_p": 1.0}], ids=str
)
async def test_what_leaves_the_likeliest_token_alone_draws_it(door: Door, fields: dict[str, Any]) -> None:
    assert door.place is not None
    for seed in (1, 2):
        told = await door.complete(**{"temperature": 1.9, "seed": seed, "max_tokens": 6, **fields})
        assert said(told) == door.place.greedy(PROMPT, 6)


@real
async def test_a_seed_is_reproducible_and_another_one_draws_something_else(door: Door) -> None:
    for ask in (door.chat, door.complete):
        drawn = [said(await ask(max_tokens=12, temperature=1.5, seed=seed)) for seed in (2**40 + 5, 2**40 + 5, -1)]
        assert drawn[0] == drawn[1] != drawn[2]


@real
async def test_a_bias_forces_a_token_and_forbids_it(door: Door, folder: Path) -> None:
    words = tokenizer(folder)
    assert door.place is not None
    first = door.place.greedy(PROMPT, 1)
    token = words.encode("horse").ids[0]
    forced = await door.complete(max_tokens=3, logit_bias={str(token): 100})
    assert said(forced) == words.decode([token]) * 3
    chat = await door.chat(max_tokens=2, logit_bias={str(token): 100})
    assert said(chat) == words.decode([token]) * 2
    likeliest = next(id for text, id in words.get_vocab().items() if words.decode([id]) == first)
    without = await door.complete(max_tokens=1, logit_bias={str(likeliest): -100})
    assert said(without) != first


@real
@pytest.mark.parametrize(
    "fields", [{"frequency_penalty": 2}, {"presence_penalty": 2}, {"repetition_penalty": 2.0}], ids=str
)
async def test_a_penalty_keeps_tokens_from_coming_again(door: Door, fields: dict[str, Any]) -> None:
    plain, penalised = await door.complete(max_tokens=60), await door.complete(max_tokens=60, **fields)
    assert said(plain) != said(penalised)


@real
@pytest.mark.parametrize("as_list", [False, True])
async def test_a_stop_over_the_borders_of_tokens_ends_the_answer_before_itself(door: Door, as_list: bool) -> None:
    whole = await door.complete(max_tokens=12, logprobs=0)
    tokens = whole["choices"][0]["logprobs"]["tokens"]
    # The end of one token and the beginning of the next.
    at = next(at for at in range(2, 11) if tokens[at].strip() and tokens[at + 1].strip())
    stop = tokens[at][-1] + tokens[at + 1][0]
    left = said(whole)[: said(whole).index(stop)]
    told = await door.complete(max_tokens=60, stop=["nothing of it", stop] if as_list else stop, logprobs=1)
    assert (said(told), told["choices"][0]["finish_reason"]) == (left, "stop")
    assert len("".join(told["choices"][0]["logprobs"]["tokens"])) <= len(left) + len(tokens[at])
    chunks = await door.events("/v1/completions", {"prompt": PROMPT, "temperature": 0, "max_tokens": 60, "stop": stop})
    assert "".join(said(chunk) for chunk in chunks) == left


@real
async def test_an_end_that_is_not_taken_for_one(door: Door) -> None:
    told = await door.chat(max_tokens=80, ignore_eos=True)
    assert (told["usage"]["completion_tokens"], told["choices"][0]["finish_reason"]) == (80, "length")


async def test_a_prompt_is_text_or_one_text_in_a_list(door: Door) -> None:
    plain = await door.complete(max_tokens=4)
    listed = await door.complete(max_tokens=4, prompt=[PROMPT])
    assert said(plain) == said(listed)
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "What does "}, {"type": "text", "text": "the tick do?"}]}
    ]
    assert said(await door.chat(messages=parts, max_tokens=4)) == said(await door.chat(max_tokens=4))


@real
async def test_a_prompt_of_tokens_is_a_prompt_like_its_text_and_is_echoed(door: Door, folder: Path) -> None:
    ids = tokenizer(folder).encode(PROMPT).ids
    for prompt in (ids, [ids]):
        told = await door.complete(prompt=prompt, max_tokens=4, echo=True)
        assert door.place is not None
        assert said(told).lstrip() == PROMPT + door.place.greedy(PROMPT, 4)
        assert told["usage"]["prompt_tokens"] == len(ids)


@real
async def test_an_answer_keeps_to_a_schema_and_to_json(door: Door) -> None:
    schema = {"type": "object", "properties": {"animal": {"enum": ["🐎 é漢"]}}, "required": ["animal"],
              "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "animal", "strict": True, "schema": schema}}
    for told in (await door.chat(response_format=form), await door.complete(response_format=form, max_tokens=200)):
        assert json.loads(said(told)) == {"animal": "🐎 é漢"}
        assert told["choices"][0]["finish_reason"] == "stop"
    some = said(await door.chat(response_format={"type": "json_object"}, max_tokens=8))
    assert some.startswith("{")


@pytest.mark.parametrize("door", ["gguf", "openai"], indirect=True)
async def test_what_llama_cpp_does_not_know_of_a_schema_leaves_the_rest_of_it_in_force(door: Door) -> None:
    schema = {"type": "object", "properties": {"at": {"type": "string", "format": "weird", "enum": ["sea"]}},
              "required": ["at"], "additionalProperties": False, "minProperties": 1}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    told = await door.complete(response_format=form, max_tokens=100)
    assert json.loads(said(told)) == {"at": "sea"}
    tool = {"type": "function", "function": {"name": "look", "parameters": schema}}
    called = await door.chat(tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=200)
    (call,) = called["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"at": "sea"}


@real
@pytest.mark.parametrize(
    ("choice", "called"),
    [("none", False), ("required", True), ({"type": "function", "function": {"name": "look"}}, True)],
    ids=str,
)
async def test_a_choice_of_tools_is_kept_to(door: Door, choice: Any, called: bool) -> None:
    told = await door.chat(tools=[LOOK], tool_choice=choice, parallel_tool_calls=False, max_tokens=200)
    message = told["choices"][0]["message"]
    calls = message.get("tool_calls", [])
    assert [json.loads(call["function"]["arguments"]) for call in calls] == ([{"at": "sea"}] if called else [])
    assert told["choices"][0]["finish_reason"] in (("tool_calls",) if called else ("stop", "length"))


@real
async def test_tools_that_may_be_called_stand_in_the_prompt(door: Door) -> None:
    bare, told = await door.chat(max_tokens=4), await door.chat(tools=[LOOK], max_tokens=4)
    assert told["usage"]["prompt_tokens"] > bare["usage"]["prompt_tokens"]
    assert told["usage"]["completion_tokens"] == 4


@real
async def test_a_prompt_that_was_computed_before_is_told_as_cached_or_as_computed(door: Door) -> None:
    usages = [(await door.chat(max_tokens=2, messages=[*HELLO, *HELLO]))["usage"] for _ in range(2)]
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    # Slices keep no prefixes yet; llama.cpp computes the last token anew.
    assert cached[1] == (0 if door.place and door.place.kind == "slice" else usages[1]["prompt_tokens"] - 1)
