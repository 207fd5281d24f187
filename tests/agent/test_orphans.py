"""
Jobs that a vendor bills and no run wants: found in its own list, cancelled, paid back, told; and never a wanted one.

The clock of the runs, the vendors and the chain is the test's.
"""

import json
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.core.model import Run
from agent.edges.store_sqlite import SqliteStore
from agent.orphans import Orphans, unwanted_since
from agent.start import start
from agent.sweep import sweep, sweep_reply
from agent.tick import tick
from chain.devchain import DevAccount, DevChain
from tests.agent.core.values import a_job, a_payment, a_run, at
from tests.fixtures.hostile import HostileWorld, hostile_world
from tests.fixtures.world import register_all
from wire.control import StartRequest
from wire.vendor import JobFound

FIRST, SECOND = "gpu_vendor_1", "gpu_vendor_2"


@pytest.fixture
def epoch_seconds() -> int:
    """How long a third of a job takes; a test with longer jobs says so."""
    return 900


@pytest.fixture
async def world(
    chain: DevChain, tmp_path: Path, payer: DevAccount, facilitator_account: DevAccount, epoch_seconds: int
) -> AsyncIterator[HostileWorld]:
    lasting = hostile_world(tmp_path, chain, payer, facilitator_account, epoch_seconds=epoch_seconds, poll_s=60)
    async with lasting as made:
        yield made


async def a_live_job(world: HostileWorld, **more: Any) -> str:
    run_id = await world.start("1.4", **more)
    await world.until(run_id, lambda run: any(job.vendor_job_id for job in run.jobs))
    return run_id


async def rounds(world: HostileWorld, count: int) -> Orphans:
    """Sweep as often as it takes for `count` rounds; return what they found together."""
    found = Orphans()
    for _ in range(count):
        await world.pass_time(world.agent.limits.orphans_interval_s)
        done = await sweep(world.agent)
        assert done.orphans is not None
        found += done.orphans
    return found


async def vendor_status(world: HostileWorld) -> list[str]:
    return sorted(job.status for job in world.vendor_jobs())


async def the_end(world: HostileWorld, run_id: str) -> Run:
    """Return the ended run when everything that came back is counted, the books equal to chain and vendors."""
    run = await world.watch(run_id)
    assert await world.broken() == []
    return run


@pytest.mark.row(6)
async def test_a_job_whose_vendor_would_not_cancel_it_is_cancelled_when_it_can(world: HostileWorld) -> None:
    run_id = await a_live_job(world)
    await world.store.request_cancel(run_id)
    world.script(errors=10_000, routes=("/cancel-job",))
    await world.tick(run_id)
    await world.pass_time(601)
    run = await world.until_ended(run_id)
    assert (run.status, run.jobs[0].status) == ("cancelled", "cancelled")
    assert await vendor_status(world) == ["running"]

    found = await rounds(world, 1)
    assert (found.cancelled, found.left) == ((), 1)
    world.script()
    await world.pass_time(world.agent.limits.orphans_interval_s)
    done = await sweep(world.agent)
    told = sweep_reply(done).document()["orphans"]
    assert told == {"cancelled": 1, "minutes": Decimal(round(told["minutes"], 1)), "left": 0, "unknown": 0}
    assert round(told["minutes"]) == 4
    found = done.orphans or Orphans()
    assert [(one.run_id, one.why, one.vendor_id) for one in found.cancelled] == [(run_id, "job_cancelled", FIRST)]
    # The second round after the end, by the vendor's clock, which counts whole seconds.
    assert 235 <= found.cancelled[0].orphan_s <= 250
    assert (found.unknown, found.left) == (0, 0)
    assert await vendor_status(world) == ["cancelled"]
    due = (await world.store.read_run(run_id)).next_tick_at
    assert due is not None
    assert due <= await world.store.now()
    run = await the_end(world, run_id)
    # What was not used came back: not one of its twenty minutes' epochs had gone by.
    assert (run.payments[0].status, run.budget.spent_atomic) == ("refunded", 0)


@pytest.mark.row(6)
async def test_a_job_that_was_lost_and_comes_back_is_cancelled(world: HostileWorld) -> None:
    run_id = await a_live_job(world)
    world.limit(attempts_max=1, misses_max=3)
    world.hosts.down.add("vendors")
    for _ in range(4):
        await world.tick(run_id)
        await world.pass_time(201)
    run = await world.store.read_run(run_id)
    assert str(run.jobs[0].error_message).startswith("job_lost: ")
    assert (await rounds(world, 1)).cancelled == ()
    world.hosts.down.clear()
    found = await rounds(world, 1)
    assert [one.why for one in found.cancelled] == ["job_failed"]
    run = await the_end(world, run_id)
    assert (run.status, run.payments[0].status) == ("failed", "refunded")


@pytest.mark.row(6)
@pytest.mark.row(20)
@pytest.mark.parametrize("epoch_seconds", [1_300])
async def test_a_job_that_was_paid_for_and_never_heard_of_is_cancelled_and_paid_back(world: HostileWorld) -> None:
    world.limit(attempts_max=1)
    run_id = await an_unheard_of_job(world)
    lapses_s = (await world.store.read_run(run_id)).payments[0].valid_before_s
    await world.pass_time(lapses_s + world.agent.limits.missed_s_max + 2 - (await world.store.now()).timestamp())
    run = await world.until_ended(run_id)
    assert str(run.jobs[0].error_message).startswith("paid_not_served: ")
    assert (run.jobs[0].vendor_job_id, run.payments[0].status) == (None, "completed")
    assert len({request.content for request in world.hosts.calls("/submit-job")}) == 1
    assert await vendor_status(world) == ["submitted"]
    world.script()
    found = await rounds(world, 1)
    assert [one.why for one in found.cancelled] == ["job_failed"]
    run = await the_end(world, run_id)
    assert (run.payments[0].status, run.budget.spent_atomic) == ("refunded", 0)


async def an_unheard_of_job(world: HostileWorld) -> str:
    """Return a run that paid, and neither heard what became of it nor gets an answer to the question."""
    world.script(errors=10_000, routes=("/jobs",))
    world.hosts.lose_replies("/submit-job", 100)
    run_id = await world.start("1.4")
    assert (await world.tick(run_id)).run.payments[0].status == "completed"
    return run_id


@pytest.mark.row(20)
async def test_a_job_that_nobody_can_ask_for_is_not_given_up_for_that(world: HostileWorld) -> None:
    """Ten look-ups and more, the cheque lapsed: the vendor that comes back has the job, and it was bought once."""
    run_id = await an_unheard_of_job(world)
    for _ in range(12):
        await world.pass_time(5)
        await world.tick(run_id)
    lapses_s = (await world.store.read_run(run_id)).payments[0].valid_before_s
    await world.pass_time(lapses_s + world.agent.limits.missed_s_max - 5 - (await world.store.now()).timestamp())
    for _ in range(2):
        run = (await world.tick(run_id)).run
        assert [job.status for job in run.jobs] == ["quoted"]
    # What was not sent is not counted as sent.
    assert run.payments[0].sends == 1
    world.script()
    world.hosts.meddle = None
    run = await world.drive(run_id)
    assert (run.status, len(run.jobs), len(run.payments)) == ("completed", 1, 1)
    assert not world.hosts.calls("/cancel-job")
    assert await world.broken() == []


async def test_what_a_live_run_wants_is_left_alone_whatever_it_is_waiting_for(world: HostileWorld) -> None:
    running = await a_live_job(world)
    world.script(errors=10_000, routes=("/jobs",))
    world.hosts.lose_replies("/submit-job", 100)
    unheard = await world.start("1.4")
    await world.tick(unheard)
    world.script()
    world.hosts.meddle = None
    found = await rounds(world, 3)
    assert (found.cancelled, found.unknown, found.left) == ((), 0, 0)
    assert not world.hosts.calls("/cancel-job")
    for run_id in (running, unheard):
        assert (await world.drive(run_id)).status == "completed"
    assert await world.broken() == []


async def test_a_run_of_another_store_is_told_and_not_cancelled(world: HostileWorld, tmp_path: Path) -> None:
    other = replace(world.agent, store=SqliteStore(tmp_path / "other.db"))
    await register_all(other.store, world.vendor_app, "http://vendors")
    theirs = await start(other, StartRequest.model_validate({"goal": "x", "budgetTotal": Decimal("1.4")}))
    await tick(other, theirs.run_id)
    found = await rounds(world, 2)
    assert (found.cancelled, found.unknown, found.left) == ((), 2, 0)
    assert not world.hosts.calls("/cancel-job")
    await other.store.close()


async def test_a_job_whose_payment_was_forgotten_is_cancelled(world: HostileWorld, tmp_path: Path) -> None:
    """A store that was put back to an older copy: the run is there, what it bought is not."""
    run_id = await a_live_job(world)
    with sqlite3.connect(tmp_path / "agent.db") as books:
        books.execute("DELETE FROM payments")
        books.execute("DELETE FROM jobs")
    found = await rounds(world, 1)
    assert [(one.run_id, one.why) for one in found.cancelled] == [(run_id, "no_payment")]
    assert await vendor_status(world) == ["cancelled"]


async def test_an_end_is_given_a_moment_before_it_is_enforced(world: HostileWorld) -> None:
    run_id = await a_live_job(world)
    await sweep(world.agent)
    await world.pass_time(world.agent.limits.orphans_interval_s - 10)
    world.hosts.meddle = lambda request, response: (
        httpx.Response(200, json=response.json() | {"status": "failed"})
        if request.url.path == "/job-status"
        else response
    )
    await world.tick(run_id)
    world.hosts.meddle = None
    assert (await world.store.read_run(run_id)).jobs[0].status == "failed"
    await world.pass_time(20)
    done = await sweep(world.agent)
    assert done.orphans == Orphans()
    assert [one.why for one in (await rounds(world, 1)).cancelled] == ["job_failed"]


async def test_vendors_are_asked_every_few_minutes_by_one_of_all_processes(world: HostileWorld, tmp_path: Path) -> None:
    for expected in (True, False):
        assert ((await sweep(world.agent)).orphans is not None) is expected
    again = replace(world.agent, store=SqliteStore(tmp_path / "agent.db"))
    assert (await sweep(again)).orphans is None
    await again.store.close()
    assert len(world.hosts.calls("/jobs")) == len(world.vendors)
    assert (await sweep(world.agent, seconds_left=0)).orphans is None


@pytest.mark.parametrize("status", [400, 404, 405, 422, 500, 200])
async def test_a_vendor_that_keeps_no_list_is_asked_once_a_round_and_the_others_are_swept(
    world: HostileWorld, status: int
) -> None:
    run_id = await a_live_job(world)
    await world.store.request_cancel(run_id)
    world.script(errors=10_000, routes=("/cancel-job",))
    await world.tick(run_id)
    await world.pass_time(601)
    await world.until_ended(run_id)
    world.script()
    world.hosts.seen.clear()

    def listless(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        is_second = request.headers.get("x-vendor-id") == "gpu_vendor_2"
        return httpx.Response(status, text="no") if is_second and request.url.path == "/jobs" else response

    world.hosts.meddle = listless
    assert len((await rounds(world, 1)).cancelled) == 1
    assert [request.headers["x-vendor-id"] for request in world.hosts.calls("/jobs")].count("gpu_vendor_2") == 1


@pytest.mark.row(20)
async def test_nothing_is_sent_again_while_the_vendor_cannot_say_what_it_has(world: HostileWorld) -> None:
    world.script(errors=10_000, routes=("/jobs",))
    world.hosts.lose_replies("/submit-job")
    run_id = await world.start("1.4")
    for _ in range(4):
        await world.tick(run_id)
    assert len([one for one in world.hosts.calls("/submit-job") if "payment-signature" in one.headers]) == 1
    world.script()
    assert (await world.drive(run_id)).status == "completed"
    assert len([one for one in world.hosts.calls("/submit-job") if "payment-signature" in one.headers]) == 1
    assert await world.broken() == []


@pytest.mark.row(20)
async def test_a_vendor_without_a_list_is_sent_the_same_bytes(world: HostileWorld) -> None:
    def lose(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if request.url.path == "/jobs":
            return httpx.Response(404)
        first = len([one for one in world.hosts.calls("/submit-job") if "payment-signature" in one.headers]) == 1
        if request.url.path == "/submit-job" and "payment-signature" in request.headers and first:
            raise httpx.ReadTimeout("the answer was lost", request=request)
        return response

    world.hosts.meddle = lose
    run_id = await world.start("1.4")
    assert (await world.drive(run_id)).status == "completed"
    paid = [one for one in world.hosts.calls("/submit-job") if "payment-signature" in one.headers]
    assert len(paid) == 2
    assert len({(one.content, one.headers["payment-signature"]) for one in paid}) == 1
    assert await world.broken() == []


@pytest.mark.parametrize("epoch_seconds", [10_000])
async def test_a_job_carries_the_longest_it_may_live_and_its_vendor_ends_it_then(world: HostileWorld) -> None:
    """Nobody asks, nobody cancels: what a buyer forgot costs what was bought and no more."""
    run_id = await a_live_job(world)
    body = json.loads(world.hosts.calls("/submit-job")[-1].content)
    assert Decimal(str(body["maxHours"])) == (await world.store.read_run(run_id)).jobs[0].hours == 1
    shop, vendor = world.vendor_app.state.shop, world.vendors[0]
    free = (await world.agent.vendors.offers(vendor)).offers[0].available
    await world.pass_time(3_590)
    assert [job.status for job in await world.agent.vendors.live_jobs(vendor)] == ["running"]
    await world.pass_time(20)
    assert (await world.agent.vendors.offers(vendor)).offers[0].available == free + 1
    assert await world.agent.vendors.live_jobs(vendor) == ()
    (job,) = await shop.store.jobs()
    assert (job.status, job.ended_at_s) == ("cancelled", job.started_at_s + 3_600)
    run = await world.drive(run_id)
    assert run.jobs[0].status == "cancelled"
    assert run.budget.spent_atomic == 1_400_000
    assert await world.broken() == []


RUNNING = {"status": "running", "vendor_job_id": "vgpu_1"}
ENDED = {"status": "failed", "vendor_job_id": "vgpu_1", "completed_at": at(5)}
LISTED = JobFound(vendor_job_id="vgpu_1", status="running", payment_id="run_1-payment-1", started_at=at(1))


@pytest.mark.parametrize(
    ("job", "run", "listed", "expected"),
    [
        (RUNNING, {}, {}, None),
        ({"status": "quoted"}, {}, {}, None),
        ({"status": "quoted"}, {}, {"vendor_job_id": "vgpu_2"}, None),
        (ENDED, {}, {}, ("job_failed", at(5))),
        (ENDED, {"status": "completed", "completed_at": at(7)}, {}, ("job_failed", at(5))),
        (RUNNING, {"status": "failed", "completed_at": at(7)}, {}, ("run_failed", at(7))),
        (RUNNING, {}, {"payment_id": "run_1-payment-2"}, ("no_payment", at(1))),
        (RUNNING, {}, {"vendor_job_id": "vgpu_2"}, ("second_job", at(1))),
        # The one that we know is not listed: who is to say that this is not it, under another name?
        ({**RUNNING, "vendor_job_id": "vgpu_9"}, {}, {}, None),
        # A vendor whose clock is ahead.
        (RUNNING, {}, {"payment_id": "run_1-payment-2", "started_at": at(1_000)}, ("no_payment", at(100))),
    ],
)
def test_a_job_is_an_orphan_when_nothing_stored_can_want_it(
    job: dict[str, Any], run: dict[str, Any], listed: dict[str, Any], expected: Any
) -> None:
    books = a_run(jobs=(a_job(1, **job),), payments=(a_payment(1),), **run)
    found = LISTED.model_copy(update=listed)
    listed_ids = frozenset({"vgpu_1", found.vendor_job_id})
    assert unwanted_since(books, found, FIRST, listed_ids, frozenset({SECOND}), at(100)) == expected


@pytest.mark.parametrize(
    ("job", "listed_id", "at_another_address", "expected"),
    [
        # Nobody bought it there, whatever became of the one that was bought.
        (RUNNING, "vgpu_1", True, ("other_vendor", at(1))),
        (RUNNING, "v2", True, ("other_vendor", at(1))),
        (RUNNING, "v2", False, ("other_vendor", at(1))),
        ({"status": "quoted"}, "v2", True, ("other_vendor", at(1))),
        # One seller under two names, whose list is the same under both.
        (RUNNING, "vgpu_1", False, None),
        ({"status": "quoted"}, "v2", False, None),
        (ENDED, "vgpu_1", False, ("job_failed", at(5))),
    ],
)
def test_a_job_at_another_vendor_than_was_paid_is_an_orphan(
    job: dict[str, Any], listed_id: str, at_another_address: bool, expected: Any
) -> None:
    books = a_run(jobs=(a_job(1, **job),), payments=(a_payment(1),))
    found = LISTED.model_copy(update={"vendor_job_id": listed_id})
    elsewhere = frozenset({FIRST} if at_another_address else ())
    assert unwanted_since(books, found, SECOND, frozenset({listed_id}), elsewhere, at(100)) == expected


@pytest.mark.parametrize(
    "payment_id", ["run_1-payment-", "run_1", "-payment-1", "pay-0123456789abcdef", "x\n-payment-1"]
)
async def test_an_id_that_is_not_of_ours_is_not_judged(world: HostileWorld, payment_id: str) -> None:
    world.hosts.meddle = lambda request, response: (
        httpx.Response(200, json={"jobs": [{"vendorJobId": "v", "status": "running", "paymentId": payment_id}]})
        if request.url.path == "/jobs"
        else response
    )
    found = await rounds(world, 1)
    assert (found.cancelled, found.unknown) == ((), len(world.vendors))
