"""How many answers AgentService makes at once, who waits, and how a slot comes free: over real connections."""

import asyncio
from typing import Any

import pytest

from gpu_worker.inference.text.turns import Turns
from tests.fixtures.agents import Agent, agent_of, refused
from tests.fixtures.talker import GREETING, Talker, service_of
from tests.gpu_worker.world import until

SLOTS = 4


async def held(agent: Agent, talker: Talker, count: int) -> list[Any]:
    """Return `count` streams that are being answered, and wait for their first token."""
    streams = [agent.stream() for _ in range(count)]
    await until(lambda: len(talker.requests) == count)
    return streams


async def rest(stream: Any) -> str:
    return "".join([chunk.content async for chunk in stream])


@pytest.mark.row(68)
async def test_of_five_streams_with_a_limit_of_four_the_fifth_is_queued_and_counted() -> None:
    talker = Talker(pace=asyncio.Semaphore(0))
    async with agent_of(service_of(talker, turns=Turns(SLOTS, 1, 60.0))) as agent:
        streams = await held(agent, talker, SLOTS)
        fifth = agent.stream()
        reading = asyncio.create_task(rest(fifth))
        await until(lambda: agent.service.turns.waiting == 1)
        status = await agent.status()
        assert (status.active_sessions, status.queued_jobs, status.max_jobs) == (SLOTS, 1, SLOTS)
        assert len(talker.requests) == SLOTS
        # The queue is full: a sixth hears at once that it is to come back.
        code, detail, trailing = await refused(agent.stream())
        assert code == "RESOURCE_EXHAUSTED"
        assert f"{SLOTS} answers are being made and 1 requests wait" in detail
        assert (trailing["livery-code"], trailing["retry-after"]) == ("no_capacity", "1")
        for _ in range(10 * len(GREETING.encode())):
            talker.pace.release()
        await asyncio.gather(*[rest(stream) for stream in streams])
        assert await reading == GREETING
        status = await agent.status()
        assert (status.active_sessions, status.queued_jobs) == (0, 0)
        # Who was refused before anything was begun is no request that was processed.
        assert status.total_requests_processed == SLOTS + 1


@pytest.mark.row(68)
async def test_without_a_queue_the_fifth_is_refused() -> None:
    talker = Talker(pace=asyncio.Semaphore(0))
    async with agent_of(service_of(talker, turns=Turns(SLOTS, 0, 60.0))) as agent:
        streams = await held(agent, talker, SLOTS)
        assert (await refused(agent.stream()))[0] == "RESOURCE_EXHAUSTED"
        for stream in streams:
            stream.cancel()


async def test_a_stream_that_is_cancelled_gives_its_slot_to_who_waits() -> None:
    talker = Talker(pace=asyncio.Semaphore(0))
    async with agent_of(service_of(talker, turns=Turns(1, 4, 60.0))) as agent:
        (first,) = await held(agent, talker, 1)
        reading = asyncio.create_task(rest(agent.stream()))
        await until(lambda: agent.service.turns.waiting == 1)
        # No token is made meanwhile: the slot does not wait for the next one.
        first.cancel()
        await until(lambda: len(talker.requests) == 2)
        assert talker.cancelled.is_set()
        for _ in range(2 * len(GREETING.encode())):
            talker.pace.release()
        assert await reading == GREETING
        assert agent.service.figures.ended["abort"] == 1


async def test_who_leaves_the_queue_leaves_no_hole() -> None:
    talker = Talker(pace=asyncio.Semaphore(0))
    async with agent_of(service_of(talker, turns=Turns(1, 4, 60.0))) as agent:
        (first,) = await held(agent, talker, 1)
        waiting = [agent.stream() for _ in range(3)]
        await until(lambda: agent.service.turns.waiting == 3)
        for stream in waiting[:2]:
            stream.cancel()
        await until(lambda: agent.service.turns.waiting == 1)
        first.cancel()
        for _ in range(2 * len(GREETING.encode())):
            talker.pace.release()
        assert await rest(waiting[2]) == GREETING
        await until(lambda: agent.service.turns.running == 0)


async def test_a_deadline_of_the_client_frees_its_slot() -> None:
    talker = Talker(pace=asyncio.Semaphore(0))
    async with agent_of(service_of(talker, turns=Turns(1, 0, 60.0))) as agent:
        assert (await refused(agent.stream(wait_s=0.2)))[0] == "DEADLINE_EXCEEDED"
        await until(lambda: agent.service.turns.running == 0)
        assert talker.cancelled.is_set()


async def test_a_client_whose_connection_breaks_frees_its_slot() -> None:
    talker = Talker(pace=asyncio.Semaphore(0))
    async with agent_of(service_of(talker, turns=Turns(1, 0, 60.0))) as agent:
        await held(agent, talker, 1)
        await agent.channel.close()
        await until(lambda: agent.service.turns.running == 0)
        assert talker.cancelled.is_set()


async def test_a_client_that_takes_nothing_of_its_answer_loses_its_slot() -> None:
    talker = Talker(says=b"w" * 1_000_000, context=2_000_000)
    async with agent_of(service_of(talker, turns=Turns(1, 4, 60.0)), taken_s=0.3) as agent:
        stalled = agent.stream(session_token="x" * 4_096)
        await until(lambda: agent.service.turns.running == 1)
        talker.says = GREETING.encode()
        # Nothing is read of the first one; the slot comes free all the same.
        assert await rest(agent.stream()) == GREETING
        assert 10 < agent.service.figures.tokens < 100_000
        stalled.cancel()


async def test_of_two_hundred_streams_at_once_no_chunk_is_lost() -> None:
    talker = Talker()
    async with agent_of(service_of(talker, turns=Turns(200, 0, 60.0))) as agent:
        said = await asyncio.gather(*[rest(agent.stream()) for _ in range(200)])
        assert set(said) == {GREETING}
        assert (await agent.status()).total_requests_processed == 200
