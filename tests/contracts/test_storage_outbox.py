"""The Store port, what is told of runs: the outbox of notices, and the log read onwards. Every store keeps this."""

import asyncio
from dataclasses import replace

import pytest

from agent.core.errors import StaleClaim
from agent.core.model import Notice, Run
from agent.ports import Claim, Hold, Store
from tests.contracts.store_values import T0, Place, a_run, an_entry, entries_of, stored


def a_notice(number: int, run_id: str = "run_1") -> Notice:
    return Notice(
        notice_id=f"msg_{run_id}_{number}",
        run_id=run_id,
        kind="job.completed",
        payload='{"type":"job.completed","data":{"amount":1.40}}',
        created_at=T0,
    )


async def claimed(store: Store) -> tuple[Run, int]:
    run = await stored(store)
    claim = await store.claim(run.run_id, 600)
    assert isinstance(claim, Claim)
    return run, claim.token


async def queue(store: Store, *notices: Notice) -> None:
    run, token = await claimed(store)
    assert await store.save(token, run, notices=notices) is None


async def test_a_notice_is_queued_with_the_save_and_taken_as_it_was_with_its_attempt_counted(store: Store) -> None:
    await queue(store, a_notice(1), a_notice(2))
    assert await store.take_notices(10, 600) == [replace(a_notice(number), attempts=1) for number in (1, 2)]


async def test_a_save_that_is_refused_queues_nothing(store: Store) -> None:
    run, token = await claimed(store)
    over = Hold(scope="wallet", amount_atomic=2, cap_atomic=1)
    assert await store.save(token, run, entries_of(run, [1]), holds=[over], notices=[a_notice(1)]) == over
    with pytest.raises(StaleClaim):
        await store.save(token - 1, run, entries_of(run, [1]), notices=[a_notice(2)])
    assert await store.take_notices(10, 600) == []
    assert await store.read_log(run.run_id) == []


async def test_a_notice_that_is_taken_is_kept_from_others_until_its_lease_ends(store: Store) -> None:
    await queue(store, *[a_notice(number) for number in range(5)])
    first = await store.take_notices(3, 600)
    second = await store.take_notices(10, 0)
    assert [len(first), len(second)] == [3, 2]
    assert {notice.notice_id for notice in first} & {notice.notice_id for notice in second} == set()
    # A lease of nothing has ended: whoever comes next tries again, and counts on.
    assert await store.take_notices(10, 600) == [replace(notice, attempts=2) for notice in second]
    assert await store.take_notices(10, 600) == []
    assert await store.take_notices(0, 600) == []


async def test_two_takers_at_once_never_get_the_same_notice(place: Place, store: Store) -> None:
    await queue(store, *[a_notice(number) for number in range(12)])
    takers = [store, place.open(), place.open()]
    taken = await asyncio.gather(*[taker.take_notices(3, 600) for taker in takers for _ in range(2)])
    ids = [notice.notice_id for notices in taken for notice in notices]
    assert len(ids) == len(set(ids)) == 12
    for taker in takers[1:]:
        await taker.close()


async def test_a_notice_is_due_again_when_asked_and_forgotten_when_told(store: Store) -> None:
    await queue(store, a_notice(1), a_notice(2), a_notice(3))
    await store.take_notices(10, 600)
    await store.settle_notice("msg_run_1_1", 0)
    await store.settle_notice("msg_run_1_2", 600)
    await store.settle_notice("msg_run_1_3", None)
    assert await store.take_notices(10, 600) == [replace(a_notice(1), attempts=2)]
    await store.settle_notice("msg_run_1_3", 0)
    await store.settle_notice("msg_of_nobody", None)
    assert await store.take_notices(10, 600) == []


async def test_the_log_is_read_onwards_from_an_entry_a_page_at_a_time(store: Store) -> None:
    run = a_run()
    kinds = ["event", "job_log", "error", "job_log", "tick", "metric"]
    entries = tuple(an_entry(run.run_id, seq, type=kind) for seq, kind in enumerate(kinds, start=1))
    await store.insert_run(run, entries, None, "")

    async def seqs(**asked: int) -> list[int]:
        found = await store.read_log(run.run_id, types=["job_log", "error", "metric"], **asked)
        return [entry.seq for entry in found]

    assert await seqs(after=0, oldest=2) == [2, 3]
    assert await seqs(after=3, oldest=2) == [4, 6]
    assert await seqs(after=3) == [4, 6]
    assert await seqs(after=3, newest=1) == [6]
    assert await seqs(after=6, oldest=2) == []
    assert await seqs(oldest=0) == []
