"""The worker dies at any boundary of a sale; the same payment, sent to the next one, is settled and charged once."""

from dataclasses import replace

import httpx
import pytest

from gpu_worker.edges.http.openai_door import openai_app
from gpu_worker.edges.http.paid_door import PaidDoor
from tests.cashier.world import Crash, Fuse, Mortal
from tests.gpu_worker.paying.world import CHAT, COST_ATOMIC, LEAST_ATOMIC, MOST_ATOMIC, Selling, error_of

pytestmark = pytest.mark.slow
PATH = "/v1/chat/completions"
# More boundaries than a sale has: the last fuses do not burn down.
BOUNDARIES = 31


def client_of(door: PaidDoor) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(openai_app(door.service, door))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


def mortal(world: Selling, last: int) -> PaidDoor:
    """Return a door whose every edge dies at the `last` boundary."""
    door, fuse = world.door(), Fuse(last)
    desk = door.cashier.desk
    door.cashier.desk = replace(
        desk,
        till=Mortal(desk.till, fuse),
        facilitator=Mortal(desk.facilitator, fuse),
        chain=Mortal(desk.chain, fuse),
    )
    door.billing.book = Mortal(door.billing.book, fuse)
    return door


@pytest.mark.parametrize("last", range(1, BOUNDARIES))
async def test_a_sale_that_crashed_anywhere_is_settled_and_charged_once(world: Selling, last: int) -> None:
    async with client_of(world.door()) as client:
        headers = await world.headers(client, PATH, CHAT)
    crashed = False
    try:
        async with client_of(mortal(world, last)) as client:
            await client.post(PATH, json=CHAT, headers=headers)
    except Crash:
        crashed = True
    # The lease of who died lapses.
    world.clock_s += 90

    door = world.door()
    async with client_of(door) as client:
        reply = await client.post(PATH, json=CHAT, headers=headers)
    account = await door.billing.book.account(world.account)

    assert crashed or last > 28
    assert world.earned() == MOST_ATOMIC
    assert (account.deposited, account.spent, account.held) == (MOST_ATOMIC, COST_ATOMIC, 0)
    if reply.status_code != 200:
        # The answer was made and charged before, and was kept by who died: it is neither made nor charged again.
        assert last >= 28
        assert (reply.status_code, error_of(reply)["code"]) == (410, "answer_gone")
        assert len(world.talker.requests) == 1
    await door.cashier.pay_back(door.pay_to, LEAST_ATOMIC)
    assert world.earned() == COST_ATOMIC
