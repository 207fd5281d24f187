"""
Chats as tokens by the model's own template: a program in a sandbox, which reaches nothing of this machine.

What it may take is bounded here: seconds of processor time for one record, and characters that it makes of it.
"""

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gpu_worker.core.dataset import Record, unusable
from gpu_worker.core.errors import BadInput

ROW_S = 2.0
ROW_CHARS_MAX = 1024 * 1024


def marked_chat(messages: list[Record], tokenizer: Any, length: int) -> tuple[list[int], Sequence[int]]:
    """
    Return a chat's first `length` tokens, and which of them the assistant says: what its message adds to the rest.

    Raises:
        BadInput: there is no template, or it takes too long or makes too much of the chat.
    """
    if not tokenizer.chat_template:
        raise BadInput("invalid_field", "params.form: this model has no chat template")
    with _bounded():
        found = _ids(tokenizer, messages, is_asked=False)[:length]
        marks = bytearray(len(found))
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = _ids(tokenizer, messages[:number], is_asked=True)
            if len(before) >= length:
                break
            behind = _ids(tokenizer, messages[: number + 1], is_asked=False)[:length]
            # A template may rewrite what came before; then the whole chat is learned.
            if found[: len(before)] != before or found[: len(behind)] != behind:
                return found, bytearray(b"\1" * len(found))
            marks[len(before) : len(behind)] = b"\1" * (len(behind) - len(before))
    return found, marks


def asked_ids(record: Record, tokenizer: Any) -> list[int]:
    """Return a prompt's tokens, a chat's with the beginning of an answer. Raises BadInput as `marked_chat` does."""
    if "messages" in record:
        if not tokenizer.chat_template:
            raise unusable("this model has no chat template: give prompts")
        with _bounded():
            ids = _ids(tokenizer, record["messages"], is_asked=True)
    elif len(record["prompt"]) > ROW_CHARS_MAX:
        raise unusable(f"a prompt has more than {ROW_CHARS_MAX} characters")
    else:
        ids = tokenizer(record["prompt"])["input_ids"]
    if not ids:
        raise unusable("a prompt has no tokens in it")
    return ids


def _ids(tokenizer: Any, messages: list[Record], *, is_asked: bool) -> list[int]:
    if not messages:
        return []
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=is_asked)
    except BadInput:
        raise
    except Exception as error:  # a template is a program: it may raise anything
        raise unusable(f"the model's chat template refuses a chat: {str(error)[:200]}") from None
    if len(text) > ROW_CHARS_MAX:
        raise unusable(f"the model's chat template makes more than {ROW_CHARS_MAX} characters of a chat")
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@contextmanager
def _bounded() -> Iterator[None]:
    """Raise BadInput where what is done inside takes more than ROW_S. For the main thread alone, as signals are."""

    def end(number: int, frame: FrameType | None) -> None:
        raise unusable(f"the model's chat template takes more than {ROW_S:g} s for a chat")

    before = signal.signal(signal.SIGVTALRM, end)
    # Of the processor's time: how busy the machine is changes nothing.
    signal.setitimer(signal.ITIMER_VIRTUAL, ROW_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
