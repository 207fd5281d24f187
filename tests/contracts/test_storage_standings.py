"""The Store port, how the jobs of vendors have ended: counted with the save or not at all. Every store keeps this."""

import asyncio
from datetime import datetime, timedelta
from decimal import Decimal

import pytest

from agent.core.errors import StaleClaim
from agent.core.model import Outcome, Run, Standing
from agent.ports import Claim, Hold, Store
from tests.contracts.store_values import T0, Place, entries_of, stored


def an_outcome(succeeded: bool = True, vendor_id: str = "gpu_vendor_1", at: datetime = T0) -> Outcome:
    return Outcome(vendor_id=vendor_id, gpu_type="A10", succeeded=succeeded, at=at)


async def claimed(store: Store) -> tuple[Run, int]:
    run = await stored(store)
    claim = await store.claim(run.run_id, 600)
    assert isinstance(claim, Claim)
    return run, claim.token


async def count(store: Store, *outcomes: Outcome) -> None:
    run, token = await claimed(store)
    assert await store.save(token, run, outcomes=outcomes) is None


async def test_nothing_is_known_before_a_job_ended(store: Store) -> None:
    assert await store.standings() == []


async def test_outcomes_are_counted_with_the_save_by_vendor_and_gpu(store: Store) -> None:
    later = T0 + timedelta(seconds=1)
    await count(store, an_outcome(), an_outcome(False), an_outcome(vendor_id="a.$b"), an_outcome(False, at=later))
    assert await store.standings() == [
        Standing(vendor_id="a.$b", gpu_type="A10", completed=Decimal(1), failed=Decimal(0), updated_at=T0),
        Standing(
            vendor_id="gpu_vendor_1",
            gpu_type="A10",
            completed=Decimal(1),
            failed=Decimal(2),
            updated_at=later,
            last_failed_at=later,
            failed_in_a_row=2,
        ),
    ]


async def test_a_save_that_is_refused_counts_nothing(store: Store) -> None:
    run, token = await claimed(store)
    over = Hold(scope="wallet", amount_atomic=2, cap_atomic=1)
    assert await store.save(token, run, entries_of(run, [1]), holds=[over], outcomes=[an_outcome()]) == over
    with pytest.raises(StaleClaim):
        await store.save(token - 1, run, outcomes=[an_outcome()])
    assert await store.standings() == []


async def test_runs_that_end_jobs_of_one_vendor_at_once_lose_none(store: Store, place: Place) -> None:
    second = place.open()
    held = [await claimed(store) for _ in range(6)]

    async def end_jobs(number: int, run: Run, token: int) -> None:
        for _ in range(4):
            await (store, second)[number % 2].save(token, run, outcomes=[an_outcome(number % 3 > 0)])

    await asyncio.gather(*[end_jobs(number, run, token) for number, (run, token) in enumerate(held)])
    await second.close()
    [standing] = await store.standings()
    assert (standing.completed, standing.failed) == (16, 8)


async def test_what_was_counted_fades(store: Store) -> None:
    await count(store, *[an_outcome(False)] * 4)
    await count(store, an_outcome(at=T0 + timedelta(days=30)))
    [standing] = await store.standings()
    assert (standing.completed, standing.failed, standing.failed_in_a_row) == (1, 2, 0)
    assert standing.last_failed_at == T0
