"""An answer for a payment: no account, no key; the most is paid, what was made is charged, the rest is the payer's."""

import json
from decimal import Decimal
from typing import Any

import httpx
import openai
import pytest
from eth_account import Account
from mpp import Challenge
from mpp.methods.evm import BASE_SEPOLIA_USDC as MPP_USDC
from mpp.methods.evm.client import charge
from mpp.runtime import CredentialParams
from openai.types.chat import ChatCompletion
from x402 import x402Client
from x402.http.clients.httpx import x402AsyncTransport
from x402.mechanisms.evm.exact import register_exact_evm_client

from tests.cashier.speaking import in_v1
from tests.cashier.world import says
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
    asked_in,
    error_of,
)
from wire.money import BASE_SEPOLIA_USDC
from wire.x402 import PAYMENT_RESPONSE, SettleResponse, decode_header

PATH = "/v1/chat/completions"
COMPLETION = {"prompt": "Hello", "max_tokens": 50}


def settlement(reply: httpx.Response) -> SettleResponse:
    return decode_header(SettleResponse, reply.headers[PAYMENT_RESPONSE])


async def test_who_has_no_key_is_asked_to_pay_the_most_that_it_may_cost(world: Selling) -> None:
    async with world.selling() as client:
        reply = await client.post(PATH, json=CHAT)

    asked = asked_in(reply)
    assert (reply.status_code, reply.json()["code"]) == (402, "payment_required")
    assert (asked.amount, asked.asset, asked.pay_to) == (
        str(MOST_ATOMIC),
        BASE_SEPOLIA_USDC.address,
        world.seller.address,
    )
    # Version 1 reads the body.
    assert reply.json()["accepts"][0]["maxAmountRequired"] == str(MOST_ATOMIC)
    assert world.talker.requests == []


@pytest.mark.row(22)
async def test_the_most_is_paid_and_what_was_not_made_is_paid_back(world: Selling) -> None:
    door = world.door()
    async with world.selling(door) as client:
        reply = await world.pay(client)
        assert reply.status_code == 200
        assert world.earned() == MOST_ATOMIC
        account = await door.billing.book.account(world.account)

    answer = ChatCompletion.model_validate(reply.json())
    assert answer.choices[0].message.content == SAYS.decode()
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PROMPT_TOKENS, ANSWER_TOKENS)
    usage = json.loads(reply.text, parse_float=Decimal)["usage"]
    assert usage["cost"] == Decimal(COST_ATOMIC).scaleb(-6)
    assert (settlement(reply).success, settlement(reply).payer) == (True, world.payer.address.lower())
    assert (account.spent, account.available, account.held) == (COST_ATOMIC, MOST_ATOMIC - COST_ATOMIC, 0)

    await door.cashier.pay_back(door.pay_to, LEAST_ATOMIC)

    assert world.earned() == COST_ATOMIC


@pytest.mark.parametrize("stream", [False, True])
async def test_openais_own_client_buys_with_a_transport_that_pays(world: Selling, stream: bool) -> None:
    paying = x402Client()
    register_exact_evm_client(paying, Account.from_key(world.payer.key))
    async with (
        world.selling() as client,
        httpx.AsyncClient(transport=x402AsyncTransport(paying)) as http,
        openai.AsyncOpenAI(
            base_url=f"{client.base_url}/v1",
            api_key="none",
            max_retries=0,
            http_client=http,
        ) as buyer,
    ):
        options: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
        keyless = {"Authorization": openai.Omit()}
        made = await buyer.chat.completions.create(**CHAT, stream=stream, extra_headers=keyless, **options)
        chunks = [chunk async for chunk in made] if stream else []

    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert chunks[-1].usage.cost == COST_ATOMIC / 1e6
    else:
        text = made.choices[0].message.content
    assert text == SAYS.decode()
    assert world.earned() == MOST_ATOMIC


async def test_completions_are_sold_as_well(world: Selling) -> None:
    async with world.selling() as client:
        reply = await world.pay(client, COMPLETION, "/v1/completions")

    assert (reply.status_code, reply.json()["choices"][0]["text"]) == (200, SAYS.decode())
    assert world.earned() == 5 * PROMPT_ATOMIC + 50 * ANSWER_ATOMIC


async def test_a_request_without_a_limit_is_asked_to_pay_for_the_whole_context(world: Selling) -> None:
    async with world.selling() as client:
        reply = await client.post(PATH, json={**CHAT, "max_tokens": None})

    room = world.talker.context - PROMPT_TOKENS
    assert asked_in(reply).amount == str(PROMPT_TOKENS * PROMPT_ATOMIC + room * ANSWER_ATOMIC)


async def test_nothing_is_charged_where_there_is_no_room(world: Selling) -> None:
    door = world.door(slots=1, queue_max=0)
    async with world.selling(door) as client:
        headers = await world.headers(client, PATH, CHAT)
        turn = await door.service.turns.enter()
        full = await client.post(PATH, json=CHAT, headers=headers)
        turn.leave()
        assert (full.status_code, error_of(full)["code"], world.earned()) == (429, "no_capacity", 0)
        later = await client.post(PATH, json=CHAT, headers=headers)

    assert later.status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({**CHAT, "max_tokens": 5_000}, 400, "context_length_exceeded"),
        ({**CHAT, "model": "another"}, 404, "model_not_found"),
        ({**CHAT, "temperature": 3}, 400, None),
        ({**CHAT, "n": 2}, 400, None),
    ],
)
async def test_what_would_be_refused_is_refused_before_it_is_paid(
    world: Selling, body: dict[str, Any], status: int, code: str | None
) -> None:
    async with world.selling() as client:
        headers = await world.headers(client, PATH, CHAT)
        reply = await client.post(PATH, json=body, headers=headers)

    assert (reply.status_code, error_of(reply)["code"]) == (status, code)
    assert world.earned() == 0


async def test_a_draining_worker_takes_no_payment(world: Selling) -> None:
    door = world.door()
    async with world.selling(door) as client:
        headers = await world.headers(client, PATH, CHAT)
        door.service.is_draining = True
        reply = await client.post(PATH, json=CHAT, headers=headers)

    assert (reply.status_code, world.earned()) == (503, 0)


async def test_a_dead_facilitator_is_no_reason_to_pay_anew(world: Selling) -> None:
    world.facilitator.steps["verify"] = [says(b"", 500)]
    async with world.selling() as client:
        reply = await world.pay(client)

    assert (reply.status_code, error_of(reply)["code"]) == (503, "facilitator_unavailable")
    assert reply.headers["x-should-retry"] == "false"
    assert world.talker.requests == []


@pytest.mark.parametrize("header", ["payment-signature", "x-payment"])
async def test_a_payment_that_cannot_be_read_is_refused(world: Selling, header: str) -> None:
    async with world.selling() as client:
        reply = await client.post(PATH, json=CHAT, headers={header: "bm90aGluZw=="})

    assert (reply.status_code, error_of(reply)["code"]) == (400, "payment_malformed")


@pytest.mark.parametrize("changes", [{"value": "1"}, {"to": "0x" + "11" * 20}])
async def test_a_payment_of_something_else_is_refused(world: Selling, changes: dict[str, str]) -> None:
    async with world.selling() as client:
        headers = await world.headers(client, PATH, CHAT, **changes)
        reply = await client.post(PATH, json=CHAT, headers=headers)

    assert (reply.status_code, reply.json()["code"]) == (402, "payment_invalid")
    assert (world.earned(), world.talker.requests) == (0, [])


async def test_whom_the_owner_does_not_sell_to_pays_nothing(world: Selling) -> None:
    async with world.selling(world.door({world.account: "not sold to this address"}.get)) as client:
        answers = [await world.pay(client), await world.pay(client, {"amount": 5}, "/v1/credits")]

    assert [reply.status_code for reply in answers] == [402, 402]
    assert {reply.json()["detail"] for reply in answers} == {"not sold to this address"}
    assert (world.earned(), world.talker.requests) == (0, [])


async def test_a_cheap_payment_buys_no_dear_answer(world: Selling) -> None:
    async with world.selling() as client:
        headers = await world.headers(client, PATH, {**CHAT, "max_tokens": 1})
        reply = await client.post(PATH, json=CHAT, headers=headers)

    assert (reply.status_code, world.earned()) == (402, 0)


async def test_no_prompt_is_written_down(world: Selling) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "a secret thought"}]}
    async with world.selling() as client:
        assert (await world.pay(client, body)).status_code == 200

    for part in world.database.parent.iterdir():
        assert b"secret thought" not in part.read_bytes()


async def test_models_tell_their_prices(world: Selling) -> None:
    async with world.selling() as client:
        told = json.loads((await client.get("/v1/models")).text, parse_float=Decimal)["data"][0]["pricing"]

    assert told == {
        "currency": "USDC",
        "prompt_per_million": 1_000,
        "completion_per_million": 2_000,
        "prompt": "0.001",
        "completion": "0.002",
    }


async def test_version_1_and_mpp_buy_answers_too(world: Selling) -> None:
    async with world.selling() as client:
        asked = await client.post(PATH, json=CHAT)
        payer = charge(currency=MPP_USDC, account=Account.from_key(world.payer.key))
        challenge = Challenge.from_www_authenticate(asked.headers["www-authenticate"])
        credential = await payer.create_credential(CredentialParams(challenge=challenge))
        for headers, receipt in (
            (in_v1(world.sign(asked_in(asked))), "x-payment-response"),
            ({challenge.credential_header.lower(): credential}, "payment-receipt"),
        ):
            first = await client.post(PATH, json=CHAT, headers=headers)
            again = await client.post(PATH, json=CHAT, headers=headers)
            assert (first.status_code, receipt in first.headers) == (200, True)
            assert again.content == first.content

    assert (len(world.talker.requests), world.earned()) == (2, 2 * MOST_ATOMIC)
