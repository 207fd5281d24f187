"""The two shapes that the same answer is told in: a chat's message, and a completion's text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gpu_worker.core.inference.calls import Call, CallFinder
from gpu_worker.inference.text.generation import Piece
from wire import openai_answers as answers
from wire.openai_answers import Heading, JsonObject, Told, ToolCall, Usage


class Shape(Protocol):
    """`prefix` begins the answer's id; `kind` is the `object` of its chunks. An answer is told once, by one of them."""

    @property
    def prefix(self) -> str: ...
    @property
    def kind(self) -> str: ...

    def opening(self, heading: Heading) -> Sequence[JsonObject]:
        """Return the chunks before the first piece."""

    def chunks(self, heading: Heading, piece: Piece) -> Sequence[JsonObject]: ...
    def last(self, heading: Heading, finish_reason: str) -> Sequence[JsonObject]: ...
    def whole(self, heading: Heading, piece: Piece, finish_reason: str, usage: Usage) -> JsonObject: ...


@dataclass(slots=True, kw_only=True)
class ChatShape:
    """`finder` finds the calls of tools in the text, None: there are none. `new_id` names them."""

    tells_tokens: bool
    finder: CallFinder | None = None
    new_id: Callable[[], str] = str
    prefix: str = "chatcmpl"
    kind: str = "chat.completion.chunk"
    _calls: int = 0

    def opening(self, heading: Heading) -> Sequence[JsonObject]:
        return (answers.chat_chunk(heading, {"role": "assistant", "content": ""}),)

    def chunks(self, heading: Heading, piece: Piece) -> Sequence[JsonObject]:
        found = self._found(piece.text)
        if self.tells_tokens and piece.told and not any(isinstance(each, str) for each in found):
            # Tokens are told when they were drawn, though their text is held back.
            found = ["", *found]
        return self._told(heading, found, piece.told if self.tells_tokens else None)

    def last(self, heading: Heading, finish_reason: str) -> Sequence[JsonObject]:
        rest = self._told(heading, self._found("", is_end=True))
        return (*rest, answers.chat_chunk(heading, {}, finish_reason=self._reason(finish_reason)))

    def whole(self, heading: Heading, piece: Piece, finish_reason: str, usage: Usage) -> JsonObject:
        found = self._found(piece.text, is_end=True)
        calls = [self._named(each) for each in found if isinstance(each, Call)]
        text = "".join(each for each in found if isinstance(each, str))
        return answers.chat_answer(
            heading,
            text if text.strip() or not calls else None,
            piece.told if self.tells_tokens else None,
            self._reason(finish_reason),
            usage,
            calls,
        )

    def _told(
        self, heading: Heading, found: Sequence[str | Call], told: Sequence[Told] | None = None
    ) -> list[JsonObject]:
        """Return the chunks of what was found; the first text of it has the tokens."""
        chunks: list[JsonObject] = []
        for each in found:
            if isinstance(each, str):
                chunks.append(answers.chat_chunk(heading, {"content": each}, told))
                told = None
            else:
                chunks += answers.call_chunks(heading, self._calls, self._named(each))
        return chunks

    def _found(self, text: str, *, is_end: bool = False) -> list[str | Call]:
        if self.finder is None:
            return [text] if text else []
        return self.finder.push(text, is_end=is_end)

    def _named(self, call: Call) -> ToolCall:
        self._calls += 1
        return ToolCall(self.new_id(), *call)

    def _reason(self, finish_reason: str) -> str:
        return "tool_calls" if self._calls and finish_reason == "stop" else finish_reason


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionShape:
    """`echo` is the prompt's text where it is to be told first, else empty."""

    tells_tokens: bool
    echo: str = ""
    prefix: str = "cmpl"
    kind: str = "text_completion"

    def opening(self, heading: Heading) -> Sequence[JsonObject]:
        return (answers.completion(heading, self.echo, None, None),) if self.echo else ()

    def chunks(self, heading: Heading, piece: Piece) -> Sequence[JsonObject]:
        return (answers.completion(heading, piece.text, piece.told if self.tells_tokens else None, None),)

    def last(self, heading: Heading, finish_reason: str) -> Sequence[JsonObject]:
        return (answers.completion(heading, "", None, finish_reason),)

    def whole(self, heading: Heading, piece: Piece, finish_reason: str, usage: Usage) -> JsonObject:
        told = piece.told if self.tells_tokens else None
        return answers.completion(heading, self.echo + piece.text, told, finish_reason, usage)
