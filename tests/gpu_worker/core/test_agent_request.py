"""A request of AgentService becomes one of the OpenAI API, or a sentence about what is wrong with it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.inference.agent_request import OPTIONS, agent_request
from gpu_worker.core.inference.codes import InferenceError
from wire.openai import ChatRequest, CompletionRequest

PLAIN: dict[str, Any] = {"model": "", "max_tokens": 0, "temperature": 0.0, "options": {}}


def asked(prompt: str = "Hello", **fields: Any) -> ChatRequest | CompletionRequest:
    return agent_request(prompt, **(PLAIN | fields))


def refusal(prompt: str = "Hello", **fields: Any) -> tuple[str, str | None]:
    with pytest.raises(InferenceError) as raised:
        asked(prompt, **fields)
    return raised.value.code, raised.value.param


def test_a_prompt_is_a_chat_of_one_message_and_raw_a_text_to_go_on_with() -> None:
    chat = asked()
    assert isinstance(chat, ChatRequest)
    assert [(message.role, message.content) for message in chat.messages] == [("user", "Hello")]
    told = asked(options={"system": "Be kind.", "raw": "False"})
    assert isinstance(told, ChatRequest)
    assert [message.role for message in told.messages] == ["system", "user"]
    raw = asked(options={"raw": "true"})
    assert isinstance(raw, CompletionRequest)
    assert raw.prompt == "Hello"


def test_nothing_said_is_no_limit_and_the_likeliest_token() -> None:
    request = asked()
    assert (request.model, request.max_tokens, request.temperature, request.top_p) == (None, None, 0.0, None)


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ({"num_predict": "50"}, "max_tokens", 50),
        ({"max_tokens": "50"}, "max_tokens", 50),
        ({"temperature": "0.7"}, "temperature", 0.7),
        ({"top_p": "0.9"}, "top_p", 0.9),
        ({"top_k": "40"}, "top_k", 40),
        ({"min_p": "0.05"}, "min_p", 0.05),
        ({"seed": "18446744073709551615"}, "seed", 2**64 - 1),
        ({"repeat_penalty": "1.1"}, "repetition_penalty", 1.1),
        ({"presence_penalty": "-1.5"}, "presence_penalty", -1.5),
        ({"frequency_penalty": "0.5"}, "frequency_penalty", 0.5),
        ({"ignore_eos": "true"}, "ignore_eos", True),
        ({"stop": "\n\n"}, "stop", ("\n\n",)),
        ({"stop": "[end]"}, "stop", ("[end]",)),
        ({"stop": '["a", "b"]'}, "stop", ("a", "b")),
        ({"logit_bias": '{"5": -1.5}'}, "logit_bias", {5: -1.5}),
    ],
)
@pytest.mark.parametrize("raw", ["true", "false"])
def test_options_are_numbers_where_they_mean_numbers(options: dict[str, str], field: str, value: Any, raw: str) -> None:
    found = getattr(asked(options=options | {"raw": raw}), field)
    assert (found, type(found)) == (value, type(value))


def test_an_answer_can_be_asked_to_be_json() -> None:
    assert asked(options={"response_format": '{"type": "json_object"}'}).schema_text == '{"type": "object"}'
    assert refusal(options={"response_format": '{"type": "yaml"}'}) == ("invalid_argument", "response_format")


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("prompt", {"prompt": ""}),
        ("max_tokens", {"max_tokens": -1}),
        ("max_tokens", {"options": {"num_predict": "-1"}}),
        ("temperature", {"temperature": 2.1}),
        ("temperature", {"temperature": float("inf")}),
        ("temperature", {"options": {"temperature": "nan"}}),
        ("seed", {"options": {"seed": "9" * 5_000}}),
        ("top_k", {"options": {"top_k": ""}}),
        ("mirostat", {"options": {"mirostat": "1"}}),
        ("x" * 64, {"options": {"x" * 5_000: "1"}}),
        ("raw", {"options": {"raw": "maybe"}}),
        ("raw", {"options": {"raw": "true", "system": "Be kind."}}),
        ("stop", {"options": {"stop": '["a", "b", "c", "d", "e"]'}}),
        ("stop", {"options": {"stop": "[" * 100_000}}),
    ],
)
def test_what_cannot_be_is_named(param: str, fields: dict[str, Any]) -> None:
    assert refusal(**fields) == ("invalid_argument", param)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 5, "options": {"num_predict": "5"}},
        {"options": {"max_tokens": "5", "num_predict": "6"}},
        {"temperature": 0.5, "options": {"temperature": "0.5"}},
        {"options": {"repeat_penalty": "1.1", "repetition_penalty": "1.2"}},
    ],
)
def test_what_is_said_twice_is_refused_rather_than_one_of_them_passed_over(fields: dict[str, Any]) -> None:
    code, _ = refusal(**fields)
    assert code == "invalid_argument"


names = st.sampled_from([*OPTIONS, "system", "raw"]) | st.text(max_size=5)


@given(
    st.text(max_size=20),
    st.integers(-(2**31), 2**31 - 1),
    st.floats(width=32),
    st.dictionaries(names, st.text(max_size=20), max_size=4),
)
def test_whatever_is_sent_is_a_request_or_a_refusal(
    prompt: str, max_tokens: int, temperature: float, options: dict[str, str]
) -> None:
    try:
        request = asked(prompt, max_tokens=max_tokens, temperature=temperature, options=options)
    except InferenceError:
        return
    assert request.max_tokens is None or request.max_tokens >= 0
    assert 0 <= (request.temperature or 0.0) <= 2
