"""A request's prompt as tokens. Long texts take a while, so it is done beside the loop, in one thread of its own."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gpu_worker.core.errors import BadInput
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.ports import Text
from wire.openai import ChatRequest, CompletionRequest

# What a chat may tell its template besides: strangers' code is not among it, nor what the template's caller decides.
TEMPLATE_OPTIONS = frozenset({"enable_thinking", "thinking", "reasoning_effort"})


# A tokenizer takes one text at a time. Where such work waits in asyncio's own threads it keeps all else from them.
_THREAD = ThreadPoolExecutor(1, thread_name_prefix="prompts")


async def chat_prompt(text: Text, asked: ChatRequest, context: int | None = None) -> tuple[int, ...]:
    """
    Return the tokens of a chat.

    Raises:
        InferenceError: invalid_argument: the model's template refuses it; context_length_exceeded: no tokens of its
            characters are as few as `context`.
    """
    options = template_options(asked)
    messages = [message.for_template() for message in asked.messages]
    _check_length(text, sum(len(each["content"]) for each in messages), context, "messages")
    return await _beside(lambda: _chat_prompt(text, asked, messages, options))


def template_options(asked: ChatRequest) -> dict[str, str | bool]:
    """Return what the chat's template is told besides. Raises InferenceError: it may not be told that."""
    options = asked.chat_template_kwargs or {}
    if not TEMPLATE_OPTIONS.issuperset(options) or not all(isinstance(each, str | bool) for each in options.values()):
        known = ", ".join(sorted(TEMPLATE_OPTIONS))
        raise InferenceError(
            "invalid_argument", f"a template may be told {known}, as text or bool", "chat_template_kwargs"
        )
    return options


def _chat_prompt(
    text: Text, asked: ChatRequest, messages: list[dict[str, Any]], options: dict[str, str | bool]
) -> tuple[int, ...]:
    try:
        plain = text.chat(messages, **options)
    except BadInput as error:
        raise InferenceError("invalid_argument", str(error), "messages") from error
    if not asked.offered_tools:
        return plain
    try:
        offered = text.chat(messages, tools=[tool.for_template() for tool in asked.offered_tools], **options)
    except BadInput as error:
        raise InferenceError("invalid_argument", str(error), "tools") from error
    if offered == plain:
        raise InferenceError("invalid_argument", "this model's template knows no tools", "tools")
    return offered


async def text_prompt(text: Text, asked: CompletionRequest, context: int | None = None) -> tuple[int, ...]:
    """Return the tokens of a completion's prompt. Raises as `encoded` does."""
    prompt = asked.only_prompt
    return await encoded(text, prompt, context) if isinstance(prompt, str) else prompt


async def encoded(text: Text, words: str, context: int | None = None) -> tuple[int, ...]:
    """
    Return a text's tokens.

    Raises:
        InferenceError: invalid_argument: the tokenizer refuses it; context_length_exceeded: no tokens of its characters
            are as few as `context`.
    """
    _check_length(text, len(words), context, "prompt")
    try:
        return await _beside(lambda: text.encode(words))
    except BadInput as error:
        raise InferenceError("invalid_argument", str(error), "prompt") from error


def _check_length(text: Text, chars: int, context: int | None, param: str) -> None:
    """Refuse what cannot fit before anything is done with it."""
    if context is not None and chars > context * text.token_chars_max:
        detail = f"This model's maximum context length is {context} tokens, which are fewer than {chars} characters."
        raise InferenceError("context_length_exceeded", detail, param)


async def _beside(work: Callable[[], tuple[int, ...]]) -> tuple[int, ...]:
    return await asyncio.get_running_loop().run_in_executor(_THREAD, work)


def decoded(text: Text, tokens: tuple[int, ...]) -> str:
    stream = text.stream()
    return "".join(stream.push(token) for token in tokens) + stream.end()
