"""AgentService before a priced model: a prepaid key pays for what was made, and nobody else is served."""

import asyncio
from decimal import Decimal

from tests.fixtures.agents import agent_of, refused
from tests.gpu_worker.paying.world import COST_ATOMIC, MOST_ATOMIC, TOKENS_MAX, Selling, until

MICRO = Decimal(1_000_000)


async def test_a_prepaid_key_pays_for_a_stream_and_the_last_message_tells_what_it_cost(world: Selling) -> None:
    door = world.door()
    key = await world.give(door, MOST_ATOMIC)
    async with agent_of(door.service) as agent:
        assert (await refused(agent.stream()))[2]["livery-code"] == "payment_required"
        chunks = [chunk async for chunk in agent.stream(session_token=key, max_tokens=TOKENS_MAX)]
        assert Decimal(chunks[-1].metadata["cost"]) == COST_ATOMIC / MICRO
        account = await until(lambda: door.billing.book.account(world.account), lambda found: not found.held)
        assert account.available == MOST_ATOMIC - COST_ATOMIC
        # What is left does not do for as much again.
        code, detail, trailing = await refused(agent.stream(session_token=key, max_tokens=TOKENS_MAX))
    assert (code, trailing["livery-code"]) == ("PERMISSION_DENIED", "payment_required")
    assert "this request may cost" in detail


async def test_who_leaves_pays_for_what_was_made_until_then(world: Selling) -> None:
    world.talker.pace = asyncio.Semaphore(3)
    door = world.door()
    key = await world.give(door, MOST_ATOMIC)
    async with agent_of(door.service) as agent:
        stream = agent.stream(session_token=key, max_tokens=TOKENS_MAX)
        for _ in range(3):
            await stream.read()
        stream.cancel()
        account = await until(lambda: door.billing.book.account(world.account), lambda found: not found.held)
    assert MOST_ATOMIC - COST_ATOMIC < account.available < MOST_ATOMIC
