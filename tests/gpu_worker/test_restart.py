"""A worker that dies anywhere: the next one on its data ends every job, once, with the bytes of an unkilled one."""

import asyncio
import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from gpu_worker.core.errors import OwnersFault
from gpu_worker.edges.jobs.job_folder import DiskFolders
from gpu_worker.lifecycle import live
from tests.fixtures.chain import serving
from tests.gpu_worker.process import TRAPS
from tests.gpu_worker.world import Place, until, weights_of
from tests.vendor_mock.world import new_payment_id, read

pytestmark = pytest.mark.slow

PRICE = 10**6


async def test_workers_die_one_after_the_other_and_the_last_one_ends_the_job_once(place: Place, facilitator_url: str):
    """Each dies at another point of the same job's life; what it had written is all that the next one has."""
    before = place.paid()
    payment_id = new_payment_id()
    traps = [*TRAPS]
    with serving(place.store.app) as store_url:
        place.store.url = store_url
        with place.process(traps[0], facilitator_url=facilitator_url) as server:
            async with place.buyer_of(server.url) as buyer:
                order = await buyer.order("1", steps=20)
                headers = buyer.sign(await buyer.challenge(order), payment_id)
                # It may die before it has answered: what was paid is what it was.
                await asyncio.gather(buyer.post("/submit-job", order, **headers), return_exceptions=True)
            died = [await asyncio.to_thread(server.process.wait, 60)]
        for trap in traps[1:]:
            # A program that is done before its first checkpoint is pushed would have nothing to be killed over.
            place.script(**({"hold_at": 15} if trap == "half pushed" else {}))
            with place.process(trap, facilitator_url=facilitator_url) as server:
                died.append(await asyncio.to_thread(server.process.wait, 60))
        async with place.lives(facilitator_url=facilitator_url) as buyer:
            found = read(await buyer.get("/jobs", key=payment_id))["jobs"]
            job = await place.ended(found[0]["vendorJobId"])
            status = await buyer.poll(job.job_id)
            left = [path.name for path in (place.folder / "worker" / "jobs" / job.job_id).rglob("*")]
            files = read(await buyer.get(f"/artifacts/{job.job_id}"))["artifacts"]
            weights = (
                await buyer.client.get(next(f["url"] for f in files if f["name"] == "model.safetensors"))
            ).content

    assert died == [-signal.SIGKILL] * len(traps)
    assert len(found) == 1
    assert (job.status, job.step) == ("completed", 20)
    assert weights == weights_of(0, 20)
    # One of them died before it had thrown away what only the work needed.
    assert not {"checkpoints", "input"} & {*left}
    assert status["costSoFar"] + status["refund"]["amount"] == 1
    assert place.paid() - before == PRICE - job.refund_atomic


async def test_a_checkpoint_that_was_not_whole_in_the_buyers_store_is_pushed_by_the_next_worker(place: Place):
    """Else its parts lie there for ever, and who goes on elsewhere begins further back."""
    place.script(hold_at=15)
    place.store.status = 503
    async with place.lives(is_killed=True) as buyer:
        await place.at_step(await buyer.buy("1", steps=20), 14)
    place.store.status = None
    async with place.lives():
        await until(lambda: place.store.manifest is not None)
        manifest = place.store.manifest

    assert manifest is not None
    assert manifest.step == 10


async def test_a_job_that_came_no_further_leaves_no_checkpoint_of_its_own(place: Place):
    """Else the one that it failed from would be taken for a new one, and be tried again."""
    place.script(hold_at=15)
    async with place.lives() as buyer:
        job_id = await buyer.buy("1", steps=20)
        await until(lambda: place.store.manifest is not None)
        await buyer.post("/cancel-job", {"vendorJobId": job_id})
        pushed = [*place.store.seen]
        place.script(crash_at=11)
        resume = place.store.resume().document()
        job = await place.ended(await buyer.buy("1", steps=20, resume=resume, files=place.store.grant("job_2")))

    assert (job.status, job.fault, job.step) == ("failed", "owner", 10)
    assert place.store.seen == pushed


async def test_a_job_that_comes_further_is_begun_again_however_often_it_breaks_off(place: Place):
    place.script(hold_at=15)
    async with place.lives() as buyer:
        worker = place.worker
        assert worker is not None
        job_id = await buyer.buy("1", steps=40)
        for step in (15, 25, 35):
            await place.at_step(job_id, step - 1)
            running = worker.now.jobs[job_id].running
            assert running is not None
            os.kill(running.pid, signal.SIGKILL)
            place.script(hold_at=step + 10)
        job = await place.ended(job_id)

    assert (job.status, job.step, job.attempts) == ("completed", 40, 1)


async def test_what_was_half_written_is_no_artifact_and_goes(tmp_path: Path):
    folders = DiskFolders(tmp_path)
    path = await folders.path("job_1")
    for name in (
        "result/.log.txt.4711",
        "result/.kept",
        "result.new/model.safetensors",
        "state.json.new",
        ".spec.json.1",
    ):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"half")

    listed = [file.name for file in await folders.files("job_1")]
    await folders.trim("job_1")

    assert listed == [".kept"]
    assert sorted(entry.name for entry in path.rglob("*")) == [".kept", "result"]


async def test_a_program_does_not_outlive_its_worker(place: Place, facilitator_url: str):
    place.script(hold_at=11)
    with place.process(facilitator_url=facilitator_url, jobs_max=2) as server:
        async with place.buyer_of(server.url) as buyer:
            first, second = await buyer.buy("1", steps=20), await buyer.buy("1", steps=20)
            for job_id in (first, second):
                await _at(buyer, job_id, 10)
            programs = psutil.Process(server.process.pid).children(recursive=True)
    gone, alive = await asyncio.to_thread(psutil.wait_procs, programs, 15)
    place.script()
    async with place.lives(facilitator_url=facilitator_url, jobs_max=2) as buyer:
        ended = [await place.ended(job_id) for job_id in (first, second)]
        steps = [point["step"] for point in (await buyer.poll(first))["metrics"]]

    assert (len(gone), alive) == (2, [])
    assert [job.status for job in ended] == ["completed", "completed"]
    # It had time for a checkpoint: nothing was done twice.
    assert steps == list(range(1, 21))


@pytest.mark.row(153)
async def test_sigterm_ends_it_in_time_with_the_checkpoint_pushed_and_all_paid_back(place: Place, facilitator_url: str):
    place.script(hold_at=15)
    before = place.paid()
    with serving(place.store.app) as store_url:
        place.store.url = store_url
        entry = place.folder / "worker" / "running.json"
        with place.process(facilitator_url=facilitator_url) as server:
            async with place.buyer_of(server.url) as buyer:
                job_id = await buyer.buy("1", steps=20)
                await _at(buyer, job_id, 14)
                was_known = entry.exists()
                code = await asyncio.to_thread(server.stop)
    manifest = place.store.manifest
    place.script()
    async with place.lives(facilitator_url=facilitator_url) as buyer:
        status = await buyer.poll(job_id)

    assert (code, was_known, entry.exists()) == (0, True, False)
    assert manifest is not None
    assert manifest.step >= 14
    assert (status["status"], status["errorMessage"]) == ("failed", "interrupted: the worker shuts down")
    assert status["refund"]["amount"] == 1
    assert place.paid() == before
    assert json.loads(server.log.splitlines()[-1])["event"] == "final report"


async def test_a_second_worker_on_the_same_data_says_so(place: Place):
    async with place.lives():
        with pytest.raises(OwnersFault, match="another worker runs with"):
            await live(place.open(), asyncio.Event())


async def _at(buyer, job_id: str, step: int) -> None:
    async with asyncio.timeout(30):
        while True:
            status = await buyer.poll(job_id)
            if any(point["step"] >= step for point in status["metrics"]):
                return
            await asyncio.sleep(0.05)
