"""The two shapes that the same answer is told in: a chat's message, and a completion's text."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from gpu_worker.inference.text.engine import CallPart, Piece
from wire import openai_answers as answers
from wire.openai_answers import Heading, JsonObject, ToolCall, Usage


class Shape(Protocol):
    """`prefix` begins the answer's id; `kind` is the `object` of its chunks."""

    @property
    def prefix(self) -> str: ...
    @property
    def kind(self) -> str: ...

    def opening(self, heading: Heading) -> Sequence[JsonObject]:
        """Return the chunks before the first piece."""

    def chunks(self, heading: Heading, piece: Piece) -> Sequence[JsonObject]: ...
    def last(self, heading: Heading, finish_reason: str) -> JsonObject: ...
    def whole(self, heading: Heading, piece: Piece, finish_reason: str, usage: Usage) -> JsonObject: ...


class ChatShape(NamedTuple):
    tells_tokens: bool
    prefix: str = "chatcmpl"
    kind: str = "chat.completion.chunk"

    def opening(self, heading: Heading) -> Sequence[JsonObject]:
        return (answers.chat_chunk(heading, {"role": "assistant", "content": ""}),)

    def chunks(self, heading: Heading, piece: Piece) -> Sequence[JsonObject]:
        chunks = []
        if piece.reasoning:
            chunks.append(answers.chat_chunk(heading, {"reasoning_content": piece.reasoning}))
        if piece.text or piece.told:
            told = piece.told if self.tells_tokens else None
            chunks.append(answers.chat_chunk(heading, {"content": piece.text}, told))
        for part in piece.calls:
            chunks += answers.call_chunks(heading, *part)
        return chunks

    def last(self, heading: Heading, finish_reason: str) -> JsonObject:
        return answers.chat_chunk(heading, {}, finish_reason=finish_reason)

    def whole(self, heading: Heading, piece: Piece, finish_reason: str, usage: Usage) -> JsonObject:
        calls = merged(piece.calls)
        return answers.chat_answer(
            heading,
            piece.text if piece.text.strip() or not calls else None,
            piece.told if self.tells_tokens else None,
            finish_reason,
            usage,
            calls,
            piece.reasoning,
        )


class CompletionShape(NamedTuple):
    tells_tokens: bool
    prefix: str = "cmpl"
    kind: str = "text_completion"

    def opening(self, heading: Heading) -> Sequence[JsonObject]:
        return ()

    def chunks(self, heading: Heading, piece: Piece) -> Sequence[JsonObject]:
        return (answers.completion(heading, piece.text, piece.told if self.tells_tokens else None, None),)

    def last(self, heading: Heading, finish_reason: str) -> JsonObject:
        return answers.completion(heading, "", None, finish_reason)

    def whole(self, heading: Heading, piece: Piece, finish_reason: str, usage: Usage) -> JsonObject:
        told = piece.told if self.tells_tokens else None
        return answers.completion(heading, piece.text, told, finish_reason, usage)


def merged(parts: Iterable[CallPart]) -> list[ToolCall]:
    """Return whole calls out of their parts, in order."""
    calls: dict[int, ToolCall] = {}
    for part in parts:
        known = calls.get(part.number, ToolCall("", "", ""))
        calls[part.number] = ToolCall(known.id or part.id, known.name or part.name, known.arguments + part.arguments)
    return [calls[index] for index in sorted(calls)]
