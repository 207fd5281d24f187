"""The Store port, its runs: inserting, claiming, saving, releasing, cancelling. Every store keeps this."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from agent.core.errors import Bug, KeyConflict, StaleClaim, UnknownRun
from agent.core.model import Budget, RefundClaim
from agent.core.policy import once
from agent.ports import Busy, Claim, Store
from tests.contracts.store_values import T0, a_job, a_payment, a_run, entries_of, log_of, stored

IDS_THAT_CANNOT_BE = [
    "",
    "r" * 10_000,
    "nul\0",
    "\ud800",
    "' OR 1=1 --",
    '{"$gt": ""}',
    "$where",
    "run_unknown",
    "../../etc/passwd",
    "\u202e\U0001f40e",
]


async def claimed(store: Store, run_id: str, lease_s: int = 60) -> Claim:
    claim = await store.claim(run_id, lease_s)
    assert isinstance(claim, Claim)
    return claim


@pytest.mark.row(27)
async def test_a_run_with_all_that_it_owns_comes_back_as_it_was_stored(store: Store) -> None:
    jobs = (a_job(final_metrics={"val.acc": Decimal("0.870"), "$x": Decimal(1)}, completed_at=T0), a_job(cursor="7"))
    payments = (
        a_payment(
            transaction="0xaa",
            status="refunded",
            refund=RefundClaim(amount_atomic=7, transaction="0xbb", announced_at=T0),
        ),
        a_payment(dialect="x402-v1"),
    )
    run = a_run(jobs=jobs, payments=payments, deadline=T0 + timedelta(days=1), next_tick_at=T0, log=log_of(2))
    entries = entries_of(run, [1, 2])
    assert await store.insert_run(run, entries, "key", "print") == run
    assert await store.read_run(run.run_id) == run
    assert await store.read_log(run.run_id) == list(entries)


async def test_the_same_key_and_body_begin_one_run(store: Store) -> None:
    first = await store.insert_run(a_run(), (), "key", "print")
    assert await store.insert_run(a_run(), (), "key", "print") == first
    assert (await store.list_runs(None, None, 10)).runs == (first,)


async def test_the_same_key_with_another_body_is_refused(store: Store) -> None:
    first = await store.insert_run(a_run(), (), "key", "print")
    with pytest.raises(KeyConflict):
        await store.insert_run(a_run(), (), "key", "another")
    assert (await store.list_runs(None, None, 10)).runs == (first,)


async def test_inserts_at_once_with_one_key_begin_one_run(store: Store) -> None:
    inserted = await asyncio.gather(*[store.insert_run(a_run(), (), "key", "print") for _ in range(8)])
    assert len({run.run_id for run in inserted}) == 1
    assert (await store.list_runs(None, None, 10)).runs == (inserted[0],)


async def test_runs_without_a_key_do_not_meet(store: Store) -> None:
    for _ in range(2):
        await stored(store)
    assert len((await store.list_runs(None, None, 10)).runs) == 2


async def test_a_run_that_is_stored_is_not_stored_again(store: Store) -> None:
    run = await stored(store)
    with pytest.raises(Bug):
        await store.insert_run(replace(run, goal="another"), (), None, "")
    assert await store.read_run(run.run_id) == run


async def test_a_claimed_run_is_busy_for_what_is_left_of_the_lease(store: Store) -> None:
    run = await stored(store)
    claim = await claimed(store, run.run_id, 30)
    assert claim.run == run
    assert claim.token == 1
    busy = await store.claim(run.run_id, 30)
    assert isinstance(busy, Busy)
    assert 28 <= busy.retry_after_s <= 30


async def test_of_many_claims_at_once_one_holds(store: Store) -> None:
    run = await stored(store)
    claims = await asyncio.gather(*[store.claim(run.run_id, 30) for _ in range(10)])
    assert sum(isinstance(claim, Claim) for claim in claims) == 1


async def test_a_lapsed_or_released_lease_is_claimed_with_a_larger_token(store: Store) -> None:
    run = await stored(store)
    assert (await claimed(store, run.run_id, 0)).token == 1
    assert (await claimed(store, run.run_id)).token == 2
    await store.release(run.run_id, 2, None)
    assert (await claimed(store, run.run_id)).token == 3


async def test_a_run_that_was_served_since_it_was_due_is_claimed_by_nobody_who_wants_it_due(store: Store) -> None:
    run, late = await stored(store, next_tick_at=T0), T0 + timedelta(seconds=1)
    assert isinstance(await store.claim(run.run_id, 30, due_before=T0 - timedelta(milliseconds=1)), Busy)
    claims = await asyncio.gather(*[store.claim(run.run_id, 30, due_before=T0) for _ in range(4)])
    assert sum(isinstance(claim, Claim) for claim in claims) == 1
    await store.release(run.run_id, 1, late)
    assert await store.claim(run.run_id, 30, due_before=T0) == Busy(1)
    assert isinstance(await store.claim(run.run_id, 30, due_before=late), Claim)
    await store.release(run.run_id, 2, None)
    assert await store.claim(run.run_id, 30, due_before=late) == Busy(1)
    assert (await claimed(store, run.run_id)).token == 3
    with pytest.raises(UnknownRun):
        await store.claim("run_unknown", 30, due_before=late)


@pytest.mark.parametrize("run_id", IDS_THAT_CANNOT_BE)
async def test_what_is_no_id_is_an_unknown_run(store: Store, run_id: str) -> None:
    await stored(store)
    with pytest.raises(UnknownRun):
        await store.claim(run_id, 30)
    with pytest.raises(UnknownRun):
        await store.read_run(run_id)
    with pytest.raises(UnknownRun):
        await store.request_cancel(run_id)
    assert await store.read_log(run_id) == []
    await store.release(run_id, 1, None)
    assert await store.remove_vendor(run_id) is False


async def test_a_save_stores_the_run_its_parts_and_its_log(store: Store) -> None:
    run = await stored(store)
    claim = await claimed(store, run.run_id)
    job, payment = a_job(), a_payment()
    run = replace(run, status="running", jobs=(job,), payments=(payment,), log=log_of(1))
    run = replace(run, budget=Budget(total_atomic=5, available_atomic=1, reserved_atomic=3, spent_atomic=1))
    assert await store.save(claim.token, run, entries_of(run, [1]), durable=True) is None
    run = replace(
        run,
        jobs=(replace(job, status="completed", updated_at=T0 + timedelta(seconds=1)), a_job()),
        payments=(replace(payment, status="completed", transaction="0xaa"), a_payment()),
        log=log_of(3),
        deadline=None,
    )
    assert await store.save(claim.token, run, entries_of(run, [2, 3])) is None
    assert await store.read_run(run.run_id) == run
    assert await store.read_log(run.run_id) == list(entries_of(run, [1, 2, 3]))


async def test_a_save_after_another_claim_is_stale_and_writes_nothing(store: Store) -> None:
    run = await stored(store)
    old = await claimed(store, run.run_id, 0)
    new = await claimed(store, run.run_id)
    changed = replace(run, goal="changed", jobs=(a_job(),), payments=(a_payment(),))
    with pytest.raises(StaleClaim):
        await store.save(old.token, changed, entries_of(run, [1]), holds=[once("0xaa:0")])
    assert await store.read_run(run.run_id) == run
    assert await store.read_log(run.run_id) == []
    assert await store.save(new.token, changed, entries_of(run, [1]), holds=[once("0xaa:0")]) is None


@pytest.mark.parametrize(
    "budget",
    [
        Budget(total_atomic=5, available_atomic=5, reserved_atomic=1),
        Budget(total_atomic=5, available_atomic=6, spent_atomic=-1),
        Budget(total_atomic=5, available_atomic=-1, reserved_atomic=6),
    ],
)
async def test_books_that_do_not_balance_are_never_stored(store: Store, budget: Budget) -> None:
    run = await stored(store)
    claim = await claimed(store, run.run_id)
    with pytest.raises(AssertionError):
        await store.save(claim.token, replace(run, budget=budget), entries_of(run, [1]))
    with pytest.raises(AssertionError):
        await stored(store, budget=budget)
    assert (await store.list_runs(None, None, 10)).runs == (run,)
    assert await store.read_log(run.run_id) == []


async def test_what_belongs_elsewhere_undoes_the_whole_save(store: Store) -> None:
    job, payment = a_job(), a_payment(transaction="0xaa")
    other = await stored(store, jobs=(job,), payments=(payment,))
    run = await stored(store)
    claim = await claimed(store, run.run_id)
    first = entries_of(run, [1])
    assert await store.save(claim.token, run, first) is None
    changed = replace(run, goal="changed")
    for refused, entries in (
        (replace(changed, jobs=(job,)), ()),
        (replace(changed, payments=(payment,)), ()),
        (replace(changed, payments=(a_payment(transaction="0xaa"),)), ()),
        (changed, first),
        (changed, entries_of(other, [1])),
    ):
        with pytest.raises(Bug):
            await store.save(claim.token, refused, entries)
    assert await store.read_run(run.run_id) == run
    assert await store.read_run(other.run_id) == other
    assert await store.read_log(run.run_id) == list(first)


async def test_a_wish_to_cancel_is_recorded_once_and_makes_the_run_due(store: Store) -> None:
    run = await stored(store)
    first = await store.request_cancel(run.run_id)
    assert first.cancel_requested_at is not None
    assert abs(first.cancel_requested_at - datetime.now(UTC)) < timedelta(seconds=30)
    assert replace(first, cancel_requested_at=None, next_tick_at=None) == run
    again = await store.request_cancel(run.run_id)
    assert again.cancel_requested_at == first.cancel_requested_at
    assert await store.due_runs(await store.now(), 10) == [run.run_id]


async def test_a_save_does_not_touch_the_wish_or_the_next_tick(store: Store) -> None:
    run = await stored(store)
    claim = await claimed(store, run.run_id)
    wished = await store.request_cancel(run.run_id)
    assert await store.save(claim.token, replace(claim.run, goal="changed", next_tick_at=T0)) is None
    assert await store.read_run(run.run_id) == replace(wished, goal="changed")


async def test_a_finished_run_is_not_cancelled(store: Store) -> None:
    run = await stored(store, status="completed", phase="done", completed_at=T0)
    assert await store.request_cancel(run.run_id) == run
    assert await store.due_runs(await store.now(), 10) == []


async def test_a_wish_made_during_a_tick_outlives_its_release(store: Store) -> None:
    run = await stored(store)
    claim = await claimed(store, run.run_id)
    await store.request_cancel(run.run_id)
    await store.release(run.run_id, claim.token, claim.now + timedelta(hours=1))
    assert await store.due_runs(await store.now(), 10) == [run.run_id]
    # A claim a clock's step later has seen it, and its release is obeyed.
    wished_at = (await store.read_run(run.run_id)).cancel_requested_at
    while (claim := await claimed(store, run.run_id, 0)).now <= wished_at:
        await store.release(run.run_id, claim.token, None)
    await store.release(run.run_id, claim.token, claim.now + timedelta(hours=1))
    assert await store.due_runs(await store.now(), 10) == []


async def test_a_release_sets_the_next_tick_for_the_holder_alone(store: Store) -> None:
    run = await stored(store)
    old = await claimed(store, run.run_id, 0)
    new = await claimed(store, run.run_id)
    await store.release(run.run_id, old.token, T0)
    assert (await store.read_run(run.run_id)).next_tick_at is None
    assert isinstance(await store.claim(run.run_id, 30), Busy)
    await store.release(run.run_id, new.token, T0)
    assert (await store.read_run(run.run_id)).next_tick_at == T0
    await claimed(store, run.run_id)


async def test_due_runs_are_those_whose_time_has_come_the_longest_due_first(store: Store) -> None:
    late = await stored(store, next_tick_at=T0 + timedelta(microseconds=1))
    early = await stored(store, next_tick_at=T0)
    await stored(store, next_tick_at=T0 + timedelta(seconds=5))
    await stored(store)
    assert await store.due_runs(T0 + timedelta(seconds=4), 10) == [early.run_id, late.run_id]
    assert await store.due_runs(T0, 10) == [early.run_id]
    assert await store.due_runs(T0 + timedelta(days=1), 1) == [early.run_id]
    assert await store.due_runs(T0 + timedelta(days=1), 0) == []


async def test_the_stores_clock_is_utc_and_does_not_go_back(store: Store) -> None:
    first, second = await store.now(), await store.now()
    assert first.utcoffset() == timedelta(0)
    assert first <= second
    assert abs(second - datetime.now(UTC)) < timedelta(seconds=30)
