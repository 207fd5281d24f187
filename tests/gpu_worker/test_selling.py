"""A worker sells its machine: what is quoted, refused, paid, worked, told and paid back."""

from decimal import Decimal

import pytest

from tests.gpu_worker.world import Place, until, until_async
from tests.vendor_mock.world import code, new_payment_id, read
from wire import decimal_json

pytestmark = pytest.mark.slow

PRICE = 10**6


async def test_a_job_is_sold_worked_and_what_it_did_not_use_is_paid_back(place: Place):
    before = place.paid()
    async with place.lives() as buyer:
        offer = read(await buyer.get("/offers"))["offers"][0]
        job_id = await buyer.buy("1", steps=20)
        job = await place.ended(job_id)
        status = await buyer.poll(job_id)
        files = read(await buyer.get(f"/artifacts/{job_id}"))["artifacts"]
        weights = (await buyer.client.get(next(f["url"] for f in files if f["name"] == "model.safetensors"))).content

    assert (offer["gpuType"], offer["pricePerHour"], offer["jobTypes"]) == ("CPU", 1, ["fine_tune"])
    assert (job.status, job.step, job.steps) == ("completed", 20, 20)
    assert status["status"] == "completed"
    assert status["progress"] == 1
    assert status["finalMetrics"] == {"loss": 3}
    assert [point["step"] for point in status["metrics"]] == list(range(1, 21))
    assert status["logs"] == ["begins at step 0", "step 10/20", "step 20/20"]
    assert len(weights) == 32
    assert {file["name"] for file in files} >= {"log.txt", "model.safetensors", "report.json"}
    # What was used and what came back are the price, in the books and on the chain.
    assert status["costSoFar"] + status["refund"]["amount"] == 1
    assert 0 < job.refund_atomic < PRICE
    assert place.paid() - before == PRICE - job.refund_atomic
    assert place.report is not None
    assert place.report.jobs == 1


async def test_nothing_is_told_twice_and_nothing_is_missed(place: Place):
    place.script(hold_at=11)
    points: list[int] = []
    logs: list[str] = []
    async with place.lives() as buyer:
        job_id = await buyer.buy("1", steps=20)
        await place.at_step(job_id, 10)
        first = await buyer.poll(job_id)
        place.script()
        await place.ended(job_id)
        second = await buyer.poll(job_id, since=first["cursor"])
        third = await buyer.poll(job_id, since=second["cursor"])
        wrong = await buyer.get("/job-status", vendorJobId=job_id, since="line-3")
    for told in (first, second, third):
        points += [point["step"] for point in told["metrics"]]
        logs += told["logs"]

    assert first["status"] == "running"
    assert first["progress"] == Decimal("0.5")
    assert points == list(range(1, 21))
    assert logs == ["begins at step 0", "step 10/20", "step 20/20"]
    assert code(wrong) == "invalid_field"


@pytest.mark.row(34)
async def test_a_job_is_cancelled_in_the_middle(place: Place):
    place.script(hold_at=11)
    before = place.paid()
    async with place.lives() as buyer:
        job_id = await buyer.buy("1", steps=20)
        await place.at_step(job_id, 10)
        assert place.worker is not None
        running = place.worker.now.jobs[job_id].running
        assert running is not None
        reply = await buyer.post("/cancel-job", {"vendorJobId": job_id})
        again = await buyer.post("/cancel-job", {"vendorJobId": job_id})
        gone = await running.sample()

    status = read(reply)
    assert (status["status"], gone) == ("cancelled", None)
    assert status["costSoFar"] + status["refund"]["amount"] == 1
    assert status["refund"]["amount"] > Decimal("0.99")
    assert read(again)["refund"] == status["refund"]
    assert place.paid() - before == PRICE - int(status["refund"]["amount"] * PRICE)


@pytest.mark.parametrize(
    ("script", "settings", "fault", "said", "whole"),
    [
        ({"bad_input": "the dataset is no text"}, {}, "buyer", "the dataset is no text", True),
        ({"crash_at": 5}, {}, "owner", "the program ended 3 times: exit code 1", True),
        ({"memory_mb": 720, "hold_at": 5}, {"memory_max_mb": 700}, "buyer", "it needs more memory", False),
        ({"disk_mb": 30, "hold_at": 5}, {"disk_max_mb": 20}, "buyer", "it needs more disk", False),
        ({"hang_at": 5, "deaf": True}, {"stall_s": 1}, "owner", "the program ended 3 times: no progress", True),
    ],
    ids=["bad input", "crash", "memory", "disk", "hang"],
)
async def test_a_program_that_fails_ends_its_job_and_not_the_worker(place: Place, script, settings, fault, said, whole):
    place.script(**script)
    before = place.paid()
    async with place.lives(**settings) as buyer:
        first = await buyer.buy("1", steps=20)
        job = await place.ended(first)
        status = await buyer.poll(first)
        names = {file["name"] for file in read(await buyer.get(f"/artifacts/{first}"))["artifacts"]}
        place.script()
        second = await place.ended(await buyer.buy("1", steps=20))

    assert (status["status"], job.fault, second.status) == ("failed", fault, "completed")
    assert said in status["errorMessage"]
    assert (job.refund_atomic == PRICE) is whole
    assert status["costSoFar"] + status["refund"]["amount"] == 1
    assert {"log.txt", "report.json"} <= names
    assert place.paid() - before == 2 * PRICE - job.refund_atomic - second.refund_atomic


async def test_steps_that_a_crash_lost_are_paid_once(place: Place):
    place.script(hold_at=15, step_s=0.03)
    async with place.lives() as buyer:
        worker = place.worker
        assert worker is not None
        job_id = await buyer.buy("1", steps=20)
        await place.at_step(job_id, 14)
        running = worker.now.jobs[job_id]
        await until(lambda: running.used_s > running.marks["10"])
        lost_s = running.used_s
        # It breaks off here, begins again at the checkpoint, and is held there.
        place.script(crash_at=15, hold_at=11)
        pid = running.running.pid if running.running is not None else 0
        await until(lambda: running.running is not None and running.running.pid != pid)
        place.script()
        job = await place.ended(job_id)
        state = await worker.folders.state(job_id)

    assert state is not None
    assert (job.status, job.attempts) == ("completed", 1)
    assert lost_s > job.marks["10"]
    assert abs(job.used_s - job.marks["10"] - state.worked_s) < Decimal("0.01")


async def test_a_program_is_not_believed_to_have_worked_longer_than_it_ran(place: Place):
    place.script(claims_s=3_000)
    async with place.lives() as buyer:
        job = await place.ended(await buyer.buy("1", steps=20))

    assert job.status == "completed"
    assert 0 < job.used_s < 60


async def test_hours_that_are_over_end_the_job_with_its_checkpoint(place: Place):
    place.script(hold_at=15)
    async with place.lives() as buyer:
        job_id = await buyer.buy("0.002", steps=20)
        job = await place.ended(job_id)
        status = await buyer.poll(job_id)

    assert (status["status"], status["errorMessage"]) == ("cancelled", "its hours are over")
    assert job.pushed is not None
    # How far it came is the machine's; what it did is not lost.
    assert job.pushed.step == job.step > 0
    assert status["costSoFar"] + status["refund"]["amount"] == Decimal("0.002")


async def test_who_is_the_machine_s_owner_says_what_is_sold_and_to_whom(place: Place):
    async with place.lives(requesters="0x" + "11" * 20, jobs_max=1) as buyer:
        asked = buyer.asked("1", 20)
        replies = {
            "kind_off": await buyer.post("/quote", {**asked, "jobType": "generate"}),
            "unsupported_gpu": await buyer.post("/quote", {**asked, "gpuType": "A100"}),
            "model_unknown": await buyer.post("/quote", {**asked, "jobMetadata": {"model": "other"}}),
            "invalid_field": await buyer.post("/quote", {**asked, "jobMetadata": {"params": {"steps": 0}}}),
        }
        order = await buyer.order("1")
        refused = await buyer.post("/submit-job", order, **buyer.sign(await buyer.challenge(order), new_payment_id()))
        cannot_move = read(await buyer.post("/quote", {**asked, "hasFiles": False}))
        moves = read(await buyer.post("/quote", asked))
        from_outside = await buyer.get("/api/v1/status")
        assert place.worker is not None
        document = read(await buyer.client.get(f"{place.worker.door.url}/api/v1/status"))

    assert {wanted: code(reply) for wanted, reply in replies.items()} == {wanted: wanted for wanted in replies}
    assert refused.status_code == 402
    assert code(refused) == "payment_invalid"
    assert (moves["moves"], moves["notes"]) == (True, [])
    assert cannot_move["moves"] is False
    assert "cannot move" in cannot_move["notes"][0]
    assert code(from_outside) == "unknown_host"
    assert document["refusals"] == {"requester_refused": 1, **dict.fromkeys(replies, 1)}
    assert (document["state"], document["kinds"], document["quotes"]) == ("online", ["fine_tune"], 3)


@pytest.mark.parametrize(
    ("since", "wanted"),
    [
        ({"kinds": "evaluate"}, "kind_off"),
        ({"price_per_hour": Decimal("1.01")}, "template_not_found"),
        ({"price_min": Decimal(2)}, "template_not_found"),
    ],
    ids=["kind off", "price", "least price"],
)
async def test_a_quote_does_not_outlive_what_the_owner_sells(place: Place, since, wanted):
    async with place.lives() as buyer:
        order = await buyer.order("1")
    before = place.paid()
    async with place.lives(**since) as buyer:
        headers = buyer.sign(await buyer.challenge(order), new_payment_id())
        refused = await buyer.post("/submit-job", order, **headers)
    async with place.lives() as buyer:
        taken = await buyer.post("/submit-job", order, **headers)
        await place.ended(read(taken)["vendorJobId"])

    assert code(refused) == wanted
    assert place.paid() > before
    assert taken.status_code == 200


async def test_other_work_than_was_quoted_is_not_started(place: Place):
    async with place.lives() as buyer:
        order = decimal_json.loads(await buyer.order("1", steps=20))
        order["jobParams"]["params"]["steps"] = 21
        refused = await buyer.post("/submit-job", order)

    assert code(refused) == "invalid_field"


async def test_a_checkpoint_that_cannot_be_is_refused_at_the_quote_or_paid_back(place: Place):
    place.script(hold_at=15)
    async with place.lives() as buyer:
        job_id = await buyer.buy("1", steps=20)
        await until(lambda: place.store.manifest is not None)
        await buyer.post("/cancel-job", {"vendorJobId": job_id})
        resume = place.store.resume().document()
        right = await buyer.post("/quote", {**buyer.asked("1", 20), "resume": resume})
        too_far = await buyer.post("/quote", {**buyer.asked("1", 20), "resume": {**resume, "step": 21}})
        large = {**resume, "bytes": 10**12}
        too_large = await buyer.post("/quote", {**buyer.asked("1", 20), "resume": large})
        # A submission may name one that its quote did not.
        order = {**decimal_json.loads(await buyer.order("1")), "resume": large}
        headers = buyer.sign(await buyer.challenge(decimal_json.dumps(order)), new_payment_id())
        job = await place.ended(read(await buyer.post("/submit-job", order, **headers))["vendorJobId"])

    assert right.status_code == 200
    assert code(too_far) == code(too_large) == "checkpoint_mismatch"
    assert (job.status, job.fault, job.refund_atomic) == ("failed", "buyer", PRICE)
    assert "larger than the disk" in (job.error_message or "")


async def test_a_job_goes_on_elsewhere_from_its_checkpoint(place: Place):
    place.script(hold_at=15)
    async with place.lives() as buyer:
        job_id = await buyer.buy("1", steps=20)
        await place.at_step(job_id, 14)
        await until(lambda: place.store.manifest is not None)
        await buyer.post("/cancel-job", {"vendorJobId": job_id})
        resume = place.store.resume()
        place.script()
        grant = place.store.grant("job_2")
        next_id = await buyer.buy("1", steps=20, resume=resume.document(), files=grant)
        job = await place.ended(next_id)
        status = await buyer.poll(next_id)
        resumed = await _weights(buyer, next_id)
        whole = await buyer.buy("1", steps=20)
        await place.ended(whole)
        unkilled = await _weights(buyer, whole)
        wrong = {**resume.document(), "modelHash": "0" * 64}
        refused = await buyer.post("/quote", {**buyer.asked("1", 20), "resume": wrong})

    assert resume.step == 10
    assert status["logs"][0] == "begins at step 10"
    assert [point["step"] for point in status["metrics"]] == list(range(11, 21))
    assert (job.status, resumed) == ("completed", unkilled)
    assert code(refused) == "checkpoint_mismatch"


async def test_a_checkpoint_that_was_changed_is_refused_and_all_is_paid_back(place: Place):
    place.script(hold_at=15)
    async with place.lives() as buyer:
        job_id = await buyer.buy("1", steps=20)
        await until(lambda: place.store.manifest is not None)
        await buyer.post("/cancel-job", {"vendorJobId": job_id})
        resume = place.store.resume().document()
        part = next(name for name in place.store.files if "model.safetensors.0" in name)
        place.store.files[part] = place.store.files[part][:-1] + b"?"
        job = await place.ended(await buyer.buy("1", steps=20, resume=resume))

    assert (job.status, job.fault, job.refund_atomic) == ("failed", "buyer", PRICE)
    assert "is not what its manifest says" in (job.error_message or "")


async def test_a_store_that_is_away_for_a_while_gets_the_checkpoint_later(place: Place):
    place.store.status = 503
    place.script(hold_at=15)
    async with place.lives() as buyer:
        job_id = await buyer.buy("1", steps=20)
        await place.at_step(job_id, 14)
        assert place.store.manifest is None
        place.store.status = None

        async def is_pushed() -> bool:
            return (await place.job(job_id)).pushed is not None

        await until_async(is_pushed)
        status = await buyer.poll(job_id)
        place.script()
        await place.ended(job_id)

    assert (status["checkpoint"]["step"], status["checkpoint"]["steps"]) == (10, 20)
    pushed = place.store.seen[: place.store.seen.index("checkpoint.json") + 1]
    assert pushed[-1] == "checkpoint.json"
    assert all(name.startswith("10-") for name in pushed[:-1])


async def _weights(buyer, job_id: str) -> bytes:
    files = read(await buyer.get(f"/artifacts/{job_id}"))["artifacts"]
    return (await buyer.client.get(next(f["url"] for f in files if f["name"] == "model.safetensors"))).content
