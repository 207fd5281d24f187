"""A payment buys one answer: whatever breaks, leaves, dies or is sent again, nothing is paid or charged twice."""

import asyncio
import json
from typing import Any

import pytest
from fastapi.responses import Response

from cashier.core.reading import requirements_for
from gpu_worker.core.inference.codes import InferenceError
from tests.cashier.world import says
from tests.fixtures.talker import Talker
from tests.gpu_worker.paying.world import (
    ANSWER_ATOMIC,
    ANSWER_TOKENS,
    CHAT,
    COST_ATOMIC,
    LEAST_ATOMIC,
    MOST_ATOMIC,
    PROMPT_ATOMIC,
    PROMPT_TOKENS,
    SAYS,
    Selling,
    error_of,
    until,
)
from wire.money import BASE_SEPOLIA_USDC
from wire.x402 import PAYMENT_RESPONSE, PaymentRequirements, SettleResponse, decode_header

PATH = "/v1/chat/completions"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_same_payment_and_request_get_the_same_answer_and_pay_once(world: Selling, stream: bool) -> None:
    body = {**CHAT, "stream": stream}
    door = world.door()
    async with world.selling(door) as client:
        headers = await world.headers(client, PATH, body)
        first = await client.post(PATH, json=body, headers=headers)
        again = await client.post(PATH, json=body, headers=headers)
        other = await client.post(PATH, json={**body, "temperature": 1}, headers=headers)
        account = await door.billing.book.account(world.account)

    assert first.status_code == 200
    assert (again.content, again.status_code) == (first.content, 200)
    for header in ("content-type", "payment-response", "x-gpu-weights-hash", "x-should-retry"):
        assert again.headers[header] == first.headers[header]
    assert (other.status_code, error_of(other)["code"]) == (409, "payment_conflict")
    assert other.headers["x-should-retry"] == "false"
    assert len(world.talker.requests) == 1
    assert (account.spent, world.earned()) == (COST_ATOMIC, MOST_ATOMIC)


async def test_ten_at_once_with_one_payment_get_one_answer(world: Selling) -> None:
    world.talker.pace = asyncio.Semaphore(0)
    async with world.selling() as client:
        headers = await world.headers(client, PATH, CHAT)
        asking = [asyncio.create_task(client.post(PATH, json=CHAT, headers=headers)) for _ in range(10)]
        await world.talker.until(lambda talker: len(talker.requests) == 1)
        for _ in range(ANSWER_TOKENS):
            world.talker.pace.release()
        replies = await asyncio.gather(*asking)

    assert {reply.status_code for reply in replies} == {200}
    assert {reply.content for reply in replies} == {replies[0].content}
    assert (len(world.talker.requests), world.earned()) == (1, MOST_ATOMIC)


async def test_a_refusal_after_the_payment_costs_nothing_and_is_not_to_be_paid_for_again(world: Selling) -> None:
    world.talker.refuses = InferenceError("no_route", "nobody has layers 2:4")
    door = world.door()
    async with world.selling(door) as client:
        headers = await world.headers(client, PATH, CHAT)
        reply = await client.post(PATH, json=CHAT, headers=headers)
        account = await door.billing.book.account(world.account)
        assert (reply.status_code, reply.headers["x-should-retry"]) == (503, "false")
        assert decode_header(SettleResponse, reply.headers[PAYMENT_RESPONSE]).success
        assert (account.available, account.spent) == (MOST_ATOMIC, 0)
        # The same payment is served once that can be.
        world.talker.refuses = None
        later = await client.post(PATH, json=CHAT, headers=headers)
        account = await door.billing.book.account(world.account)

    assert (later.status_code, account.spent, world.earned()) == (200, COST_ATOMIC, MOST_ATOMIC)


async def test_a_worker_that_begins_to_drain_while_it_is_paid_owes_all_of_it(world: Selling) -> None:
    door = world.door()

    async def leaving(body: bytes) -> Response:
        door.service.is_draining = True
        return await world.facilitator.ask("settle", body)

    world.facilitator.steps["settle"] = [leaving]
    async with world.selling(door) as client:
        headers = await world.headers(client, PATH, CHAT)
        reply = await client.post(PATH, json=CHAT, headers=headers)
        account = await door.billing.book.account(world.account)
        door.service.is_draining = False
        later = await client.post(PATH, json=CHAT, headers=headers)

    assert (reply.status_code, reply.headers["x-should-retry"]) == (503, "false")
    assert (account.available, account.held) == (MOST_ATOMIC, 0)
    assert (later.status_code, world.earned()) == (200, MOST_ATOMIC)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_breaks_off_costs_nothing_and_may_be_asked_for_again(world: Selling, stream: bool) -> None:
    world.talker.fails_after = 3
    body, door = {**CHAT, "stream": stream}, world.door()
    async with world.selling(door) as client:
        headers = await world.headers(client, PATH, body)
        broken = await client.post(PATH, json=body, headers=headers)
        # A stream is settled once its end has been told.
        account = await until(lambda: door.billing.book.account(world.account), lambda found: found.held == 0)
        assert account.available == MOST_ATOMIC
        world.talker.fails_after = None
        whole = await client.post(PATH, json=body, headers=headers)
        account = await until(lambda: door.billing.book.account(world.account), lambda found: found.held == 0)

    assert broken.status_code == (200 if stream else 502)
    assert "lost_stage" in broken.text
    assert broken.headers["x-should-retry"] == "false"
    assert (whole.status_code, "lost_stage" in whole.text) == (200, False)
    assert (account.spent, world.earned()) == (COST_ATOMIC, MOST_ATOMIC)


async def test_who_leaves_pays_for_what_was_made_and_frees_its_slot(world: Selling) -> None:
    world.talker.pace = asyncio.Semaphore(3)
    body, door = {**CHAT, "stream": True}, world.door()
    async with world.selling(door) as client:
        headers = await world.headers(client, PATH, body)
        async with client.stream("POST", PATH, json=body, headers=headers) as reply:
            assert reply.status_code == 200
            await world.talker.until(lambda talker: talker.told == 3)
        await asyncio.wait_for(world.talker.cancelled.wait(), 10)
        await asyncio.wait_for(door.service.turns.emptied(), 10)
        account = await until(lambda: door.billing.book.account(world.account), lambda found: found.held == 0)
        again = await client.post(PATH, json=body, headers=headers)

    assert account.spent == PROMPT_TOKENS * PROMPT_ATOMIC + 3 * ANSWER_ATOMIC
    assert account.available == MOST_ATOMIC - account.spent
    # What was made of it went to who left; the rest is credit, and nothing is charged twice.
    assert (again.status_code, error_of(again)["code"]) == (410, "answer_gone")
    assert again.headers["x-should-retry"] == "false"


async def test_an_answer_that_is_not_kept_any_more_is_not_made_for_nothing(world: Selling) -> None:
    async with world.selling() as client:
        headers = await world.headers(client, PATH, CHAT)
        assert (await client.post(PATH, json=CHAT, headers=headers)).status_code == 200
    # Another start of the worker: what it kept in memory is gone, its books are not.
    async with world.selling() as client:
        again = await client.post(PATH, json=CHAT, headers=headers)

    assert (again.status_code, error_of(again)["code"]) == (410, "answer_gone")
    assert (len(world.talker.requests), world.earned()) == (1, MOST_ATOMIC)


async def test_a_worker_that_died_in_the_middle_serves_the_same_payment_again(world: Selling) -> None:
    world.talker.pace = asyncio.Semaphore(0)
    first = world.door()
    async with world.selling(first) as client:
        headers = await world.headers(client, PATH, CHAT)
        asking = asyncio.create_task(client.post(PATH, json=CHAT, headers=headers))
        await world.talker.until(lambda talker: len(talker.requests) == 1)
        account = await first.billing.book.account(world.account)
        assert (account.held, account.available) == (MOST_ATOMIC, 0)
        # Died here: the next one finds the hold as it was left.
        world.talker = Talker(says=SAYS)
        door = world.door()
        async with world.selling(door) as reborn:
            reply = await reborn.post(PATH, json=CHAT, headers=headers)
        account = await door.billing.book.account(world.account)
        asking.cancel()

    assert reply.status_code == 200
    assert (account.held, account.spent, world.earned()) == (0, COST_ATOMIC, MOST_ATOMIC)


async def test_what_was_paid_and_never_served_goes_back_after_a_while(world: Selling) -> None:
    world.talker.refuses = InferenceError("no_route", "nobody has layers 2:4")
    door = world.door()
    async with world.selling(door) as client:
        headers = await world.headers(client, PATH, CHAT)
        await client.post(PATH, json=CHAT, headers=headers)
        await door.cashier.pay_back(door.pay_to, LEAST_ATOMIC, idle_s=30)
        assert world.earned() == MOST_ATOMIC
        world.clock_s += 30
        await door.cashier.pay_back(door.pay_to, LEAST_ATOMIC, idle_s=30)
        assert world.earned() == 0
        world.talker.refuses = None
        gone = await client.post(PATH, json=CHAT, headers=headers)

    assert (gone.status_code, error_of(gone)["code"]) == (410, "answer_gone")
    assert world.talker.requests == []


async def test_a_door_that_keeps_sends_back_and_ends_what_a_crash_left(world: Selling) -> None:
    world.facilitator.steps["settle"] = [says(b"garbage")] * 1_000
    first = world.door()
    async with world.selling(first) as client:
        headers = await world.headers(client, PATH, CHAT)
        silent = asyncio.create_task(client.post(PATH, json=CHAT, headers=headers))
        rows = await until(first.cashier.desk.till.unfinished, lambda found: found and found[0].state == "settling")
        silent.cancel()
    world.facilitator.steps["settle"] = []
    assert len(rows) == 1
    assert (await first.cashier.desk.facilitator.settle(rows[0].payload, asked_of(rows[0]))).transaction

    door = world.door()
    keeping = asyncio.create_task(door.keep())
    account = await until(lambda: door.billing.book.account(world.account), lambda found: found is not None)
    keeping.cancel()

    assert (account.deposited, world.earned()) == (MOST_ATOMIC, MOST_ATOMIC)


def asked_of(row: Any) -> PaymentRequirements:
    return requirements_for(row.amount, row.pay_to, BASE_SEPOLIA_USDC)


async def test_a_payment_that_is_called_like_somebodys_session_touches_it_not(world: Selling) -> None:
    world.talker.pace = asyncio.Semaphore(1)
    door = world.door()
    async with world.selling(door) as client:
        key = await world.give(door, 10 * MOST_ATOMIC, "alice")
        body, bearer = {**CHAT, "stream": True}, {"authorization": f"Bearer {key}"}
        async with client.stream("POST", PATH, json=body, headers=bearer) as reply:
            lines = (line async for line in reply.aiter_lines() if line.startswith("data: {"))
            session = json.loads((await anext(lines))[6:])["id"].removeprefix("chatcmpl-")
            headers = await world.headers(client, PATH, CHAT)
            buying = asyncio.create_task(client.post(PATH, json=CHAT, headers={**headers, "idempotency-key": session}))
            await world.talker.until(lambda talker: len(talker.requests) == 2)
            alice = await door.billing.book.account("alice")
            assert (alice.held, alice.available) == (MOST_ATOMIC, 9 * MOST_ATOMIC)
            for _ in range(2 * ANSWER_TOKENS):
                world.talker.pace.release()
            assert [line async for line in lines]
        paid = await buying
        alice = await until(lambda: door.billing.book.account("alice"), lambda found: not found.held)
        payer = await door.billing.book.account(world.account)

    assert (paid.status_code, len(session)) == (200, 32)
    assert (alice.spent, payer.spent) == (COST_ATOMIC, COST_ATOMIC)
