"""Programs of other people buy an answer and a key from a worker, knowing nothing of it but its address."""

import json
from typing import Any

import pytest

from tests.foreign.buying import legacy_x402_fetch, pay, pympp, x402_fetch
from tests.gpu_worker.paying.world import CHAT, COST_ATOMIC, MOST_ATOMIC, SAYS, Selling

pytestmark = pytest.mark.slow
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize("program", [x402_fetch, legacy_x402_fetch, pympp])
async def test_a_client_without_account_or_key_buys_an_answer(world: Selling, program: Any) -> None:
    door = world.door()
    async with world.selling(door) as client:
        url = f"{client.base_url}/v1/chat/completions"
        told = await pay(program(), world.payer, url, json.dumps(CHAT).encode(), JSON)
        account = await door.billing.book.account(world.account)

    assert told["status"] == 200
    assert json.loads(told["body"])["choices"][0]["message"]["content"] == SAYS.decode()
    assert (account.spent, world.earned()) == (COST_ATOMIC, MOST_ATOMIC)


async def test_a_client_buys_a_key_that_opens_its_credit(world: Selling) -> None:
    async with world.selling() as client:
        told = await pay(x402_fetch(), world.payer, f"{client.base_url}/v1/credits", b'{"amount": 0.5}', JSON)
        headers = {"authorization": f"Bearer {json.loads(told['body'])['key']}"}
        used = await client.post("/v1/chat/completions", json=CHAT, headers=headers)

    assert (told["status"], used.status_code) == (200, 200)
