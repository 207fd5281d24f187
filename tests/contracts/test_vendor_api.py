"""The vendor API, kept by everybody who sells: one suite, asked over HTTP, paid on a real chain."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from standardwebhooks import Webhook

from chain.devchain import DevAccount, DevChain
from tests.contracts.mock_place import MockPlace
from tests.contracts.vendor_place import CALLBACK_URL, PlaceBuyer, SellerPlace
from tests.contracts.worker_place import WorkerPlace
from tests.vendor_mock.world import code, new_payment_id, read
from wire.money import BASE_SEPOLIA_USDC
from wire.vendor import ArtifactsReply, JobStatus, OffersReply
from wire.x402 import SettleResponse, decode_header

pytestmark = pytest.mark.slow

WAIT_S = 30
NOWHERE = "http://127.0.0.1:9"


# Who sells: made of an empty folder, the chain's address and what carries requests to the facilitator.
PLACES: Mapping[str, Callable[[Path, str, httpx.AsyncBaseTransport], SellerPlace]] = {
    "mock": MockPlace,
    "worker": WorkerPlace,
}


@pytest.fixture(params=PLACES)
async def place(
    request: pytest.FixtureRequest, tmp_path: Path, chain: DevChain, facilitator: FastAPI
) -> AsyncIterator[SellerPlace]:
    """A seller that is not open yet, of each kind."""
    place = PLACES[request.param](tmp_path, chain.url, httpx.ASGITransport(facilitator))
    yield place
    await place.close()


@pytest.fixture
async def buyer(place: SellerPlace, payer: DevAccount) -> PlaceBuyer:
    return PlaceBuyer(await place.open(), payer, place)


def atomic(amount: Decimal | int) -> int:
    return int(Decimal(amount).scaleb(6))


def check_refund(chain: DevChain, buyer: PlaceBuyer, status: dict[str, Any], price: Decimal) -> None:
    """Assert that what the job did not cost came back, in one transfer that the chain shows."""
    JobStatus.model_validate(status)
    refund = status.get("refund")
    assert status["costSoFar"] + (0 if refund is None else refund["amount"]) == price
    if refund is None:
        return
    (log,) = chain.rpc("eth_getTransactionReceipt", refund["transaction"])["logs"]
    assert log["address"].lower() == refund["asset"].lower() == BASE_SEPOLIA_USDC.address.lower()
    moved = ["0x" + topic[-40:] for topic in log["topics"][1:]]
    assert moved == [buyer.place.pay_to.lower(), buyer.payer.address.lower()]
    assert int(log["data"], 16) == atomic(refund["amount"])


async def price_of(buyer: PlaceBuyer, hours: str = "1") -> Decimal:
    return (await buyer.quote(hours))["priceEstimate"]


async def test_offers_say_what_is_sold_and_who_is_paid(buyer: PlaceBuyer, place: SellerPlace) -> None:
    reply = OffersReply.from_json((await buyer.get("/offers")).content)
    (offer,) = reply.offers
    assert (reply.vendor_id, offer.gpu_type, offer.pay_to) == (place.vendor_id, place.gpu_type, place.pay_to)
    assert (offer.asset, offer.network) == (BASE_SEPOLIA_USDC.address, BASE_SEPOLIA_USDC.network)
    assert offer.price_per_hour > 0
    assert offer.available > 0
    assert offer.job_types == () or place.job_type in offer.job_types


@pytest.mark.row(35)
async def test_nobody_is_heard_without_the_secret(buyer: PlaceBuyer, place: SellerPlace, payer: DevAccount) -> None:
    stranger = PlaceBuyer(buyer.client, payer, place, secret="another-secret")
    for path in ("/offers", "/jobs", "/job-status", "/artifacts/x"):
        assert code(await stranger.get(path)) == "bad_vendor_secret"
    for path in ("/quote", "/submit-job", "/cancel-job"):
        assert code(await stranger.post(path, stranger.request())) == "bad_vendor_secret"
    stranger.headers["x-vendor-id"] = "nobody_known"
    assert code(await stranger.get("/offers")) == "unknown_vendor"
    assert (await buyer.client.get("/health")).status_code == 200


async def test_a_quote_binds_the_submission(buyer: PlaceBuyer, place: SellerPlace) -> None:
    (offer,) = OffersReply.from_json((await buyer.get("/offers")).content).offers
    for hours in ("1", "0.5"):
        price = await price_of(buyer, hours)
        assert price == offer.price_per_hour * Decimal(hours)
        reply = await buyer.post("/submit-job", await buyer.order(hours))
        (asked,) = (await buyer.challenge(await buyer.order(hours))).accepts
        assert (int(asked.amount), asked.pay_to) == (atomic(price), place.pay_to)
        assert len(reply.headers["payment-required"]) < 3_000
    assert code(await buyer.post("/submit-job", {"vendorJobTemplateId": "none", "jobParams": {}})) == (
        "template_not_found"
    )
    assert code(await buyer.post("/quote", buyer.request() | {"gpuType": "no such"})) == "unsupported_gpu"
    assert code(await buyer.post("/quote", buyer.request() | {"maxHours": 0})) == "invalid_field"


async def test_what_is_paid_is_settled_and_started(buyer: PlaceBuyer, place: SellerPlace, chain: DevChain) -> None:
    order, payment_id, price = await buyer.order(), new_payment_id(), await price_of(buyer)
    headers = buyer.sign(await buyer.challenge(order), payment_id)
    reply = await buyer.post("/submit-job", order, **headers)
    assert (reply.status_code, read(reply)["status"]) == (200, "submitted")
    settled = decode_header(SettleResponse, reply.headers["payment-response"])
    assert read(reply)["paymentTxId"] == settled.transaction
    assert chain.balance(place.pay_to) == atomic(price)
    (found,) = read(await buyer.get("/jobs", key=payment_id))["jobs"]
    assert (found["vendorJobId"], found["paymentId"]) == (read(reply)["vendorJobId"], payment_id)
    assert read(await buyer.get("/jobs", key=new_payment_id())) == {"jobs": []}


async def test_ten_at_once_are_one_job_and_another_body_none(
    buyer: PlaceBuyer, place: SellerPlace, chain: DevChain
) -> None:
    order, other = await buyer.order(), await buyer.order()
    headers = buyer.sign(await buyer.challenge(order), new_payment_id())
    replies = await asyncio.gather(*(buyer.post("/submit-job", order, **headers) for _ in range(10)))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.content for reply in replies}) == 1
    assert code(await buyer.post("/submit-job", other, **headers)) == "payment_conflict"
    assert await buyer.running() == [read(replies[0])["vendorJobId"]]
    assert chain.balance(place.pay_to) == atomic(await price_of(buyer))


async def test_a_replay_gets_the_same_answer_after_a_crash(
    buyer: PlaceBuyer, place: SellerPlace, payer: DevAccount, chain: DevChain
) -> None:
    order = await buyer.order()
    headers = buyer.sign(await buyer.challenge(order), new_payment_id())
    first = await buyer.post("/submit-job", order, **headers)
    await place.crash()
    reborn = PlaceBuyer(await place.open(), payer, place)
    again = await reborn.post("/submit-job", order, **headers)
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["payment-response"] == first.headers["payment-response"]
    assert await reborn.running() == [read(first)["vendorJobId"]]


async def test_who_is_not_served_is_told_before_money_moves(
    place: SellerPlace, payer: DevAccount, chain: DevChain
) -> None:
    unwanted = PlaceBuyer(await place.open(refuses=(payer.address,)), payer, place)
    order = await unwanted.order()
    headers = unwanted.sign(await unwanted.challenge(order), new_payment_id())
    assert code(await unwanted.post("/submit-job", order, **headers)) == "payment_invalid"
    assert chain.balance(place.pay_to) == 0
    assert await unwanted.running() == []
    wanted = PlaceBuyer(await place.open(), payer, place)
    assert (await wanted.post("/submit-job", order, **headers)).status_code == 200


async def test_where_there_is_no_room_nothing_is_charged(
    place: SellerPlace, payer: DevAccount, chain: DevChain
) -> None:
    buyer = PlaceBuyer(await place.open(jobs_max=1), payer, place)
    order, price = await buyer.order(), await price_of(buyer)
    job_id = await buyer.take(await buyer.order())
    headers = buyer.sign(await buyer.challenge(order), new_payment_id())
    (offer,) = OffersReply.from_json((await buyer.get("/offers")).content).offers
    assert offer.available == 0
    assert code(await buyer.post("/submit-job", order, **headers)) == "no_capacity"
    assert chain.balance(place.pay_to) == atomic(price)
    await buyer.cancel(job_id)
    assert (await buyer.post("/submit-job", order, **headers)).status_code == 200


class _Dead(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(503, content=b"down")


async def test_a_dead_facilitator_is_no_fresh_bill(place: SellerPlace, payer: DevAccount, chain: DevChain) -> None:
    buyer = PlaceBuyer(await place.open(), payer, place)
    order = await buyer.order()
    headers = buyer.sign(await buyer.challenge(order), new_payment_id())
    without = PlaceBuyer(await place.open(facilitator=_Dead()), payer, place)
    reply = await without.post("/submit-job", order, **headers)
    assert (code(reply), reply.headers["retry-after"]) == ("facilitator_unavailable", "1")
    assert "payment-required" not in reply.headers
    again = PlaceBuyer(await place.open(), payer, place)
    assert (await again.post("/submit-job", order, **headers)).status_code == 200


async def test_a_job_runs_to_its_end_and_its_files_are_what_they_say(
    buyer: PlaceBuyer, place: SellerPlace, chain: DevChain
) -> None:
    job_id, price = await buyer.take(await buyer.order()), await price_of(buyer)
    await place.step(job_id)
    running = await buyer.poll(job_id)
    assert (running["status"], 0 < running["progress"] < 1) == ("running", True)
    assert not {"refund", "endedAt", "artifactUrl", "errorMessage"} & running.keys()
    assert read(await buyer.get(f"/artifacts/{job_id}")) == {"artifacts": []}
    await place.finish(job_id)
    done = await buyer.poll(job_id)
    assert (done["status"], done["progress"]) == ("completed", 1)
    check_refund(chain, buyer, done, price)
    assert await buyer.poll(job_id) == done
    assert await buyer.cancel(job_id) == done
    assert await buyer.running() == []
    listed = ArtifactsReply.from_json((await buyer.get(f"/artifacts/{job_id}")).content).artifacts
    assert done["artifactUrl"] in {artifact.url for artifact in listed}
    for artifact in listed:
        fetched = await buyer.client.get(artifact.url)
        assert fetched.status_code == 200
        assert (len(fetched.content), hashlib.sha256(fetched.content).hexdigest()) == (artifact.bytes, artifact.sha256)
        assert code(await buyer.client.get(artifact.url.partition("?")[0])) == "not_found"


async def test_a_failed_job_says_why_and_leaves_its_log(buyer: PlaceBuyer, place: SellerPlace, chain: DevChain) -> None:
    job_id, price = await buyer.take(await buyer.order()), await price_of(buyer)
    await place.step(job_id)
    await buyer.poll(job_id)
    await place.fail(job_id)
    failed = await buyer.poll(job_id)
    assert (failed["status"], "artifactUrl" in failed, "finalMetrics" in failed) == ("failed", False, False)
    assert failed["errorMessage"]
    check_refund(chain, buyer, failed, price)
    listed = ArtifactsReply.from_json((await buyer.get(f"/artifacts/{job_id}")).content).artifacts
    assert [artifact.name for artifact in listed if artifact.name.endswith(".log") or "log" in artifact.name]


@pytest.mark.row(34)
@pytest.mark.parametrize("steps", [0, 1, 2])
async def test_a_cancelled_job_gives_back_what_was_not_used(
    buyer: PlaceBuyer, place: SellerPlace, chain: DevChain, steps: int
) -> None:
    before = chain.balance(buyer.payer.address)
    job_id, price = await buyer.take(await buyer.order()), await price_of(buyer)
    for _ in range(steps):
        await place.step(job_id)
        await buyer.poll(job_id)
    cancelled = await buyer.cancel(job_id)
    assert (cancelled["status"], cancelled["refund"]["amount"] > 0) == ("cancelled", True)
    check_refund(chain, buyer, cancelled, price)
    assert chain.balance(buyer.payer.address) == before - atomic(cancelled["costSoFar"])
    assert await buyer.cancel(job_id) == cancelled
    await place.step(job_id)
    assert await buyer.poll(job_id) == cancelled
    assert await buyer.running() == []


async def test_ten_cancellations_at_once_are_one_refund(buyer: PlaceBuyer, place: SellerPlace, chain: DevChain) -> None:
    before = chain.balance(buyer.payer.address)
    job_id = await buyer.take(await buyer.order())
    await place.step(job_id)
    told = await asyncio.gather(*(buyer.cancel(job_id) for _ in range(10)))
    assert all(status == told[0] for status in told)
    assert chain.balance(buyer.payer.address) == before - atomic(told[0]["costSoFar"])


async def test_a_cursor_brings_everything_once_over_a_restart_too(
    buyer: PlaceBuyer, place: SellerPlace, payer: DevAccount
) -> None:
    job_id = await buyer.take(await buyer.order())
    told: list[dict[str, Any]] = []
    since: dict[str, str] = {}
    for _ in range(3):
        await place.step(job_id)
        told.append(await buyer.poll(job_id, **since))
        since = {"since": told[-1]["cursor"]}
        nothing = await buyer.poll(job_id, **since)
        assert (nothing["logs"], nothing["metrics"], nothing["cursor"]) == ([], [], since["since"])
        await place.crash()
        buyer = PlaceBuyer(await place.open(), payer, place)
    await place.finish(job_id)
    told.append(await buyer.poll(job_id, **since))
    whole = await buyer.poll(job_id)
    assert whole["logs"]
    for name in ("logs", "metrics"):
        assert [item for part in told for item in part[name]] == whole[name]
    assert whole["cursor"] == told[-1]["cursor"]


async def test_a_cursor_that_was_never_given_moves_nothing(buyer: PlaceBuyer) -> None:
    job_id = await buyer.take(await buyer.order())
    for wrong in ("yesterday", "line-\u0661", "line-" + "9" * 40, "-1"):
        assert code(await buyer.get("/job-status", vendorJobId=job_id, since=wrong)) == "invalid_field"
        assert code(await buyer.post("/cancel-job", {"vendorJobId": job_id, "since": wrong})) == "invalid_field"
    assert await buyer.running() == [job_id]
    assert code(await buyer.get("/job-status", vendorJobId="zz")) == "job_not_found"
    assert code(await buyer.post("/cancel-job", {"vendorJobId": "zz"})) == "job_not_found"
    assert code(await buyer.get("/artifacts/zz")) == "job_not_found"


async def test_a_buyer_sees_what_it_has_running(buyer: PlaceBuyer, place: SellerPlace) -> None:
    bought = [await buyer.take(await buyer.order()) for _ in range(3)]
    assert sorted(await buyer.running()) == sorted(bought)
    await buyer.cancel(bought[0])
    assert sorted(await buyer.running()) == sorted(bought[1:])


async def test_a_refund_waits_for_the_chain_and_needs_nobody_to_ask(
    buyer: PlaceBuyer, place: SellerPlace, payer: DevAccount, chain: DevChain
) -> None:
    job_id, price = await buyer.take(await buyer.order()), await price_of(buyer)
    cut_off = PlaceBuyer(await place.open(rpc_url=NOWHERE), payer, place)
    reply = await cut_off.post("/cancel-job", {"vendorJobId": job_id})
    assert (reply.status_code, code(reply), reply.headers["retry-after"]) == (503, "chain_unavailable", "1")
    assert code(await cut_off.get("/job-status", vendorJobId=job_id)) == "chain_unavailable"
    before = chain.balance(payer.address)
    reborn = PlaceBuyer(await place.open(), payer, place)
    async with asyncio.timeout(WAIT_S):
        # Opening it is all that is done: nobody asks about the job.
        while chain.balance(payer.address) == before:
            await reborn.client.get("/health")
    assert chain.balance(payer.address) == before + atomic(price)
    check_refund(chain, reborn, await reborn.poll(job_id), price)
    assert chain.balance(payer.address) == before + atomic(price)


async def test_the_buyer_is_called_when_a_job_has_ended_and_what_is_owed_is_paid(
    buyer: PlaceBuyer, place: SellerPlace, chain: DevChain
) -> None:
    price = await price_of(buyer)
    job_id = await buyer.take(await buyer.order(callbackUrl=CALLBACK_URL))
    await place.step(job_id)
    await place.fail(job_id)
    await asyncio.wait_for(place.outside.called.wait(), WAIT_S)
    (call,) = place.outside.calls
    told = Webhook(place.secret.encode()).verify(call.content, dict(call.headers))
    assert (told["type"], told["data"]) == ("job.failed", {"vendorJobId": job_id, "status": "failed"})
    assert call.headers["x-vendor-id"] == place.vendor_id
    paid = chain.balance(place.pay_to)
    check_refund(chain, buyer, failed := await buyer.poll(job_id), price)
    assert paid == atomic(failed["costSoFar"])


async def test_a_job_lives_no_longer_than_it_may(buyer: PlaceBuyer, place: SellerPlace, chain: DevChain) -> None:
    price = await price_of(buyer)
    payment_id = new_payment_id()
    job_id = await buyer.take(await buyer.order(maxHours=Decimal("0.002")), payment_id)
    await place.pass_time(9)
    assert await buyer.running() == []
    over = await buyer.poll(job_id)
    assert over["status"] == "cancelled"
    check_refund(chain, buyer, over, price)
    (found,) = read(await buyer.get("/jobs", key=payment_id))["jobs"]
    assert found["status"] == "cancelled"


async def test_whether_a_job_can_move_is_told_at_the_quote(buyer: PlaceBuyer) -> None:
    with_store, without = await buyer.quote(hasFiles=True), await buyer.quote()
    assert (with_store["moves"], with_store["notes"]) == (True, [])
    assert without["moves"] is False
    assert any("cannot move" in note for note in without["notes"])


async def test_a_checkpoint_is_pushed_whole_and_another_job_goes_on_from_it(
    buyer: PlaceBuyer, place: SellerPlace
) -> None:
    outside, price = place.outside, await price_of(buyer)
    first = await buyer.take(await buyer.order(files=outside.grant("first")))
    await place.step(first)
    seen = (await buyer.poll(first))["checkpoint"]
    manifest = outside.manifest("first")
    assert manifest.job_id == first
    assert (seen["step"], seen["steps"], seen["bytes"]) == (manifest.step, manifest.steps, manifest.bytes)
    assert (seen["modelHash"], seen["specHash"]) == (manifest.model_hash, manifest.spec_hash)
    await buyer.cancel(first)
    resumed = {"files": outside.grant("second"), "resume": outside.resume("first")}
    second = await buyer.take(await buyer.order(**resumed))
    begun = await buyer.poll(second)
    assert begun["progress"] >= Decimal(manifest.step) / manifest.steps
    assert begun["costSoFar"] < price / 10
    await place.finish(second)
    assert (await buyer.poll(second))["status"] == "completed"


@pytest.mark.parametrize("field", ["modelHash", "specHash"])
async def test_a_checkpoint_of_another_job_is_refused_before_payment(
    buyer: PlaceBuyer, place: SellerPlace, field: str
) -> None:
    outside = place.outside
    first = await buyer.take(await buyer.order(files=outside.grant("first")))
    await place.step(first)
    await buyer.poll(first)
    resume = outside.resume("first") | {field: "0" * 64}
    order = await buyer.order(files=outside.grant("second"), resume=resume)
    assert code(await buyer.post("/submit-job", order)) == "checkpoint_mismatch"


async def test_a_checkpoint_that_is_not_what_it_says_costs_nothing(
    buyer: PlaceBuyer, place: SellerPlace, chain: DevChain
) -> None:
    outside = place.outside
    first = await buyer.take(await buyer.order(files=outside.grant("first")))
    await place.step(first)
    await buyer.poll(first)
    await buyer.cancel(first)
    before = chain.balance(buyer.payer.address)
    resume = outside.resume("first") | {"manifestSha256": "0" * 64}
    second = await buyer.take(await buyer.order(files=outside.grant("second"), resume=resume))
    await place.step(second)
    async with asyncio.timeout(WAIT_S):
        while (failed := await buyer.poll(second))["status"] not in ("failed", "completed", "cancelled"):
            pass
    assert (failed["status"], failed["costSoFar"], "endedAt" in failed) == ("failed", 0, True)
    assert chain.balance(buyer.payer.address) == before
