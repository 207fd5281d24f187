"""Calls of tools in text: the same wherever the pieces are cut, always with JSON for arguments, and nothing is lost."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.inference.calls import FORCED, FORMATS, Call, CallFinder, Format, format_of

HERMES, MISTRAL, LLAMA = FORMATS
NAMES = ("weather", "clock")
WEATHER = Call("weather", '{"city": "Bern"}')
CLOCK = Call("clock", "{}")

# A format, what a model says, and what is found in it.
SAID: list[tuple[Format, str, list[str | Call]]] = [
    (HERMES, '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>', [WEATHER]),
    (HERMES, 'Let me see.\n<tool_call>{"arguments":{},"name":"clock"}</tool_call>\n', ["Let me see.\n", CLOCK]),
    (
        HERMES,
        '<tool_call>{"name": "clock", "arguments": {}}</tool_call>\n'
        '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>\nSo.',
        [CLOCK, WEATHER, "\nSo."],
    ),
    (HERMES, '<tool_call>{"name": "clock", "arguments": {}}', [CLOCK]),
    (HERMES, '<tool_call>{"name": "clock", "arguments": {"a": "}</tool_call>\\""}}</tool_call>',
     [Call("clock", '{"a": "}</tool_call>\\""}')]),
    (MISTRAL, 'Hm[TOOL_CALLS] [{"name": "clock", "arguments": {}}, {"name": "weather", "arguments": {"city": "Bern"}}]',
     ["Hm", CLOCK, WEATHER]),
    (LLAMA, ' {"name": "weather", "parameters": {"city": "Bern"}}', [WEATHER]),
    (LLAMA, '{"name": "clock", "parameters": {}}; {"name": "weather", "arguments": {"city": "Bern"}}',
     [CLOCK, WEATHER]),
    (MISTRAL, '[TOOL_CALLS]{"name": "clock", "arguments": {}}\na', [CLOCK, "\na"]),
    (FORCED, '[{"name": "clock", "arguments": {}}]', [CLOCK]),
]  # fmt: skip

# What only looks like a call is text, all of it.
TEXTS: list[tuple[Format, str]] = [
    (HERMES, '<tool_call>{"name": "rocket", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "clock", "arguments": "none"}</tool_call>'),
    (HERMES, '<tool_call>{"name": ["clock"], "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "clock", "arguments": {"a": NaN}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "clock", "arguments": {"a": 1e999}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "clock", "arguments": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}</tool_call>"),
    (HERMES, '<tool_call>{"name": "clock", "arguments": {}'),
    (HERMES, '<tool_call>{"name": "clock", "arguments": {}} and more'),
    (HERMES, '{"name": "clock", "arguments": {}}'),
    (HERMES, "a < b, and <tool"),
    (MISTRAL, '[TOOL_CALLS] [{"name": "clock", "arguments": {}}, {"name": "rocket", "arguments": {}}]'),
    (LLAMA, '  {"city": "Bern"} is no call'),
    (LLAMA, 'The call is {"name": "clock", "parameters": {}}'),
    (LLAMA, " \n "),
    (FORCED, '[{"name": "clock", "arguments": {}}, {"name": "wea'),
    (FORCED, ""),
]


def found(form: Format, pieces: list[str], most: int | None = None) -> list[str | Call]:
    """Return what is found, texts that follow each other as one."""
    finder = CallFinder(form, NAMES, most)
    told: list[str | Call] = []
    for each in (*(each for piece in pieces for each in finder.push(piece)), *finder.push("", is_end=True)):
        if isinstance(each, str) and told and isinstance(told[-1], str):
            told[-1] += each
        else:
            told.append(each)
    assert finder.count == sum(isinstance(each, Call) for each in told)
    return told


@pytest.mark.parametrize(("form", "text", "expected"), SAID)
def test_calls_are_found_wherever_the_text_is_cut(form: Format, text: str, expected: list[str | Call]) -> None:
    assert found(form, [text]) == found(form, list(text)) == expected
    for cut in range(len(text)):
        assert found(form, [text[:cut], text[cut:]]) == expected


@pytest.mark.parametrize(("form", "text"), TEXTS, ids=range(len(TEXTS)))
def test_what_is_no_call_of_an_offered_tool_stays_text(form: Format, text: str) -> None:
    expected = [text] if text else []
    assert found(form, [text]) == found(form, list(text)) == expected


PARTS = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[", "]", "{", "}", ";", " ", "\n", '"', "\\", "a",
     '{"name": "clock", "arguments": {}}', '{"name": "weather", "parameters": {"city": "[}"}}', "<", "null"]
)  # fmt: skip


@given(
    form=st.sampled_from((*FORMATS, FORCED)),
    parts=st.lists(PARTS, max_size=12),
    cuts=st.lists(st.integers(0, 200), max_size=6),
)
def test_any_text_is_told_alike_and_whole_wherever_it_is_cut(form: Format, parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[begin:end] for begin, end in pairwise(places)]
    told = found(form, [text])
    assert found(form, pieces) == found(form, list(text)) == told
    assert all(isinstance(json.loads(each.arguments), dict) for each in told if isinstance(each, Call))
    if not any(isinstance(each, Call) for each in told):
        assert "".join(map(str, told)) == text


def test_what_is_certainly_text_is_not_held_back() -> None:
    finder = CallFinder(HERMES, NAMES)
    assert finder.push("Well, <to") == ["Well, "]
    assert finder.push("morrow") == ["<tomorrow"]
    assert finder.push(' <tool_call>{"name"') == [" "]
    assert finder.push(': "clock", "arguments": {}}</tool_call>') == [CLOCK]


def test_no_more_calls_are_told_than_were_allowed() -> None:
    text = '[TOOL_CALLS] [{"name": "clock", "arguments": {}}, {"name": "weather", "arguments": {}}]'
    assert found(MISTRAL, [text], most=1) == [CLOCK]


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ('return a json object within <tool_call></tool_call> XML tags {"name": <function-name>}', HERMES),
        ("{{ '[TOOL_CALLS] [' }}", MISTRAL),
        ('{{- \'Respond in the format {"name": function name, "parameters": dictionary}\' }}', LLAMA),
        ("{{ '<|python_tag|>' }}", LLAMA),
        ("{% for message in messages %}{{ message.content }}{% endfor %}", None),
    ],
)
def test_a_template_tells_how_its_model_calls(template: str, form: Format | None) -> None:
    assert format_of(template) is form
