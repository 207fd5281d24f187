"""The chunks of a streamed answer, as pieces of ours. Nothing in them is believed: types, sizes, counts are checked."""

from collections.abc import Mapping
from typing import Any

import orjson

from gpu_worker.inference.text.engine import CallPart, Piece
from gpu_worker.inference.upstream.logprobs import told_of
from gpu_worker.inference.upstream.refusals import broken, event_refusal
from wire.openai_tools import TOOLS_MAX

# Longer than any context of today; what a server counts is held against it where nothing else is known.
TOKENS_MAX = 2**24
_CALL_CHARS_MAX = 256
_DONE = b"[DONE]"
_NOTHING = Piece()
_REASONS = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
# What servers say of an answer that they gave up.
_GIVEN_UP = frozenset({"abort", "cancelled", "error"})


class Reading:
    """
    One answer as it comes. The counts are those of `Answer`.

    Args:
        session: names calls that their server gave no name.
        tokens_max: how many tokens were asked for, None: any number.
        context: of the model, None: not known.
        tops_max: how many alternatives to a token are told, None: log probabilities are not.
    """

    def __init__(
        self, *, session: str, tokens_max: int | None = None, context: int | None = None, tops_max: int | None = None
    ) -> None:
        self.prompt_tokens = self.cached_tokens = self.tokens = 0
        self.is_done = False
        self.reason: str | None = None
        self._session, self._context, self._tops_max = session, context, tops_max
        self._room = context or TOKENS_MAX
        self._tokens_max = self._room if tokens_max is None else min(tokens_max, self._room)
        # A server may tell a token in several chunks, or close to none in one; one that goes on for ever is cut off.
        self._chunks_left = 4 * self._tokens_max + 1_000
        self._is_counted = False
        self._chars = 0
        self._named: set[int] = set()

    def push(self, data: bytes) -> Piece:
        """Return what an event tells, maybe nothing. Raises InferenceError: it tells of an error, or is no chunk."""
        if data == _DONE:
            self.is_done = True
            return _NOTHING
        self._chunks_left -= 1
        if self._chunks_left < 0:
            raise broken("sent far more than it was asked for")
        try:
            chunk = orjson.loads(data)
        except ValueError:
            raise broken("sent what is no JSON") from None
        return self.chunk(chunk)

    def chunk(self, chunk: Any) -> Piece:
        """Return what a chunk, or a whole answer, tells. Raises as `push`."""
        if not isinstance(chunk, dict):
            raise broken("sent what is no part of an answer")
        if (error := chunk.get("error")) is not None:
            raise event_refusal(error, self._context)
        choices = chunk.get("choices")
        piece = self._choice(choices[0]) if isinstance(choices, list) and choices else _NOTHING
        return self._counted(piece, chunk)

    def end(self) -> None:
        """Close the count. Raises InferenceError: the answer had no end."""
        if self.reason is None:
            raise broken("broke its answer off")
        if self._named and self.reason == "stop":
            self.reason = "tool_calls"

    def _choice(self, choice: Any) -> Piece:
        if not isinstance(choice, dict):
            raise broken("sent what is no part of an answer")
        if (reason := choice.get("finish_reason")) is not None:
            reason = str(reason)
            if reason in _GIVEN_UP:
                raise broken("gave its answer up")
            self.reason = _REASONS.get(reason, "stop")
        delta = choice.get("delta") or choice.get("message")
        told = None if self._tops_max is None else choice.get("logprobs")
        if delta is None:
            return self._piece(choice.get("text"), None, None, told)
        if not isinstance(delta, dict):
            raise broken("sent what is no part of an answer")
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        return self._piece(delta.get("content"), reasoning, delta.get("tool_calls"), told)

    def _piece(self, text: Any, reasoning: Any, calls: Any, logprobs: Any) -> Piece:
        if not (isinstance(text, str | None) and isinstance(reasoning, str | None)):
            raise broken("sent a text that is none")
        parts = self._calls(calls) if calls else ()
        told = told_of(logprobs, self._chars, self._tops_max or 0) if logprobs is not None else ()
        self._chars += len(text) if text else 0
        return Piece(text or "", told, reasoning or "", parts)

    def _calls(self, calls: Any) -> tuple[CallPart, ...]:
        if not isinstance(calls, list):
            raise broken("sent calls of tools that are none")
        return tuple(self._call(call, at) for at, call in enumerate(calls))

    def _call(self, call: Any, at: int) -> CallPart:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            raise broken("sent calls of tools that are none")
        index, name, arguments = call.get("index", at), function.get("name") or "", function.get("arguments") or ""
        if not isinstance(arguments, str):
            # Some servers send the object itself.
            arguments = orjson.dumps(arguments).decode()
        sound = type(index) is int and 0 <= index < TOOLS_MAX and isinstance(name, str) and len(name) <= _CALL_CHARS_MAX
        if not sound or (index not in self._named and not name):
            raise broken("sent calls of tools that are none")
        if index in self._named:
            return CallPart(index, arguments=arguments)
        self._named.add(index)
        return CallPart(index, self._name(call.get("id"), index), name, arguments)

    def _name(self, id: Any, index: int) -> str:
        return id if isinstance(id, str) and 0 < len(id) <= _CALL_CHARS_MAX else f"call_{self._session[:24]}_{index}"

    def _counted(self, piece: Piece, chunk: Mapping[str, Any]) -> Piece:
        """Return `piece` with the tokens that were drawn for it: as the server counts, else one for each part."""
        before = self.tokens
        usage, timings = chunk.get("usage"), chunk.get("timings")
        if isinstance(usage, dict):
            self._use(usage.get("prompt_tokens"), usage.get("completion_tokens"), _cached(usage))
        elif isinstance(timings, dict):
            prompt, cached = _count(timings.get("prompt_n"), TOKENS_MAX), _count(timings.get("cache_n"), TOKENS_MAX)
            both = None if prompt is None or cached is None else prompt + cached
            self._use(both, timings.get("predicted_n"), cached)
        elif not self._is_counted and (piece.text or piece.told or piece.reasoning or piece.calls):
            self.tokens = min(self.tokens + max(1, len(piece.told)), self._tokens_max)
        drawn = self.tokens - before
        return piece._replace(tokens=drawn) if drawn > 0 else piece

    def _use(self, prompt: Any, completion: Any, cached: Any) -> None:
        """Take over the server's own counts, as far as they can be true."""
        if (told := _count(prompt, self._room)) is not None:
            self.prompt_tokens = told
        if (told := _count(cached, self.prompt_tokens)) is not None:
            self.cached_tokens = told
        if (told := _count(completion, self._tokens_max)) is not None:
            self.tokens, self._is_counted = told, True


def _count(value: Any, most: int) -> int | None:
    return value if type(value) is int and 0 <= value <= most else None


def _cached(usage: Mapping[str, Any]) -> Any:
    details = usage.get("prompt_tokens_details")
    return details.get("cached_tokens") if isinstance(details, dict) else None
