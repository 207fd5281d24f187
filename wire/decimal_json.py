"""
JSON whose numbers are decimals: read as `int` or `Decimal`, written from them, money never a float.

Whatever `loads` accepts `dumps` can write, at a size near the one that was read. Hence `NaN`, `Infinity`,
lone surrogates, deep nesting and absurd exponents, which the standard library would accept, are malformed here.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

import orjson
from pydantic import BeforeValidator, WithJsonSchema

# Deeper, longer or further from the point than any body of ours: refused before it costs anything.
DEPTH_MAX = 64
DEPTH_MAX_WRITTEN = 2 * DEPTH_MAX  # what was read is written inside documents of ours
NUMBER_CHARS_MAX = 256
DIGITS_MAX = 100
EXPONENT_MAX = 400

# A string is taken whole, unfinished ones too, so that every character is looked at once.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[][{}]', re.DOTALL)
_DEPTH_STEP = {"[": 1, "{": 1, "]": -1, "}": -1}

_INT64_MAX = 2**63 - 1
_INT64_DIGITS = 19  # what is shorter fits
_NUMBER_LIMITS = f"a number has at most {DIGITS_MAX} digits and an exponent within {EXPONENT_MAX}"


def _number(text: str) -> Decimal:
    if len(text) > NUMBER_CHARS_MAX:
        raise ValueError(_NUMBER_LIMITS)
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError(_NUMBER_LIMITS) from None
    if len(number.as_tuple().digits) > DIGITS_MAX or abs(number.adjusted()) > EXPONENT_MAX:
        raise ValueError(_NUMBER_LIMITS)
    return number


def _integer(text: str) -> int | Decimal:
    if len(text) < _INT64_DIGITS:
        return int(text)
    number = _number(text)
    return int(number) if abs(number) <= _INT64_MAX else number


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def loads(text: str | bytes) -> Any:
    """
    Return the value of JSON `text`.

    Numbers with a point or an exponent, and integers that 64 bits do not hold, become `Decimal`.

    Raises:
        ValueError: not JSON (RFC 8259), not UTF-8, nested too deeply, or a number out of bounds.
    """
    unicode = text if isinstance(text, str) else text.decode("utf-8")
    _refuse_depth(unicode)
    value = json.loads(unicode, parse_float=_number, parse_int=_integer, parse_constant=_refuse_constant)
    for _ in _levels(value):
        pass
    return value


def _refuse_depth(text: str) -> None:
    """Refuse deep nesting before the parser recurses: with a raised recursion limit it would end the process."""
    depth = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        depth += _DEPTH_STEP.get(found[0], 0)
        if depth > DEPTH_MAX:
            raise ValueError("nested too deeply")


def _levels(value: Any) -> Iterator[list[Any]]:
    """
    Yield what `value` holds, itself first, then level by level.

    Raises:
        ValueError: more than DEPTH_MAX_WRITTEN levels, or half of a surrogate pair in a string.
    """
    level = [value]
    for _ in range(DEPTH_MAX_WRITTEN):
        yield level
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise ValueError("nested too deeply")


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return (*value.keys(), *value.values())
    if isinstance(value, str):
        value.encode("utf-8")
    return value if isinstance(value, list | tuple) else ()


def dumps(value: Any, *, sort_keys: bool = False) -> bytes:
    """
    Return `value` as compact JSON; a `Decimal` is written as a plain number, a datetime as RFC 3339.

    Raises:
        TypeError: `value` holds something without a form here, NaN or an integer beyond 64 bits among them.
        ValueError: nested too deeply, or a string that is not Unicode.
    """
    for level in _levels(value):
        if any(isinstance(item, float) and not math.isfinite(item) for item in level):
            raise TypeError("NaN and Infinity are not JSON")
    return orjson.dumps(value, default=_encode, option=orjson.OPT_UTC_Z | (orjson.OPT_SORT_KEYS if sort_keys else 0))


def _encode(value: Any) -> Any:
    if isinstance(value, Decimal) and value.is_finite():
        # Plain while that is short; an exponent where zeros alone would fill the page.
        return orjson.Fragment(format(value, "f") if abs(value.adjusted()) < DIGITS_MAX else str(value))
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def _only_decimal(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, Decimal)):
        raise ValueError("must be a JSON number")
    return Decimal(value)


def plain(value: Any) -> Any:
    """
    Return `value` with every `Decimal` in it as an int where it is whole, else as the nearest float.

    For free-form data, whose numbers are the sender's affair; never for money.

    Raises:
        ValueError: a number beyond any float.
    """
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not isinstance(value, Decimal):
        return value
    if abs(value) <= _INT64_MAX and value == value.to_integral_value():
        return int(value)
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("a number is beyond what a float holds")
    return number


# A JSON number that arrives as a Decimal and leaves as one. Strings, floats and booleans are refused.
DecimalNumber = Annotated[Decimal, BeforeValidator(_only_decimal), WithJsonSchema({"type": "number"})]
