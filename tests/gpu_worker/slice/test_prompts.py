"""Prompts as tokens: beside all other work, and nothing is done for one that cannot fit."""

import asyncio
import threading

import pytest

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.text.prompts import chat_prompt, encoded, text_prompt
from tests.fixtures.talker import MODEL, ByteText
from wire.openai import ChatRequest, CompletionRequest

# More than asyncio has threads.
MANY = 64


class SlowText(ByteText):
    """Encodes nothing before `go` is set; `asked` counts the texts."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.asked = 0

    def encode(self, text: str) -> tuple[int, ...]:
        self.asked += 1
        assert self.go.wait(30)
        return super().encode(text)


async def test_prompts_that_take_long_keep_no_thread_from_other_work() -> None:
    text = SlowText()
    prompts = [asyncio.create_task(encoded(text, f"prompt {number}", 1_000)) for number in range(MANY)]
    try:
        # The first turn of the loop is theirs: this is asked for behind all of them.
        await asyncio.sleep(0)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "beside"), 10) == "beside"
        assert text.asked <= 1
    finally:
        text.go.set()
        found = await asyncio.gather(*prompts)
    assert found == [tuple(f"prompt {number}".encode()) for number in range(MANY)]


@pytest.mark.parametrize("kind", ["text", "completion", "chat"])
async def test_a_prompt_that_cannot_fit_is_refused_before_it_is_read(kind: str) -> None:
    text = SlowText()
    long = "x" * 101
    chat = ChatRequest(model=MODEL, messages=[{"role": "user", "content": long}])  # type: ignore[list-item]
    asked = {
        "text": lambda: encoded(text, long, 100),
        "completion": lambda: text_prompt(text, CompletionRequest(model=MODEL, prompt=long), 100),
        "chat": lambda: chat_prompt(text, chat, 100),
    }
    with pytest.raises(InferenceError, match="100 tokens") as caught:
        await asked[kind]()
    assert (caught.value.code, text.asked) == ("context_length_exceeded", 0)
    text.go.set()
    assert await encoded(text, long[1:], 100) == tuple(long[1:].encode())
