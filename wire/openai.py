"""
The bodies of the OpenAI API's requests, as its clients send them: chat completions and completions.

What is not known is passed over, and null is the same as absent: clients send fields of other servers. What is known
is checked, and what would change the answer but is not done here is refused by `refused`, with the field's name.

Source: the openai package's types; fields from `top_k` on are those that vLLM's clients send besides, and
`context_overflow` is ours.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import from_json

from wire.lenient import Lenient
from wire.openai_tools import NamedTool, ToolChoice, Tools, calls_schema, demanded

STOPS_MAX = 4
STOP_CHARS_MAX = 1_000
MESSAGES_MAX = 10_000
TOP_LOGPROBS_MAX = 20
COMPLETION_TOKENS = 16
MESSAGE_CHARS_MAX = 300
_NOT_NUMBERS = re.compile(rb"NaN|Infinity")


class Refused(NamedTuple):
    """Why a request is not served: `param` is the field that is wrong, None where none is to blame."""

    message: str
    param: str | None = None
    code: str | None = None


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class StreamOptions(Lenient):
    include_usage: bool | None = None


class JsonSchema(Lenient):
    json_schema: dict[str, Any] | None = Field(None, alias="schema")


class ResponseFormat(Lenient):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @property
    def schema_text(self) -> str | None:
        """The JSON schema that the answer must match, None where any text will do."""
        if self.type == "text":
            return None
        told = self.json_schema.json_schema if self.json_schema is not None else None
        return json.dumps({"type": "object"} if told is None else told)


Stops = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=STOP_CHARS_MAX)], ...],
    BeforeValidator(_listed),
    Field(max_length=STOPS_MAX),
]
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
# What becomes of a chat that is too long.
Overflow = Literal["error", "drop_oldest", "summarise"]


class Choosing(Lenient):
    """What chat completions and completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Share | None = None
    n: int | None = None
    stop: Stops | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=300)] | None = None
    response_format: ResponseFormat | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    ignore_eos: bool | None = None

    @property
    def tokens_max(self) -> int | None:
        return self.max_tokens

    @property
    def schema_text(self) -> str | None:
        """The JSON schema that the answer must match, None where any text will do."""
        return None if self.response_format is None else self.response_format.schema_text

    @property
    def tells_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class Part(Lenient):
    type: str
    text: str | None = None


class ToolFunction(Lenient):
    name: str
    arguments: str = ""


class ToolCall(Lenient):
    id: str | None = None
    function: ToolFunction


class ChatMessage(Lenient):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | tuple[Part, ...] | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    def for_template(self) -> dict[str, Any]:
        """Return the message as chat templates read it. Templates know no developer: that is their system."""
        told: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.text}
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(self, name)) is not None:
                told[name] = value
        if self.tool_calls:
            told["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": _object(call)},
                }
                for call in self.tool_calls
            ]
        return told

    @property
    def text(self) -> str:
        return (
            self.content if isinstance(self.content, str) else "".join(part.text or "" for part in self.content or ())
        )


def _object(call: ToolCall) -> Any:
    """Return a call's arguments as an object, which templates write in their own way; as text where they are none."""
    try:
        return from_json(call.function.arguments)
    except ValueError:
        return call.function.arguments


class ChatRequest(Choosing):
    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=MESSAGES_MAX)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Any = None
    audio: Any = None
    modalities: tuple[str, ...] | None = None
    web_search_options: Any = None
    chat_template_kwargs: dict[str, Any] | None = None
    context_overflow: Overflow | None = None

    @property
    def tokens_max(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def logprobs_count(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def offered_tools(self) -> Tools:
        return () if self.tool_choice == "none" else self.tools or ()

    @property
    def demands_call(self) -> bool:
        return self.tool_choice not in (None, "none", "auto")

    @property
    def calls_max(self) -> int | None:
        """How many calls an answer may have, None: any number."""
        return 1 if isinstance(self.tool_choice, NamedTool) or self.parallel_tool_calls is False else None

    @property
    def schema_text(self) -> str | None:
        """The JSON schema that the answer must match; a demanded call comes before a format of text."""
        if not self.demands_call:
            return super().schema_text
        return calls_schema(demanded(self.offered_tools, self.tool_choice), self.calls_max)


class CompletionRequest(Choosing):
    prompt: str | tuple[TokenId, ...] | tuple[str, ...] | tuple[tuple[TokenId, ...], ...]
    logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None

    @property
    def only_prompt(self) -> str | tuple[int, ...]:
        """The prompt, as text or as tokens, of a request that `refused` lets pass."""
        first = self.prompt[0] if self.prompt else ""
        return self.prompt if isinstance(self.prompt, str) or isinstance(first, int) else first  # type: ignore[return-value]


def read_request(model: type[Any], body: bytes) -> Any | Refused:
    """Return the request of `model` in `body`, or why it is none."""
    # Only free fields would take them: a schema or a template's option, which no other reader of JSON takes back.
    if _NOT_NUMBERS.search(body) is not None:
        try:
            from_json(body, allow_inf_nan=False)
        except ValueError as error:
            return _not_json(str(error))
    try:
        request = model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            return _not_json(first["msg"])
        place = "".join(f"[{at}]" if isinstance(at, int) else f".{at}" for at in first["loc"]).lstrip(".")
        return Refused(f"{place}: {first['msg']}"[:MESSAGE_CHARS_MAX], str(first["loc"][0]) if first["loc"] else None)
    return refused(request) or request


def _not_json(why: str) -> Refused:
    return Refused(f"the body is not JSON: {why}"[:MESSAGE_CHARS_MAX])


def refused(request: Any) -> Refused | None:
    """Return what of a well-formed request is not done here, None where all is."""
    rules = _RULES.get(type(request), ())
    return next((Refused(message, param) for param, message, applies in rules if applies(request)), None)


def _foreign_part(request: ChatRequest) -> bool:
    contents = (message.content for message in request.messages)
    return any(part.type != "text" for parts in contents if not isinstance(parts, str) for part in parts or ())


def _foreign_parameters(request: ChatRequest) -> bool:
    return any(each.function.schema_of_arguments["type"] != "object" for each in request.tools or ())


def _unsaid(request: ChatRequest) -> bool:
    return any(message.content is None and message.role != "assistant" for message in request.messages)


def _many_prompts(request: CompletionRequest) -> bool:
    return not isinstance(request.prompt, str) and not _is_tokens(request.prompt) and len(request.prompt) != 1


def _is_tokens(prompt: Sequence[Any]) -> bool:
    return bool(prompt) and isinstance(prompt[0], int)


_Rules = Sequence[tuple[str, str, Callable[[Any], bool]]]

_ANY: _Rules = (
    ("n", "only one choice is made: n must be 1", lambda asked: asked.n not in (None, 1)),
    (
        "response_format",
        "response_format.json_schema.schema is missing",
        lambda asked: (
            asked.response_format is not None
            and asked.response_format.type == "json_schema"
            and (asked.response_format.json_schema is None or asked.response_format.json_schema.json_schema is None)
        ),
    ),
)
_CHAT: _Rules = (
    ("messages", "only parts of the type text are understood, no images, audio or files", _foreign_part),
    ("messages", "a message of this role needs content", _unsaid),
    ("audio", "answers are text: no audio is made", lambda asked: asked.audio is not None),
    ("modalities", "answers are text alone", lambda asked: bool(set(asked.modalities or ()) - {"text"})),
    ("web_search_options", "nothing is searched for here", lambda asked: asked.web_search_options is not None),
    ("functions", "functions were replaced by tools", lambda asked: bool(asked.functions)),
    (
        "top_logprobs",
        "top_logprobs needs logprobs to be true",
        lambda asked: bool(asked.top_logprobs) and not asked.logprobs,
    ),
    (
        "tool_choice",
        "tool_choice demands a call of a tool that is not among tools",
        lambda asked: asked.demands_call and not demanded(asked.offered_tools, asked.tool_choice),
    ),
    ("tools", "the parameters of a tool are an object", _foreign_parameters),
)
_COMPLETION: _Rules = (
    ("suffix", "text is only continued, not filled in", lambda asked: bool(asked.suffix)),
    ("best_of", "only one choice is made: best_of must be 1", lambda asked: asked.best_of not in (None, 1)),
    ("prompt", "one prompt a request", _many_prompts),
    (
        "logprobs",
        "log probabilities of an echoed prompt are not told",
        lambda asked: bool(asked.echo) and asked.logprobs is not None,
    ),
)
_RULES: dict[type[Any], _Rules] = {ChatRequest: (*_ANY, *_CHAT), CompletionRequest: (*_ANY, *_COMPLETION)}
