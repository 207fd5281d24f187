"""
A chat that is longer than its model's context: what of it may go, oldest turns first.

A turn is a message of the user's with all that follows it up to the next one, so that calls of tools stay with their
results and what is left begins as a chat does. Messages of the system stay, and so does the last turn.
"""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from wire.openai import ChatMessage

_SYSTEM = ("system", "developer")
# What templates put around a message, in tokens.
MESSAGE_TOKENS = 4
SUMMARY = "Summary of the conversation before: "


class Chat(NamedTuple):
    """A chat in its parts, in order."""

    system: tuple[ChatMessage, ...]
    turns: tuple[tuple[ChatMessage, ...], ...]

    def without(self, oldest: int, summary: str = "") -> tuple[ChatMessage, ...]:
        """Return the messages without the `oldest` turns; a summary of those stands with the system's messages."""
        system = self.system
        if summary:
            said = "\n\n".join([*(message.text for message in system), SUMMARY + summary])
            system = (ChatMessage(role="system", content=said),)
        return (*system, *(message for turn in self.turns[oldest:] for message in turn))

    def oldest(self, count: int) -> tuple[ChatMessage, ...]:
        return tuple(message for turn in self.turns[:count] for message in turn)


def chat_of(messages: Sequence[ChatMessage]) -> Chat:
    """Return a chat's parts; what stands before the first message of the user's is a turn of its own."""
    turns: list[list[ChatMessage]] = []
    for message in messages:
        if message.role in _SYSTEM:
            continue
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    system = tuple(message for message in messages if message.role in _SYSTEM)
    return Chat(system, tuple(tuple(turn) for turn in turns))


def estimated(messages: Sequence[ChatMessage]) -> int:
    """Return about how many tokens a chat is, where nobody counts them."""
    return sum(MESSAGE_TOKENS + tokens_of(message.text) for message in messages)


def tokens_of(text: str) -> int:
    """
    Return about how many tokens a text is, rather too many than too few.

    Four characters of a Latin text are a token, two of other alphabets, one of Chinese, Japanese and Korean.
    """
    quarters = 0
    for char in text:
        if char < "\x80":
            quarters += 1
        else:
            quarters += 4 if unicodedata.east_asian_width(char) in "WF" else 2
    return -(-quarters // 4)


def transcript(messages: Sequence[ChatMessage], tokens_max: int) -> str:
    """Return a chat as one text of about `tokens_max` tokens; of a longer one the end."""
    lines = [f"{message.role}: {message.text}" for message in messages if message.text]
    kept: list[str] = []
    left = tokens_max
    for line in reversed(lines):
        taken = tokens_of(line) + 1
        if taken > left:
            # One that is too long by itself is cut at its beginning: a character is one token at most.
            kept += [] if kept or left < 1 else [line[-left:]]
            break
        kept.append(line)
        left -= taken
    return "\n".join(reversed(kept))
