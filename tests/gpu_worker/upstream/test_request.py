"""What a server is sent of a request: all that changes the answer, in the names that it has for it."""

from typing import Any

import orjson
import pytest

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.upstream.flavours import FLAVOURS, PLAIN, Flavour
from gpu_worker.inference.upstream.request import encoded, stream_body
from wire.openai import ChatRequest, CompletionRequest, read_request

WEATHER = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}},
}


def body(sent: dict[str, Any], tokens_max: int | None = None, flavour: Flavour = PLAIN, **extra: Any) -> dict[str, Any]:
    request = read_request(ChatRequest if "messages" in sent else CompletionRequest, orjson.dumps(sent))
    made = stream_body(request, model="m", tokens_max=tokens_max, flavour=flavour, extra=extra)
    # It can be sent, and is what arrives.
    return dict(orjson.loads(orjson.dumps(made)))


VAST = {"type": "function", "function": {"name": "f", "parameters": {"maximum": 2**70}}}
SPARE = {"x-guidance": {"whitespace_flexible": False, "lenient": True}}
USER = {"role": "user", "content": "hello"}


def test_a_bare_chat_is_sent_bare_and_as_a_stream() -> None:
    assert body({"messages": [USER], "model": "another", "stream": False, "user": "me", "store": True}) == {
        "model": "m",
        "messages": [USER],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_all_that_changes_the_answer_is_passed_on_a_zero_too() -> None:
    told = {
        "temperature": 0,
        "top_p": 0.0,
        "top_k": 0,
        "min_p": 0.1,
        "stop": ["a", "b"],
        "presence_penalty": 0,
        "frequency_penalty": -1,
        "repetition_penalty": 1.1,
        "logit_bias": {"7": -100},
        "ignore_eos": True,
        "seed": 0,
        "parallel_tool_calls": False,
        "chat_template_kwargs": {"enable_thinking": False},
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "logprobs": True,
        "top_logprobs": 0,
    }
    made = body({"messages": [USER], **told}, tokens_max=5)
    assert {name: made[name] for name in told} == told
    assert made["max_tokens"] == 5


def test_a_message_is_sent_as_servers_read_it() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}
    made = body(
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
                {"role": "user", "content": "go", "name": "ann"},
                {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
                {"role": "tool", "content": "wet", "tool_call_id": "c1"},
            ]
        }
    )
    assert made["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "go", "name": "ann"},
        {"role": "assistant", "content": "", "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "wet", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize(
    ("form", "sent"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "json_schema": {"name": "mine", "schema": {"type": "object"}}},
            {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": {"type": "object"}}},
        ),
    ],
)
def test_a_demanded_form_is_passed_on(form: dict[str, Any], sent: dict[str, Any] | None) -> None:
    assert body({"messages": [USER], "response_format": form}).get("response_format") == sent


@pytest.mark.parametrize("prompt", ["hello", [1, 2, 3], [[1, 2, 3]], ["hello"]])
def test_the_one_prompt_of_a_completion_is_sent_alone_and_its_echo_is_ours(prompt: Any) -> None:
    made = body({"prompt": prompt, "echo": True, "suffix": "", "best_of": 1, "n": 1})
    only = prompt[0] if isinstance(prompt[0], list) or prompt == ["hello"] else prompt
    assert made == {"model": "m", "prompt": only, "stream": True, "stream_options": {"include_usage": True}}


def test_llama_cpp_has_names_of_its_own() -> None:
    sent = {"messages": [USER], "repetition_penalty": 1.2, "logprobs": True}
    made = body(sent, flavour=FLAVOURS["llamacpp"])
    assert (made["repeat_penalty"], "repetition_penalty" in made, made["timings_per_token"]) == (1.2, False, True)
    # It tells none at all of no alternatives.
    assert made["top_logprobs"] == 1
    assert body({"prompt": "a", "logprobs": 0}, flavour=FLAVOURS["llamacpp"])["logprobs"] == 1


def test_a_completions_schema_is_where_its_server_looks_for_it() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}
    sent = {"prompt": "a", "response_format": form}
    assert body(sent)["response_format"] == form
    made = body(sent, flavour=FLAVOURS["llamacpp"])
    assert (made["json_schema"], "response_format" in made) == (SPARE | schema, False)
    bare = {"prompt": "a", "response_format": {"type": "json_object"}}
    assert body(bare, flavour=FLAVOURS["llamacpp"])["json_schema"] == SPARE | {"type": "object"}


@pytest.mark.parametrize("sent", [{"prompt": "a"}, {"messages": [USER]}])
def test_a_schema_says_that_spaces_end_where_it_says_nothing_of_them(sent: dict[str, Any]) -> None:
    def form(schema: dict[str, Any]) -> Any:
        asked = {"type": "json_schema", "json_schema": {"name": "mine", "schema": schema}}
        made = body({**sent, "response_format": asked}, flavour=FLAVOURS["llamacpp"])
        return made["json_schema"] if "prompt" in sent else made["response_format"]["json_schema"]["schema"]

    assert form({"type": "object"}) == SPARE | {"type": "object"}
    mine = {"type": "object", "x-guidance": {"whitespace_flexible": True}}
    assert form(mine) == mine


def test_what_no_server_reads_is_refused() -> None:
    request = ChatRequest.model_validate({"messages": [USER], "tools": [VAST]})
    with pytest.raises(InferenceError) as caught:
        encoded(stream_body(request, model="m", tokens_max=1, flavour=PLAIN, extra={}))
    assert caught.value.code == "invalid_argument"


def test_a_template_is_told_only_what_it_may_be() -> None:
    with pytest.raises(InferenceError) as caught:
        body({"messages": [USER], "chat_template_kwargs": {"messages": []}})
    assert (caught.value.code, caught.value.param) == ("invalid_argument", "chat_template_kwargs")


@pytest.mark.parametrize("flavour", ["vllm", "sglang"])
def test_servers_that_can_count_in_every_chunk_are_asked_to(flavour: str) -> None:
    made = body({"messages": [USER]}, flavour=FLAVOURS[flavour])
    assert made["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


def test_what_the_client_says_comes_before_the_owners_defaults() -> None:
    made = body({"messages": [USER], "temperature": 0.5}, temperature=1.0, cache_prompt=True)
    assert (made["temperature"], made["cache_prompt"]) == (0.5, True)


@pytest.mark.parametrize(
    ("seed", "sent"), [(7, 7), (2**32 - 2, 2**32 - 2), (2**32 - 1, 0), (-1, 2**32 - 2), (2**64 - 1, 0)]
)
def test_a_seed_is_one_that_every_server_can_keep(seed: int, sent: int) -> None:
    assert body({"messages": [USER], "seed": seed})["seed"] == sent


def test_where_no_token_is_wanted_one_is_asked_for() -> None:
    assert body({"messages": [USER]}, tokens_max=0)["max_tokens"] == 1
