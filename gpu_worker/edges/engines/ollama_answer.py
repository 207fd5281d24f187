"""An answer that an Ollama makes, as every engine's answers are: pieces of text, calls of tools, and counts."""

import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from gpu_worker.core.inference.calls import FORCED, Call, CallFinder
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.engines.ollama_client import read_line
from gpu_worker.inference.text.engine import Ask, CallPart, Piece
from wire.ollama import Line, LineMessage, TokenTold, ToldLine
from wire.openai import ChatRequest
from wire.openai_answers import Told

_REASONS = {"stop": "stop", "length": "length"}


class OllamaAnswer:
    """
    Implements `Answer`.

    Args:
        opened: opens the lines; they are left by `close`.
        tokens_max: more than these are not counted, whatever is told.
        context: neither are more of the prompt.
        on_close: called by each `close`.
    """

    def __init__(
        self,
        ask: Ask,
        opened: AbstractAsyncContextManager[AsyncIterator[bytes]],
        *,
        tokens_max: int,
        context: int,
        model_hash: str,
        on_close: Callable[[], None],
    ) -> None:
        self.prompt_tokens = self.cached_tokens = self.tokens = 0
        self.finish_reason: str | None = None
        self.model_hash = model_hash
        self._opened, self._tokens_max, self._context = opened, tokens_max, context
        self._stack = AsyncExitStack()
        self._lines: AsyncIterator[bytes] | None = None
        self._echo = _echo(ask)
        self._shown = self._calls = 0
        request = ask.request
        chat = request if isinstance(request, ChatRequest) else None
        names = [tool.function.name for tool in chat.offered_tools] if chat is not None else []
        self._calls_max = None if chat is None else chat.calls_max
        # A call that is demanded comes as text, held to a schema.
        is_demanded = chat is not None and chat.demands_call
        self._finder = CallFinder(FORCED, names, self._calls_max) if is_demanded else None
        self._names = frozenset(names)
        self._on_close = on_close

    async def open(self) -> None:
        """Have it begun. Raises InferenceError: it is refused, and need not be closed."""
        self._lines = await self._stack.enter_async_context(self._opened)

    async def pieces(self) -> AsyncIterator[Piece]:
        assert self._lines is not None, "it was not opened"
        if self._echo:
            yield Piece(self._echo)
        async for line in self._lines:
            told = read_line(line)
            piece = self._piece(told)
            if piece is not None:
                yield piece
            if told.done:
                return
        raise InferenceError("upstream_error", "the answer of this model's engine broke off")

    async def close(self) -> None:
        self._on_close()
        await self._stack.aclose()

    def _piece(self, line: Line) -> Piece | None:
        """Return what is new with a line; the last one tells how many tokens there were."""
        said = line.said
        text, calls = (
            said.content,
            [Call(each.function.name, _json(each.function.arguments)) for each in said.tool_calls],
        )
        if self._finder is not None:
            found = self._finder.push(text, is_end=line.done)
            text = "".join(each for each in found if isinstance(each, str))
            calls += [each for each in found if isinstance(each, Call)]
        tokens = self._count(line, said)
        parts = tuple(part for call in calls for part in self._part(call))
        if line.done:
            self._end(line)
        if self._tokens_max == 0:
            return None
        piece = Piece(text, self._told(line.logprobs, text), said.thinking, parts, tokens)
        return piece if any(piece) else None

    def _count(self, line: Line, said: LineMessage) -> int:
        """Return how many tokens came with a line, as far as the limit allows so many."""
        fresh = len(line.logprobs) or int(bool(said.content or said.thinking or said.tool_calls))
        if line.done and line.eval_count:
            fresh = line.eval_count - self.tokens
        fresh = max(0, min(fresh, self._tokens_max - self.tokens))
        self.tokens += fresh
        return fresh

    def _end(self, line: Line) -> None:
        self.prompt_tokens = min(line.prompt_eval_count, self._context)
        reason = _REASONS.get(line.done_reason or "", "stop")
        self.finish_reason = "tool_calls" if self._calls else "length" if self._tokens_max == 0 else reason

    def _part(self, call: Call) -> tuple[CallPart, ...]:
        """Return a call as parts of the answer; none where it is one too many, or of a tool that was not offered."""
        if call.name not in self._names or (self._calls_max is not None and self._calls >= self._calls_max):
            return ()
        index, self._calls = self._calls, self._calls + 1
        return (CallPart(index, f"call_{secrets.token_hex(12)}", call.name, call.arguments),)

    def _told(self, lines: Sequence[ToldLine], text: str) -> tuple[Told, ...]:
        told, at = [], self._shown
        for line in lines:
            top = tuple((*_shape(each), each.logprob) for each in line.top_logprobs)
            told.append(Told(*_shape(line), line.logprob, at, top))
            at += len(line.token)
        self._shown += len(text)
        return tuple(told)


def _shape(token: TokenTold) -> tuple[str, bytes]:
    return token.token, token.token.encode() if token.data is None else bytes(token.data)


def _json(arguments: dict[str, object]) -> str:
    try:
        return json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise InferenceError("upstream_error", "the engine of this model made a call that is no JSON") from None


def _echo(ask: Ask) -> str:
    request = ask.request
    if isinstance(request, ChatRequest) or not request.echo:
        return ""
    prompt = request.only_prompt
    return prompt if isinstance(prompt, str) else ""
