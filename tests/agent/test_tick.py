"""The spine: a goal and a budget become a paid, finished job, on a real chain, and the books equal the chain."""

from datetime import timedelta

import pytest

from agent.cancel import cancel
from agent.core.errors import RunFinished, UnknownRun
from agent.core.model import Run
from agent.status import status
from agent.tick import LOOK_AGAIN_S
from tests.fixtures.world import World

USDC = 1_000_000


@pytest.mark.row(15)
async def test_a_run_is_paid_once_and_completes(world: World) -> None:
    run_id = await world.start()
    run = await world.until_ended(run_id)
    assert run.status == "completed"
    assert [payment.status for payment in run.payments] == ["completed"]
    assert run.budget.spent_atomic == 1_400_000
    assert world.messages == ["Job started", "Job still running", "Job still running", "Job completed"]
    # The wire: a 402 first, then a 200 with the settlement's transaction.
    unpaid, paid = world.hosts.calls("/submit-job")
    assert "payment-signature" not in unpaid.headers
    assert "payment-signature" in paid.headers
    assert unpaid.headers["idempotency-key"] == paid.headers["idempotency-key"] == run.payments[0].payment_id
    assert unpaid.content == paid.content
    receipt = world.chain.rpc("eth_getTransactionReceipt", run.payments[0].transaction)
    assert int(receipt["status"], 16) == 1
    await world.check_books()


@pytest.mark.row(9)
@pytest.mark.row(4)
async def test_a_vendor_that_fails_pays_half_back_and_the_next_one_is_paid_from_it(world: World) -> None:
    world.script("gpu_vendor_1", fail_at_epoch=3)
    # Without the refund, 1.1 USDC would be left: not an hour at the second vendor.
    run_id = await world.start("2.5")
    failed = await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].status == "failed")
    assert failed.budget.spent_atomic == 700_000
    assert failed.budget.available_atomic == 1_800_000
    assert failed.payments[0].status == "refunded"
    refund = failed.payments[0].refund
    assert refund is not None
    assert int(world.chain.rpc("eth_getTransactionReceipt", refund.transaction)["status"], 16) == 1

    run = await world.until_ended(run_id)
    assert run.status == "completed"
    assert [(job.vendor_id, job.status) for job in run.jobs] == [
        ("gpu_vendor_1", "failed"),
        ("gpu_vendor_2", "completed"),
    ]
    assert [(payment.amount_atomic, payment.refunded_atomic) for payment in run.payments] == [
        (1_400_000, 700_000),
        (1_800_000, 0),
    ]
    assert run.budget.available_atomic == 0
    assert run.jobs[0].error_message == "simulated failure"
    # From PLANNING through EXECUTING and WAITING, with a retry, to the end.
    passed = [saved.phase for saved in world.store.saved]
    assert [phase for phase, before in zip(passed, ["", *passed], strict=False) if phase != before] == [
        *("executing", "waiting", "planning", "executing", "waiting", "planning", "done"),
    ]
    with pytest.raises(RunFinished, match="Run already completed"):
        await world.tick(run_id)
    reasons = await world.lines(run_id, "agent_reasoning")
    assert ["gpu_vendor_1" in line for line in reasons] == [True, False, False]
    assert ["mode: stub" in line for line in reasons] == [True, True, False]
    assert reasons[-1] == "mode: rule · end_run · completed"
    await world.check_books()


@pytest.mark.row(26)
async def test_each_line_of_a_vendors_log_is_stored_once(world: World) -> None:
    world.script("gpu_vendor_1", fail_at_epoch=3)
    run_id = await world.start()
    await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].status == "failed")
    assert len(world.hosts.calls("/job-status")) == 3
    assert await world.lines(run_id, "job_log") == [
        "Epoch 1/3 loss=1.5",
        "Epoch 2/3 loss=0.75",
        "Epoch 3/3 failed: simulated failure",
    ]
    entries = await world.agent.store.read_log(run_id)
    assert {"agent_reasoning", "job_log", "error", "payment_event"} < {entry.type for entry in entries}
    await world.check_books()


async def test_a_line_whose_poll_was_lost_is_stored_once(world: World) -> None:
    run_id = await world.start()
    await world.tick(run_id)
    # The job has moved on, the cursor has not.
    world.hosts.lose_replies("/job-status")
    run = await world.until_ended(run_id)
    assert run.status == "completed"
    assert len(await world.lines(run_id, "job_log")) == 3
    await world.check_books()


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
async def test_a_run_of_several_jobs_runs_them_beside_each_other(world: World, count: int) -> None:
    run_id = await world.start("10", job={"count": count})
    both = await world.until(run_id, lambda run: len(run.jobs) == count)
    assert [job.status for job in both.jobs[-2:]] == ["running", "submitted"]
    run = await world.until_ended(run_id)
    assert run.status == "completed"
    assert [job.status for job in run.jobs] == ["completed"] * count
    assert run.budget.spent_atomic == count * 1_400_000
    await world.check_books()


async def test_a_budget_below_an_hour_buys_what_it_can(world: World) -> None:
    run_id = await world.start("0.7")
    run = await world.until_ended(run_id)
    assert run.status == "completed"
    assert str(run.jobs[0].hours) == "0.50"
    assert run.budget.spent_atomic == 700_000
    await world.check_books()


async def test_a_budget_too_small_for_anything_ends_the_run_unpaid(world: World) -> None:
    run_id = await world.start("0.01")
    run = await world.until_ended(run_id)
    assert (run.status, run.reason) == ("failed", "insufficient_budget")
    assert world.messages == ["Run aborted"]
    assert run.jobs == run.payments == ()
    await world.check_books()


async def test_without_vendors_a_run_waits_for_one(world: World) -> None:
    for vendor in world.vendors:
        await world.store.remove_vendor(vendor.vendor_id)
    run_id = await world.start()
    ticked = await world.tick(run_id)
    assert ticked.message == "No vendors available"
    # Nothing else can happen, so nobody looks before a minute is over.
    assert ticked.next_tick_at is not None
    assert ticked.next_tick_at - ticked.run.updated_at == timedelta(seconds=LOOK_AGAIN_S)
    await world.store.put_vendor(world.vendors[0], replace=False)
    assert (await world.until_ended(run_id)).status == "completed"
    await world.check_books()


@pytest.mark.slow
async def test_vendors_that_all_fail_end_the_run_with_the_reason(world: World) -> None:
    for vendor in world.vendors:
        world.script(vendor.vendor_id, fail_at_epoch=1)
    run_id = await world.start("10")
    run = await world.until_ended(run_id)
    assert (run.status, run.reason) == ("failed", "no_vendor_left")
    assert [payment.status for payment in run.payments] == ["refunded"] * 3
    assert run.budget.spent_atomic == (1_400_000 + 1_800_000 + 2_200_000) // 2
    await world.check_books()


@pytest.mark.slow
async def test_a_run_gives_up_after_as_many_failed_jobs_as_it_may_try(world: World) -> None:
    world.limit(attempts_max=2)
    for vendor in world.vendors:
        world.script(vendor.vendor_id, fail_at_epoch=1)
    run_id = await world.start("10")
    run = await world.until_ended(run_id)
    assert (run.status, run.reason) == ("failed", "attempts_exhausted")
    assert len(run.jobs) == 2
    await world.check_books()


@pytest.mark.slow
async def test_jobs_that_their_vendors_cancel_are_attempts_as_well(world: World) -> None:
    world.limit(attempts_max=2)
    world.hosts.change_json("/job-status", {"status": "cancelled"})
    run = await world.until_ended(await world.start("10"))
    assert (run.status, run.reason) == ("failed", "attempts_exhausted")
    assert [job.status for job in run.jobs] == ["cancelled"] * 2
    await world.check_books()


@pytest.mark.row(34)
async def test_a_run_cancelled_midway_gets_back_what_its_job_did_not_use(world: World) -> None:
    run_id = await world.start()
    await world.until(run_id, lambda run: bool(run.jobs) and run.jobs[0].progress > 0)
    asked = await cancel(world.agent, run_id)
    assert asked.status == "running"
    assert asked.cancel_requested_at is not None
    run = await world.until_ended(run_id)
    assert (run.status, run.reason) == ("cancelled", "cancelled")
    assert run.jobs[0].status == "cancelled"
    # The tick that cancels looks first: two polls, so 70 % of 1.4 USDC was used.
    assert run.payments[0].refunded_atomic == 420_000
    assert run.budget.available_atomic == 5 * USDC - 980_000
    assert len(world.hosts.calls("/cancel-job")) == 1
    with pytest.raises(RunFinished):
        await cancel(world.agent, run_id)
    await world.check_books()


async def test_a_run_cancelled_before_its_first_tick_pays_nothing(world: World) -> None:
    run_id = await world.start()
    await cancel(world.agent, run_id)
    run = await world.until_ended(run_id)
    assert run.status == "cancelled"
    assert world.hosts.calls("/submit-job") == []
    await world.check_books()


@pytest.mark.slow
async def test_a_cancel_while_the_vendor_is_away_is_carried_out_when_it_is_back(world: World) -> None:
    run_id = await world.start()
    await world.tick(run_id)
    await cancel(world.agent, run_id)
    world.script(errors=50)
    await world.tick(run_id)
    assert (await world.store.read_run(run_id)).jobs[0].status == "submitted"
    world.script()
    run = await world.until_ended(run_id)
    assert run.jobs[0].status == "cancelled"
    assert run.budget.available_atomic == 5 * USDC - 490_000
    await world.check_books()


async def test_a_deadline_that_passes_cancels_the_job_and_fails_the_run(world: World) -> None:
    run_id = await world.start(deadline=await world.store.now() + timedelta(hours=1))
    await world.tick(run_id)
    world.store.ahead = timedelta(hours=2)
    run = await world.until_ended(run_id)
    assert (run.status, run.reason) == ("failed", "deadline_passed")
    assert run.jobs[0].status == "cancelled"
    assert run.budget.spent_atomic == 490_000
    await world.check_books()


async def test_the_status_shows_the_newest_first_and_no_secret(world: World) -> None:
    world.script("gpu_vendor_1", fail_at_epoch=1)
    run_id = await world.start(job={"env": {"TOKEN": "hush-hush"}, "params": {"epochs": 3}})
    run: Run = await world.until_ended(run_id)
    shown = await status(world.agent, run_id)
    assert [job.vendor_id for job in shown.jobs] == ["gpu_vendor_2", "gpu_vendor_1"]
    assert [payment.vendor_id for payment in shown.payments] == ["gpu_vendor_2", "gpu_vendor_1"]
    sequence = [line.seq for line in shown.observations]
    assert sequence == sorted(sequence, reverse=True)
    assert shown.run.budget_remaining + shown.run.budget_spent + shown.run.budget_reserved == shown.run.budget_total
    text = shown.to_json().decode()
    assert "hush-hush" not in text
    assert world.payer.key.removeprefix("0x") not in text
    assert all(payment.header not in text for payment in run.payments)


async def test_an_id_that_no_run_has_is_unknown_to_every_use_case(world: World) -> None:
    for call in (world.tick, lambda run_id: status(world.agent, run_id), lambda run_id: cancel(world.agent, run_id)):
        for run_id in ("run_unknown", "", "\0", "a" * 5_000):
            with pytest.raises(UnknownRun):
                await call(run_id)
