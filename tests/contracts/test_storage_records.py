"""The Store port, what lies beside the runs: holds, refunds, pages, the log, vendors. Every store keeps this."""

import asyncio
import base64
import uuid
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.core.model import Run
from agent.core.policy import once
from agent.ports import Claim, Hold, Store
from tests.contracts.store_values import T0, a_payment, a_run, a_vendor, an_entry, entries_of, stored

# The store lives as long as the test: what an example leaves in it is another example's past.
with_one_store = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


async def claimed_run(store: Store) -> tuple[Run, int]:
    run = await stored(store)
    claim = await store.claim(run.run_id, 600)
    assert isinstance(claim, Claim)
    return run, claim.token


async def test_a_turn_is_given_once_in_its_time_to_one_of_all_who_ask(store: Store) -> None:
    asked = [store.take_turn("orphans", T0 + timedelta(seconds=second), 120) for second in (0, 0, 60, 119)]
    assert sorted(await asyncio.gather(*asked)) == [False, False, False, True]
    # A file or a server may have served a later one of these first.
    later = [T0 + timedelta(seconds=second) for second in (240, 300, 360)]
    assert [await store.take_turn("orphans", now, 120) for now in later] == [True, False, True]
    assert await store.take_turn("another", T0, 120)


def hold(amount_atomic: int, cap_atomic: int = 10, scope: str = "wallet:2026-01-31") -> Hold:
    return Hold(scope=scope, amount_atomic=amount_atomic, cap_atomic=cap_atomic)


async def test_a_hold_above_its_cap_is_returned_and_nothing_is_written(store: Store) -> None:
    run, token = await claimed_run(store)
    refused = hold(4)
    assert await store.save(token, run, holds=[hold(7)]) is None
    changed = replace(run, goal="changed", payments=(a_payment(),))
    holds = [hold(1, scope="vendor"), refused, hold(1)]
    assert await store.save(token, changed, entries_of(run, [1]), holds=[once("0xaa:0"), *holds]) == refused
    assert await store.read_run(run.run_id) == run
    assert await store.read_log(run.run_id) == []
    # None of the holds before it was counted.
    full = [hold(10, scope="vendor"), hold(3)]
    assert await store.save(token, changed, entries_of(run, [1]), holds=[once("0xaa:0"), *full]) is None


async def test_holds_of_one_scope_are_counted_over_all_runs(store: Store) -> None:
    (one, token), (other, other_token) = await claimed_run(store), await claimed_run(store)
    assert await store.save(token, one, holds=[hold(6)]) is None
    assert await store.save(other_token, other, holds=[hold(6)]) == hold(6)
    assert await store.save(token, one, holds=[hold(-2)]) is None
    assert await store.save(other_token, other, holds=[hold(6)]) is None


@with_one_store
@given(holds=st.lists(st.tuples(st.integers(-12, 12), st.integers(0, 20)), max_size=12))
async def test_no_sequence_of_holds_passes_its_cap_or_falls_below_nothing(
    store: Store, holds: list[tuple[int, int]]
) -> None:
    run, token = await claimed_run(store)
    scope, counted = uuid.uuid4().hex, 0
    for amount, cap in holds:
        asked = hold(amount, cap, scope)
        fits = amount <= 0 or counted + amount <= cap
        assert await store.save(token, run, holds=[asked]) == (None if fits else asked)
        counted = max(0, counted + amount) if fits else counted
    assert await store.save(token, run, holds=[hold(1, counted, scope)]) == hold(1, counted, scope)
    assert await store.save(token, run, holds=[hold(1, counted + 1, scope)]) is None


async def test_what_counts_once_counts_once_over_all_runs_and_at_once(store: Store) -> None:
    held = [await claimed_run(store) for _ in range(5)]
    asked = [store.save(token, run, entries_of(run, [1]), holds=[once("0xaa:0")]) for run, token in held]
    refused = await asyncio.gather(*asked)
    assert refused.count(None) == 1
    assert refused.count(once("0xaa:0")) == 4
    for (run, _), refusal in zip(held, refused, strict=True):
        assert len(await store.read_log(run.run_id)) == (refusal is None)
    run, token = next(one for one, refusal in zip(held, refused, strict=True) if refusal is not None)
    assert await store.save(token, run, holds=[once("0xcc:0"), once("0xcc:0")]) == once("0xcc:0")
    assert await store.save(token, run, entries_of(run, [1]), holds=[once("0xcc:0"), once("0xaa:1")]) is None


@with_one_store
@given(ages_s=st.lists(st.integers(0, 3), max_size=5), limit=st.integers(1, 4))
async def test_pages_hold_every_run_once_and_the_newest_first(store: Store, ages_s: list[int], limit: int) -> None:
    for age_s in ages_s:
        await stored(store, created_at=T0 - timedelta(seconds=age_s))
    everything = (await store.list_runs(None, None, 1_000)).runs
    runs, cursor = [], None
    while True:
        page = await store.list_runs(None, cursor, limit)
        assert len(page.runs) <= limit
        runs += page.runs
        assert len(runs) <= len(everything)
        if (cursor := page.cursor) is None:
            break
    assert tuple(runs) == everything
    assert len({run.run_id for run in runs}) == len(runs)
    assert [run.created_at for run in runs] == sorted((run.created_at for run in runs), reverse=True)


async def test_runs_begun_while_someone_pages_do_not_move_the_pages(store: Store) -> None:
    old = [await stored(store, created_at=T0 + timedelta(seconds=age_s)) for age_s in range(3)]
    first = await store.list_runs(None, None, 2)
    await stored(store, created_at=T0 + timedelta(seconds=9))
    second = await store.list_runs(None, first.cursor, 2)
    assert [*first.runs, *second.runs] == old[::-1]
    assert second.cursor is None


async def test_runs_are_listed_by_status(store: Store) -> None:
    done = await stored(store, status="completed")
    await stored(store)
    assert (await store.list_runs("completed", None, 10)).runs == (done,)
    assert (await store.list_runs("no such status", None, 10)).runs == ()


@pytest.mark.parametrize(
    "cursor",
    [
        *("", "!", "????", "a" * 5_000, "\ud800", "\0"),
        *(base64.urlsafe_b64encode(text).decode() for text in (b"\xff", b"2026", b"2026-01-31T09:30:00.123456Z ")),
    ],
)
async def test_a_cursor_that_cannot_be_read_begins_at_the_newest(store: Store, cursor: str) -> None:
    run = await stored(store)
    assert (await store.list_runs(None, cursor, 10)).runs == (run,)


async def test_the_log_is_read_oldest_first_by_type_and_from_its_end(store: Store) -> None:
    run = a_run()
    entries = tuple(
        an_entry(run.run_id, seq, type=kind, job_id="job_1" if kind == "metric" else None)
        for seq, kind in enumerate(["event", "metric", "error", "metric", "tick"], start=1)
    )
    await store.insert_run(run, entries, None, "")
    assert await store.read_log(run.run_id) == list(entries)
    assert [entry.seq for entry in await store.read_log(run.run_id, types=["metric", "error"])] == [2, 3, 4]
    assert [entry.seq for entry in await store.read_log(run.run_id, types=["metric", "error"], newest=2)] == [3, 4]
    assert [entry.seq for entry in await store.read_log(run.run_id, newest=1)] == [5]
    assert await store.read_log(run.run_id, newest=0) == []
    assert await store.read_log(run.run_id, types=[]) == []
    assert await store.read_log("run_unknown") == []


async def test_vendors_keep_the_order_in_which_they_first_came(store: Store) -> None:
    first, second = a_vendor(vendor_id="b"), a_vendor(vendor_id="a", created_at=T0 - timedelta(days=1))
    assert await store.put_vendor(first, replace=False) is True
    assert await store.put_vendor(second, replace=True) is True
    assert await store.put_vendor(replace(first, name="ignored"), replace=False) is False
    assert await store.list_vendors() == [first, second]
    dearer = replace(first, base_price_per_hour_atomic=9, reliability_score=Decimal("0.1"))
    assert await store.put_vendor(dearer, replace=True) is True
    assert await store.list_vendors() == [dearer, second]
    assert await store.remove_vendor("b") is True
    assert await store.remove_vendor("b") is False
    assert await store.put_vendor(first, replace=False) is True
    assert await store.list_vendors() == [second, first]
