"""
The tools that a chat may call: how they are offered, whether a call is demanded, and what such calls look like.

Source: the openai package's types; a demanded call is held to a schema as vLLM does it.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from wire.lenient import Lenient

TOOLS_MAX = 128


class OfferedFunction(Lenient):
    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    parameters: dict[str, Any] | None = None

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """A function without parameters takes none."""
        return {"type": "object", **(self.parameters or {"additionalProperties": False})}


class Tool(Lenient):
    """What is not known of it is the template's."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"]
    function: OfferedFunction

    def for_template(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True)


class NamedFunction(Lenient):
    name: str


class NamedTool(Lenient):
    type: Literal["function"]
    function: NamedFunction


Tools = Annotated[tuple[Tool, ...], Field(max_length=TOOLS_MAX)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


_WORDS = frozenset({"description", "title", "$comment"})
_VALUES = frozenset({"const", "default", "enum", "examples"})


def demanded(tools: Sequence[Tool], choice: ToolChoice | None) -> tuple[OfferedFunction, ...]:
    """Return the functions of which one must be called, none where none must be."""
    if isinstance(choice, NamedTool):
        return tuple(each.function for each in tools if each.function.name == choice.function.name)[:1]
    return tuple(each.function for each in tools) if choice == "required" else ()


def calls_schema(functions: Sequence[OfferedFunction], calls_max: int | None) -> str:
    """Return the JSON schema of a list of calls of these functions, at least one and at most `calls_max`."""
    arguments = {f"tool{at}": _moved(each.schema_of_arguments, at) for at, each in enumerate(functions)}
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": each.name}, "arguments": {"$ref": f"#/$defs/tool{at}"}},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for at, each in enumerate(functions)
    ]
    most = {} if calls_max is None else {"maxItems": calls_max}
    items = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return json.dumps({"type": "array", "items": items, "minItems": 1, **most, "$defs": arguments})


def _moved(schema: Any, at: int) -> Any:
    """Return a schema that has become a part of another, with its references to itself."""
    if isinstance(schema, list):
        return [_moved(each, at) for each in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {
        key: value if key in _VALUES else _moved(value, at)
        for key, value in schema.items()
        # What is said of a thing holds no answer to anything; a property of such a name is no text.
        if not (key in _WORDS and isinstance(value, str))
    }
    to = moved.get("$ref")
    if isinstance(to, str) and to.startswith("#"):
        moved["$ref"] = f"#/$defs/tool{at}{to[1:]}"
    return moved
