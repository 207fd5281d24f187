"""Settlements whose end is not plain: pending, lost, made by a stranger, refused; and two processes at once."""

import asyncio
import json
from dataclasses import replace

import pytest
from fastapi.responses import Response

from cashier.core.answers import LAPSED, NO_ROOM, UNKNOWN
from cashier.core.errors import ChainUnavailable
from cashier.edges.facilitator_http import HttpFacilitator
from outbound.http import HttpClient
from tests.cashier.world import PRICE_ATOMIC, World, code, detail, says, settlement

pytestmark = pytest.mark.slow

PENDING = {"success": False, "errorReason": "settlement_pending", "transaction": "0x" + "ab" * 32, "network": "x"}
DECLINED = {
    "success": False,
    "errorReason": "invalid_exact_evm_insufficient_balance",
    "transaction": "",
    "network": "eip155:84532",
}
REFUSED = {"isValid": False, "invalidReason": "nonce_already_used"}


async def test_a_pending_settlement_is_202_and_the_same_request_ends_it(world: World):
    payment, cashier = world.cheque(), world.cashier()
    world.facilitator.steps["settle"] = [says(PENDING)]

    waiting = await world.pay(cashier, payment)

    assert (waiting.status, code(waiting)) == (202, "settlement_pending")
    assert waiting.headers["retry-after"] == "1"
    assert json.loads(waiting.body)["retryAfter"] == 1
    assert "payment-required" not in waiting.headers
    assert detail(waiting) == f"the settlement 0x{'ab' * 32} is not mined yet"
    assert world.sales == []

    served = await world.pay(cashier, payment)

    assert served.status == 200
    assert world.earned() == PRICE_ATOMIC
    assert settlement(served).transaction != PENDING["transaction"]


async def test_a_pending_settlement_that_was_mined_meanwhile_is_found_without_asking_again(world: World):
    payment, cashier = world.cheque(), world.cashier()
    world.facilitator.steps["settle"] = [says({**PENDING, "transaction": "soon"})]
    assert detail(await world.pay(cashier, payment)) == "it is being settled"
    transaction = world.settle_outside(payment)

    served = await world.pay(cashier, payment)

    assert settlement(served).transaction == transaction
    assert world.facilitator.calls == ["verify", "settle"]


async def test_what_was_pending_is_never_answered_with_a_fresh_402_while_it_is_valid(world: World):
    payment, cashier = world.cheque(), world.cashier()
    world.facilitator.steps["settle"] = [says(PENDING), *[says(DECLINED)] * 4]

    assert (await world.pay(cashier, payment)).status == 202
    assert (await world.pay(cashier, payment)).status == 202
    # Our own clock voids nothing, nor does a block that may be undone.
    world.clock_s = int(payment.payload.authorization.valid_before) + 1
    assert (await world.pay(cashier, payment)).status == 202
    world.chain.increase_time(400)
    world.chain.mine()
    assert (await world.pay(cashier, payment)).status == 202
    world.chain.mine(3)
    refused = await world.pay(cashier, payment)

    assert (refused.status, detail(refused)) == (402, LAPSED)
    assert settlement(refused).error_reason == LAPSED
    assert await cashier.desk.till.unfinished() == []


async def _still_open(world: World, cashier, payment) -> None:
    """The cheque is neither refused nor forgotten, and whoever settles it now gets what it pays for."""
    waiting = await world.pay(cashier, payment)
    assert (waiting.status, code(waiting), waiting.headers["retry-after"]) == (202, "settlement_pending", "1")
    assert "payment-required" not in waiting.headers
    (row,) = await cashier.desk.till.unfinished()
    assert row.state == "settling"
    transaction = world.settle_outside(payment)
    assert settlement(await world.pay(cashier, payment)).transaction == transaction
    assert (world.earned(), len(world.sales)) == (PRICE_ATOMIC, 1)


LOST = [says(b"", 500), says(b"<html>"), says({**PENDING, "transaction": ""})]


@pytest.mark.parametrize("lost", LOST, ids=["500", "html", "no-hash"])
async def test_what_was_sent_and_lost_is_not_forgotten_because_a_second_settlement_is_refused(world: World, lost):
    payment, cashier = world.cheque(), world.cashier()
    world.facilitator.steps["settle"] = [lost, says(DECLINED)]

    assert (await world.pay(cashier, payment)).status == 202

    await _still_open(world, cashier, payment)


@pytest.mark.parametrize(
    "change",
    [
        {"errorReason": "transaction_failed"},
        {"errorReason": "unexpected_settle_error"},
        {"errorReason": "invalid_exact_evm_nonce_already_used"},
        {"errorReason": "invalid_transaction_state"},
        {"errorReason": "invalid_signature?"},
        {"errorReason": None},
        {"transaction": "0x" + "ab" * 32},
    ],
)
async def test_a_first_refusal_that_does_not_prove_that_nothing_was_sent_leaves_the_payment_open(world: World, change):
    payment, cashier = world.cheque(), world.cashier()
    world.facilitator.steps["settle"] = [says({**DECLINED, **change})]

    await _still_open(world, cashier, payment)


async def test_a_crash_before_the_answer_makes_the_next_refusal_doubtful(world: World):
    payment, cashier = world.cheque(), world.cashier()

    async def die(_: bytes) -> Response:
        raise asyncio.CancelledError

    world.facilitator.steps["settle"] = [die, says(DECLINED)]
    with pytest.raises(asyncio.CancelledError):
        await world.pay(cashier, payment)
    world.clock_s += cashier.desk.lease_s

    await _still_open(world, cashier, payment)


async def test_who_was_too_slow_for_its_lease_does_not_refuse_what_the_next_has_sent(world: World):
    payment, slow, quick = world.cheque(), world.cashier(), world.cashier()
    reached, let_through = asyncio.Event(), asyncio.Event()

    async def refuse_late(body: bytes) -> Response:
        reached.set()
        await let_through.wait()
        return await says(DECLINED)(body)

    world.facilitator.steps["settle"] = [refuse_late, says(PENDING)]
    paying = asyncio.create_task(world.pay(slow, payment))
    await reached.wait()
    world.clock_s += slow.desk.lease_s
    assert (await world.pay(quick, payment)).status == 202
    let_through.set()

    late = await paying

    assert (late.status, code(late)) == (202, "settlement_pending")
    (row,) = await quick.desk.till.unfinished()
    assert (row.state, row.transaction) == ("settling", PENDING["transaction"])


async def test_a_settlement_that_never_reached_the_facilitator_is_503_until_it_can_be_mined_no_more(world: World):
    class HalfGone:
        """Its verification answers, its settlement cannot be connected to."""

        def __init__(self, real):
            self.verify = real.verify
            self.settle = HttpFacilitator("http://127.0.0.1:9/", HttpClient()).settle

    payment = world.cheque()
    cashier = world.cashier(lambda desk: replace(desk, facilitator=HalfGone(desk.facilitator)))

    for _ in "ab":
        answer = await world.pay(cashier, payment)
        assert (answer.status, detail(answer)) == (503, UNKNOWN["facilitator_unavailable"])
    (row,) = await cashier.desk.till.unfinished()
    assert row.state == "settling"
    world.chain.increase_time(400)
    world.chain.mine(3)
    assert (await world.pay(cashier, payment)).status == 402


async def test_a_full_seller_does_not_deny_what_the_chain_shows_as_paid(world: World):
    payment, cashier = world.cheque(), world.cashier()
    world.room = 0
    transaction = world.settle_outside(payment)

    served = await world.pay(cashier, payment)

    assert (served.status, settlement(served).transaction) == (200, transaction)
    assert world.facilitator.calls == []
    assert (world.earned(), len(world.sales)) == (PRICE_ATOMIC, 1)


@pytest.mark.parametrize("answers", [0, 1])
async def test_a_full_seller_that_cannot_ask_the_chain_does_not_say_what_was_charged(world: World, answers):
    world.room = 0
    cashier = world.cashier(lambda desk: replace(desk, chain=_Deaf(desk.chain, answers)))

    answer = await world.pay(cashier, world.cheque())

    assert (answer.status, detail(answer)) == (503, UNKNOWN["chain_unavailable"])
    assert NO_ROOM not in answer.body.decode()
    assert await cashier.desk.till.unfinished() == []


async def test_an_open_settlement_keeps_its_place_until_it_lapses(world: World):
    payment, cashier = world.cheque(), world.cashier()
    world.room = 1
    world.facilitator.steps["settle"] = [says(PENDING)]
    await world.pay(cashier, payment)

    assert (await world.pay(cashier, world.cheque())).status == 503
    assert world.reserved == [0, 1]
    world.clock_s = int(payment.payload.authorization.valid_before)
    assert (await world.pay(cashier, world.cheque())).status == 200


async def test_the_places_of_another_seller_are_its_own(world: World):
    world.facilitator.steps["settle"] = [says(PENDING)]
    cashier = world.cashier()
    await world.pay(cashier, world.cheque())
    other = replace(world.price, pay_to=world.payer.address)
    payment = world.cheque(to=world.payer.address)
    accepted = payment.accepted.model_copy(update={"pay_to": world.payer.address})

    await world.pay(cashier, payment.model_copy(update={"accepted": accepted}), price=other)

    assert world.reserved == [0, 0]


async def test_a_settlement_whose_answer_is_lost_is_found_on_the_chain(world: World):
    payment, cashier = world.cheque(), world.cashier()

    async def settle_and_fail(body: bytes) -> Response:
        await world.facilitator.ask("settle", body)
        return Response(b"", 502)

    world.facilitator.steps["settle"] = [settle_and_fail]

    served = await world.pay(cashier, payment)

    assert served.status == 200
    assert world.chain.rpc("eth_getTransactionReceipt", settlement(served).transaction)["status"] == "0x1"
    assert (world.earned(), len(world.sales)) == (PRICE_ATOMIC, 1)


WHOLE = {"success": True, "transaction": "0x" + "ab" * 32, "network": "eip155:84532"}
GARBAGE = [
    says(b"<html>", 200),
    says(b"", 500),
    says(DECLINED, 500),
    says({}, 400),
    says({**WHOLE, "transaction": "0xab"}),
    says({**WHOLE, "transaction": "0x" + "ab" * 32 + "\n"}),
    says({**WHOLE, "network": "eip155:1"}),
    says({**WHOLE, "payer": "0x" + "22" * 20}),
    says(WHOLE, 400),
    says(b" " * 70_000),
]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_a_facilitator_that_talks_garbage_at_the_settlement_leaves_it_open(world: World, garbage):
    payment, cashier = world.cheque(), world.cashier()
    world.facilitator.steps["settle"] = [garbage]

    answer = await world.pay(cashier, payment)

    assert (answer.status, code(answer), detail(answer)) == (202, "settlement_pending", "it is being settled")
    assert answer.headers["retry-after"] == "1"
    (row,) = await cashier.desk.till.unfinished()
    assert (row.state, world.sales) == ("settling", [])
    assert (await world.pay(cashier, payment)).status == 200
    assert (world.earned(), len(world.sales)) == (PRICE_ATOMIC, 1)


@pytest.mark.parametrize("named", [False, True])
async def test_a_success_that_the_chain_does_not_show_is_a_settlement_to_come(world: World, named):
    """A made-up hash or the receipt of another payment buys nothing; the honest answer after it buys one job."""
    payment, cashier = world.cheque(), world.cashier()
    said = dict(WHOLE)
    if named:
        said["payer"] = world.payer.address.upper().replace("0X", "0x")
    world.facilitator.steps["settle"] = [says(said)]

    waiting = await world.pay(cashier, payment)

    assert (waiting.status, detail(waiting)) == (202, f"the settlement 0x{'ab' * 32} is not mined yet")
    assert world.sales == []
    served = await world.pay(cashier, payment)
    assert settlement(served).transaction != WHOLE["transaction"]
    assert (world.earned(), len(world.sales)) == (PRICE_ATOMIC, 1)


@pytest.mark.parametrize("garbage", [says(b"<html>"), says(b"", 500), says({"isValid": True}, 400), says(REFUSED, 503)])
async def test_a_facilitator_that_talks_garbage_at_the_verification_leaves_nothing(world: World, garbage):
    payment, cashier = world.cheque(), world.cashier()
    world.facilitator.steps["verify"] = [garbage]

    answer = await world.pay(cashier, payment)

    assert (answer.status, code(answer)) == (503, "facilitator_unavailable")
    assert await cashier.desk.till.unfinished() == []
    assert (await world.pay(cashier, payment)).status == 200


@pytest.mark.parametrize(
    ("said", "status", "reason"),
    [
        ({"isValid": False, "invalidReason": "bad_signature"}, 200, "bad_signature"),
        ({"isValid": False, "invalidReason": "bad_signature"}, 400, "bad_signature"),
        ({"isValid": False}, 200, "refused"),
        ({"isValid": False, "invalidReason": "x" * 300}, 200, "x" * 200),
        ({"isValid": False, "invalidReason": "no answer from http://node/v2/key"}, 200, "refused"),
        ({"type": "problem"}, 400, "the facilitator cannot read the payment"),
        ({"type": "problem"}, 422, "the facilitator cannot read the payment"),
    ],
)
async def test_a_refusal_at_the_verification_says_why(world: World, said, status, reason):
    world.facilitator.steps["verify"] = [says(said, status)]

    answer = await world.pay(world.cashier(), world.cheque())

    assert (answer.status, detail(answer)) == (402, reason)
    assert world.facilitator.calls == ["verify"]


@pytest.mark.parametrize("verb", ["verify", "settle"])
async def test_the_facilitator_is_asked_about_the_payment_as_it_came_and_the_requirements_as_they_were_made(
    world: World, verb
):
    payment, heard = world.cheque(), []

    async def listen(body: bytes) -> Response:
        heard.append(json.loads(body))
        return await world.facilitator.ask(verb, body)

    world.facilitator.steps[verb] = [listen]
    await world.pay(world.cashier(), payment)

    asked = {"x402Version": 2, "paymentPayload": payment.document(), "paymentRequirements": world.asked().document()}
    assert heard == [asked]


async def test_a_facilitator_that_is_not_there_is_503(world: World, caplog):
    nobody = HttpFacilitator("http://127.0.0.1:9/", HttpClient())
    cashier = world.cashier(lambda desk: replace(desk, facilitator=nobody))

    answer = await world.pay(cashier, world.cheque())

    assert (answer.status, code(answer)) == (503, "facilitator_unavailable")
    assert detail(answer) == UNKNOWN["facilitator_unavailable"]
    assert "the facilitator does not answer verify: Unreachable" in caplog.text


async def test_a_payment_that_a_stranger_settled_first_is_served(world: World):
    payment, cashier = world.cheque(), world.cashier()
    transaction = world.settle_outside(payment)

    served = await world.pay(cashier, payment)

    assert (served.status, settlement(served).transaction) == (200, transaction)
    assert world.facilitator.calls == ["verify"]
    assert (world.earned(), len(world.sales)) == (PRICE_ATOMIC, 1)
    assert await world.pay(cashier, payment) == served


async def test_a_payment_that_a_stranger_settles_between_the_two_questions_is_served(world: World):
    payment, cashier = world.cheque(), world.cashier()

    async def be_late(body: bytes) -> Response:
        world.settle_outside(payment)
        return await world.facilitator.ask("settle", body)

    world.facilitator.steps["settle"] = [be_late]

    assert (await world.pay(cashier, payment)).status == 200
    assert (world.earned(), len(world.sales)) == (PRICE_ATOMIC, 1)


@pytest.mark.parametrize(("blocks_since", "status"), [(3, 200), (4, 402)])
async def test_a_strangers_settlement_is_looked_for_so_far_and_no_further(world: World, blocks_since, status):
    payment = world.cheque()
    cashier = world.cashier(lambda desk: replace(desk, lookback_blocks=3))
    world.settle_outside(payment)
    world.chain.mine(blocks_since)

    assert (await world.pay(cashier, payment)).status == status


async def test_by_default_it_is_looked_for_from_the_first_block_of_a_young_chain(world: World):
    payment, cashier = world.cheque(), world.cashier()
    world.facilitator.steps["settle"] = [says(b"garbage")]
    await world.pay(cashier, payment)

    (row,) = await cashier.desk.till.unfinished()
    assert (row.from_block, cashier.desk.lookback_blocks) == (0, 5_000)


async def test_a_nonce_used_for_nothing_buys_nothing(world: World):
    payment, cashier = world.cheque(), world.cashier()
    world.cancel_outside(payment)

    answer = await world.pay(cashier, payment)

    assert (answer.status, code(answer)) == (402, "payment_invalid")
    assert await cashier.desk.till.unfinished() == []


async def test_a_settlement_that_fails_for_good_is_refused_and_forgotten(world: World):
    payment, cashier = world.cheque(), world.cashier()
    world.facilitator.steps["settle"] = [says(DECLINED)]

    answer = await world.pay(cashier, payment)

    assert (answer.status, code(answer), detail(answer)) == (402, "payment_invalid", DECLINED["errorReason"])
    assert settlement(answer).error_reason == DECLINED["errorReason"]
    assert await cashier.desk.till.unfinished() == []
    assert world.sales == []


class _Deaf:
    """A chain that answers `answers` times, then never."""

    def __init__(self, chain, answers):
        self._chain = chain
        self.answers = answers

    def __getattr__(self, name):
        async def call(*args):
            self.answers -= 1
            if self.answers < 0:
                raise ChainUnavailable("the chain: it does not answer")
            return await getattr(self._chain, name)(*args)

        return call


@pytest.mark.parametrize("answers", [0, 1])
async def test_a_chain_that_does_not_answer_before_the_settlement_leaves_nothing(world: World, answers, caplog):
    world.facilitator.steps["verify"] = [says(REFUSED)]
    cashier = world.cashier(lambda desk: replace(desk, chain=_Deaf(desk.chain, answers)))

    answer = await world.pay(cashier, world.cheque())

    assert (answer.status, code(answer)) == (503, "facilitator_unavailable")
    assert detail(answer) == UNKNOWN["chain_unavailable"]
    assert "the chain: it does not answer" in caplog.text
    assert await cashier.desk.till.unfinished() == []


@pytest.mark.parametrize("end", [DECLINED, b"garbage"])
async def test_a_chain_that_does_not_answer_after_it_leaves_the_settlement_open(world: World, end):
    world.facilitator.steps["settle"] = [says(end)]
    cashier = world.cashier(lambda desk: replace(desk, chain=_Deaf(desk.chain, 1)))
    payment = world.cheque()

    for _ in "ab":
        assert detail(await world.pay(cashier, payment)) == UNKNOWN["chain_unavailable"]
    (row,) = await cashier.desk.till.unfinished()
    assert row.state == "settling"
    assert (await world.pay(world.cashier(), payment)).status == 200
    assert world.earned() == PRICE_ATOMIC


class _Gate:
    """A step that says when it was reached and waits until it is let through."""

    def __init__(self, world: World, verb: str) -> None:
        self.reached, self.let_through = asyncio.Event(), asyncio.Event()
        self._world, self._verb = world, verb

    async def __call__(self, body: bytes) -> Response:
        self.reached.set()
        await self.let_through.wait()
        return await self._world.facilitator.ask(self._verb, body)


@pytest.mark.parametrize("verb", ["verify", "settle"])
async def test_a_second_process_waits_while_the_first_is_at_work(world: World, verb):
    payment, first, second = world.cheque(), world.cashier(), world.cashier()
    gate = _Gate(world, verb)
    world.facilitator.steps[verb] = [gate]
    paying = asyncio.create_task(world.pay(first, payment))
    await gate.reached.wait()

    waiting = await world.pay(second, payment)
    other_buyer = await world.pay(second, world.cheque())
    gate.let_through.set()

    assert (waiting.status, code(waiting)) == (202, "settlement_pending")
    assert detail(waiting) == "it is being settled"
    assert other_buyer.status == 200
    # The place of the one in the door counts.
    assert world.reserved == [0, 1]
    assert (await paying).status == 200
    assert await world.pay(second, payment) == await paying


@pytest.mark.parametrize("verb", ["verify", "settle"])
async def test_who_was_too_slow_for_its_lease_leaves_the_payment_to_the_next(world: World, verb):
    payment, slow, quick = world.cheque(), world.cashier(), world.cashier()
    gate = _Gate(world, verb)
    world.facilitator.steps[verb] = [gate]
    paying = asyncio.create_task(world.pay(slow, payment))
    await gate.reached.wait()
    world.clock_s += slow.desk.lease_s

    served = await world.pay(quick, payment)
    gate.let_through.set()
    late = await paying

    assert served.status == 200
    assert (late.status, code(late)) == (202, "settlement_pending")
    assert await world.pay(slow, payment) == served
    assert (world.earned(), len(world.sales)) == (PRICE_ATOMIC, 1)


async def test_a_lease_holds_to_its_last_second(world: World):
    payment, slow, quick = world.cheque(), world.cashier(), world.cashier()
    gate = _Gate(world, "settle")
    world.facilitator.steps["settle"] = [gate]
    paying = asyncio.create_task(world.pay(slow, payment))
    await gate.reached.wait()
    world.clock_s += slow.desk.lease_s - 1

    assert (await world.pay(quick, payment)).status == 202
    gate.let_through.set()
    assert (await paying).status == 200


async def test_a_verification_that_nobody_finished_gives_its_place_back_with_its_lease(world: World):
    slow, world.room = world.cashier(), 1
    gate = _Gate(world, "verify")
    world.facilitator.steps["verify"] = [gate]
    paying = asyncio.create_task(world.pay(slow, world.cheque()))
    await gate.reached.wait()

    assert (await world.pay(slow, world.cheque())).status == 503
    world.clock_s += slow.desk.lease_s
    assert (await world.pay(slow, world.cheque())).status == 200
    gate.let_through.set()
    await paying
