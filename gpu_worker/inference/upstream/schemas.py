"""
Which JSON schemas llama.cpp can keep to. It makes text of any form where it cannot read one, and hangs over some that
contradict themselves: so they are read here first.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_worker.core.inference.codes import InferenceError

_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
# The least, the most, and whether both are counts.
_BOUNDS = (
    ("minLength", "maxLength", True),
    ("minItems", "maxItems", True),
    ("minProperties", "maxProperties", True),
    ("minimum", "maximum", False),
    ("exclusiveMinimum", "exclusiveMaximum", False),
)
_COUNT_MAX = 100_000
_PATTERN_CHARS_MAX = 1_000
# A pattern that looks around, or back, is no regular one.
_IRREGULAR = re.compile(r"\(\?(?!:)|\\[1-9]")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("$defs", "definitions", "properties", "patternProperties")
_SINGLE = ("additionalProperties", "items", "not")


def check_schema(schema: Mapping[str, Any], param: str) -> None:
    """Raises InferenceError: invalid_argument, blaming `param`: an answer cannot be held to it."""
    for place, each in _parts(schema, "schema"):
        if (why := _flaw(each, schema)) is not None:
            raise InferenceError("invalid_argument", f"{place[:200]}: {why}", param)


def _parts(schema: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield a schema and all that are parts of it, with their places."""
    todo = [(place, schema)]
    while todo:
        place, each = todo.pop()
        yield place, each
        if not isinstance(each, dict):
            continue
        for name in _LISTS:
            if isinstance(each.get(name), list):
                todo += [(f"{place}.{name}[{at}]", part) for at, part in enumerate(each[name])]
        for name in _MAPS:
            if isinstance(each.get(name), dict):
                todo += [(f"{place}.{name}.{key}", part) for key, part in each[name].items()]
        todo += [(f"{place}.{name}", each[name]) for name in _SINGLE if name in each]


def _flaw(schema: Any, root: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a schema, its parts left out, None: nothing."""
    if isinstance(schema, bool):
        return None
    if not isinstance(schema, dict):
        return "a schema is an object"
    kinds = schema.get("type", [])
    if not all(isinstance(kind, str) and kind in _TYPES for kind in (kinds if isinstance(kinds, list) else [kinds])):
        return "the type is unknown"
    if "enum" in schema and not (isinstance(schema["enum"], list) and schema["enum"]):
        return "enum is no list of values"
    if any(name in schema and not (isinstance(schema[name], list) and schema[name]) for name in _LISTS[:3]):
        return f"one of {', '.join(_LISTS[:3])} is no list of schemas"
    if any(name in schema and not isinstance(schema[name], dict) for name in _MAPS):
        return f"one of {', '.join(_MAPS)} is no object"
    return _bounds_flaw(schema) or _pattern_flaw(schema.get("pattern")) or _reference_flaw(schema.get("$ref"), root)


def _bounds_flaw(schema: Mapping[str, Any]) -> str | None:
    for low, high, counts in _BOUNDS:
        told = [schema[name] for name in (low, high) if name in schema]
        if not all(type(each) in ((int,) if counts else (int, float)) for each in told):
            return f"{low} and {high} are numbers"
        if counts and not all(0 <= each <= _COUNT_MAX for each in told):
            return f"{low} and {high} are from 0 to {_COUNT_MAX}"
        if len(told) == 2 and told[0] > told[1]:
            return f"{low} is more than {high}"
    return None


def _pattern_flaw(pattern: Any) -> str | None:
    if pattern is None:
        return None
    if not isinstance(pattern, str) or len(pattern) > _PATTERN_CHARS_MAX or _IRREGULAR.search(pattern):
        return "the pattern is no regular expression, or looks around"
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return "the pattern is no regular expression"
    return None


def _reference_flaw(reference: Any, root: Mapping[str, Any]) -> str | None:
    if reference is None or reference == "#":
        return None
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return "only what is in the schema itself can be referred to"
    found: Any = root
    for step in reference[2:].split("/"):
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return "what it refers to is not there" if found is None else None
