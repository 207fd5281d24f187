"""What is made of a server's chunks: what servers really say, what they lie, and whatever else JSON can be."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.text.engine import CallPart, Piece
from gpu_worker.inference.upstream.reading import Reading
from wire.openai_answers import Told


def read(*chunks: Any, **how: Any) -> tuple[list[Piece], Reading]:
    reading = Reading(**{"session": "s" * 32, **how})
    return [reading.push(json.dumps(chunk).encode()) for chunk in chunks], reading


def said(delta: Any = None, reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta or {}, "finish_reason": reason}], **more}


def test_llama_cpp_counts_in_every_chunk() -> None:
    def timings(made: int) -> dict[str, int]:
        return {"cache_n": 54, "prompt_n": 1, "predicted_n": made}

    pieces, reading = read(
        said({"role": "assistant", "content": None}),
        said({"content": "a"}, timings=timings(1)),
        # A token whose bytes were no whole character yet was told with the next one.
        said({"content": "bc"}, timings=timings(3)),
        said({}, "length", timings=timings(3)),
    )
    assert [(piece.text, piece.tokens) for piece in pieces] == [("", 0), ("a", 1), ("bc", 2), ("", 0)]
    assert (reading.prompt_tokens, reading.cached_tokens, reading.tokens, reading.reason) == (55, 54, 3, "length")


def test_vllm_counts_in_usage_also_where_a_chunk_has_several_tokens() -> None:
    def used(made: int) -> dict[str, int]:
        return {"prompt_tokens": 9, "completion_tokens": made}

    pieces, reading = read(
        said({"role": "assistant", "content": ""}, usage=used(0)),
        said({"reasoning": "hm"}, usage=used(2)),
        said({"content": "yes, sir"}, "stop", usage=used(5)),
        {"choices": [], "usage": used(5)},
    )
    assert [(piece.text, piece.reasoning, piece.tokens) for piece in pieces] == [
        ("", "", 0), ("", "hm", 2), ("yes, sir", "", 3), ("", "", 0),
    ]  # fmt: skip
    assert (reading.prompt_tokens, reading.tokens) == (9, 5)


def test_where_no_count_comes_a_chunk_is_a_token_and_the_end_puts_it_right() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 2}}
    pieces, reading = read(
        said({"content": "a"}), said({"content": "b"}), said({}, "stop"), {"choices": [], "usage": usage}
    )
    assert [piece.tokens for piece in pieces] == [1, 1, 0, 2]
    assert (reading.tokens, reading.prompt_tokens, reading.cached_tokens) == (4, 3, 2)


def test_a_whole_answer_is_one_piece() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "hello", "reasoning_content": "hm", "tool_calls": [call]}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    pieces, reading = read({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 6}})
    reading.end()
    assert pieces == [Piece("hello", (), "hm", (CallPart(0, "c1", "f", "{}"),), 6)]
    assert (reading.reason, reading.prompt_tokens) == ("tool_calls", 5)


def test_the_parts_of_calls_are_told_apart_and_a_call_without_a_name_of_its_own_gets_one() -> None:
    def part(index: int, **function: Any) -> dict[str, Any]:
        named = {"id": "c0"} if index == 0 and "name" in function else {}
        return said({"tool_calls": [{"index": index, **named, "function": function}]})

    pieces, reading = read(
        part(0, name="look", arguments=""),
        part(0, arguments='{"a"'),
        part(1, name="hear", arguments={"b": 2}),
        part(0, arguments=": 1}"),
        said({}, "stop"),
    )
    reading.end()
    assert [piece.calls for piece in pieces[:4]] == [
        (CallPart(0, "c0", "look", ""),),
        (CallPart(0, "", "", '{"a"'),),
        (CallPart(1, "call_" + "s" * 24 + "_1", "hear", '{"b":2}'),),
        (CallPart(0, "", "", ": 1}"),),
    ]
    assert reading.reason == "tool_calls"


def test_log_probabilities_of_both_forms_are_told_with_their_places() -> None:
    def token(text: str, number: Any, *top: Any) -> dict[str, Any]:
        return {"token": text, "logprob": number, "bytes": list(text.encode()), "top_logprobs": list(top)}

    content = [token("é", -0.5, token("é", -0.5), token("e", -1)), token("t", None)]
    chat, _ = read(
        {"choices": [{"delta": {"content": "é"}, "logprobs": {"content": content[:1]}}]},
        {"choices": [{"delta": {"content": "t"}, "logprobs": {"content": content[1:]}}]},
        tops_max=1,
    )
    assert chat[0].told == (Told("é", "é".encode(), -0.5, 0, (("é", "é".encode(), -0.5),)),)
    assert chat[1].told == (Told("t", b"t", -9999.0, 1, ()),)
    old = {"tokens": ["a", "b"], "token_logprobs": [-1, -2.5], "top_logprobs": [{"x": -3, "a": -1}, None]}
    text, _ = read({"choices": [{"text": "ab", "logprobs": old}]}, tops_max=2)
    assert text[0].told == (Told("a", None, -1.0, 0, (("a", None, -1.0), ("x", None, -3.0))), Told("b", None, -2.5, 1))
    assert text[0].tokens == 2


def test_log_probabilities_that_were_not_asked_for_are_not_told() -> None:
    pieces, _ = read({"choices": [{"text": "a", "logprobs": {"tokens": ["a"], "token_logprobs": [-1]}}]})
    assert pieces == [Piece("a", tokens=1)]


@pytest.mark.parametrize("lie", [10**12, 11, -1, True, 1.5, "3", None, [], float("inf")])
def test_a_count_that_cannot_be_true_is_not_believed(lie: Any) -> None:
    usage = {"prompt_tokens": lie, "completion_tokens": lie, "prompt_tokens_details": {"cached_tokens": lie}}
    body = said({"content": "a"}, "stop", usage=usage)
    reading = Reading(session="s", tokens_max=10, context=10)
    reading.chunk(body)
    assert (reading.prompt_tokens, reading.cached_tokens, reading.tokens) == (0, 0, 0)
    reading.chunk(said({"content": "a"}, "stop"))
    assert reading.tokens == 1


def test_more_tokens_than_were_asked_for_are_not_counted_and_an_endless_answer_is_cut_off() -> None:
    reading = Reading(session="s", tokens_max=5)

    def endless() -> None:
        for _ in range(10_000):
            reading.push(b'{"choices": [{"text": "a"}]}')

    with pytest.raises(InferenceError, match="far more") as caught:
        endless()
    assert caught.value.code == "upstream_error"
    assert reading.tokens == 5


@pytest.mark.parametrize(
    ("reason", "ours"), [("eos", "stop"), ("function_call", "tool_calls"), (["x"], "stop"), ("length", "length")]
)
def test_an_answers_end_has_a_name_that_clients_know(reason: Any, ours: str) -> None:
    reading = Reading(session="s")
    reading.chunk({"choices": [{"text": "", "finish_reason": reason}]})
    assert reading.reason == ours


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_was_given_up_is_no_answer(reason: str) -> None:
    with pytest.raises(InferenceError, match="gave its answer up"):
        read({"choices": [{"text": "", "finish_reason": reason}]})


@pytest.mark.parametrize(
    "data",
    [
        b"<html>",
        b"[]",
        b"null",
        b"",
        b'{"choices": [7]}',
        b'{"choices": [{"delta": 7}]}',
        b'{"choices": [{"text": 7}]}',
        b'{"choices": [{"delta": {"content": ["a"]}}]}',
        b'{"choices": [{"delta": {"tool_calls": "no"}}]}',
        b'{"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}}]}',
        b'{"choices": [{"delta": {"tool_calls": [{"index": 4000000, "function": {"name": "f"}}]}}]}',
        b'{"choices": [{"text": "a", "logprobs": {"content": [{"token": 1}]}}]}',
        b'{"choices": [{"text": "a", "logprobs": {"tokens": 5}}]}',
        b'{"choices": [{"text": "\\ud800"}]}',
        b'{"choices": ' * 5_000,
    ],
)
def test_what_is_no_chunk_breaks_the_answer_off(data: bytes) -> None:
    with pytest.raises(InferenceError) as caught:
        Reading(session="s", tops_max=3).push(data)
    assert caught.value.code == "upstream_error"


def test_a_token_whose_bytes_are_a_number_makes_no_such_many() -> None:
    token = {"token": "a", "logprob": -1, "bytes": 10**15}
    (piece,), _ = read({"choices": [{"text": "a", "logprobs": {"content": [token]}}]}, tops_max=0)
    assert piece.told[0].data is None


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


def _shaped(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return what looks like an object of these fields, each of which may be missing or be anything."""
    return _ANY | st.fixed_dictionaries({}, optional={name: _ANY | value for name, value in fields.items()})


_TOKEN = _shaped(token=st.text(max_size=3), logprob=st.floats(), bytes=st.lists(st.integers(0, 300), max_size=3))
_LOGPROBS = _shaped(
    content=st.lists(_TOKEN, max_size=2), tokens=st.lists(_ANY, max_size=2), top_logprobs=st.lists(_ANY, max_size=2)
)
_CALL = _shaped(
    index=st.integers(), id=st.text(), function=_shaped(name=st.text(max_size=3), arguments=st.text(max_size=3))
)
_DELTA = _shaped(content=st.text(max_size=5), reasoning=st.text(max_size=5), tool_calls=st.lists(_CALL, max_size=2))
_CHOICE = _shaped(delta=_DELTA, message=_DELTA, text=st.text(max_size=5), finish_reason=st.text(), logprobs=_LOGPROBS)
_USAGE = _shaped(
    prompt_tokens=st.integers(),
    completion_tokens=st.integers(-1, 5),
    prompt_tokens_details=_shaped(cached_tokens=st.integers()),
)
_TIMINGS = _shaped(prompt_n=st.integers(0, 200), cache_n=st.integers(), predicted_n=st.integers(-1, 5))
_CHUNK = _shaped(choices=st.lists(_CHOICE, max_size=2), usage=_USAGE, timings=_TIMINGS)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_CHUNK, max_size=4))
def test_whatever_a_server_says_it_is_a_piece_or_a_refusal(bodies: list[Any]) -> None:
    reading = Reading(session="s", tokens_max=3, context=100, tops_max=2)
    for body in bodies:
        try:
            piece = reading.chunk(body)
        except InferenceError:
            return
        assert isinstance(piece, Piece)
        assert 0 <= reading.tokens <= 3
        assert 0 <= reading.prompt_tokens <= 100
