"""Outcomes that are not known: the money stays reserved until the chain says what became of it. Never a second cheque."""

from datetime import timedelta
from typing import Any

import httpx
import pytest

from agent.cancel import cancel
from agent.core.errors import ChainUnavailable
from agent.edges.chain_evm import EvmChain
from agent.edges.vendor_http import HttpVendors
from agent.sweep import sweep
from chain.rpc import Rpc
from chain.token import TokenReader
from outbound.http import HttpClient
from tests.fixtures.world import SECRETS, World, replace_agent
from wire.money import BASE_SEPOLIA_USDC

HOUR = 3_600


def paid_submissions(world: World) -> list[httpx.Request]:
    return [request for request in world.hosts.calls("/submit-job") if "payment-signature" in request.headers]


def lapse(world: World) -> None:
    """Let the chain's finalised time pass every cheque's last second."""
    world.chain.increase_time(HOUR)
    world.chain.mine(3)


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


@pytest.mark.row(20)
@pytest.mark.slow
async def test_a_vendor_that_hangs_after_settling_is_found_again_by_the_payments_id(world: World) -> None:
    world.script(timeouts_after_settling=2)
    http = HttpClient(world.hosts)
    replace_agent(world, vendors=HttpVendors(http, SECRETS, submit_s=2.0))
    run_id = await world.start()
    assert (await world.tick(run_id)).message == "Payment pending"
    run = await world.until_ended(run_id)
    assert (run.status, len(run.jobs), len(run.payments)) == ("completed", 1, 1)
    assert len({request.headers["payment-signature"] for request in paid_submissions(world)}) == 1
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


async def test_a_chain_that_is_away_stops_the_tick_and_loses_nothing(world: World) -> None:
    run_id = await world.start()
    there = world.agent.chain
    away = EvmChain(TokenReader(Rpc("http://127.0.0.1:9", HttpClient()), BASE_SEPOLIA_USDC))
    replace_agent(world, chain=away)
    for _ in range(2):
        with pytest.raises(ChainUnavailable):
            await world.tick(run_id)
    assert (await world.store.read_run(run_id)).payments == ()
    assert paid_submissions(world) == []

    # Gone again between the submission and the question whether it was paid.
    replace_agent(world, chain=there)
    await world.tick(run_id)
    replace_agent(world, chain=there)
    run = await world.until_ended(run_id)
    assert (run.status, len(run.jobs), len(run.payments)) == ("completed", 1, 1)
    await world.check_books()


async def test_a_silent_vendor_is_not_a_failed_job_before_k_polls_over_time(world: World) -> None:
    world.limit(misses_max=3, missed_s_max=600)
    run_id = await world.start("3.5")
    await world.tick(run_id)
    world.hosts.down.add("vendors")
    # Many polls in no time: still not failed.
    for _ in range(4):
        ticked = await world.tick(run_id)
        assert ticked.message == "Job still running"
        assert ticked.run.jobs[0].status == "submitted"
    world.store.ahead = timedelta(seconds=601)
    ticked = await world.tick(run_id)
    assert ticked.message == "Job failed"
    assert str(ticked.run.jobs[0].error_message).startswith("job_lost: ")
    world.hosts.down.clear()
    run = await world.until_ended(run_id)
    assert (run.status, run.jobs[1].vendor_id) == ("completed", "gpu_vendor_2")
    assert run.budget.spent_atomic == 3_200_000
    await world.check_books()


async def test_a_vendor_that_answers_again_is_forgiven_its_silence(world: World) -> None:
    world.limit(misses_max=2, missed_s_max=600)
    run_id = await world.start()
    await world.tick(run_id)
    world.hosts.down.add("vendors")
    await world.tick(run_id)
    world.hosts.down.clear()
    await world.tick(run_id)
    world.store.ahead = timedelta(seconds=700)
    world.hosts.down.add("vendors")
    assert (await world.tick(run_id)).run.jobs[0].misses == 1
    world.hosts.down.clear()
    assert (await world.until_ended(run_id)).status == "completed"
    await world.check_books()


async def test_a_vendor_removed_while_its_job_runs_is_waited_for(world: World) -> None:
    run_id = await world.start()
    await world.tick(run_id)
    await world.store.remove_vendor("gpu_vendor_1")
    ticked = await world.tick(run_id)
    assert ticked.run.jobs[0].status == "submitted"
    assert any("missing vendor configuration" in line for line in await world.lines(run_id, "error"))
    await world.store.put_vendor(world.vendors[0], replace=False)
    run = await world.until_ended(run_id)
    assert (run.status, len(run.jobs)) == ("completed", 1)
    await world.check_books()


async def test_a_vendor_removed_while_its_payment_is_open_does_not_hide_what_was_paid(world: World) -> None:
    world.hosts.lose_replies("/submit-job")
    run_id = await world.start()
    await world.tick(run_id)
    await world.store.remove_vendor("gpu_vendor_1")
    ticked = await world.tick(run_id)
    assert ticked.run.payments[0].status == "completed"
    assert len(ticked.run.jobs) == 1
    await world.store.put_vendor(world.vendors[0], replace=False)
    run = await world.until_ended(run_id)
    assert (run.status, len(run.payments)) == ("completed", 1)
    await world.check_books()


# What the announced refund says instead of the truth: half of 1.4 USDC, in the transaction that sent it.
LIES: dict[str, dict[str, Any]] = {
    "another amount": {"amount": 0.8},
    "more than was paid": {"amount": 1.5},
    "another asset": {"asset": "0x" + "ab" * 20},
    "another network": {"network": "eip155:1"},
    "no hash": {"transaction": "0xabc"},
    "a transaction that is not there": {"transaction": "0x" + "ab" * 32},
}


@pytest.mark.parametrize("lie", [*LIES, "our own payment"])
async def test_a_refund_that_the_chain_does_not_show_is_not_counted(world: World, lie: str) -> None:
    world.script(fail_at_epoch=1)
    world.limit(refund_wait_s=0)

    def falsify(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path != "/job-status" or request.headers["x-vendor-id"] != "gpu_vendor_1":
            return response
        document: dict[str, Any] = response.json()
        document["refund"] |= LIES.get(lie) or {"transaction": world.store.saved[-1].payments[0].transaction}
        return httpx.Response(200, json=document)

    world.hosts.meddle = falsify
    run_id = await world.start("3.5")
    run = await world.until_ended(run_id)
    assert run.status == "completed"
    assert run.payments[0].status == "completed"
    assert run.payments[0].refunded_atomic == 0
    assert run.budget.spent_atomic == 3_200_000
    # The vendor did send half: what it misreported is its gift until it is announced truly.
    assert world.balances()["payer"] - world.before["payer"] == -3_200_000 + 700_000


async def test_a_refund_that_comes_after_the_runs_end_is_counted_by_the_sweep(world: World) -> None:
    world.script(fail_at_epoch=1)
    world.limit(refund_wait_s=0)
    held = world.agent.chain
    replace_agent(world, chain=LateRefunds(held))
    run_id = await world.start("3.5")
    run = await world.until_ended(run_id)
    assert (run.status, run.payments[0].status) == ("completed", "completed")
    assert run.budget.spent_atomic == 3_200_000
    replace_agent(world, chain=held)
    world.store.ahead = timedelta(seconds=1)
    assert [(swept.run_id, swept.message) for swept in await sweep(world.agent)] == [(run_id, "Refund received")]
    run = await world.store.read_run(run_id)
    assert (run.status, run.payments[0].status) == ("completed", "refunded")
    assert run.budget.spent_atomic == 2_500_000
    assert run.next_tick_at is None
    assert await sweep(world.agent) == []
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


async def test_a_chain_that_is_away_does_not_keep_the_sweep_from_other_runs(world: World) -> None:
    world.script(fail_at_epoch=1)
    world.limit(refund_wait_s=0)
    there = world.agent.chain
    replace_agent(world, chain=LateRefunds(there))
    ended = await world.start("3.5")
    await world.until_ended(ended)
    waiting = await world.start(deadline=await world.store.now())
    world.store.ahead = timedelta(seconds=1)
    replace_agent(world, chain=EvmChain(TokenReader(Rpc("http://127.0.0.1:9", HttpClient()), BASE_SEPOLIA_USDC)))
    swept = {swept.run_id: swept.message for swept in await sweep(world.agent)}
    assert swept[ended].startswith("chain_unavailable")
    assert swept[waiting] == "Run aborted"


async def test_the_sweep_serves_due_runs_and_one_runs_trouble_does_not_stop_the_others(world: World) -> None:
    first, second = await world.start(), await world.start()
    claim = await world.store.claim(first, 60)
    swept = {swept.run_id: swept.message for swept in await sweep(world.agent)}
    assert swept == {first: "Busy", second: "Job started"}
    await world.store.release(first, claim.token, claim.now)
    # The second has nothing to do for a while.
    assert [swept.run_id for swept in await sweep(world.agent)] == [first]
    world.store.ahead = timedelta(minutes=1)
    for _ in range(4):
        await sweep(world.agent)
        world.store.ahead += timedelta(minutes=1)
    assert {run.status for run in await world.check_books()} == {"completed"}


class LateRefunds:
    """A chain on which no refund has arrived yet."""

    def __init__(self, chain: Any) -> None:
        self._chain = chain

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chain, name)

    async def transfers(self, *_: Any) -> list[Any]:
        return []
