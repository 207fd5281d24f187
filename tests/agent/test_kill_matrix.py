"""A process is killed at every named point, on both stores: ledger, chain and vendor's books agree after it."""

from collections.abc import Iterator

import pytest

from bench.kill.plants import PLANTS
from bench.kill.points import POINTS
from bench.kill_matrix import STORES, Lane, Outcome, counted, is_wrong, run, table_of, trials

pytestmark = pytest.mark.slow

SEED = 4
# Where each wrong shows, and by what.
PLANTED = (
    ("forgets the intent", "after send, before answer", "lost_payments"),
    ("calls unknown failed", "after send, before answer", "books_differ"),
    ("starts anew", "cashier: after job start", "jobs_unpaid"),
    ("refunds unstored", "cashier: refund: after broadcast", "refunds_differ"),
    ("raises every second time", "after observe", "bugs"),
    ("raises in the search for orphans", "after observe", "bugs"),
    # Told before its process was killed, long since right again; and a step that spans the kill.
    ("is wrong for a moment", "after settlement stored", "invariants_broken"),
    ("counts its tokens anew", "after settlement stored", "invariants_broken"),
    ("holds nothing", "after observe", "holds_differ"),
)


@pytest.fixture(scope="module")
def lanes(mongod_url: str) -> Iterator[list[Lane]]:
    """Two worlds beside each other: chain, facilitator, vendors, stores, and a server that forks."""
    with Lane(mongod_url) as first, Lane(mongod_url) as second:
        yield [first, second]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, lanes: list[Lane]) -> dict[tuple[str, str], Outcome]:
    """Every trial that is asked for in this session, tried by both lanes at once."""
    calls = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    wanted = {(asked["point"], asked["store"]) for asked in calls if {"point", "store"} <= asked.keys()}
    chosen = [trial for trial in trials(POINTS, STORES, [SEED]) if (trial["point"], trial["store"]) in wanted]
    return {(one["point"], one["store"]): one for one in run(lanes, iter(chosen))}


@pytest.mark.row(6)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("point", POINTS)
def test_a_process_killed_at_any_point_leaves_books_that_agree(
    outcomes: dict[tuple[str, str], Outcome], point: str, store: str
) -> None:
    outcome = outcomes[point, store]
    assert outcome["kills"] == 1, outcome
    assert not is_wrong(outcome), outcome


@pytest.mark.parametrize(("plant", "point", "wrong"), PLANTED)
def test_a_planted_wrong_is_seen(lanes: list[Lane], plant: str, point: str, wrong: str) -> None:
    outcome = lanes[0].try_one({"point": point, "store": "sqlite", "seed": SEED, "plant": plant})
    assert outcome["kills"] == 1, outcome
    assert outcome[wrong] > 0, outcome
    assert counted([outcome])[wrong] == outcome[wrong]


def test_every_plant_is_tried() -> None:
    assert {plant for plant, _, _ in PLANTED} == set(PLANTS)


def test_a_point_that_is_not_reached_is_no_kill(lanes: list[Lane]) -> None:
    # Where an unknown payment counts as failed, nothing is ever looked up on the chain.
    trial = {"point": "after settle, before commit", "store": "sqlite", "seed": SEED, "plant": "calls unknown failed"}
    outcome = lanes[0].try_one(trial)
    assert outcome["kills"] == 0
    assert is_wrong({**outcome, "wrongs": 0})
    assert counted([outcome])["not_killed"] == 1
    assert table_of([outcome]).row_count == 1
