"""Paid jobs: one payment is one job; it runs, ends, and what was not used comes back on the chain."""

import asyncio
import hashlib
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import httpx
import pytest
from fastapi import FastAPI

from chain.devchain import DevChain, dev_account
from tests.vendor_mock.conftest import Open
from tests.vendor_mock.world import Buyer, code, new_payment_id, read
from vendor_mock.catalogue import FIRST_DEV_ACCOUNT, Gpu, VendorPlan
from vendor_mock.faults import Faults
from wire import decimal_json
from wire.money import BASE_SEPOLIA_USDC
from wire.vendor import ArtifactsReply, JobStatus
from wire.x402 import SettleResponse, decode_header

pytestmark = pytest.mark.slow

VENDOR_1 = dev_account(FIRST_DEV_ACCOUNT).address


def _moved(chain: DevChain, refund: dict) -> tuple[str, str, Decimal]:
    """Return sender, receiver and value of the Transfer in the refund's transaction."""
    (log,) = chain.rpc("eth_getTransactionReceipt", refund["transaction"])["logs"]
    assert log["address"].lower() == refund["asset"].lower() == BASE_SEPOLIA_USDC.address.lower()
    sender, receiver = ("0x" + topic[-40:] for topic in log["topics"][1:])
    return sender, receiver, Decimal(int(log["data"], 16)).scaleb(-6)


@pytest.mark.row(32)
@pytest.mark.row(40)
async def test_a_paid_submission_settles_on_the_chain_and_starts_a_job(buyer: Buyer, chain: DevChain):
    order, payment_id = await buyer.order(), new_payment_id()
    headers = buyer.sign(await buyer.challenge(order), payment_id)

    reply = await buyer.post("/submit-job", order, **headers)

    assert reply.status_code == 200
    submitted = read(reply)
    assert submitted["status"] == "submitted"
    settled = decode_header(SettleResponse, reply.headers["payment-response"])
    assert submitted["paymentTxId"] == settled.transaction
    assert chain.balance(VENDOR_1) == 1_400_000
    (found,) = read(await buyer.get("/jobs", key=payment_id))["jobs"]
    assert datetime.now(UTC) - datetime.fromisoformat(found.pop("startedAt")) < timedelta(minutes=1)
    assert found == {"vendorJobId": submitted["vendorJobId"], "status": "submitted", "paymentId": payment_id}


@pytest.mark.row(40)
async def test_a_payment_is_checked_before_any_job(vendors: Open, payer, chain: DevChain):
    client = vendors()
    buyer, thief = Buyer(client, payer), Buyer(client, dev_account(8))
    order, payment_id = await buyer.order(), new_payment_id()
    challenge = await buyer.challenge(order)
    cheaper = await buyer.challenge(await buyer.order("0.5"))
    elsewhere = challenge.model_copy(
        update={"accepts": (challenge.accepts[0].model_copy(update={"pay_to": payer.address}),)}
    )

    for wrong in (cheaper, elsewhere):
        assert code(await buyer.post("/submit-job", order, **buyer.sign(wrong, payment_id))) == "payment_invalid"
    assert code(await buyer.post("/submit-job", order, **thief.sign(challenge, payment_id))) == "payment_invalid"
    assert (await buyer.post("/submit-job", order, **{"PAYMENT-SIGNATURE": "abc"})).status_code == 400
    assert read(await buyer.get("/jobs", key=payment_id)) == {"jobs": []}
    assert chain.balance(VENDOR_1) == 0


async def test_the_same_payment_ten_times_at_once_is_one_job_and_one_transaction(buyer: Buyer, chain: DevChain):
    order = await buyer.order()
    headers = buyer.sign(await buyer.challenge(order), new_payment_id())
    before = int(chain.rpc("eth_blockNumber"), 16)

    replies = await asyncio.gather(*(buyer.post("/submit-job", order, **headers) for _ in range(10)))

    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.content for reply in replies}) == 1
    assert int(chain.rpc("eth_blockNumber"), 16) == before + 1
    assert chain.balance(VENDOR_1) == 1_400_000


async def test_another_body_under_the_same_payment_is_409(buyer: Buyer, chain: DevChain):
    order, other = await buyer.order(), await buyer.order()
    headers = buyer.sign(await buyer.challenge(order), new_payment_id())
    first = await buyer.post("/submit-job", order, **headers)

    assert code(await buyer.post("/submit-job", other, **headers)) == "payment_conflict"
    assert (await buyer.post("/submit-job", order, **headers)).content == first.content
    assert chain.balance(VENDOR_1) == 1_400_000


async def test_a_replay_after_a_restart_gets_the_same_answer(vendors: Open, payer):
    buyer = Buyer(vendors(), payer)
    order = await buyer.order()
    headers = buyer.sign(await buyer.challenge(order), new_payment_id())
    first = await buyer.post("/submit-job", order, **headers)

    again = await Buyer(vendors(), payer).post("/submit-job", order, **headers)

    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["payment-response"] == first.headers["payment-response"]


@pytest.mark.row(41)
@pytest.mark.row(33)
async def test_a_job_moves_one_epoch_per_poll_and_completes_at_the_third(buyer: Buyer):
    job_id = await buyer.buy()

    first, second, third = [await buyer.poll(job_id) for _ in range(3)]

    assert [poll["progress"] for poll in (first, second, third)] == [Decimal("0.35"), Decimal("0.7"), 1]
    assert [poll["status"] for poll in (first, second, third)] == ["running", "running", "completed"]
    assert third["logs"] == ["Epoch 1/3 loss=1.5", "Epoch 2/3 loss=0.75", "Epoch 3/3 loss=0.5"]
    assert third["finalMetrics"] == {"loss": Decimal("0.78"), "val_accuracy": Decimal("0.87")}
    assert [poll["costSoFar"] for poll in (first, second, third)] == [Decimal("0.49"), Decimal("0.98"), Decimal("1.4")]
    assert [poll["estimatedRemainingMinutes"] for poll in (first, second, third)] == [39, 18, 0]
    assert "refund" not in third
    assert "errorMessage" not in third
    assert "artifactUrl" not in second
    assert await buyer.poll(job_id) == third


async def test_a_cursor_brings_the_new_lines_only(buyer: Buyer):
    job_id = await buyer.buy()
    first = await buyer.poll(job_id)
    second = await buyer.poll(job_id, since=first["cursor"])
    await buyer.poll(job_id, since=second["cursor"])

    assert second["logs"] == ["Epoch 2/3 loss=0.75"]
    assert (await buyer.poll(job_id, since=first["cursor"]))["logs"] == ["Epoch 2/3 loss=0.75", "Epoch 3/3 loss=0.5"]
    assert (await buyer.poll(job_id, since="line-999"))["logs"] == []
    assert len((await buyer.poll(job_id))["logs"]) == 3


async def test_a_cancellation_brings_the_lines_since_a_cursor_only(buyer: Buyer):
    job_id = await buyer.buy()
    first = await buyer.poll(job_id)

    refused = await buyer.post("/cancel-job", {"vendorJobId": job_id, "since": "yesterday"})
    cancelled = read(await buyer.post("/cancel-job", {"vendorJobId": job_id, "since": first["cursor"]}))

    assert (refused.status_code, code(refused)) == (422, "invalid_field")
    assert cancelled["logs"] == ["Cancelled by the buyer"]
    assert (await buyer.poll(job_id, since=cancelled["cursor"]))["logs"] == []
    again = read(await buyer.post("/cancel-job", {"vendorJobId": job_id}))
    assert again == {**cancelled, "logs": ["Epoch 1/3 loss=1.5", "Cancelled by the buyer"]}


async def test_no_other_request_moves_a_job(vendors: Open, payer):
    client, payment_id = vendors(), new_payment_id()
    buyer = Buyer(client, payer)
    job_id = await buyer.buy(payment_id=payment_id)

    for path, params in (("/jobs", {"key": payment_id}), ("/offers", {}), (f"/artifacts/{job_id}", {})):
        assert (await buyer.get(path, **params)).status_code == 200
    assert code(await Buyer(client, payer, 2).get("/job-status", vendorJobId=job_id)) == "job_not_found"
    assert (await buyer.poll(job_id))["progress"] == Decimal("0.35")


async def test_jobs_survive_a_restart(vendors: Open, payer):
    job_id = await Buyer(vendors(), payer).buy()
    await Buyer(vendors(), payer).poll(job_id)

    assert (await Buyer(vendors(), payer).poll(job_id))["progress"] == Decimal("0.7")


async def test_with_epoch_seconds_a_job_moves_by_time(vendors: Open, payer):
    now_s = [1_800_000_000.0]
    buyer = Buyer(vendors(epoch_seconds=Decimal("2.5"), clock=lambda: now_s[0]), payer)
    job_id = await buyer.buy()

    async def after(seconds: float) -> tuple:
        now_s[0] += seconds
        poll = await buyer.poll(job_id)
        return poll["status"], poll["progress"]

    assert await after(2.4) == ("running", 0)
    assert await after(0.1) == ("running", Decimal("0.35"))
    assert await after(0) == ("running", Decimal("0.35"))
    assert await after(100) == ("completed", 1)


@pytest.mark.row(42)
@pytest.mark.parametrize("settings", [{"fail_rate": 1.0}, {"fail_vendor_id": "gpu_vendor_1"}])
async def test_a_failed_job_gives_half_back_on_the_chain(vendors: Open, payer, chain: DevChain, settings):
    buyer = Buyer(vendors(**settings), payer)
    before = chain.balance(payer.address)
    job_id = await buyer.buy()
    polls = [await buyer.poll(job_id) for _ in range(3)]

    assert [poll["status"] for poll in polls] == ["running", "running", "failed"]
    failed = polls[-1]
    assert failed["errorMessage"] == "simulated failure"
    assert failed["costSoFar"] == Decimal("0.7")
    assert failed["progress"] == Decimal("0.7")
    assert failed["logs"][-1] == "Epoch 3/3 failed: simulated failure"
    assert "finalMetrics" not in failed
    assert (failed["refund"]["amount"], failed["refund"]["network"]) == (Decimal("0.7"), BASE_SEPOLIA_USDC.network)
    assert _moved(chain, failed["refund"]) == (VENDOR_1.lower(), payer.address.lower(), Decimal("0.7"))
    assert chain.balance(payer.address) == before - 700_000
    assert await buyer.poll(job_id) == failed


@pytest.mark.parametrize(
    ("reliability", "settings", "end"),
    [
        ("1", {}, "completed"),
        ("0", {}, "failed"),
        ("0", {"fail_rate": 0.0}, "completed"),
        ("1", {"fail_rate": 1.0}, "failed"),
    ],
)
async def test_a_vendor_is_as_reliable_as_its_plan_says_unless_a_rate_is_set(
    vendors: Open, payer, reliability, settings, end
):
    plan = VendorPlan(vendor_id="gpu_vendor_1", name="Mine", reliability=Decimal(reliability))
    buyer = Buyer(vendors(plans=(plan,), **settings), payer)
    job_id = await buyer.buy()

    assert [(await buyer.poll(job_id))["status"] for _ in range(3)][-1] == end


@pytest.mark.row(42)
async def test_the_failing_vendor_is_the_only_one_that_fails(vendors: Open, payer):
    client = vendors(fail_vendor_id="gpu_vendor_1")
    buyer = Buyer(client, payer, 2)
    job_id = await buyer.buy()

    assert [(await buyer.poll(job_id))["status"] for _ in range(3)][-1] == "completed"


async def test_an_odd_price_splits_without_a_loss(vendors: Open, payer):
    plan = VendorPlan(vendor_id="gpu_vendor_1", name="Odd", price_per_hour=Decimal("0.000003"))
    buyer = Buyer(vendors(plans=(plan,), fail_rate=1.0), payer)
    job_id = await buyer.buy()
    failed = [await buyer.poll(job_id) for _ in range(3)][-1]

    assert (failed["costSoFar"], failed["refund"]["amount"]) == (Decimal("0.000002"), Decimal("0.000001"))


async def test_a_job_too_cheap_to_halve_owes_nothing(vendors: Open, payer):
    plan = VendorPlan(vendor_id="gpu_vendor_1", name="Odd", price_per_hour=Decimal("0.000001"))
    buyer = Buyer(vendors(plans=(plan,), fail_rate=1.0), payer)
    job_id = await buyer.buy()
    failed = [await buyer.poll(job_id) for _ in range(3)][-1]

    assert failed["costSoFar"] == Decimal("0.000001")
    assert "refund" not in failed


@pytest.mark.row(34)
@pytest.mark.parametrize(("polls", "cost", "refund"), [(0, "0", "1.4"), (1, "0.49", "0.91"), (2, "0.98", "0.42")])
async def test_a_cancelled_job_gives_the_unused_part_back(buyer: Buyer, chain: DevChain, polls, cost, refund):
    before = chain.balance(buyer.payer.address)
    job_id = await buyer.buy()
    for _ in range(polls):
        await buyer.poll(job_id)

    cancelled = read(await buyer.post("/cancel-job", {"vendorJobId": job_id}))

    JobStatus.model_validate(cancelled)
    assert (cancelled["status"], cancelled["costSoFar"]) == ("cancelled", Decimal(cost))
    assert _moved(chain, cancelled["refund"]) == (VENDOR_1.lower(), buyer.payer.address.lower(), Decimal(refund))
    assert chain.balance(buyer.payer.address) == before - int(Decimal(cost).scaleb(6))
    assert cancelled["logs"][-1] == "Cancelled by the buyer"
    assert read(await buyer.post("/cancel-job", {"vendorJobId": job_id})) == cancelled
    assert await buyer.poll(job_id) == cancelled


async def test_a_finished_job_cannot_be_cancelled(buyer: Buyer):
    job_id = await buyer.buy()
    completed = [await buyer.poll(job_id) for _ in range(3)][-1]

    assert read(await buyer.post("/cancel-job", {"vendorJobId": job_id})) == completed


async def test_a_refund_waits_for_the_chain_and_is_told_when_it_is_there(vendors: Open, payer, chain: DevChain, caplog):
    job_id = await Buyer(vendors(), payer).buy()
    unreachable = Buyer(vendors(rpc_url="http://127.0.0.1:9/v2/hidden"), payer)

    reply = await unreachable.post("/cancel-job", {"vendorJobId": job_id})

    assert (reply.status_code, code(reply), reply.headers["retry-after"]) == (503, "chain_unavailable", "1")
    assert read(reply)["detail"] == "the chain does not answer, or a transfer is not mined yet; ask again"
    assert "POST http://127.0.0.1:9: " in caplog.text
    assert "hidden" not in caplog.text
    polled = await Buyer(vendors(), payer).poll(job_id)
    assert (polled["status"], polled["refund"]["amount"]) == ("cancelled", Decimal("1.4"))
    assert chain.balance(VENDOR_1) == 0


async def test_the_artifacts_of_a_job_are_what_they_say(vendors: Open, payer):
    client = vendors()
    buyer = Buyer(client, payer)
    job_id = await buyer.buy()
    assert read(await buyer.get(f"/artifacts/{job_id}")) == {"artifacts": []}
    completed = [await buyer.poll(job_id) for _ in range(3)][-1]

    listed = ArtifactsReply.from_json((await buyer.get(f"/artifacts/{job_id}")).content).artifacts

    assert [artifact.name for artifact in listed] == ["model.json", "training.log"]
    assert completed["artifactUrl"] == listed[0].url
    for artifact in listed:
        fetched = await client.get(artifact.url)
        assert fetched.status_code == 200
        assert (len(fetched.content), hashlib.sha256(fetched.content).hexdigest()) == (artifact.bytes, artifact.sha256)
        assert code(await client.get(artifact.url[:-1])) == "not_found"
        assert code(await client.get(artifact.url.partition("?")[0])) == "not_found"
    assert fetched.content == b"Epoch 1/3 loss=1.5\nEpoch 2/3 loss=0.75\nEpoch 3/3 loss=0.5\n"


async def test_a_failed_job_leaves_its_log(vendors: Open, payer):
    buyer = Buyer(vendors(fail_rate=1.0), payer)
    job_id = await buyer.buy()
    failed = [await buyer.poll(job_id) for _ in range(3)][-1]

    listed = read(await buyer.get(f"/artifacts/{job_id}"))["artifacts"]

    assert [artifact["name"] for artifact in listed] == ["training.log"]
    assert "artifactUrl" not in failed


async def test_a_full_vendor_charges_nothing(vendors: Open, payer, chain: DevChain):
    plan = VendorPlan(vendor_id="gpu_vendor_1", name="Small", gpus=(Gpu(gpu_type="A10", count=1),))
    buyer = Buyer(vendors(plans=(plan,)), payer)
    order = await buyer.order()
    job_id = await buyer.buy()
    headers = buyer.sign(await buyer.challenge(order), new_payment_id())
    assert read(await buyer.get("/offers"))["offers"][0]["available"] == 0

    assert code(await buyer.post("/submit-job", order, **headers)) == "no_capacity"

    assert chain.balance(VENDOR_1) == 1_400_000
    await buyer.post("/cancel-job", {"vendorJobId": job_id})
    assert (await buyer.post("/submit-job", order, **headers)).status_code == 200


def _with(**faults) -> tuple[VendorPlan, ...]:
    return (VendorPlan(vendor_id="gpu_vendor_1", name="Faulty", faults=Faults(**faults)),)


@pytest.mark.parametrize("epoch", [1, 2])
async def test_a_vendor_can_fail_at_any_epoch(vendors: Open, payer, epoch):
    buyer = Buyer(vendors(plans=_with(fail_at_epoch=epoch)), payer)
    job_id = await buyer.buy()

    polls = [await buyer.poll(job_id) for _ in range(epoch)]

    assert [poll["status"] for poll in polls] == ["running"] * (epoch - 1) + ["failed"]
    assert polls[-1]["costSoFar"] == Decimal("0.7")


async def test_a_vendor_can_lie_about_progress(vendors: Open, payer):
    buyer = Buyer(vendors(plans=_with(lie_about_progress=True)), payer)
    job_id = await buyer.buy()

    assert [(await buyer.poll(job_id))["progress"] for _ in range(3)] == [Decimal("0.64"), Decimal("0.29"), 1]


async def test_a_payment_that_settled_without_an_answer_is_one_job_when_sent_again(
    vendors: Open, payer, chain: DevChain
):
    buyer = Buyer(vendors(plans=_with(timeouts_after_settling=1)), payer)
    order, payment_id = await buyer.order(), new_payment_id()
    headers = buyer.sign(await buyer.challenge(order), payment_id)
    unanswered = asyncio.create_task(buyer.post("/submit-job", order, **headers))
    async with asyncio.timeout(20):
        while not read(await buyer.get("/jobs", key=payment_id))["jobs"]:
            pass  # each question takes its time
        await asyncio.wait([unanswered], timeout=0.2)
    assert not unanswered.done()
    unanswered.cancel()
    assert chain.balance(VENDOR_1) == 1_400_000

    reply = await buyer.post("/submit-job", order, **headers)

    assert reply.status_code == 200
    (found,) = read(await buyer.get("/jobs", key=payment_id))["jobs"]
    assert found["vendorJobId"] == read(reply)["vendorJobId"]
    assert chain.balance(VENDOR_1) == 1_400_000


async def test_a_dead_facilitator_is_503_and_never_a_fresh_402(vendors: Open, payer, chain: DevChain):
    buyer = Buyer(vendors(), payer)
    order = await buyer.order()
    headers = buyer.sign(await buyer.challenge(order), new_payment_id())

    without = Buyer(vendors(transport=httpx.ASGITransport(_dead)), payer)
    reply = await without.post("/submit-job", order, **headers)

    assert (code(reply), reply.headers["retry-after"]) == ("facilitator_unavailable", "1")
    assert "payment-required" not in reply.headers
    assert (await buyer.post("/submit-job", order, **headers)).status_code == 200
    assert chain.balance(VENDOR_1) == 1_400_000


async def _dead(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 503, "headers": []})
    await send({"type": "http.response.body", "body": b"down for maintenance"})


class _Dead(BaseException):
    """The vendors' process dies."""


class _DiesWhenSettled(httpx.ASGITransport):
    """Carries requests to the facilitator; the process dies before it hears that a settlement was made."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await super().handle_async_request(request)
        if request.url.path == "/settle":
            raise _Dead
        return response


async def test_a_crash_between_settlement_and_job_ends_in_the_job(
    vendors: Open, payer, chain: DevChain, facilitator: FastAPI
):
    mortal = Buyer(vendors(transport=_DiesWhenSettled(facilitator)), payer)
    order, payment_id = await mortal.order(), new_payment_id()
    headers = mortal.sign(await mortal.challenge(order), payment_id)
    with pytest.raises(_Dead):
        await mortal.post("/submit-job", order, **headers)
    assert chain.balance(VENDOR_1) == 1_400_000

    reborn = Buyer(vendors(), payer)
    (found,) = read(await reborn.get("/jobs", key=payment_id))["jobs"]
    assert read(await reborn.post("/submit-job", order, **headers))["vendorJobId"] == found["vendorJobId"]
    assert chain.balance(VENDOR_1) == 1_400_000


async def test_a_buyer_sees_what_it_has_running_page_by_page(vendors: Open, payer):
    from storefront.shop import JOBS_PER_PAGE

    client = vendors()
    buyer, other = Buyer(client, payer), Buyer(client, payer, 2)
    shop = client.app.state.shop
    keys = {}
    for number in range(2):
        keys[await buyer.buy(payment_id=f"run_{number:016x}-payment-1")] = f"run_{number:016x}-payment-1"
    listed = read(await buyer.get("/jobs"))
    assert "cursor" not in listed
    assert {job["vendorJobId"]: job["paymentId"] for job in listed["jobs"]} == keys
    assert {job["status"] for job in listed["jobs"]} == {"submitted"}
    assert read(await other.get("/jobs")) == {"jobs": []}

    template = await shop.store.find_job(next(iter(keys)))
    for number in range(JOBS_PER_PAGE):
        copy = replace(template, job_id=f"vgpu_z{number:04}", payment_id=f"pay-{number:016}")
        await shop.store.start_job(copy.payment_id, copy.vendor_id, lambda _, copy=copy: copy)
    first = read(await buyer.get("/jobs"))
    second = read(await buyer.get("/jobs", after=first["cursor"]))
    assert [len(first["jobs"]), len(second["jobs"]), "cursor" in second] == [JOBS_PER_PAGE, 2, False]
    assert len({job["vendorJobId"] for page in (first, second) for job in page["jobs"]}) == JOBS_PER_PAGE + 2

    ended = next(iter(keys))
    await buyer.post("/cancel-job", {"vendorJobId": ended})
    assert ended not in {job["vendorJobId"] for job in read(await buyer.get("/jobs"))["jobs"]}


@pytest.mark.parametrize(
    ("hours", "max_hours", "lives_s"), [("2", None, 7_200), ("2", "0.5", 1_800), ("1", "3", 3_600)]
)
async def test_a_job_ends_by_itself_when_it_has_lived_as_long_as_it_may(
    vendors: Open, payer, hours: str, max_hours: str | None, lives_s: int
):
    ahead = [0.0]
    buyer = Buyer(vendors(clock=lambda: time.time() + ahead[0]), payer)
    order = decimal_json.loads(await buyer.order(hours))
    body = decimal_json.dumps(order | ({} if max_hours is None else {"maxHours": Decimal(max_hours)}))
    headers = buyer.sign(await buyer.challenge(body), new_payment_id())
    job_id = read(await buyer.post("/submit-job", body, **headers))["vendorJobId"]
    ahead[0] = lives_s - 10
    assert (await buyer.poll(job_id))["status"] == "running"
    ahead[0] = lives_s + 1_000
    assert read(await buyer.get("/jobs")) == {"jobs": []}
    status = await buyer.poll(job_id)
    assert (status["status"], status["progress"], "refund" in status) == ("cancelled", Decimal("0.35"), False)
    assert status["logs"][-1] == f"Ended after {lives_s / 3_600:g} h at most, as bought"
    (found,) = read(await buyer.get("/jobs", key=headers["Idempotency-Key"]))["jobs"]
    lived = datetime.fromisoformat(status["endedAt"]) - datetime.fromisoformat(found["startedAt"])
    assert lived == timedelta(seconds=lives_s)
    assert status["costSoFar"] == Decimal(hours) * Decimal("1.4")
