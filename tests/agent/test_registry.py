"""The registry of vendors, their offers, and what a run would do: asked for, never paid for."""

from dataclasses import replace
from decimal import Decimal

import pytest

from agent.core.decide import EndRun, StartJob, Wait
from agent.core.errors import NoVendorSecret, VendorDenied, VendorGarbled
from agent.edges.vendor_http import HttpVendors
from agent.preview import preview
from agent.vendors import offers, register, remove
from outbound.http import HttpClient
from tests.fixtures.world import World, replace_agent
from wire.control import StartRequest

SOMEBODY = "0x" + "ab" * 20


def asked(budget: str = "5") -> StartRequest:
    return StartRequest(goal="x", budget_total=Decimal(budget))


async def test_a_vendor_is_registered_as_its_offers_describe_it(world: World) -> None:
    known = world.vendors[1]
    assert await remove(world.agent, known.vendor_id)
    vendor = await register(world.agent, known.vendor_id, "http://vendors/")
    assert (vendor.name, vendor.endpoint) == ("ReliableGPU", "http://vendors")
    assert (vendor.pay_to, vendor.base_price_per_hour_atomic) == (known.pay_to, 1_800_000)
    assert vendor.supported_gpu_types == ("A10", "A100")
    assert vendor.prices == known.prices
    assert [price.per_hour_atomic for price in vendor.prices] == [1_800_000, 1_800_000]
    assert [one.vendor_id for one in await world.store.list_vendors()][-1] == known.vendor_id
    assert not await remove(world.agent, "nobody")


async def test_a_payee_that_the_owner_named_is_not_changed_by_an_offer(world: World) -> None:
    vendor = await register(world.agent, "gpu_vendor_1", "http://vendors", SOMEBODY)
    assert vendor.pay_to == SOMEBODY
    run = await world.until(await world.start(), lambda run: bool(run.jobs))
    assert str(run.jobs[0].error_message).startswith("wrong_pay_to: ")
    await world.check_books()


async def test_a_vendor_that_offers_nothing_readable_is_not_registered(world: World) -> None:
    await remove(world.agent, "gpu_vendor_1")
    world.script(answer_html=True)
    with pytest.raises(VendorGarbled):
        await register(world.agent, "gpu_vendor_1", "http://vendors")
    world.script()
    world.hosts.change_json("/offers", {"offers": []})
    with pytest.raises(VendorGarbled, match="offers nothing in USDC"):
        await register(world.agent, "gpu_vendor_1", "http://vendors")
    assert len(await world.store.list_vendors()) == 2


async def test_one_vendor_that_fails_does_not_hide_the_others_offers(world: World) -> None:
    world.script("gpu_vendor_2", errors=100)
    found = {one.vendor.vendor_id: one for one in await offers(world.agent)}
    assert found["gpu_vendor_2"].offers == ()
    assert found["gpu_vendor_2"].problem
    assert {offer.price_per_hour for offer in found["gpu_vendor_1"].offers} == {Decimal("1.4")}
    assert found["gpu_vendor_3"].problem is None


@pytest.mark.row(35)
async def test_the_secret_of_one_vendor_is_of_no_use_at_another(world: World) -> None:
    swapped = "gpu_vendor_1=second-secret,gpu_vendor_2=second-secret"
    replace_agent(world, vendors=HttpVendors(HttpClient(world.hosts), swapped))
    with pytest.raises(VendorDenied, match="401"):
        await world.agent.vendors.offers(world.vendors[0])
    # No secret is known for the third.
    with pytest.raises(NoVendorSecret):
        await world.agent.vendors.offers(world.vendors[2])
    run = await world.until(await world.start(), lambda run: bool(run.payments))
    assert str(run.jobs[0].error_message).startswith("vendor_denied: 401")
    assert run.jobs[1].vendor_id == "gpu_vendor_2"
    told = [request for request in world.hosts.seen if "x-vendor-id" in request.headers]
    assert {request.headers["x-vendor-id"] for request in told} == {"gpu_vendor_1", "gpu_vendor_2"}
    assert await world.store.standings() == []
    await world.check_books()


async def test_a_secret_that_is_missing_is_not_held_against_the_vendors(world: World) -> None:
    replace_agent(world, vendors=HttpVendors(HttpClient(world.hosts), ""))
    run = await world.until_ended(await world.start())
    assert [str(job.error_message).partition(":")[0] for job in run.jobs] == ["no_vendor_secret"] * 3
    assert await world.store.standings() == []
    await world.check_books()


async def test_a_dry_run_decides_and_quotes_and_stores_nothing(world: World) -> None:
    shown = await preview(world.agent, asked())
    assert isinstance(shown.action, StartJob)
    assert shown.job is not None
    assert (shown.job.vendor_id, shown.job.expected_cost_atomic, shown.refusal) == ("gpu_vendor_1", 1_400_000, None)
    assert (await world.store.list_runs(None, None, 10)).runs == ()
    assert world.hosts.calls("/submit-job") == []
    assert world.balances() == world.before


async def test_a_dry_run_says_why_nothing_would_be_bought(world: World) -> None:
    poor = await preview(world.agent, asked("0.01"))
    assert isinstance(poor.action, EndRun)
    assert poor.action.reason == "insufficient_budget"
    capped = await preview(
        replace(world.agent, policy=replace(world.agent.policy, payment_atomic_max=1_000_000)), asked()
    )
    assert capped.refusal is not None
    assert capped.refusal.code == "over_payment_cap"
    world.script(answer_html=True)
    garbled = await preview(world.agent, asked())
    assert garbled.refusal is not None
    for vendor in world.vendors:
        await remove(world.agent, vendor.vendor_id)
    alone = await preview(world.agent, asked())
    assert isinstance(alone.action, Wait)
    assert alone.action.message == "No vendors available"
