"""How servers count a prompt's tokens, and write tokens as text: beside OpenAI's API, each in its own way."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from gpu_worker.inference.upstream.reading import TOKENS_MAX
from gpu_worker.inference.upstream.refusals import broken
from gpu_worker.inference.upstream.request import Body, chat_prompt_body
from wire.openai import ChatRequest, CompletionRequest

Counting = Literal["llamacpp", "vllm"]
# Asks the server at a path from its root, and returns the JSON that it answers. Raises InferenceError.
Post = Callable[[str, Body], Awaitable[Any]]


async def prompt_count(post: Post, how: Counting, request: ChatRequest | CompletionRequest, model: str) -> int:
    """Return how many tokens the prompt is. Raises InferenceError."""
    if how == "vllm":
        asked = chat_prompt_body(request) if isinstance(request, ChatRequest) else {"prompt": request.only_prompt}
        count = int(_field(await post("/tokenize", {"model": model, **asked}), "count", int))
    else:
        text = request.only_prompt if isinstance(request, CompletionRequest) else await _templated(post, request)
        tokens = {"content": text, "add_special": True, "parse_special": True}
        count = len(_field(await post("/tokenize", tokens), "tokens", list))
    if not 0 <= count <= TOKENS_MAX:
        raise broken("counted wrongly")
    return count


async def prompt_text(post: Post, how: Counting, tokens: Sequence[int], model: str) -> str:
    """Return a prompt of tokens as text. Raises InferenceError."""
    if how == "vllm":
        return str(_field(await post("/detokenize", {"model": model, "tokens": list(tokens)}), "prompt", str))
    return str(_field(await post("/detokenize", {"tokens": list(tokens)}), "content", str))


async def _templated(post: Post, request: ChatRequest) -> str:
    return str(_field(await post("/apply-template", chat_prompt_body(request)), "prompt", str))


def _field(document: Any, name: str, kind: type[Any]) -> Any:
    value = document.get(name) if isinstance(document, dict) else None
    if type(value) is not kind:
        raise broken("did not count the prompt")
    return value
