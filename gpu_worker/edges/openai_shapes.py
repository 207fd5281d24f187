"""The two shapes that the same answer is told in: a chat's message, and a completion's text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from wire import openai_answers as answers
from wire.openai_answers import Heading, JsonObject, Told, Usage


class Shape(Protocol):
    """`prefix` begins the answer's id; `kind` is the `object` of its chunks."""

    @property
    def prefix(self) -> str: ...
    @property
    def kind(self) -> str: ...

    def opening(self, heading: Heading) -> Sequence[JsonObject]:
        """Return the chunks before the first piece."""

    def chunk(self, heading: Heading, text: str, told: Sequence[Told]) -> JsonObject: ...
    def last(self, heading: Heading, finish_reason: str) -> JsonObject: ...
    def whole(
        self, heading: Heading, text: str, told: Sequence[Told], finish_reason: str, usage: Usage
    ) -> JsonObject: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatShape:
    tells_tokens: bool
    prefix: str = "chatcmpl"
    kind: str = "chat.completion.chunk"

    def opening(self, heading: Heading) -> Sequence[JsonObject]:
        return (answers.chat_chunk(heading, {"role": "assistant", "content": ""}),)

    def chunk(self, heading: Heading, text: str, told: Sequence[Told]) -> JsonObject:
        return answers.chat_chunk(heading, {"content": text}, told if self.tells_tokens else None)

    def last(self, heading: Heading, finish_reason: str) -> JsonObject:
        return answers.chat_chunk(heading, {}, finish_reason=finish_reason)

    def whole(self, heading: Heading, text: str, told: Sequence[Told], finish_reason: str, usage: Usage) -> JsonObject:
        return answers.chat_answer(heading, text, told if self.tells_tokens else None, finish_reason, usage)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionShape:
    """`echo` is the prompt's text where it is to be told first, else empty."""

    tells_tokens: bool
    echo: str = ""
    prefix: str = "cmpl"
    kind: str = "text_completion"

    def opening(self, heading: Heading) -> Sequence[JsonObject]:
        return (answers.completion(heading, self.echo, None, None),) if self.echo else ()

    def chunk(self, heading: Heading, text: str, told: Sequence[Told]) -> JsonObject:
        return answers.completion(heading, text, told if self.tells_tokens else None, None)

    def last(self, heading: Heading, finish_reason: str) -> JsonObject:
        return answers.completion(heading, "", None, finish_reason)

    def whole(self, heading: Heading, text: str, told: Sequence[Told], finish_reason: str, usage: Usage) -> JsonObject:
        return answers.completion(heading, self.echo + text, told if self.tells_tokens else None, finish_reason, usage)
