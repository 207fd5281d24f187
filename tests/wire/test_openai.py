"""The OpenAI API's requests: what is passed over, what is checked, and what a chat template is given."""

import json
import sys
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from wire.openai import ChatRequest, CompletionRequest, Refused, read_request


def chat(**fields: Any) -> Any:
    body = {"messages": [{"role": "user", "content": "Hello"}], **fields}
    return read_request(ChatRequest, json.dumps(body).encode())


def test_what_is_not_known_is_passed_over_and_null_is_absent() -> None:
    told = chat(store=True, metadata={"a": "b"}, user="me", cache_prompt=1)
    assert told == chat()
    fields = set(ChatRequest.model_fields) - {"messages"}
    assert chat(**dict.fromkeys(fields)) == chat()
    completion = read_request(CompletionRequest, b'{"prompt": "x", "max_tokens": null, "suffix": null, "user": "me"}')
    assert completion == read_request(CompletionRequest, b'{"prompt": "x"}')


def test_both_names_of_the_limit_are_read_and_the_newer_wins() -> None:
    assert chat(max_tokens=3).tokens_max == 3
    assert chat(max_tokens=3, max_completion_tokens=5).tokens_max == 5
    assert chat(max_completion_tokens=0).tokens_max == 0


def test_a_template_is_given_text_system_and_arguments_as_objects() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    broken = {"id": "call_2", "type": "function", "function": {"name": "weather", "arguments": "{"}}
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": [call, broken]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
    ]
    developer, user, assistant, tool = (message.for_template() for message in chat(messages=messages).messages)
    assert developer == {"role": "system", "content": "Be short."}
    assert user == {"role": "user", "content": "ab", "name": "me"}
    assert [each["function"]["arguments"] for each in assistant["tool_calls"]] == [{"city": "Bern"}, "{"]
    assert (assistant["content"], tool["tool_call_id"]) == ("", "call_1")


@pytest.mark.parametrize(
    ("format", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "object"}),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "null"}}}, {"type": "null"}),
    ],
    ids=["text", "object", "schema"],
)
def test_a_format_is_a_schema_or_none(format: dict[str, Any], schema: Any) -> None:
    told = chat(response_format=format).response_format.schema_text
    assert (None if told is None else json.loads(told)) == schema


def test_a_refusal_names_the_place_and_repeats_nothing_that_was_sent() -> None:
    told = chat(messages=[{"role": "user", "content": "x"}, {"role": "sscret", "content": "y"}])
    assert isinstance(told, Refused)
    assert (told.param, told.message.startswith("messages[1].role: ")) == ("messages", True)
    assert "sscret" not in told.message


def test_arguments_that_are_deeper_than_anyone_writes_are_text_and_end_no_process() -> None:
    # Libraries of chains raise the limit of recursion to this, and then the parser of the standard library crashes.
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        call = {"function": {"name": "weather", "arguments": "[" * 200_000}}
        (message,) = chat(messages=[{"role": "assistant", "content": None, "tool_calls": [call]}]).messages
        assert message.for_template()["tool_calls"][0]["function"]["arguments"] == "[" * 200_000
    finally:
        sys.setrecursionlimit(before)


def test_the_references_of_a_tools_parameters_go_on_to_mean_the_same() -> None:
    told = chat(
        tools=[
            {"type": "function", "function": {"name": name, "parameters": {
                "type": "object", "properties": {"it": {"$ref": "#/$defs/It"}}, "$defs": {"It": {"const": name}}}}}
            for name in ("a", "b")
        ],
        tool_choice="required",
    )  # fmt: skip
    check = Draft202012Validator(json.loads(told.schema_text))
    good = [{"name": "a", "arguments": {"it": "a"}}, {"name": "b", "arguments": {"it": "b"}}]
    assert check.is_valid(good)
    assert not check.is_valid([{"name": "a", "arguments": {"it": "b"}}])
    assert not check.is_valid([])


def test_what_is_said_of_a_tool_counts_for_no_schema_and_its_values_stay() -> None:
    parameters = {
        "type": "object",
        "description": "x" * 40_000,
        "properties": {
            "description": {"type": "string", "title": "T"},
            "kind": {"enum": [{"description": "a value"}], "description": "of what kind"},
        },
    }
    tool = {"type": "function", "function": {"name": "a", "description": "does", "parameters": parameters}}
    told = chat(tools=[tool], tool_choice="required")
    assert json.loads(told.schema_text)["$defs"]["tool0"] == {
        "type": "object",
        "properties": {"description": {"type": "string"}, "kind": {"enum": [{"description": "a value"}]}},
    }
