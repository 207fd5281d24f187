"""Which schemas llama.cpp is given: over others it hangs, or it makes text of any form."""

from typing import Any

import pytest

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.upstream.schemas import check_schema

WORD = {"type": "string", "pattern": "^[a-z]+$", "minLength": 1, "maxLength": 9}
GOOD: list[dict[str, Any]] = [
    {},
    {"type": "object"},
    {"type": ["string", "null"]},
    {"type": "object", "properties": {"a": WORD, "type": {"type": "integer"}}, "additionalProperties": False},
    {"type": "array", "items": WORD, "minItems": 2, "maxItems": 2, "uniqueItems": True},
    {"prefixItems": [WORD, True], "items": False},
    {"$ref": "#/$defs/a~1b", "$defs": {"a/b": WORD}},
    {"type": "object", "properties": {"next": {"$ref": "#"}}},
    {"type": "number", "minimum": -1.5, "maximum": 7, "exclusiveMinimum": -2},
    {"const": {"type": "nonsense"}, "enum": [{"$ref": "#/nowhere"}]},
    {"anyOf": [WORD, {"type": "null"}], "x-own": {"type": 5}},
    {"type": "string", "pattern": "(?:a|b)\\d{2}"},
]
BAD: list[tuple[Any, str]] = [
    ({"$ref": "#/nowhere"}, "schema: "),
    ({"$ref": "http://elsewhere.example/x"}, "schema: "),
    ({"$ref": 5}, "schema: "),
    ({"$ref": "#/$defs/a/b", "$defs": {"a": WORD}}, "schema: "),
    ({"type": "nonsense"}, "schema: "),
    ({"type": {"a": 1}}, "schema: "),
    ({"enum": []}, "schema: "),
    ({"anyOf": []}, "schema: "),
    ({"properties": 5}, "schema: "),
    ({"properties": {"a": {"items": {"type": "text"}}}}, "schema.properties.a.items: "),
    ({"$defs": {"a": 5}}, r"schema.\$defs.a: "),
    ({"oneOf": [WORD, {"minItems": "x"}]}, r"schema.oneOf\[1\]: "),
    ({"minLength": 9, "maxLength": 2}, "schema: minLength is more than maxLength"),
    ({"minimum": 2, "maximum": 1.5}, "schema: minimum is more than maximum"),
    ({"minLength": -1}, "schema: "),
    ({"maxItems": 10**9}, "schema: "),
    ({"minimum": True}, "schema: "),
    ({"pattern": "(("}, "schema: the pattern"),
    ({"pattern": "a(?=b)"}, "schema: the pattern"),
    ({"pattern": "(a)\\1"}, "schema: the pattern"),
    ({"pattern": "a" * 2_000}, "schema: the pattern"),
    ({"pattern": 5}, "schema: the pattern"),
]


@pytest.mark.parametrize("schema", GOOD, ids=str)
def test_what_can_be_kept_to_is_taken(schema: dict[str, Any]) -> None:
    check_schema(schema, "response_format")


@pytest.mark.parametrize(("schema", "where"), BAD, ids=lambda each: str(each)[:60])
def test_what_cannot_be_kept_to_is_refused_with_its_place(schema: dict[str, Any], where: str) -> None:
    with pytest.raises(InferenceError, match=f"^{where}") as refused:
        check_schema(schema, "tools")
    assert (refused.value.code, refused.value.param) == ("invalid_argument", "tools")
