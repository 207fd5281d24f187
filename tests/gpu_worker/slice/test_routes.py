"""Which stages together are the model, and what it takes to go on over others."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.routes import COOL_MAX_S, Cooling, best, fills
from gpu_worker.core.inference.schedule import cost
from gpu_worker.inference.head.shape import Shape
from tests.fixtures.head_world import World, expected, hop, world
from tests.fixtures.virtual_time import run

OWN = hop("0:1")


def names(hops: tuple[Hop, ...] | None) -> list[str] | None:
    return None if hops is None else [each.endpoint for each in hops]


@pytest.mark.parametrize(
    ("stages", "options", "wanted"),
    [
        pytest.param("1:2 2:4", {}, "0:1 1:2 2:4", id="one-way"),
        pytest.param("1:2 2:4 1:4", {}, "0:1 1:4", id="fewest-stages"),
        pytest.param("1:3 2:4", {}, None, id="overlap-inside-a-slice"),
        pytest.param("1:2 3:4", {}, None, id="hole"),
        pytest.param("1:3", {}, None, id="no-end"),
        pytest.param("1:4b 1:4a", {}, "0:1 1:4a", id="by-name"),
        pytest.param("1:4b 1:4a", {"now": "1:4b"}, "0:1 1:4b", id="stays"),
        pytest.param("1:4b 1:4a", {"now": "1:4b", "avoid": "1:4b"}, "0:1 1:4a", id="avoided"),
        pytest.param("1:4b 1:4a", {"now": "1:4b", "avoid": "1:4a 1:4b"}, "0:1 1:4a", id="now-is-nothing-avoided"),
        pytest.param("1:4a 1:4b", {"now": "1:4a", "avoid": "1:4b 1:4a"}, "0:1 1:4b", id="lost-first-before-lost-last"),
        pytest.param("1:2a 1:2b 2:4", {"avoid": "2:4 1:2b 1:2a"}, "0:1 1:2b 2:4", id="lost-last-on-a-longer-way"),
        pytest.param("1:4b 1:4a", {"now": "1:4a", "strange": "1:4a"}, "0:1 1:4b", id="same-kind"),
        pytest.param("1:4 1:2 2:4", {"strange": "1:4"}, "0:1 1:2 2:4", id="longer-of-the-same-kind"),
        pytest.param("1:4b 1:4a", {"strange": "1:4a", "avoid": "1:4b"}, "0:1 1:4a", id="strange-before-avoided"),
        pytest.param("1:4 1:2 2:4", {"avoid": "1:4"}, "0:1 1:2 2:4", id="longer-to-avoid"),
        pytest.param("1:4", {"avoid": "1:4"}, "0:1 1:4", id="avoided-where-there-is-another"),
        pytest.param("0:2 2:4 1:4", {}, "0:1 1:4", id="own-layers-first"),
        pytest.param("1:9 1:4", {}, "0:1 1:4", id="past-the-end"),
    ],
)
def test_the_best_route(stages: str, options: dict[str, str], wanted: str | None) -> None:
    now = [hop(each) for each in options.get("now", "").split()]
    avoid, strange = (options.get(name, "").split() for name in ("avoid", "strange"))
    found = best([hop(each) for each in stages.split()], OWN, 4, avoid=avoid, strange=strange, now=now)
    assert names(found) == (wanted.split() if wanted else None)


def test_a_head_has_the_first_layers() -> None:
    assert best([hop("0:1")], hop("1:4"), 4) is None


@given(st.sets(st.tuples(st.integers(0, 6), st.integers(1, 7)).filter(lambda pair: pair[0] < pair[1]), max_size=14))
def test_a_route_is_contiguous_and_none_is_shorter(slices: set[tuple[int, int]]) -> None:
    stages = [hop(f"{start}:{end}") for start, end in sorted(slices)]
    found = best(stages, OWN, 7)
    # Breadth first, over layers.
    reached, steps = {1}, 0
    while 7 not in reached and steps < 8:
        reached, steps = {end for start, end in slices if start in reached}, steps + 1
    if found is None:
        assert 7 not in reached
    else:
        assert [each.start for each in found[1:]] == [each.end for each in found[:-1]]
        assert (found[0], found[-1].end, len(found) - 1) == (OWN, 7, steps)


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        pytest.param("0:1 1:3a 3:4", "0:1 1:3a 3:4", (), id="same"),
        pytest.param("0:1 1:3a 3:4", "0:1 1:3b 3:4", (0,), id="second"),
        pytest.param("0:1 1:3 3:4a", "0:1 1:3 3:4b", (1,), id="last"),
        pytest.param("0:1 1:2a 2:3 3:4a", "0:1 1:2b 2:3 3:4b", (0, 2), id="two-apart"),
        pytest.param("0:1 1:3a 3:4a", "0:1 1:3b 3:4b", None, id="two-in-a-row"),
        pytest.param("0:1 1:2 2:4", "0:1 1:4", (0,), id="one-for-two"),
        pytest.param("0:1 1:4", "0:1 1:2 2:4", None, id="two-for-one"),
        pytest.param("", "0:1 1:4", None, id="first"),
    ],
)
def test_who_fills_whom(old: str, new: str, wanted: tuple[int, ...] | None) -> None:
    assert fills([hop(each) for each in old.split()], [hop(each) for each in new.split()]) == wanted


def test_a_lost_stage_is_avoided_for_longer_each_time_and_forgiven_when_it_was_well() -> None:
    cooling = Cooling()
    cooling.lost("a", 100.0)
    assert cooling.avoided(114.9) == ("a",)
    assert cooling.avoided(115.0) == ()
    cooling.lost("a", 120.0)
    assert cooling.avoided(149.9) == ("a",)
    assert cooling.avoided(150.0) == ()
    cooling.lost("a", 200.0)
    assert cooling.avoided(215.0) == ()
    at = 200.0
    for _ in range(20):
        cooling.lost("a", at)
    assert cooling.avoided(at + COOL_MAX_S) == ()


def test_the_cost_of_a_stage_is_learnt_from_its_steps_and_nonsense_is_not() -> None:
    shape, route = Shape({1: 0.01, 4: 0.02}), [hop("0:2"), hop("2:4")]
    for _ in range(100):
        shape.add(route, 4, (0.02, 0.06), 0.1)
        for nonsense in ((0.02,), (0.02, float("nan")), (0.02, -1.0), (0.02, 1e9)):
            shape.add(route, 4, nonsense, 0.1)
    (own, other), way_s = shape.curves(route)
    assert cost(own, 1) == pytest.approx(0.01)
    assert cost(other, 1) == pytest.approx(0.03)
    assert way_s == pytest.approx(0.02)
    assert shape.total_s == pytest.approx({"0:2": 2.0, "2:4": 6.0})


async def routed(here: World, *wanted: str) -> None:
    await here.until(lambda: [each.endpoint for each in here.head.hops] == list(wanted))


def test_what_a_stage_says_of_itself_decides() -> None:
    async def main() -> None:
        async with world("0:2") as here:
            here.start_stage("2:4a")
            # The registry has it at other layers than it serves.
            here.registry.set([hop("0:2"), Hop(endpoint="2:4a", start=2, end=3), hop("3:4")])
            await asyncio.sleep(5)
            assert here.head.hops == ()
            assert "2:4a: it serves layers 2:4 of 4" in here.head.why_no_route()
            here.registry.set([hop("0:2"), hop("2:4a")])
            await routed(here, "0:2", "2:4a")

    run(main())


@pytest.mark.parametrize(
    ("says", "why"),
    [
        pytest.param({"model_hash": "8" * 64}, "2:4a: it has other weights", id="weights"),
        pytest.param({"is_ready": False}, "2:4a: it is not ready", id="not-ready"),
        pytest.param({"layers": Layers(2, 4, 5)}, "2:4a: it serves layers 2:4 of 5", id="other-model"),
    ],
)
def test_only_a_stage_that_is_ready_and_has_the_same_model_is_taken(says: dict[str, object], why: str) -> None:
    async def main() -> None:
        async with world("0:2") as here:
            here.start_stage("2:4a")
            here.links.says["2:4a"] = says
            here.registry.set([hop("0:2"), hop("2:4a")])
            await asyncio.sleep(2)
            with pytest.raises(InferenceError, match=why) as refused:
                await here.ask("s", range(3), 3)
            assert refused.value.code == "no_route"
            here.links.says.clear()
            await routed(here, "0:2", "2:4a")
            assert await here.tell("s", range(3), 3) == expected(range(3), 3)

    run(main())


def test_a_stage_that_does_not_answer_is_passed_over() -> None:
    async def main() -> None:
        async with world("0:2", "2:4b") as here:
            here.start_stage("2:4a")
            here.net.freeze("2:4a")
            here.net.cut("2:4b")
            here.start_stage("2:4c")
            here.registry.set([hop("0:2"), hop("2:4a"), hop("2:4c")])
            assert await here.tell("s", range(5), 5) is not None
            await routed(here, "0:2", "2:4c")

    run(main())
