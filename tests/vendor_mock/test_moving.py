"""What a mock does for buyers that move their jobs: a checkpoint per epoch, a vendor that is heard of no more."""

from decimal import Decimal
from typing import Any

import pytest

from tests.contracts.vendor_place import Outside
from tests.vendor_mock.conftest import Open
from tests.vendor_mock.world import Buyer, new_payment_id, read
from vendor_mock.catalogue import VendorPlan
from vendor_mock.faults import Faults
from wire import decimal_json

pytestmark = pytest.mark.slow


def plans(*, every: int | None = 1, **faults: Any) -> tuple[VendorPlan, ...]:
    made = {"checkpoints_every": every, "price_per_hour": Decimal(1)}
    return (
        VendorPlan(vendor_id="gpu_vendor_1", name="Gone", faults=Faults(**faults), **made),
        VendorPlan(vendor_id="gpu_vendor_2", name="There", **made),
    )


@pytest.fixture
def outside() -> Outside:
    return Outside()


async def buy(buyer: Buyer, **more: Any) -> str:
    body = decimal_json.loads(await buyer.order()) | more
    order = decimal_json.dumps(body)
    reply = await buyer.post("/submit-job", order, **buyer.sign(await buyer.challenge(order), new_payment_id()))
    assert reply.status_code == 200, reply.text
    return str(read(reply)["vendorJobId"])


async def test_a_vendor_that_vanished_leaves_its_last_checkpoint_and_another_goes_on(
    vendors: Open, payer, outside: Outside
) -> None:
    client = vendors(plans=plans(vanish_at_epoch=3), files=outside)
    first, second = Buyer(client, payer), Buyer(client, payer, 2)
    lost = await buy(first, files=outside.grant("first"))
    for _ in range(2):
        await first.poll(lost)
    for path, params in (("/job-status", {"vendorJobId": lost}), ("/offers", {}), ("/jobs", {})):
        gone = await first.get(path, **params)
        assert (gone.status_code, gone.content) == (502, b"")
    assert outside.manifest("first").step == 2
    job_id = await buy(second, files=outside.grant("second"), resume=outside.resume("first"))
    done = await second.poll(job_id)
    assert (done["status"], done["progress"], done["costSoFar"]) == ("completed", 1, 1)
    assert [line.split(" ")[1] for line in done["logs"]] == ["on", "3/3"]
    assert outside.manifest("second").step == 3
    client.app.state.shop.faults.script("gpu_vendor_1", Faults())
    assert (await first.poll(lost))["status"] == "completed"


async def test_a_checkpoint_comes_every_so_many_epochs_and_costs_of_a_rest_are_of_the_rest(
    vendors: Open, payer, outside: Outside
) -> None:
    buyer = Buyer(vendors(plans=plans(every=2), files=outside), payer)
    job_id = await buy(buyer, files=outside.grant("first"))
    assert "checkpoint" not in await buyer.poll(job_id)
    assert (await buyer.poll(job_id))["checkpoint"]["step"] == 2
    rest = await buy(buyer, files=outside.grant("second"), resume=outside.resume("first"))
    cancelled = read(await buyer.post("/cancel-job", {"vendorJobId": rest}))
    assert (cancelled["costSoFar"], cancelled["progress"]) == (0, Decimal("0.7"))
    assert cancelled["refund"]["amount"] == 1


async def test_a_store_that_takes_nothing_holds_up_no_job(vendors: Open, payer, outside: Outside) -> None:
    buyer = Buyer(vendors(plans=plans(), files=outside), payer)
    job_id = await buy(buyer, files=outside.grant("first") | {"token": "of somebody else, long ago"})
    polls = [await buyer.poll(job_id) for _ in range(3)]
    assert (polls[-1]["status"], "checkpoint" in polls[-1], outside.files) == ("completed", False, {})
