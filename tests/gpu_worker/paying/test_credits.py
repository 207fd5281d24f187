"""Credit: bought once with a payment, used with a key by the unchanged OpenAI client, sent back to who paid."""

import asyncio
import hashlib
import json
import secrets
from decimal import Decimal
from typing import Any

import openai
import pytest

from cashier.core.credit import Account
from tests.fixtures.talker import client_of
from tests.gpu_worker.paying.world import (
    ANSWER_ATOMIC,
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

PATH = "/v1/credits"
FIVE = 5_000_000


def bearer(key: str, **more: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **more}


def money(text: str) -> Any:
    return json.loads(text, parse_float=Decimal)


@pytest.mark.row(23)
async def test_credit_is_bought_used_read_and_withdrawn(world: Selling) -> None:
    door = world.door()
    async with world.selling(door) as client:
        bought = await world.pay(client, {"amount": 5}, PATH)
        assert (bought.status_code, world.earned()) == (200, FIVE)
        key = bought.json()["key"]
        assert bought.json()["account"] == world.account
        async with client_of(f"{client.base_url}/v1", key) as buyer:
            answer = await buyer.chat.completions.create(**CHAT)
            assert answer.usage is not None
            assert answer.usage.model_extra == {"cost": COST_ATOMIC / 1e6}
            stream = await buyer.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
            assert chunks[-1].usage is not None
            assert chunks[-1].usage.model_extra == {"cost": COST_ATOMIC / 1e6}
        await until(lambda: door.billing.book.account(world.account), lambda found: found.held == 0)
        read = await client.get(PATH, headers=bearer(key))
        assert money(read.text) == {
            "account": world.account,
            "deposited": 5,
            "spent": Decimal(2 * COST_ATOMIC).scaleb(-6),
            "available": Decimal(FIVE - 2 * COST_ATOMIC).scaleb(-6),
            "held": 0,
            "withdrawn": 0,
            "isFree": False,
            "currency": "USDC",
            "asset": read.json()["asset"],
            "network": "eip155:84532",
        }
        back = await client.post(f"{PATH}/withdraw", json={}, headers=bearer(key))

    assert (back.status_code, world.earned()) == (200, 2 * COST_ATOMIC)
    assert world.chain.rpc("eth_getTransactionReceipt", back.json()["transaction"])["status"] == "0x1"


async def test_a_repeat_of_the_payment_tells_no_key_again(world: Selling) -> None:
    door = world.door()
    async with world.selling(door) as client:
        headers = await world.headers(client, PATH, {"amount": 5})
        first = await client.post(PATH, json={"amount": 5}, headers=headers)
        again = await client.post(PATH, json={"amount": 5}, headers=headers)
        other = await client.post(PATH, json={"amount": 5, "keySha256": "00" * 32}, headers=headers)
        keys = await door.billing.book.keys()

    assert again.json() == {name: value for name, value in first.json().items() if name != "key"}
    assert (again.status_code, other.status_code) == (200, 409)
    assert ([key.id for key in keys], world.earned()) == ([first.json()["keyId"]], FIVE)


async def test_a_buyer_brings_the_digest_of_a_key_that_nobody_else_has(world: Selling) -> None:
    key = "lv_" + secrets.token_urlsafe(32)
    body = {"amount": 5, "keySha256": hashlib.sha256(key.encode()).hexdigest().upper()}
    async with world.selling() as client:
        bought = await world.pay(client, body, PATH)
        used = await client.post("/v1/chat/completions", json=CHAT, headers=bearer(key))

    assert ("key" in bought.json(), used.status_code) == (False, 200)


async def test_no_key_is_written_down(world: Selling) -> None:
    async with world.selling() as client:
        key = (await world.pay(client, {"amount": 5}, PATH)).json()["key"]
        assert (await client.post("/v1/chat/completions", json=CHAT, headers=bearer(key))).status_code == 200

    for part in world.database.parent.iterdir():
        assert key.encode() not in part.read_bytes()


async def test_credit_is_filled_up_with_its_own_key(world: Selling) -> None:
    door = world.door()
    async with world.selling(door) as client:
        key = (await world.pay(client, {"amount": 5}, PATH)).json()["key"]
        headers = await world.headers(client, PATH, {"amount": 2})
        more = await client.post(PATH, json={"amount": 2}, headers={**headers, **bearer(key)})
        account = await door.billing.book.account(world.account)

    assert "keyId" not in more.json()
    assert (account.available, len(await door.billing.book.keys())) == (FIVE + 2_000_000, 1)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "amount"),
        ({"amount": 0}, "amount"),
        ({"amount": -1}, "amount"),
        ({"amount": 0.001}, "amount"),
        ({"amount": 0.0100001}, "amount"),
        ({"amount": 1e12}, "amount"),
        ({"amount": "much"}, "amount"),
        ({"amount": 5, "keySha256": "short"}, "keySha256"),
        ([], ""),
    ],
)
async def test_what_is_no_amount_is_refused_before_anything_is_asked(world: Selling, body: Any, field: str) -> None:
    async with world.selling() as client:
        reply = await client.post(PATH, json=body)

    assert reply.status_code == 400
    assert field in error_of(reply)["message"]


@pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("POST", f"{PATH}/withdraw")])
@pytest.mark.parametrize("key", [None, "lv_" + "x" * 43])
async def test_an_account_is_told_to_its_key_alone(world: Selling, method: str, path: str, key: str | None) -> None:
    async with world.selling() as client:
        reply = await client.request(method, path, content=b"{}", headers={} if key is None else bearer(key))

    assert (reply.status_code, error_of(reply)["code"]) == (401, "invalid_api_key")


async def test_a_revoked_key_opens_nothing(world: Selling) -> None:
    door = world.door()
    async with world.selling(door) as client:
        bought = (await world.pay(client, {"amount": 5}, PATH)).json()
        assert await door.billing.book.revoke_key(bought["keyId"], 1)
        replies = [
            await client.post("/v1/chat/completions", json=CHAT, headers=bearer(bought["key"])),
            await client.get(PATH, headers=bearer(bought["key"])),
        ]

    assert [reply.status_code for reply in replies] == [401, 401]


async def test_a_key_whose_credit_does_not_do_is_told_what_it_may_cost(world: Selling) -> None:
    door = world.door()
    async with world.selling(door) as client:
        key = await world.give(door, MOST_ATOMIC - 1)
        async with client_of(f"{client.base_url}/v1", key, retries=2) as buyer:
            with pytest.raises(openai.APIStatusError) as refused:
                await buyer.chat.completions.create(**CHAT)
            fewer = await buyer.chat.completions.create(**{**CHAT, "max_tokens": 99})

    assert (refused.value.status_code, refused.value.code) == (402, "payment_required")
    assert "this request may cost 0.222 USDC, the key's credit has 0.221999 USDC left" in str(refused.value)
    assert fewer.choices[0].message.content == SAYS.decode()


async def test_requests_at_once_never_use_more_than_there_is(world: Selling) -> None:
    world.talker.pace = asyncio.Semaphore(0)
    door = world.door(slots=8)
    async with world.selling(door) as client:
        key = await world.give(door, 3 * MOST_ATOMIC)
        asking = [
            asyncio.create_task(client.post("/v1/chat/completions", json=CHAT, headers=bearer(key))) for _ in range(5)
        ]
        await world.talker.until(lambda talker: len(talker.requests) == 3)
        await until(lambda: _done(asking), lambda count: count == 2)
        for _ in range(3 * (len(SAYS) + 1)):
            world.talker.pace.release()
        replies = await asyncio.gather(*asking)
        account = await door.billing.book.account(world.account)

    assert sorted(reply.status_code for reply in replies) == [200, 200, 200, 402, 402]
    assert (account.spent, account.held) == (3 * COST_ATOMIC, 0)


async def _done(tasks: list[Any]) -> int:
    return sum(task.done() for task in tasks)


async def test_who_leaves_pays_for_what_was_made(world: Selling) -> None:
    world.talker.pace = asyncio.Semaphore(2)
    door = world.door()
    async with world.selling(door) as client:
        headers = bearer(await world.give(door, FIVE))
        async with client.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}, headers=headers):
            await world.talker.until(lambda talker: talker.told == 2)
        account = await until(
            lambda: door.billing.book.account(world.account), lambda found: found.spent and not found.held
        )

    assert account.spent == PROMPT_TOKENS * PROMPT_ATOMIC + 2 * ANSWER_ATOMIC


async def test_who_leaves_the_queue_pays_nothing(world: Selling) -> None:
    door = world.door(slots=1)
    async with world.selling(door) as client:
        headers = bearer(await world.give(door, FIVE))
        turn = await door.service.turns.enter()
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT, headers=headers))

        def look() -> Any:
            return door.billing.book.account(world.account)

        await until(look, lambda found: found.held == MOST_ATOMIC)
        asking.cancel()
        account = await until(look, lambda found: found.held == 0)
        turn.leave()

    assert account.available == FIVE


async def test_the_owners_own_key_costs_nothing(world: Selling) -> None:
    door = world.door()
    async with world.selling(door) as client:
        await door.billing.book.open_account(Account(name="my-app", is_free=True))
        headers = bearer(await world.give(door, 0, "my-app"))
        reply = await client.post("/v1/chat/completions", json=CHAT, headers=headers)

    assert (reply.status_code, reply.json()["usage"]["cost"]) == (200, 0)


async def test_a_withdrawal_is_named_once_and_sent_once(world: Selling) -> None:
    async with world.selling() as client:
        key = (await world.pay(client, {"amount": 5}, PATH)).json()["key"]
        headers = bearer(key, **{"idempotency-key": "back-1"})
        first = await client.post(f"{PATH}/withdraw", json={"amount": 2}, headers=headers)
        again = await client.post(f"{PATH}/withdraw", json={"amount": 2}, headers=headers)
        dust = await client.post(f"{PATH}/withdraw", json={"amount": 0.001}, headers=bearer(key))
        much = await client.post(f"{PATH}/withdraw", json={"amount": 4}, headers=bearer(key))

    assert (first.status_code, first.json()) == (200, again.json())
    assert (dust.status_code, much.status_code, error_of(much)["code"]) == (400, 409, "credit_too_small")
    assert world.earned() == FIVE - 2_000_000


async def test_a_withdrawal_that_cannot_be_sent_yet_is_owed(world: Selling) -> None:
    door = world.door()
    async with world.selling(door) as client:
        key = (await world.pay(client, {"amount": 5}, PATH)).json()["key"]
        await world.drain()
        headers = bearer(key, **{"idempotency-key": "back-1"})
        reply = await client.post(f"{PATH}/withdraw", json={}, headers=headers)
        assert (reply.status_code, reply.json()["amount"], "transaction" in reply.json()) == (202, 5, False)
        world.chain.mint(world.seller.address, FIVE)
        later = await client.post(f"{PATH}/withdraw", json={}, headers=headers)

    assert (later.status_code, later.json()["amount"], world.earned()) == (200, 5, 0)


async def test_dust_stays_credit(world: Selling) -> None:
    door = world.door()
    async with world.selling(door) as client:
        key = await world.give(door, LEAST_ATOMIC - 1)
        reply = await client.post(f"{PATH}/withdraw", json={}, headers=bearer(key))

    assert (reply.status_code, error_of(reply)["code"]) == (409, "credit_too_small")


async def test_a_payment_for_credit_buys_no_answer(world: Selling) -> None:
    async with world.selling() as client:
        headers = await world.headers(client, PATH, {"amount": 0.222})
        bought = await client.post(PATH, json={"amount": 0.222}, headers=headers)
        taken = await client.post("/v1/chat/completions", json=CHAT, headers=headers)

    assert (bought.status_code, taken.status_code) == (200, 409)
    assert world.talker.requests == []


@pytest.mark.row(23)
async def test_the_eleventh_free_request_of_an_hour_is_refused(world: Selling) -> None:
    door = world.door(admission={"free_per_hour": 10})
    async with world.selling(door) as client, client_of(f"{client.base_url}/v1") as buyer:
        keyless = {"Authorization": openai.Omit()}
        for _ in range(10):
            free = await buyer.chat.completions.create(**CHAT, extra_headers=keyless)
            assert free.usage is not None
            assert "cost" not in (free.usage.model_extra or {})
        with pytest.raises(openai.RateLimitError) as refused:
            await buyer.chat.completions.create(**CHAT, extra_headers=keyless)
        paid = await world.pay_at(client, CHAT)

    assert int(refused.value.response.headers["retry-after"]) > 0
    assert (paid.status_code, world.earned()) == (200, MOST_ATOMIC)


async def test_the_other_doors_charge_a_key_as_well(world: Selling) -> None:
    door = world.door()
    async with world.selling(door) as client:
        headers = bearer(await world.give(door, FIVE))
        body = {"inputs": "Hello", "parameters": {"max_new_tokens": 50}}
        reply = await client.post("/api/v1/generate", json=body, headers=headers)
        account = await door.billing.book.account(world.account)

    assert (reply.status_code, reply.json()["generated_text"]) == (200, SAYS.decode())
    assert (account.spent, account.held) == (5 * PROMPT_ATOMIC + (len(SAYS) + 1) * ANSWER_ATOMIC, 0)
