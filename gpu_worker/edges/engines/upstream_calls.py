"""
Calls of tools, from a llama.cpp that does not hold itself to those that are demanded, or does not look for any.

Its server renders the prompt with the tools in it and continues that prompt; where a call is demanded, held to a schema
of ours: a list of calls and nothing else. What comes is found as with every other engine.
"""

import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from pydantic_core import from_json

from gpu_worker.core.inference.calls import FORCED, Call, CallFinder, Format
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.text.engine import Answer, Ask, CallPart, Piece
from gpu_worker.inference.upstream.flavours import FLAVOURS
from gpu_worker.inference.upstream.request import chat_prompt_body
from gpu_worker.inference.upstream.schemas import check_schema
from wire.openai import ChatRequest, CompletionRequest


class Upstream(Protocol):
    async def begin(self, ask: Ask) -> Answer: ...
    async def post(self, path: str, body: Mapping[str, Any]) -> Any: ...


async def forced(upstream: Upstream, ask: Ask) -> Answer:
    """Return the answer to a chat that demands a call. Raises InferenceError."""
    request = ask.request
    assert isinstance(request, ChatRequest)
    # Without end are the spaces of its grammar: a model that says nothing else would never come to an end.
    held = from_json(request.schema_text or "{}")
    check_schema(held, "tools")
    schema = {"type": "json_schema", "json_schema": {"schema": {**held, **FLAVOURS["llamacpp"].schema_more}}}
    return await found(upstream, ask, FORCED, {"response_format": schema})


async def found(upstream: Upstream, ask: Ask, form: Format, more: Mapping[str, Any]) -> Answer:
    """
    Return the answer to a chat with tools, whose calls are found in the text of the continued prompt.

    Args:
        form: how the model writes calls.
        more: fields of the completion.

    Raises:
        InferenceError: the server refuses it.
    """
    request = ask.request
    assert isinstance(request, ChatRequest)
    rendered = await upstream.post("/apply-template", chat_prompt_body(request))
    prompt = rendered.get("prompt") if isinstance(rendered, dict) else None
    if not isinstance(prompt, str):
        raise InferenceError("upstream_error", "llama.cpp made no prompt of this chat")
    same = {name: value for name in _SAME if (value := getattr(request, name)) is not None}
    own = {"prompt": prompt, "max_tokens": request.tokens_max, "logprobs": request.logprobs_count}
    told = CompletionRequest.model_validate({**same, **more, **own})
    finder = CallFinder(form, [tool.function.name for tool in request.offered_tools], request.calls_max)
    return WithCalls(await upstream.begin(replace(ask, request=told)), finder)


_SAME = (
    "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "logit_bias", "stop", "response_format",
)  # fmt: skip


class WithCalls:
    """Implements `Answer` over one in whose text calls stand."""

    def __init__(self, inner: Answer, finder: CallFinder) -> None:
        self._inner, self._finder = inner, finder
        self._called = 0

    @property
    def prompt_tokens(self) -> int:
        return self._inner.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        return self._inner.cached_tokens

    @property
    def tokens(self) -> int:
        return self._inner.tokens

    @property
    def model_hash(self) -> str:
        return self._inner.model_hash

    @property
    def finish_reason(self) -> str | None:
        reason = self._inner.finish_reason
        return "tool_calls" if reason == "stop" and self._called else reason

    async def pieces(self) -> AsyncIterator[Piece]:
        async for piece in self._inner.pieces():
            found = self._finder.push(piece.text)
            for at, each in enumerate(found or ("",)):
                fresh = self._piece(each)
                yield fresh if at else fresh._replace(tokens=piece.tokens, told=piece.told)
        for each in self._finder.push("", is_end=True):
            yield self._piece(each)

    async def close(self) -> None:
        await self._inner.close()

    def _piece(self, found: str | Call) -> Piece:
        if isinstance(found, str):
            return Piece(found)
        self._called += 1
        name = f"call_{secrets.token_hex(12)}"
        return Piece(calls=(CallPart(self._called - 1, name, found.name, found.arguments),))
