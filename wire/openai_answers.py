"""
The bodies of the OpenAI API's answers, as plain objects: whole ones, the chunks of streams, errors, models.

Source: the openai package's types, to which every one of them validates.
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

JsonObject = dict[str, Any]


class Told(NamedTuple):
    """
    A token as answers tell of it. `data` is its bytes, None where it stands for none.

    `offset` is where its text begins in the answer, in characters; `top` are (text, bytes, log probability).
    """

    text: str
    data: bytes | None
    logprob: float
    offset: int
    top: tuple[tuple[str, bytes | None, float], ...] = ()


class Heading(NamedTuple):
    """What every chunk of an answer says alike. `created` is Unix seconds; `fingerprint` None: it has none."""

    id: str
    created: int
    model: str
    fingerprint: str | None


class ToolCall(NamedTuple):
    """`arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str

    def body(self) -> JsonObject:
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class Usage(NamedTuple):
    """
    Tokens; `cached` are those of the prompt that were not computed anew, `reasoning` those of the completion that were
    thought aloud. `cost` is money, None: nobody pays.
    """

    prompt: int
    completion: int
    cached: int = 0
    cost: Decimal | None = None
    reasoning: int = 0

    def body(self) -> JsonObject:
        return {
            **({} if self.cost is None else {"cost": self.cost}),
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


def chat_answer(
    heading: Heading,
    text: str | None,
    told: Sequence[Told] | None,
    finish_reason: str,
    usage: Usage,
    calls: Sequence[ToolCall] = (),
    reasoning: str = "",
) -> JsonObject:
    message: JsonObject = {"role": "assistant", "content": text, "refusal": None}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = [call.body() for call in calls]
    choice = {"index": 0, "message": message, "logprobs": _chat_logprobs(told), "finish_reason": finish_reason}
    return {**_begin(heading, "chat.completion"), "choices": [choice], "usage": usage.body()}


def chat_chunk(
    heading: Heading, delta: JsonObject, told: Sequence[Told] | None = None, finish_reason: str | None = None
) -> JsonObject:
    choice = {"index": 0, "delta": delta, "logprobs": _chat_logprobs(told), "finish_reason": finish_reason}
    return {**_begin(heading, "chat.completion.chunk"), "choices": [choice]}


def call_chunks(heading: Heading, index: int, id: str, name: str, arguments: str) -> tuple[JsonObject, ...]:
    """Return the chunks of a part of a call: what is called, where it has an `id`, then with what."""
    deltas: list[JsonObject] = []
    if id:
        deltas.append({"index": index, **ToolCall(id, name, "").body()})
    if arguments:
        deltas.append({"index": index, "function": {"arguments": arguments}})
    return tuple(chat_chunk(heading, {"tool_calls": [delta]}) for delta in deltas)


def completion(
    heading: Heading, text: str, told: Sequence[Told] | None, finish_reason: str | None, usage: Usage | None = None
) -> JsonObject:
    """Return a whole completion, or a chunk of one, which has no usage: they have the same shape."""
    choice = {"index": 0, "text": text, "logprobs": _completion_logprobs(told), "finish_reason": finish_reason}
    body = {**_begin(heading, "text_completion"), "choices": [choice]}
    return body if usage is None else {**body, "usage": usage.body()}


def usage_chunk(heading: Heading, kind: str, usage: Usage) -> JsonObject:
    return {**_begin(heading, kind), "choices": [], "usage": usage.body()}


def model_object(name: str, created: int, context: int | None, **more: Any) -> JsonObject:
    """Return a model; `context` is the length of the longest session, None while it is not known."""
    lengths = {} if context is None else {"max_model_len": context, "context_length": context}
    return {"id": name, "object": "model", "created": created, "owned_by": "livery", **lengths, **more}


def model_list(models: Sequence[JsonObject]) -> JsonObject:
    return {"object": "list", "data": list(models)}


def error(message: str, kind: str, param: str | None = None, code: str | None = None, **more: str) -> JsonObject:
    return {"error": {"message": message, "type": kind, "param": param, "code": code, **more}}


def _begin(heading: Heading, kind: str) -> JsonObject:
    return {
        "id": heading.id,
        "object": kind,
        "created": heading.created,
        "model": heading.model,
        "system_fingerprint": heading.fingerprint,
    }


def _chat_logprobs(told: Sequence[Told] | None) -> JsonObject | None:
    if told is None:
        return None
    content = [
        {
            **_token(each.text, each.data, each.logprob),
            "top_logprobs": [_token(*alternative) for alternative in each.top],
        }
        for each in told
    ]
    return {"content": content, "refusal": None}


def _token(text: str, data: bytes | None, logprob: float) -> JsonObject:
    return {"token": text, "logprob": logprob, "bytes": None if data is None else list(data)}


def _completion_logprobs(told: Sequence[Told] | None) -> JsonObject | None:
    if told is None:
        return None
    return {
        "tokens": [each.text for each in told],
        "token_logprobs": [each.logprob for each in told],
        "top_logprobs": [{text: logprob for text, _, logprob in reversed(each.top)} for each in told],
        "text_offset": [each.offset for each in told],
    }
