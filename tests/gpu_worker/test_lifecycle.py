"""A worker's life in order, and what it says and does where something is missing or breaks."""

import asyncio
import logging
from dataclasses import replace
from decimal import Decimal

import httpx
import pytest

from gpu_worker.core.errors import OwnersFault
from gpu_worker.lifecycle import KEPT_S, live
from tests.gpu_worker.world import PACE, Place, until
from tests.vendor_mock.world import code, new_payment_id, read
from wire import decimal_json

pytestmark = pytest.mark.slow


async def test_it_probes_registers_loads_measures_sells_drains_and_goes(place: Place, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="livery.gpu_worker")
    async with place.lives() as buyer:
        health = read(await buyer.get("/health"))
        entry = decimal_json.loads((place.folder / "worker" / "running.json").read_bytes())
    worker = place.worker
    assert worker is not None
    said = [record.message for record in caplog.records if record.name == "livery.gpu_worker"]
    states = [line.removeprefix("worker is ") for line in said if line.startswith("worker is ")]

    assert states == ["registering", "loading", "measuring", "online"]
    assert [line for line in said if line in ("draining", "final report")] == ["draining", "final report"]
    assert "it sells fine_tune on CPU for 1 USDC an hour" in said
    assert worker.now.state == "gone"
    assert (health["status"], health["state"], health["vendors"]) == ("ok", "online", ["worker"])
    assert (health["address"], health["benchmarkTokPerSec"]) == (place.seller.address, 10_000)
    assert entry["url"] == worker.door.url
    assert not (place.folder / "worker" / "running.json").exists()
    with pytest.raises(httpx.ConnectError):
        async with httpx.AsyncClient() as client:
            await client.get(f"{entry['url']}/health")


async def test_drained_by_its_owner_it_sells_no_more_ends_its_job_and_goes(place: Place):
    place.script(hold_at=15)
    async with place.lives() as buyer:
        worker = place.worker
        assert worker is not None
        job_id = await buyer.buy("1", steps=20)
        await place.at_step(job_id, 14)
        order = buyer.asked("1", 20)
        # A proxy on this machine lends a stranger its address, but tells of him.
        forwarded = {"x-forwarded-for": "203.0.113.9"}
        from_elsewhere = await buyer.client.post(f"{worker.door.url}/api/v1/drain", headers=forwarded)
        was_leaving = worker.now.leaving.is_set()
        drained = await buyer.client.post(f"{worker.door.url}/api/v1/drain")
        refused = await buyer.post("/quote", order)
        offered = read(await buyer.get("/offers"))["offers"][0]["available"]
        status = await buyer.poll(job_id)
        place.script()
        await until(lambda: worker.now.state == "gone")
        job = await place.job(job_id)

    assert (from_elsewhere.status_code, was_leaving) == (404, False)
    assert drained.status_code == 202
    assert (code(refused), offered) == ("draining", 0)
    assert status["status"] == "running"
    assert (job.status, job.step) == ("completed", 20)


class Held(httpx.AsyncBaseTransport):
    """A facilitator that is asked to settle, and takes its time, before it does or after."""

    def __init__(self, facilitator: httpx.AsyncBaseTransport, *, settles: bool = False) -> None:
        self.facilitator, self.settles = facilitator, settles
        self.is_asked, self.may_answer = asyncio.Event(), asyncio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        is_held = request.url.path.endswith("/settle")
        reply = await self.facilitator.handle_async_request(request) if self.settles or not is_held else None
        if is_held:
            self.is_asked.set()
            await self.may_answer.wait()
        return reply or await self.facilitator.handle_async_request(request)


async def test_who_pays_while_the_worker_goes_is_paid_back_before_it_is_gone(place: Place):
    before = place.paid()
    async with place.lives() as buyer:
        worker = place.worker
        assert worker is not None
        held = Held(place.hosts.apps["facilitator"])
        place.hosts.apps["facilitator"] = held
        order = await buyer.order("1")
        headers = {**buyer.headers, **buyer.sign(await buyer.challenge(order), new_payment_id())}
        async with httpx.AsyncClient(base_url=worker.door.local_url, timeout=30) as client:
            paying = asyncio.create_task(client.post("/submit-job", content=order, headers=headers))
            await held.is_asked.wait()
            place.stop.set()
            await until(lambda: worker.now.state == "draining")
            held.may_answer.set()
            paid = await paying
        await until(lambda: worker.now.state == "gone")
        job = await place.job(read(paid)["vendorJobId"])

    assert paid.status_code == 200
    assert (job.status, job.fault, job.refund_atomic) == ("failed", "owner", 10**6)
    assert job.refund_transaction is not None
    assert place.paid() == before


async def test_a_settlement_that_the_door_did_not_wait_for_is_paid_back_before_the_worker_is_gone(place: Place):
    before = place.paid()
    async with place.lives() as buyer:
        worker = place.worker
        assert worker is not None
        held = Held(place.hosts.apps["facilitator"], settles=True)
        place.hosts.apps["facilitator"] = held
        order = await buyer.order("1")
        headers = {**buyer.headers, **buyer.sign(await buyer.challenge(order), new_payment_id())}
        async with httpx.AsyncClient(base_url=worker.door.local_url, timeout=30) as client:
            paying = asyncio.create_task(client.post("/submit-job", content=order, headers=headers))
            await held.is_asked.wait()
            paid = place.paid()
            place.stop.set()
            await until(lambda: worker.now.state == "gone")
            await asyncio.wait((paying,))
        [job] = await worker.book.jobs()

    assert paid == before + 10**6
    assert (job.status, job.fault, job.refund_atomic) == ("failed", "owner", 10**6)
    assert place.paid() == before


async def test_a_worker_of_another_name_does_not_leave_the_jobs_that_it_sold(place: Place):
    place.script(hold_at=15)
    async with place.lives(is_killed=True) as buyer:
        job_id = await buyer.buy("1", steps=20)
    with pytest.raises(OwnersFault, match="LIVERY_WORKER_NAME=worker until they have"):
        async with place.lives(name="other"):
            raise AssertionError("it lives")
    place.script()
    async with place.lives():
        assert (await place.ended(job_id)).status == "completed"
    async with place.lives(name="other"):
        pass


async def test_jobs_rest_while_the_owner_needs_the_machine_and_lose_nothing(place: Place):
    place.script(hold_at=15)
    async with place.lives(yield_on="battery", vram_max_mb=512) as buyer:
        worker = place.worker
        assert worker is not None
        job_id = await buyer.buy("1", steps=20)
        await place.at_step(job_id, 14)
        running = worker.now.jobs[job_id].running
        spec = await worker.folders.spec(job_id)
        place.hardware.on_battery = True
        await until(lambda: worker.now.jobs[job_id].phase == "paused")
        refused = await buyer.post("/quote", buyer.asked("1", 20))
        rested = read(await buyer.client.get(f"{worker.door.url}/api/v1/status"))
        place.hardware.on_battery = False
        place.script()
        job = await place.ended(job_id)
        steps = [point["step"] for point in (await buyer.poll(job_id))["metrics"]]

    assert running is not None
    # The program on a GPU holds itself to it.
    assert spec is not None
    assert spec.vram_bytes_max == 512 * 1024**2
    assert await running.sample() is None
    assert code(refused) == "not_selling"
    assert rested["yielded"]["cause"] == "battery"
    assert (job.status, job.attempts) == ("completed", 0)
    assert steps == list(range(1, 21))


async def test_hours_that_are_over_while_a_job_rests_end_it_and_nothing_is_started_for_it(place: Place):
    place.script(hold_at=15)
    async with place.lives(yield_on="battery") as buyer:
        worker = place.worker
        assert worker is not None
        job_id = await buyer.buy("0.002", steps=20)
        await until(lambda: job_id in worker.now.jobs and worker.now.jobs[job_id].running is not None)
        place.hardware.on_battery = True
        job = await place.ended(job_id)
        status = await buyer.poll(job_id)

    assert (job.status, job.fault, job.error_message) == ("cancelled", None, "its hours are over")
    assert sum(line.startswith("begins at step") for line in status["logs"]) <= 1
    assert status["refund"]["amount"] > Decimal("0.001")
    assert status["costSoFar"] + status["refund"]["amount"] == Decimal("0.002")


async def test_without_a_key_it_lives_and_says_what_is_missing(place: Place):
    async with place.lives(private_key=None, kinds="") as buyer:
        refused = await buyer.post("/quote", buyer.asked("1", 20))
        worker = place.worker
        assert worker is not None
        document = read(await buyer.client.get(f"{worker.door.url}/api/v1/status"))

    assert code(refused) == "not_selling"
    assert "livery wallet new --worker" in document["problem"]
    assert any("LIVERY_WORKER_KINDS" in note for note in document["notes"])


async def test_without_ether_it_does_not_sell_what_it_could_not_pay_back(place: Place):
    place.chain.rpc("anvil_setBalance", place.seller.address, "0x0")
    async with place.lives() as buyer:
        refused = await buyer.post("/quote", buyer.asked("1", 20))

    assert code(refused) == "not_selling"
    assert "has no ether" in decimal_json.loads(refused.content)["detail"]


async def test_a_loop_that_breaks_ends_the_worker_and_its_programs(place: Place):
    place.script(hold_at=15)
    worker = place.open()
    living = asyncio.create_task(live(worker, asyncio.Event()))
    await until(lambda: worker.now.state == "online")

    async def broken() -> None:
        raise RuntimeError("the sensor is gone")

    # The next look at the machine breaks: no edge raises, so this stands for a bug.
    place.hardware.read = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(ExceptionGroup) as caught:
        await living

    assert caught.group_contains(RuntimeError, match="the sensor is gone")
    assert worker.now.state == "gone"
    assert not (place.folder / "worker" / "running.json").exists()


async def test_a_device_that_is_not_there_is_one_sentence(place: Place):
    with pytest.raises(OwnersFault, match="set it to auto or cpu"):
        async with place.lives(device="cuda"):
            raise AssertionError("it lives")


async def test_folders_that_no_job_is_of_are_removed(place: Place):
    stray = place.folder / "worker" / "jobs" / "job_of_nobody"
    stray.mkdir(parents=True)
    async with place.lives() as buyer:
        job = await place.ended(await buyer.buy("1", steps=10))
        kept = place.folder / "worker" / "jobs" / job.job_id

        assert not stray.exists()
        assert (kept / "result" / "model.safetensors").exists()
        await until(lambda: not (kept / "checkpoints").exists())
    assert job.price_atomic - job.refund_atomic == int((place.report.earned if place.report else 0) * Decimal(10**6))


async def test_the_files_of_a_job_go_a_week_after_its_end_while_the_worker_lives(place: Place):
    async with place.lives(pace=replace(PACE, tidy_s=0.05)) as buyer:
        worker = place.worker
        assert worker is not None
        job = await place.ended(await buyer.buy("1", steps=10))
        listed = read(await buyer.get(f"/artifacts/{job.job_id}"))["artifacts"]
        there = await buyer.client.get(listed[0]["url"])
        await worker.book.update_job(job.job_id, lambda stored: replace(stored, ended_at_s=job.started_at_s - KEPT_S))
        await until(lambda: not (place.folder / "worker" / "jobs" / job.job_id).exists())
        gone = await buyer.client.get(listed[0]["url"])

    assert there.status_code == 200
    assert code(gone) == "not_found"
