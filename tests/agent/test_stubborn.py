"""Vendors that never end, never confirm, refund late or are gone: a run ends all the same, and nothing is lost."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import pytest

from agent.core.errors import ChainUnavailable, NoSigner
from agent.edges.chain_evm import EvmChain
from chain.rpc import Rpc
from chain.token import TokenReader
from outbound.http import HttpClient
from tests.fixtures.world import World, replace_agent
from wire.money import BASE_SEPOLIA_USDC, BASE_USDC

pytestmark = pytest.mark.slow


def _always_running(request: httpx.Request, response: httpx.Response) -> httpx.Response:
    if request.url.path not in ("/job-status", "/cancel-job") or response.status_code != 200:
        return response
    document: dict[str, Any] = response.json() | {"status": "running"}
    document.pop("refund", None)
    return httpx.Response(200, json=document)


async def test_a_job_that_runs_longer_than_was_paid_for_is_cancelled_with_its_refund(world: World) -> None:
    run_id = await world.start("3.5")
    await world.tick(run_id)
    world.hosts.meddle = lambda request, response: (
        response if request.url.path == "/cancel-job" else _always_running(request, response)
    )
    world.store.ahead = timedelta(hours=1, minutes=59)
    assert (await world.tick(run_id)).message == "Job still running"
    world.store.ahead = timedelta(hours=2, minutes=1)
    assert (await world.tick(run_id)).message == "Job cancelled"
    run = await world.store.read_run(run_id)
    assert run.jobs[0].status == "cancelled"
    assert run.payments[0].status == "refunded"
    assert "mode: rule · cancel_jobs · overdue" in (await world.lines(run_id, "agent_reasoning"))[-1]
    await world.check_books()


@pytest.mark.parametrize("wish", ["cancel", "deadline", "overdue"])
async def test_a_vendor_that_never_confirms_a_cancellation_does_not_hold_the_run(world: World, wish: str) -> None:
    world.limit(missed_s_max=600)
    now = await world.store.now()
    more = {"deadline": now + timedelta(minutes=1)} if wish == "deadline" else {}
    run_id = await world.start("1.4", **more)
    await world.tick(run_id)
    world.hosts.meddle = _always_running
    if wish == "cancel":
        await world.store.request_cancel(run_id)
    world.store.ahead = timedelta(hours=2, minutes=1) if wish == "overdue" else timedelta(minutes=2)
    assert (await world.tick(run_id)).message == "Waiting"
    assert (await world.store.read_run(run_id)).jobs[0].status == "running"
    world.store.ahead += timedelta(minutes=11)
    await world.tick(run_id)
    job = (await world.store.read_run(run_id)).jobs[0]
    assert job.status == ("cancelled" if wish == "cancel" else "failed")
    assert "did not confirm the cancellation" in str(job.error_message)
    run = await world.until_ended(run_id)
    assert run.status == ("cancelled" if wish == "cancel" else "failed")


async def test_a_refund_that_is_named_in_a_later_answer_is_asked_for_and_counted(world: World) -> None:
    world.script(fail_at_epoch=2)
    silent = True

    def silence(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if not silent or request.url.path != "/job-status":
            return response
        document: dict[str, Any] = response.json()
        document.pop("refund", None)
        return httpx.Response(response.status_code, json=document)

    world.hosts.meddle = silence
    run_id = await world.start("3.5")
    failed = await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].status == "failed")
    assert failed.budget.spent_atomic == 1_400_000
    silent = False
    run = await world.until_ended(run_id)
    assert [payment.status for payment in run.payments] == ["refunded", "completed"]
    assert run.budget.spent_atomic == 700_000 + 1_800_000
    await world.check_books()


async def test_a_refund_whose_transaction_was_misspelt_is_corrected_by_a_later_answer(world: World) -> None:
    world.script(fail_at_epoch=1)
    world.limit(refund_wait_s=0)
    lies = True

    def misspell(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if not lies or request.url.path != "/job-status" or "refund" not in response.json():
            return response
        document: dict[str, Any] = response.json()
        document["refund"]["transaction"] = "0x" + "cd" * 32
        return httpx.Response(response.status_code, json=document)

    world.hosts.meddle = misspell
    run_id = await world.start("3.5")
    await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].status == "failed")
    lies = False
    run = await world.until_ended(run_id)
    assert run.payments[0].status == "refunded"
    await world.check_books()


async def test_an_older_transfer_of_the_vendor_is_not_a_refund(world: World) -> None:
    """Something the vendor once sent the wallet is money the wallet had before."""
    from chain.abi import call_data

    vendor = world.vendors[0]
    world.chain.rpc("anvil_impersonateAccount", vendor.pay_to)
    world.chain.mint(vendor.pay_to, 700_000)
    call = {
        "from": vendor.pay_to,
        "to": BASE_SEPOLIA_USDC.address,
        "data": call_data("transfer(address,uint256)", world.payer.address, 700_000),
    }
    old = str(world.chain.rpc("eth_sendTransaction", call))
    world.chain.rpc("anvil_stopImpersonatingAccount", vendor.pay_to)
    world.chain.mine(2)
    world.script(fail_at_epoch=1)
    world.limit(refund_wait_s=0)

    def reuse(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path != "/job-status" or "refund" not in response.json():
            return response
        document: dict[str, Any] = response.json()
        document["refund"]["transaction"] = old
        return httpx.Response(response.status_code, json=document)

    world.hosts.meddle = reuse
    for other in world.vendors[1:]:
        await world.store.remove_vendor(other.vendor_id)
    run = await world.until_ended(await world.start("1.4"))
    assert (run.payments[0].status, run.payments[0].refunded_atomic) == ("completed", 0)
    assert run.budget.spent_atomic == 1_400_000


async def test_a_paid_job_that_was_never_started_ends_when_its_vendor_is_gone(world: World) -> None:
    world.hosts.lose_replies("/submit-job", 2)
    run_id = await world.start("1.4")
    await world.tick(run_id)
    run = await world.store.read_run(run_id)
    assert (run.jobs[0].vendor_job_id, run.payments[0].status) == (None, "completed")
    for vendor in world.vendors:
        await world.store.remove_vendor(vendor.vendor_id)
    assert (await world.tick(run_id)).message == "Active job missing vendor configuration"
    world.store.ahead = timedelta(minutes=10)
    assert (await world.tick(run_id)).message == "Job failed"
    job = (await world.store.read_run(run_id)).jobs[0]
    assert str(job.error_message).startswith("vendor_not_registered: ")
    assert await world.store.standings() == []


async def test_a_key_that_is_gone_does_not_keep_running_jobs_from_being_watched(world: World) -> None:
    run_id = await world.start(job={"count": 2})
    await world.tick(run_id)
    replace_agent(world, wallet=None)
    asked = len(world.hosts.calls("/job-status"))
    for _ in range(2):
        with pytest.raises(NoSigner):
            await world.tick(run_id)
    assert len(world.hosts.calls("/job-status")) == asked + 2
    assert (await world.store.read_run(run_id)).jobs[0].progress == Decimal("0.7")


async def test_a_402_above_the_runs_price_per_hour_is_refused_though_its_quote_was_not(world: World) -> None:
    world.script(price_factor=Decimal("1.01"))
    run_id = await world.start("5", maxPricePerHour=Decimal("1.4"))
    await world.tick(run_id)
    run = await world.store.read_run(run_id)
    assert str(run.jobs[0].error_message).startswith("over_hourly_price")
    assert run.payments == ()


async def test_a_node_of_another_chain_is_not_believed(world: World) -> None:
    """On another chain a payment would look as if it had never been made, and could be made again."""
    reader = TokenReader(Rpc(world.chain.url, HttpClient()), BASE_USDC)
    with pytest.raises(ChainUnavailable, match="the node serves chain 84532, the wallet pays on chain 8453"):
        await EvmChain(reader).is_nonce_used(world.payer.address, "0x" + "00" * 32)
