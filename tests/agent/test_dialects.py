"""
Whole runs in the dialects: a vendor of version 1 is paid, killed around the sending with the same bytes; one that
wants its money before the job is bound is not.
"""

import base64
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.config import AgentSettings
from agent.core.model import Vendor
from agent.tick import tick
from agent.wiring import open_agent
from chain.devchain import DevAccount, DevChain
from tests.agent.killing import Steps, counting, tick_and_die
from tests.agent.vendor_v1 import VendorV1
from tests.contracts.store_values import a_vendor
from tests.fixtures.chain import serving
from tests.fixtures.world import Hosts, WatchedStore, World, agent_settings, balances

pytestmark = pytest.mark.slow

KILLED = -9


@pytest.fixture
def seller_v1(seller: DevAccount, facilitator_url: str) -> VendorV1:
    return VendorV1(pay_to=seller.address, facilitator_url=facilitator_url)


@pytest.fixture
def vendor(seller_v1: VendorV1) -> Iterator[Vendor]:
    with serving(seller_v1.app()) as url:
        yield a_vendor(endpoint=url, pay_to=seller_v1.pay_to)


@pytest.fixture
def settings(tmp_path: Path, chain: DevChain, payer: DevAccount) -> AgentSettings:
    return agent_settings(f"sqlite:///{tmp_path}/agent.db", chain, payer)


@pytest.fixture
async def street(settings: AgentSettings, chain: DevChain, payer: DevAccount, vendor: Vendor) -> AsyncIterator[World]:
    """A world of one vendor, on a socket."""
    agent = open_agent(settings)
    store = WatchedStore(agent.store)
    await store.put_vendor(vendor, replace=False)
    agent = replace(agent, store=store)
    yield World(agent, store, chain, payer, Hosts(), None, (vendor,), balances(chain, payer, (vendor,)))
    await store.close()


@pytest.mark.row(15)
async def test_a_vendor_of_version_1_is_paid_with_x_payment_through_a_whole_run(
    street: World, seller_v1: VendorV1
) -> None:
    run_id = await street.start()
    run = await street.until_ended(run_id)
    assert run.status == "completed"
    (payment,) = run.payments
    assert (payment.dialect, payment.status, seller_v1.paid) == ("x402-v1", "completed", [payment.header])
    sent = json.loads(base64.b64decode(payment.header))
    assert (sent["x402Version"], sent["scheme"], sent["network"]) == (1, "exact", "base-sepolia")
    assert list(seller_v1.jobs) == [payment.payment_id]
    assert seller_v1.jobs[payment.payment_id] == payment.transaction
    (reserved,) = [line for line in await street.lines(run_id, "payment_event") if line.startswith("Reserved")]
    assert "x402-v1" in reserved
    await street.check_books()


async def test_killed_between_sign_and_send_the_same_x_payment_goes_out(
    street: World, settings: AgentSettings, seller_v1: VendorV1
) -> None:
    first, steps = await street.start(), Steps()
    await tick(counting(street.agent, steps), first)
    await street.until_ended(first)
    # It cannot say that it has the job, so that what was sent before the end is sent again.
    seller_v1.forgetful = True
    for moment, sends in (("after wallet.sign", 1), ("before vendors.submit", 1), ("after vendors.submit", 2)):
        run_id, before = await street.start(), len(seller_v1.paid)
        assert tick_and_die(settings, run_id, steps.taken.index(moment) + 1) == KILLED
        run = await street.until_ended(run_id)
        (payment,) = run.payments
        assert (run.status, payment.dialect, payment.status) == ("completed", "x402-v1", "completed"), moment
        assert seller_v1.paid[before:] == [payment.header] * sends, moment
    assert len(seller_v1.jobs) == 4
    await street.check_books()


@pytest.mark.row(15)
@pytest.mark.parametrize(
    ("accepts", "dialect"), [(None, "x402-v2"), (7, "x402-v1"), ([], "x402-v1")], ids=["both", "unreadable", "nothing"]
)
async def test_a_vendor_of_both_versions_is_paid_in_version_2_while_that_can_be_paid(
    world: World, accepts: Any, dialect: str
) -> None:
    def change(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if accepts is not None and response.status_code == 402:
            response.headers["payment-required"] = json.dumps({"x402Version": 2, "accepts": accepts})
        return response

    world.hosts.meddle = change
    run = await world.until_ended(await world.start())
    assert (run.status, [payment.dialect for payment in run.payments]) == ("completed", [dialect])
    await world.check_books()


async def test_a_vendor_that_wants_the_hash_of_a_transfer_is_passed_over_unpaid(world: World) -> None:
    def ask_for_proof(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if response.status_code != 402 or request.headers.get("x-vendor-id") != "gpu_vendor_1":
            return response
        return httpx.Response(402, json={"error": "send 1.4 USDC, then retry with X-Payment-Proof: <tx hash>"})

    world.hosts.meddle = ask_for_proof
    run_id = await world.start()
    run = await world.until_ended(run_id)
    assert [(job.vendor_id, job.status) for job in run.jobs] == [
        ("gpu_vendor_1", "failed"),
        ("gpu_vendor_2", "completed"),
    ]
    assert str(run.jobs[0].error_message).startswith("unsupported_scheme: the 402 wants x-payment-proof")
    await world.check_books()


@pytest.mark.row(19)
async def test_a_dearer_402_of_version_1_is_refused_and_the_refusal_says_what_was_heard(
    street: World, seller_v1: VendorV1
) -> None:
    seller_v1.changes = {"maxAmountRequired": "1500000"}
    street.limit(attempts_max=1)
    run_id = await street.start()
    run = await street.until_ended(run_id)
    assert (run.status, run.payments, seller_v1.paid) == ("failed", (), [])
    assert any("price_mismatch: x402-v1: asked 1500000" in line for line in await street.lines(run_id, "error"))
    await street.check_books()
