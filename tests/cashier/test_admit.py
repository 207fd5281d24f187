"""Who is sold to: a payer that the seller does not serve, a seller that says itself why it starts nothing."""

from cashier.core.answers import problem
from cashier.core.model import Answer
from tests.cashier.world import World, code, detail

WHY = "this machine works for its owner's friends"
DRAINING = problem("draining", "the machine is going down")


async def test_a_payer_that_is_not_served_is_refused_before_anything_is_asked(world: World) -> None:
    payment, cashier = world.cheque(), world.cashier()
    world.unwanted[world.payer.address.lower()] = WHY
    answer = await world.pay(cashier, payment)
    assert (answer.status, code(answer), detail(answer)) == (402, "payment_invalid", WHY)
    assert "payment-response" in answer.headers
    assert (world.facilitator.calls, world.reserved, world.sales) == ([], [], [])
    assert await cashier.desk.till.unfinished() == []
    assert world.earned() == 0
    world.unwanted.clear()
    assert (await world.pay(cashier, payment)).status == 200


async def test_a_payer_that_was_served_gets_its_answer_whoever_it_is_by_now(world: World) -> None:
    payment, cashier = world.cheque(), world.cashier()
    first = await world.pay(cashier, payment)
    world.unwanted[world.payer.address.lower()] = WHY
    assert await world.pay(cashier, payment) == first


async def test_a_refused_payer_whose_cheque_a_stranger_settled_is_served(world: World) -> None:
    payment, cashier = world.cheque(), world.cashier()
    world.settle_outside(payment)
    world.unwanted[world.payer.address.lower()] = WHY
    assert (await world.pay(cashier, payment)).status == 200
    assert len(world.sales) == 1


async def test_a_seller_that_starts_nothing_says_so_in_its_own_words(world: World) -> None:
    payment, cashier = world.cheque(), world.cashier()
    world.full = DRAINING
    answer: Answer = await world.pay(cashier, payment)
    assert (answer, world.facilitator.calls) == (DRAINING, [])
    assert await cashier.desk.till.unfinished() == []
    world.settle_outside(payment)
    # Paid, by whoever: what is owed is started, or paid back by whom it was owed.
    assert (await world.pay(cashier, payment)).status == 200
