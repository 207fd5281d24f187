"""A payment without a known outcome: its money stays reserved until the chain says what became of it."""

from datetime import timedelta
from typing import Any

import httpx
import pytest

from agent.cancel import cancel
from agent.edges.vendor_http import HttpVendors
from outbound.http import HttpClient
from tests.fixtures.world import World, replace_agent

pytestmark = pytest.mark.slow

HOUR = 3_600


def paid_submissions(world: World) -> list[httpx.Request]:
    return [request for request in world.hosts.calls("/submit-job") if "payment-signature" in request.headers]


def lapse(world: World) -> None:
    """Let the chain's finalised time pass every cheque's last second."""
    world.chain.increase_time(HOUR)
    world.chain.mine(3)


class Died(Exception):
    """Where a process ended."""


class Deadly:
    """The vendors of `world`, until the agent calls `name`: then it is no more."""

    def __init__(self, world: World, name: str) -> None:
        self._inner, self._name = world.agent.vendors, name

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            raise Died(name)
        return getattr(self._inner, name)


async def tick_and_die(world: World, run_id: str, name: str) -> None:
    """Tick with an agent that ends where it would call `name` of a vendor, and have another in its place."""
    alive = world.agent.vendors
    replace_agent(world, vendors=Deadly(world, name))
    with pytest.raises(Died):
        await world.tick(run_id)
    replace_agent(world, vendors=alive)


@pytest.mark.row(20)
async def test_an_answer_lost_after_settling_ends_in_one_settlement_and_one_job(world: World) -> None:
    world.hosts.lose_replies("/submit-job")
    run_id = await world.start()
    first = await world.tick(run_id)
    # The vendor's answer was lost; the chain shows the money gone.
    assert first.message == "Payment pending"
    assert [(payment.status, payment.sends) for payment in first.run.payments] == [("completed", 1)]
    # It was stored as unknown, the money still reserved, before the chain was asked.
    unknown = next(run for run in world.store.saved if run.payments and run.payments[0].status == "unknown")
    assert unknown.budget.reserved_atomic == 1_400_000
    assert (await world.tick(run_id)).message == "Job started"
    run = await world.until_ended(run_id)
    assert (run.status, len(run.jobs), len(run.payments)) == ("completed", 1, 1)
    await world.check_books()


async def test_the_same_bytes_are_sent_again_when_the_vendor_forgot_the_job(world: World) -> None:
    world.hosts.lose_replies("/submit-job", 2)
    lose = world.hosts.meddle
    assert lose is not None

    def forget(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path == "/jobs":
            return httpx.Response(200, json={"jobs": []})
        return lose(request, response)

    world.hosts.meddle = forget
    run = await world.until_ended(await world.start())
    assert (run.status, len(run.jobs), len(run.payments)) == ("completed", 1, 1)
    sent = paid_submissions(world)
    assert len(sent) == 3
    assert len({(request.content, request.headers["payment-signature"]) for request in sent}) == 1
    await world.check_books()


@pytest.mark.row(21)
async def test_a_payment_without_a_facilitator_is_never_completed_and_is_paid_once_when_it_is_back(
    world: World,
) -> None:
    world.hosts.down.add("facilitator")
    run_id = await world.start()
    for _ in range(3):
        ticked = await world.tick(run_id)
        assert ticked.message == "Payment pending"
        assert ticked.action is None or ticked.action.kind == "start_job"
        assert ticked.run.payments[0].status == "unknown"
        assert ticked.run.payments[0].transaction is None
        assert ticked.run.budget.reserved_atomic == 1_400_000
    world.hosts.down.clear()
    run = await world.until_ended(run_id)
    assert (run.status, len(run.jobs), len(run.payments)) == ("completed", 1, 1)
    assert not any(
        payment.status == "completed" and payment.transaction is None
        for saved in world.store.saved
        for payment in saved.payments
    )
    await world.check_books()


@pytest.mark.row(21)
async def test_a_payment_that_lapses_without_a_facilitator_is_failed_and_its_money_free_again(world: World) -> None:
    world.hosts.down.add("facilitator")
    run_id = await world.start()
    await world.tick(run_id)
    # Past the cheque's time by the newest block alone proves nothing yet.
    world.chain.increase_time(HOUR)
    assert (await world.tick(run_id)).run.payments[0].status == "unknown"
    world.chain.mine(3)
    ticked = await world.tick(run_id)
    assert ticked.run.payments[0].status == "failed"
    assert ticked.run.budget.available_atomic == ticked.run.budget.total_atomic
    world.hosts.down.clear()
    run = await world.until(run_id, lambda run: run.jobs[0].status == "failed")
    assert str(run.jobs[0].error_message).startswith("payment_refused: ")
    # The day's caps were given back with it: the next vendor can be paid.
    ended = await world.until(run_id, lambda run: len(run.payments) == 2)
    assert ended.payments[1].nonce != ended.payments[0].nonce
    await world.check_books()


async def test_money_of_a_lapsed_cheque_is_free_under_the_caps_of_the_day_again(world: World) -> None:
    for vendor in world.vendors[1:]:
        await world.store.remove_vendor(vendor.vendor_id)
    world.cap(wallet_day_atomic_max=1_400_000)
    world.hosts.down.add("facilitator")
    run_id = await world.start()
    await world.tick(run_id)
    lapse(world)
    assert (await world.until_ended(run_id)).reason == "no_vendor_left"
    world.hosts.down.clear()
    # The chain's time has run ahead of ours: the next cheque must be good by it.
    world.store.ahead = timedelta(hours=1)
    run = await world.until(await world.start(), lambda run: bool(run.payments), 2)
    assert run.payments[0].amount_atomic == 1_400_000
    assert not any("over_day_cap" in str(job.error_message) for job in run.jobs)


async def test_a_refused_cheque_stays_reserved_until_it_lapses(world: World) -> None:
    """A vendor that says no may still cash the cheque: its word is not believed."""
    refused: list[httpx.Request] = []

    def refuse(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path == "/submit-job" and "payment-signature" in request.headers:
            refused.append(request)
            return httpx.Response(402, json={"error": "I do not like it"})
        return response

    world.hosts.meddle = refuse
    world.hosts.down.add("facilitator")
    run_id = await world.start()
    first = await world.tick(run_id)
    assert first.message == "Payment pending"
    assert first.run.budget.reserved_atomic == 1_400_000
    world.hosts.down.clear()
    # Now the vendor cashes it and still says no.
    second = await world.tick(run_id)
    assert second.run.payments[0].status == "completed"
    assert second.run.budget.spent_atomic == 1_400_000
    world.hosts.meddle = None
    run = await world.until_ended(run_id)
    assert (run.status, len(run.payments)) == ("completed", 1)
    await world.check_books()


async def test_a_vendor_that_takes_the_money_and_never_serves_fails_the_job_in_the_end(world: World) -> None:
    world.limit(unserved_sends_max=3)

    def keep(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path == "/jobs":
            return httpx.Response(200, json={"jobs": []})
        if request.url.path == "/submit-job" and "payment-signature" in request.headers:
            return httpx.Response(500, text="sorry")
        return response

    world.hosts.meddle = keep
    run_id = await world.start("3.5")
    for _ in range(4):
        ticked = await world.tick(run_id)
        assert ticked.run.jobs[0].status == "quoted"
    world.hosts.meddle = None
    world.hosts.down.add("vendors")
    world.store.ahead = timedelta(hours=1)
    ticked = await world.tick(run_id)
    assert str(ticked.run.jobs[0].error_message).startswith("paid_not_served: ")
    assert ticked.run.budget.spent_atomic == 1_400_000
    await world.check_books()


async def test_a_cancel_with_a_payment_open_ends_the_run_only_when_its_outcome_is_known(world: World) -> None:
    world.hosts.down.add("facilitator")
    run_id = await world.start()
    await world.tick(run_id)
    await cancel(world.agent, run_id)
    ticked = await world.tick(run_id)
    assert (ticked.message, ticked.run.status) == ("Payment pending", "running")
    lapse(world)
    run = await world.until_ended(run_id)
    assert run.status == "cancelled"
    assert run.payments[0].status == "failed"
    assert run.budget.available_atomic == run.budget.total_atomic
    await world.check_books()


async def test_a_run_cancelled_with_its_payment_open_does_not_offer_the_cheque_again(world: World) -> None:
    world.hosts.down.add("facilitator")
    run_id = await world.start()
    await world.tick(run_id)
    assert len(paid_submissions(world)) == 1
    await cancel(world.agent, run_id)
    # Now it could be cashed, and nobody wants it to be.
    world.hosts.down.clear()
    assert (await world.tick(run_id)).message == "Payment pending"
    assert len(paid_submissions(world)) == 1
    lapse(world)
    run = await world.until_ended(run_id)
    assert (run.status, run.payments[0].status) == ("cancelled", "failed")
    assert run.budget.spent_atomic == 0
    await world.check_books()


async def test_a_cheque_that_was_never_sent_is_not_held_against_its_vendor(world: World) -> None:
    run_id = await world.start()
    await tick_and_die(world, run_id, "submit")
    lapse(world)
    world.store.ahead = timedelta(hours=1)
    run = await world.until(run_id, lambda run: run.jobs[0].status == "failed")
    assert paid_submissions(world) == []
    assert run.jobs[0].error_message == "payment_refused: the cheque lapsed unused"
    assert await world.store.standings() == []
    await world.check_books()


async def test_a_paid_job_that_we_have_no_secret_to_ask_for_is_not_held_against_its_vendor(world: World) -> None:
    world.limit(unserved_sends_max=2)
    world.hosts.lose_replies("/submit-job")
    run_id = await world.start()
    assert (await world.tick(run_id)).run.payments[0].status == "completed"
    replace_agent(world, vendors=HttpVendors(HttpClient(world.hosts), ""))
    await world.tick(run_id)
    world.store.ahead = timedelta(hours=1)
    ticked = await world.tick(run_id)
    assert ticked.run.jobs[0].error_message == "no_vendor_secret: no bearer secret is configured for gpu_vendor_1"
    assert await world.store.standings() == []
    await world.check_books()


async def test_a_vendor_that_was_removed_before_it_was_paid_is_not_held_guilty(world: World) -> None:
    run_id = await world.start()
    await tick_and_die(world, run_id, "challenge")
    await world.store.remove_vendor("gpu_vendor_1")
    run = await world.until(run_id, lambda run: run.jobs[0].status == "failed")
    assert run.jobs[0].error_message == "vendor_not_registered: nothing was paid"
    assert await world.store.standings() == []
    await world.check_books()
