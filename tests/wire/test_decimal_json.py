"""JSON in, JSON out, and no float between."""

import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from wire.decimal_json import DEPTH_MAX, DecimalNumber, dumps, loads, plain
from wire.model import JsonObject

LIMITS = "a number has at most 100 digits and an exponent within 400"

numbers = st.integers(-(2**63) + 1, 2**63 - 1) | st.decimals(allow_nan=False, allow_infinity=False, places=6)
scalars = st.none() | st.booleans() | numbers | st.text(st.characters(exclude_categories=["Cs"]))
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
)


@settings(max_examples=50)
@given(documents)
def test_what_is_written_is_read_again(document: Any) -> None:
    assert loads(dumps(document)) == document


@given(st.text(max_size=200) | st.binary(max_size=200))
def test_any_text_is_read_or_refused_as_a_value_error_and_what_is_read_can_be_written(text: str | bytes) -> None:
    try:
        value = loads(text)
    except ValueError:
        return
    assert loads(dumps(value)) == value


@pytest.mark.parametrize("text", ["0.1", "1.4", "0.30000000000000004", "-0.000001", "12345678901234567890.123456789"])
def test_a_number_with_a_point_is_read_exactly(text: str) -> None:
    value = loads(text)
    assert type(value) is Decimal
    assert str(value) == text
    assert dumps(value).decode() == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-5", -5),
        (str(2**63 - 1), 2**63 - 1),
        (str(-(2**63) + 1), -(2**63) + 1),
        (str(2**63), Decimal(2**63)),
        (str(-(2**63)), Decimal(-(2**63))),
        ("9" * 100, Decimal("9" * 100)),
        ("1e400", Decimal("1e400")),
        ("1E-400", Decimal("1e-400")),
        ("1.7976931348623157e308", Decimal("1.7976931348623157e308")),
        ("0." + "0" * 98 + "9" * 100, Decimal("0." + "0" * 98 + "9" * 100)),
        ("0." + "0" * 253 + "1", Decimal("1e-254")),
        ("0.00", Decimal("0.00")),
    ],
)
def test_integers_of_64_bits_are_integers_and_every_other_number_is_a_decimal(text: str, value: Any) -> None:
    assert loads(text) == value
    assert type(loads(text)) is type(value)
    assert loads(dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("NaN", "NaN is not JSON"),
        ("Infinity", "Infinity is not JSON"),
        ('{"budgetTotal": -Infinity}', "-Infinity is not JSON"),
        ("9" * 101, LIMITS),
        ("0." + "1" * 101, LIMITS),
        ("1e401", LIMITS),
        ("1E-401", LIMITS),
        ("0e401", LIMITS),
        ("0." + "0" * 254 + "1", LIMITS),
        ("1e9999999999999999999", LIMITS),
        ("1e" + "9" * 5000, LIMITS),
        ("1" + "0" * 100_000, LIMITS),
        ("[" * 100_000, "nested too deeply"),
        ("[" * (DEPTH_MAX + 1) + "]" * (DEPTH_MAX + 1), "nested too deeply"),
        ('{"a":' * (DEPTH_MAX + 1) + "1" + "}" * (DEPTH_MAX + 1), "nested too deeply"),
        ('[],[]{"a":[]},' + "[" * (DEPTH_MAX + 1), "nested too deeply"),
        ('"\\ud800"', "surrogates not allowed"),
        ('{"\\udfff": 1}', "surrogates not allowed"),
        ('[{"a": ["\\ud800x"]}]', "surrogates not allowed"),
        (b"\xff", "can't decode"),
        ('{"a":1}'.encode("utf-16"), "can't decode"),
        (b"\xef\xbb\xbf1", "BOM"),
        ("", "Expecting value"),
        ("{'a': 1}", "Expecting property name"),
        ("[1,]", "Expecting value"),
        ("1 2", "Extra data"),
    ],
)
def test_what_is_not_json_is_a_value_error_that_says_why(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        loads(text)


def test_nesting_is_read_down_to_its_limit_and_may_be_written_inside_another_document() -> None:
    deepest = loads("[" * DEPTH_MAX + "]" * DEPTH_MAX)
    assert loads('{"a":' * DEPTH_MAX + "1" + "}" * DEPTH_MAX) is not None
    assert dumps({"job": {"params": deepest}}).startswith(b'{"job":{"params":[[')
    assert DEPTH_MAX == 64


def test_brackets_inside_strings_are_not_nesting() -> None:
    assert loads('["' + "[{" * 500 + '\\"[' + '"]') == ["[{" * 500 + '"[']
    assert loads("[" + "[]," * 500 + "{}]") == [[]] * 500 + [{}]
    with pytest.raises(ValueError, match="Unterminated string"):
        loads('["' + "[" * 500)


def test_deep_nesting_is_refused_even_where_recursion_is_allowed() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**6)
    try:
        for text in ("[" * 10**6, '{"a":' * 10**6, '["\\""' + ",[" * 10**6):
            with pytest.raises(ValueError, match="nested too deeply"):
                loads(text)
    finally:
        sys.setrecursionlimit(limit)


def test_a_long_unfinished_string_is_read_once() -> None:
    with pytest.raises(ValueError, match="Unterminated string"):
        loads("[" * 60 + '"' + '\\"[' * 10**6)


def test_writing_ends_at_twice_the_depth_of_reading_and_for_a_circle() -> None:
    value: list[Any] = []
    for _ in range(2 * DEPTH_MAX - 1):
        value = [value]
    assert dumps(value) == b"[" * 128 + b"]" * 128
    with pytest.raises(ValueError, match="nested too deeply"):
        dumps([value])
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="nested too deeply"):
        dumps(circle)


def test_a_surrogate_pair_is_one_character() -> None:
    assert loads('"\\ud83d\\ude00"') == "\U0001f600"


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": {"b": (1, float("-inf"))}}])
def test_a_float_that_is_no_number_is_never_written(value: Any) -> None:
    with pytest.raises(TypeError, match="NaN and Infinity are not JSON"):
        dumps(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Decimal("0.001"), 0.001),
        (Decimal("1E+3"), 1000),
        (Decimal("2.00"), 2),
        (Decimal(2**63 - 1), 2**63 - 1),
        (Decimal(-(2**63) + 1), -(2**63) + 1),
        (Decimal(2**63), 2.0**63),
        (Decimal("-1.5"), -1.5),
        ({"a": [Decimal("0.5"), {"b": (Decimal(1), "x", None, True)}]}, {"a": [0.5, {"b": [1, "x", None, True]}]}),
    ],
)
def test_free_form_numbers_become_plain_ones(value: Any, expected: Any) -> None:
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)


@pytest.mark.parametrize("value", [Decimal("1e400"), {"a": [Decimal("-1e400")]}])
def test_a_free_form_number_beyond_any_float_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="beyond what a float holds"):
        plain(value)


def test_a_free_form_object_holds_plain_numbers_and_is_an_object() -> None:
    free = TypeAdapter(JsonObject)
    assert free.validate_python({"lr": Decimal("0.001"), "deep": [Decimal(3)]}) == {"lr": 0.001, "deep": [3]}
    for value in ([], Decimal(1), "text", None):
        with pytest.raises(ValidationError):
            free.validate_python(value)


@pytest.mark.parametrize("value", [Decimal("NaN"), Decimal("Infinity"), {1, 2}, 2**64, {"a": object()}, b"bytes"])
def test_what_has_no_form_is_not_written(value: Any) -> None:
    with pytest.raises(TypeError):
        dumps(value)


def test_the_type_that_has_no_form_is_named() -> None:
    with pytest.raises(orjson.JSONEncodeError) as refused:
        dumps({"a": {1}})
    assert str(refused.value.__cause__) == "set has no JSON form here"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("1E+3", "1000"),
        ("1.40", "1.40"),
        ("1e99", "1" + "0" * 99),
        ("1e100", "1E+100"),
        ("1e-99", "0." + "0" * 98 + "1"),
        ("1e-100", "1E-100"),
        ("1e999999999", "1E+999999999"),
    ],
)
def test_a_decimal_is_written_plainly_unless_zeros_would_fill_the_page(value: str, text: str) -> None:
    assert dumps(Decimal(value)).decode() == text


def test_documents_are_compact_utc_and_sorted_on_request() -> None:
    document = {"b": Decimal("1E+3"), "a": datetime(2026, 11, 21, 12, tzinfo=UTC)}
    assert dumps(document) == b'{"b":1000,"a":"2026-11-21T12:00:00Z"}'
    assert dumps(document, sort_keys=True) == b'{"a":"2026-11-21T12:00:00Z","b":1000}'


number = TypeAdapter(DecimalNumber)


@pytest.mark.parametrize("value", [5, Decimal("1.4"), 0, Decimal("-1")])
def test_a_decimal_number_is_made_of_a_json_number(value: int | Decimal) -> None:
    assert number.validate_python(value) == value
    assert type(number.validate_python(value)) is Decimal


@pytest.mark.parametrize("value", [True, False, 1.5, "5", None, [], {}])
def test_a_decimal_number_is_made_of_nothing_else(value: Any) -> None:
    with pytest.raises(ValidationError, match="must be a JSON number"):
        number.validate_python(value)


def test_a_decimal_number_is_a_number_in_the_schema() -> None:
    assert number.json_schema() == {"type": "number"}


@pytest.mark.parametrize("sibling", ["{}", "[]", '{"a":[{}]}'])
def test_what_was_closed_again_does_not_count_as_depth(sibling: str) -> None:
    siblings = f"[{','.join([sibling] * 200)}]"
    assert len(loads(siblings)) == 200
