"""The process dies at any boundary; a new one on the same till ends in one settlement and one start."""

import json
from dataclasses import replace

import pytest

from cashier.core.model import Sale
from cashier.recover import Recovered
from tests.cashier.test_open_settlements import _Deaf
from tests.cashier.world import PRICE_ATOMIC, Crash, Fuse, Mortal, World, says

pytestmark = pytest.mark.slow

# More boundaries than a charge has: the last fuses do not burn down.
BOUNDARIES = 18


async def _crash(world: World, payment, last: int, **request) -> bool:
    """Pay through edges that die at the `last` boundary; return whether they did."""
    fuse = Fuse(last)
    cashier = world.cashier(
        lambda desk: replace(
            desk,
            till=Mortal(desk.till, fuse),
            facilitator=Mortal(desk.facilitator, fuse),
            chain=Mortal(desk.chain, fuse),
        )
    )

    async def start(sale: Sale):
        fuse.burn()
        document = await world.start(sale)
        fuse.burn()
        return document

    try:
        await world.pay(cashier, payment, start=start, **request)
    except Crash:
        return True
    return False


async def _ends_well(world: World, payment) -> None:
    cashier = world.cashier()
    answer = await world.pay(cashier, payment)
    assert answer.status == 200
    assert list(world.jobs.values()) == [json.loads(answer.body)["job"]]
    assert world.earned() == PRICE_ATOMIC
    assert await cashier.desk.till.unfinished() == []
    assert await world.pay(cashier, payment) == answer


@pytest.mark.parametrize("last", range(1, BOUNDARIES))
async def test_a_repeat_after_a_crash_ends_in_one_settlement_and_one_start(world: World, last):
    payment = world.cheque()
    if not await _crash(world, payment, last):
        assert last > 16
    world.clock_s += 90

    await _ends_well(world, payment)


@pytest.mark.parametrize("last", range(1, BOUNDARIES))
async def test_recovery_at_once_after_a_crash_leaves_no_lease_behind(world: World, last):
    payment = world.cheque()
    await _crash(world, payment, last)
    cashier = world.cashier()
    open_before = len(await cashier.desk.till.unfinished())

    recovered = await cashier.recover(world.start)

    assert recovered.served + recovered.void + recovered.open == open_before
    await _ends_well(world, payment)


async def test_a_crash_while_the_settlement_is_lost_is_recovered_through_the_chain(world: World):
    payment = world.cheque()
    world.facilitator.steps["settle"] = [says(b"garbage")]
    await world.pay(world.cashier(), payment)
    transaction = world.settle_outside(payment)

    assert await world.cashier().recover(world.start) == Recovered(served=1)

    assert [sale.transaction for sale in world.sales] == [transaction]
    assert await world.cashier().recover(world.start) == Recovered()
    await _ends_well(world, payment)


async def _left_settling(world: World):
    payment = world.cheque(valid_before=str(world.clock_s + 250))
    world.facilitator.steps["settle"] = [says(b"garbage")]
    answer = await world.pay(world.cashier(), payment)
    assert answer.status == 202, answer
    assert world.facilitator.calls == ["verify", "settle"], answer
    return payment


async def test_what_may_still_settle_stays_open(world: World):
    await _left_settling(world)

    assert await world.cashier().recover(world.start) == Recovered(open=1)

    (row,) = await world.cashier().desk.till.unfinished()
    assert row.state == "settling"


async def test_a_lapsed_cheque_is_void_when_finalised_time_is_past_it(world: World):
    await _left_settling(world)
    world.chain.increase_time(400)

    assert await world.cashier().recover(world.start) == Recovered(open=1)
    world.chain.mine(3)
    assert await world.cashier().desk.chain.finalized_time_s() > world.clock_s + 250
    assert await world.cashier().recover(world.start) == Recovered(void=1)
    assert await world.cashier().desk.till.unfinished() == []


async def test_a_lapsed_cheque_that_was_settled_in_time_is_served(world: World):
    payment = await _left_settling(world)
    world.settle_outside(payment)
    world.chain.increase_time(400)
    world.chain.mine(3)

    assert await world.cashier().recover(world.start) == Recovered(served=1)


async def test_finalised_time_equal_to_the_end_of_a_cheque_voids_nothing(world: World):
    class AtTheEdge:
        def __init__(self, chain, time_s):
            self._chain, self.time_s = chain, time_s

        def __getattr__(self, name):
            return getattr(self._chain, name)

        async def finalized_time_s(self):
            return self.time_s

    payment = await _left_settling(world)
    end_s = int(payment.payload.authorization.valid_before)
    for time_s, expected in ((end_s, Recovered(open=1)), (end_s + 1, Recovered(void=1))):
        cashier = world.cashier(lambda desk, at=time_s: replace(desk, chain=AtTheEdge(desk.chain, at)))
        assert await cashier.recover(world.start) == expected


@pytest.mark.parametrize("answers", [0, 1])
async def test_recovery_without_a_chain_leaves_all_as_it_is(world: World, answers):
    payment = await _left_settling(world)
    cashier = world.cashier(lambda desk: replace(desk, chain=_Deaf(desk.chain, answers)))

    assert await cashier.recover(world.start) == Recovered(open=1)
    await _ends_well(world, payment)


async def test_work_that_cannot_start_in_recovery_does_not_stop_the_others(world: World, caplog):
    payments = [world.cheque(), world.cheque()]

    async def fail(sale: Sale):
        raise OSError("no GPU")

    for payment in payments:
        with pytest.raises(OSError, match="no GPU"):
            await world.pay(world.cashier(), payment, start=fail)

    async def start(sale: Sale):
        if not world.sales:
            world.sales.append(sale)
            raise OSError("still no GPU")
        return await world.start(sale)

    assert await world.cashier().recover(start) == Recovered(served=1, open=1)
    assert world.sales[0].payer == world.payer.address.lower()
    assert f"payment {world.sales[0].payment_id} is settled and its work did not start" in caplog.text
    for payment in payments:
        assert (await world.pay(world.cashier(), payment)).status == 200
    assert world.earned() == 2 * PRICE_ATOMIC


async def test_a_request_in_the_door_loses_its_row_to_a_recovery(world: World):
    payment, door = world.cheque(), world.cashier()

    async def start(sale: Sale):
        assert await world.cashier().recover(world.start) == Recovered(served=1)
        return await world.start(sale)

    answer = await world.pay(door, payment, start=start)

    assert answer.status == 200
    assert len(world.jobs) == 1
    assert await world.pay(world.cashier(), payment) == answer


async def test_recovery_that_loses_its_row_leaves_it_to_the_other(world: World):
    payment = await _left_settling(world)
    world.settle_outside(payment)

    class Thief:
        """Another recovery comes between the look at the chain and the save."""

        def __init__(self, till):
            self._till = till

        def __getattr__(self, name):
            return getattr(self._till, name)

        async def save(self, taking, lease, *, durable=False):
            await world.cashier().recover(world.start)
            return await self._till.save(taking, lease, durable=durable)

    cashier = world.cashier(lambda desk: replace(desk, till=Thief(desk.till)))

    assert await cashier.recover(world.start) == Recovered(open=1)
    await _ends_well(world, payment)
