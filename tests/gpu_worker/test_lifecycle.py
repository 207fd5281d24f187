"""A worker's life in order, and what it says and does where something is missing or breaks."""

import asyncio
import logging
from decimal import Decimal

import httpx
import pytest

from gpu_worker.core.errors import OwnersFault
from gpu_worker.lifecycle import live
from tests.gpu_worker.world import Place, until
from tests.vendor_mock.world import code, read
from wire import decimal_json

pytestmark = pytest.mark.slow


async def test_it_probes_registers_loads_measures_sells_drains_and_goes(place: Place, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="livery.gpu_worker")
    async with place.lives() as buyer:
        health = read(await buyer.get("/health"))
        entry = decimal_json.loads((place.folder / "worker" / "running.json").read_bytes())
    worker = place.worker
    assert worker is not None
    states = [line.removeprefix("worker is ") for line in caplog.messages if line.startswith("worker is ")]

    assert states == ["registering", "loading", "measuring", "online"]
    assert [line for line in caplog.messages if line in ("draining", "final report")] == ["draining", "final report"]
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
        drained = await buyer.client.post(f"{worker.door.url}/api/v1/drain")
        refused = await buyer.post("/quote", order)
        offered = read(await buyer.get("/offers"))["offers"][0]["available"]
        status = await buyer.poll(job_id)
        place.script()
        await until(lambda: worker.now.state == "gone")
        job = await place.job(job_id)

    assert drained.status_code == 202
    assert (code(refused), offered) == ("draining", 0)
    assert status["status"] == "running"
    assert (job.status, job.step) == ("completed", 20)


async def test_jobs_rest_while_the_owner_needs_the_machine_and_lose_nothing(place: Place):
    place.script(hold_at=15)
    async with place.lives(yield_on="battery") as buyer:
        worker = place.worker
        assert worker is not None
        job_id = await buyer.buy("1", steps=20)
        await place.at_step(job_id, 14)
        running = worker.now.jobs[job_id].running
        place.hardware.on_battery = True
        await until(lambda: worker.now.jobs[job_id].phase == "paused")
        refused = await buyer.post("/quote", buyer.asked("1", 20))
        rested = read(await buyer.client.get(f"{worker.door.url}/api/v1/status"))
        place.hardware.on_battery = False
        place.script()
        job = await place.ended(job_id)
        steps = [point["step"] for point in (await buyer.poll(job_id))["metrics"]]

    assert running is not None
    assert await running.sample() is None
    assert code(refused) == "not_selling"
    assert rested["yielded"]["cause"] == "battery"
    assert (job.status, job.attempts) == ("completed", 0)
    assert steps == list(range(1, 21))


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
