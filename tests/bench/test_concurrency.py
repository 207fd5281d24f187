"""What the processes of the concurrency benchmark saw, put together: two holders at once are seen as two."""

from pathlib import Path

import pytest

from agent.core.errors import ChainUnavailable, RunBusy, StoreUnavailable
from agent.edges.store_sqlite import SqliteStore
from agent.ports import Claim
from bench.concurrent.place import unanswered
from bench.concurrent.scenes import untried
from bench.concurrent.witness import Held, Saved, Seen, Witness, disorder, holders_max
from bench.concurrent.worker import Exit
from bench.records import percentile
from tests.agent.core.values import a_run


def held(token: int, since_s: float, until_s: float, lapses_s: float = 60, run_id: str = "run_1") -> Held:
    return Held(run_id=run_id, token=token, process=token, since_s=since_s, until_s=until_s, lapses_s=lapses_s)


@pytest.mark.parametrize(
    ("leases", "most"),
    [
        pytest.param([], 0, id="nobody"),
        pytest.param([held(1, 0, 5), held(2, 5, 9)], 1, id="one after the other, within one millisecond"),
        pytest.param([held(1, 0, 5), held(2, 4, 9)], 2, id="the second came before the first had gone"),
        pytest.param([held(1, 0, 5), held(2, 3, 3)], 2, id="a lease too short to measure, inside another"),
        pytest.param([held(1, 0, 5), held(2, 5, 5), held(3, 5, 7)], 1, id="one too short to measure, between two"),
        pytest.param([held(1, 0, 9, lapses_s=2), held(2, 2, 4)], 1, id="the first had lapsed"),
        pytest.param([held(1, 3, 9, lapses_s=2), held(2, 2, 4)], 1, id="lapsed before it was looked at"),
        pytest.param([held(1, 0, 5), held(1, 0, 5, run_id="run_2")], 1, id="two runs"),
        pytest.param([held(1, 0, 9), held(2, 1, 8), held(3, 2, 7)], 3, id="three"),
    ],
)
def test_holders_are_counted_by_what_they_held_at_one_moment(leases: list[Held], most: int) -> None:
    assert holders_max(leases) == most


def test_tokens_that_do_not_grow_are_told() -> None:
    in_order = [Saved(run_id="run_1", token=token, seq=seq) for token, seq in ((1, 3), (1, 5), (2, 6))]
    assert disorder([held(1, 0, 1), held(2, 2, 3)], in_order) == []
    assert disorder([held(2, 0, 1), held(1, 2, 3)], []) == ["run_1: the tokens were held in the order [2, 1]"]
    assert disorder([held(1, 0, 1), held(1, 2, 3)], []) == ["run_1: the tokens were held in the order [1, 1]"]
    late = [*in_order, Saved(run_id="run_1", token=1, seq=7)]
    assert disorder([], late) == ["run_1: the log was written by the tokens [1, 1, 2, 1]"]


def test_a_percentile_is_the_value_that_so_many_are_not_above() -> None:
    assert [percentile(list(range(1, 101)), percent) for percent in (50, 99, 100)] == [50, 99, 100]
    assert (percentile([7.0], 99), percentile([], 99)) == (7.0, 0.0)


async def test_a_lease_that_was_never_released_is_written_down_at_the_end(tmp_path: Path) -> None:
    store, seen = SqliteStore(tmp_path / "agent.db"), Seen()
    await store.migrate()
    run = a_run()
    await store.insert_run(run, (), None, "")
    witness = Witness(store, 7, seen)
    claim = await witness.store().claim(run.run_id, 60)
    assert isinstance(claim, Claim)
    assert seen.held == []
    await witness.end()
    await store.close()
    (lease,) = seen.held
    assert (lease.run_id, lease.token, lease.process) == (run.run_id, claim.token, 7)
    assert lease.since_s <= lease.until_s < lease.lapses_s == claim.now.timestamp() + 60


@pytest.mark.parametrize(
    ("paid", "refused", "unreached", "is_tried"),
    [(20, 80, 0, True), (20, 79, 1, True), (20, 78, 2, False), (100, 0, 0, False), (0, 100, 0, False)],
)
def test_a_cap_is_tried_where_some_pay_and_others_are_refused(
    paid: int, refused: int, unreached: int, is_tried: bool
) -> None:
    assert (untried(paid, refused, unreached, 100) == []) == is_tried


def test_a_store_that_hardly_answers_is_told() -> None:
    served, busy = Exit(said="Waiting", elapsed_s=0.1), Exit(said="", elapsed_s=0.1, error=RunBusy.code)
    away = [Exit(said="", elapsed_s=10.0, error=error.code) for error in (StoreUnavailable, ChainUnavailable)]
    assert unanswered([served, *[busy] * 199, *away]) == []
    assert unanswered([served, *[busy] * 99, *away]) == ["store or chain did not answer 2 of 102 ticks"]
    assert unanswered([served, away[0]]) == []
