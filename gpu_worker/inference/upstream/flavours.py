"""The servers that speak OpenAI's API, as far as they differ in what a request of ours needs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavour:
    """
    One kind of server.

    `renamed` are the fields that it calls otherwise; `always` are what every streamed request has besides; `counting`
    is whose way of counting a prompt's tokens it has, None: it has none. `logprobs_min` is the least number of
    alternatives for which it tells log probabilities at all. `schema_field` is where a completion has its schema, None:
    in `response_format`, as a chat; `schema_more` is what a schema has besides, where it says nothing of it.
    `passes_over_demands`: it makes text where a call of a tool is demanded; `passes_over_schemas`: also where it cannot
    read a schema.
    """

    renamed: Mapping[str, str] = field(default_factory=dict)
    always: Mapping[str, Any] = field(default_factory=dict)
    counting: Literal["llamacpp", "vllm"] | None = None
    logprobs_min: int = 0
    schema_field: str | None = None
    schema_more: Mapping[str, Any] = field(default_factory=dict)
    passes_over_demands: bool = False
    passes_over_schemas: bool = False


# Usage in every chunk: also an answer that is given up half-way is counted in tokens, and not in chunks.
_USAGE = MappingProxyType({"stream_options": {"include_usage": True, "continuous_usage_stats": True}})

PLAIN = Flavour()
# By what a server's list of models says in `owned_by`.
FLAVOURS: Mapping[str, Flavour] = MappingProxyType(
    {
        "llamacpp": Flavour(
            renamed={"repetition_penalty": "repeat_penalty"},
            always={"timings_per_token": True},
            counting="llamacpp",
            logprobs_min=1,
            schema_field="json_schema",
            # Without it spaces without end are JSON to its grammar, and a model that says nothing else would not end.
            # Nor would it keep to anything of a schema with a word in it that it does not know.
            schema_more={"x-guidance": {"whitespace_flexible": False, "lenient": True}},
            passes_over_schemas=True,
            passes_over_demands=True,
        ),
        "vllm": Flavour(always=_USAGE, counting="vllm"),
        "sglang": Flavour(always=_USAGE),
    }
)
