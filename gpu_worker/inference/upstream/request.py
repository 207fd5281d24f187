"""Our request as a server that speaks OpenAI's API takes it. It is always asked for a stream."""

from collections.abc import Mapping
from typing import Any

import orjson
from pydantic_core import from_json

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.text.prompts import template_options
from gpu_worker.inference.upstream.flavours import Flavour
from gpu_worker.inference.upstream.schemas import check_schema
from wire.openai import ChatMessage, ChatRequest, CompletionRequest

# What is sent as it came.
_SAME = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "ignore_eos",
)
# One above the largest seed: the largest number of 32 bits means "any" to llama.cpp, and none is below 0 there.
_SEEDS = 2**32 - 1

Body = dict[str, Any]


def stream_body(
    request: ChatRequest | CompletionRequest,
    *,
    model: str,
    tokens_max: int | None,
    flavour: Flavour,
    extra: Mapping[str, Any],
) -> Body:
    """
    Return the body of the request for `model`.

    Raises InferenceError: a template may not be told what it is to be told, or the schema cannot be kept to.

    Args:
        tokens_max: None: the server says how many tokens may follow.
        extra: fields that it has where the client sent none of that name.
    """
    sent: Body = {**extra, "model": model, "stream": True, "stream_options": {"include_usage": True}, **flavour.always}
    for name in _SAME:
        if (value := getattr(request, name)) is not None:
            sent[flavour.renamed.get(name, name)] = value
    if "logit_bias" in sent:
        sent["logit_bias"] = {str(token): bias for token, bias in sent["logit_bias"].items()}
    if tokens_max is not None:
        # Where none is wanted one is asked for, and not told: not every server takes a 0.
        sent["max_tokens"] = max(1, tokens_max)
    if request.seed is not None:
        sent["seed"] = request.seed % _SEEDS
    return sent | (_chat(request, flavour) if isinstance(request, ChatRequest) else _completion(request, flavour))


def chat_prompt_body(request: ChatRequest) -> Body:
    """Return what of a chat decides its prompt. Raises InferenceError: its template may not be told that."""
    told: Body = {"messages": [_message(each) for each in request.messages]}
    if request.tools:
        told["tools"] = [tool.for_template() for tool in request.tools]
    if options := template_options(request):
        told["chat_template_kwargs"] = options
    return told


def encoded(body: Mapping[str, Any]) -> bytes:
    """Return `body` as JSON. Raises InferenceError: a number in it is larger than servers read."""
    try:
        return orjson.dumps(body)
    except TypeError:
        raise InferenceError("invalid_argument", "the request holds a number of more than 64 bits") from None


def _chat(request: ChatRequest, flavour: Flavour) -> Body:
    sent = chat_prompt_body(request)
    if (form := _form(request, flavour)) is not None:
        sent["response_format"] = form
    if request.parallel_tool_calls is not None:
        sent["parallel_tool_calls"] = request.parallel_tool_calls
    if request.tools and request.tool_choice is not None:
        choice = request.tool_choice
        sent["tool_choice"] = choice if isinstance(choice, str) else choice.model_dump()
    if request.logprobs_count is not None:
        sent |= {"logprobs": True, "top_logprobs": max(flavour.logprobs_min, request.logprobs_count)}
    return sent


def _completion(request: CompletionRequest, flavour: Flavour) -> Body:
    sent: Body = {"prompt": request.only_prompt}
    if request.logprobs is not None:
        sent["logprobs"] = max(flavour.logprobs_min, request.logprobs)
    if (form := _form(request, flavour)) is None:
        return sent
    if flavour.schema_field is None:
        return {**sent, "response_format": form}
    return {**sent, flavour.schema_field: form["json_schema"]["schema"]}


def _form(request: ChatRequest | CompletionRequest, flavour: Flavour) -> Body | None:
    """Return the form that the answer has, None: any; of servers that want more in a schema, always as one."""
    form = request.response_format
    if form is None or form.schema_text is None:
        return None
    if form.json_schema is None and not flavour.schema_more:
        return {"type": form.type}
    asked = from_json(form.schema_text)
    if flavour.passes_over_schemas:
        check_schema(asked, "response_format")
    schema = {"name": "answer", "strict": True, "schema": {**flavour.schema_more, **asked}}
    return {"type": "json_schema", "json_schema": schema}


def _message(message: ChatMessage) -> Body:
    """Return a message as servers read it: like a template's, a call's arguments as the text that they were."""
    told = message.for_template()
    for call, sent in zip(message.tool_calls or (), told.get("tool_calls", ()), strict=False):
        sent["function"]["arguments"] = call.function.arguments
    return told
