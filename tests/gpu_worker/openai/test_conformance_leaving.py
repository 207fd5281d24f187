"""Who hangs up is not computed for: the engine stops with its next step, and the turn is the next one's."""

import asyncio
from typing import Any

import pytest

from gpu_worker.edges.engines.gguf_engine import GgufEngine
from tests.contracts.text_engine_place import REAL, SLOTS
from tests.gpu_worker.openai.doors import CHATS, COMPLETIONS, HELLO, PROMPT, Door, is_idle, until

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

LONG = 400


async def predicted(door: Door) -> float:
    """Return how many tokens llama.cpp has drawn, by its own count, once it draws none."""
    engine = door.service.engine
    assert isinstance(engine, GgufEngine)
    [kept] = engine._kept.values()
    assert kept._child is not None
    url, key = kept._child.process.url, kept._child.key
    while True:
        told = (await door.client.get(f"{url}/metrics", headers={"authorization": f"Bearer {key}"})).text
        lines = (line.split() for line in told.splitlines() if line.startswith("llamacpp:"))
        figures = {name: float(value) for name, value in lines}
        if figures["llamacpp:requests_processing"] == 0:
            return figures["llamacpp:tokens_predicted_total"]


@pytest.mark.parametrize("door", REAL, indirect=True)
@pytest.mark.parametrize("path", [CHATS, COMPLETIONS])
async def test_who_leaves_a_stream_leaves_its_turn_and_its_slot(door: Door, path: str) -> None:
    body: dict[str, Any] = {"messages": HELLO} if path == CHATS else {"prompt": PROMPT}
    aborted, made = door.service.figures.ended["abort"], door.service.figures.tokens
    for _ in range(2 * SLOTS):
        asked = {**body, "stream": True, "max_tokens": LONG, "ignore_eos": True, "temperature": 0}
        async with door.client.stream("POST", path, json=asked) as reply:
            async for line in reply.aiter_lines():
                if line.startswith("data: "):
                    break
        await until(lambda: is_idle(door))
    # What a model as small as this one has said before anybody could leave, it has said.
    assert door.service.figures.ended["abort"] >= aborted + SLOTS
    assert door.service.figures.tokens - made < 2 * SLOTS * LONG
    await asyncio.gather(*(door.chat(max_tokens=1) for _ in range(SLOTS)))


@pytest.mark.parametrize("door", ["gguf"], indirect=True)
@pytest.mark.parametrize("streams", [True, False])
async def test_llama_cpp_draws_no_token_that_nobody_reads(door: Door, streams: bool) -> None:
    # Beyond what was read, what was on its way: many tokens of so small a model, where the machine is busy.
    assert min([await drawn_for_who_leaves(door, streams) for _ in range(3)]) < LONG / 2


async def drawn_for_who_leaves(door: Door, streams: bool) -> float:
    """Return how many tokens are drawn for a client that leaves at the first one."""
    before = await predicted(door)
    asked = {"prompt": PROMPT, "stream": streams, "max_tokens": LONG, "ignore_eos": True, "temperature": 0}
    told = door.service.figures.tokens
    asking = asyncio.create_task(door.post(COMPLETIONS, asked))
    await until(lambda: door.service.figures.tokens > told)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: is_idle(door))
    return await predicted(door) - before


async def test_who_leaves_before_there_is_a_turn_takes_none(door: Door) -> None:
    turns = [await door.service.turns.enter() for _ in range(SLOTS)]
    asking = asyncio.create_task(door.chat(max_tokens=1))
    await until(lambda: door.service.turns.waiting == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: door.service.turns.waiting == 0)
    for turn in turns:
        turn.leave()
    assert (await door.chat(max_tokens=1))["usage"]["completion_tokens"] == 1
