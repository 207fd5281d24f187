"""A stage that is told to go: its heads hear of it at once, its sessions move, and none of them loses a token."""

import asyncio

import pytest

from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.core.inference.step import Open
from gpu_worker.inference.stage.drain import drain_slices
from tests.fixtures.toy_head import LIMIT_S, ToyHead, World
from tests.fixtures.toy_pipeline import whole

PROMPT = [3, 1, 4]


@pytest.mark.parametrize("leaver", [1, 2], ids=["the middle one", "the last one"])
@pytest.mark.parametrize("way", ["closes", "hangs up"])
async def test_sessions_move_to_another_stage_and_the_leaver_is_empty(leaver: int, way: str) -> None:
    world = World(0, 1, 3, 4)
    head = world.head
    await head.route()
    await head.go({"a": PROMPT}, 3)
    old = world.stages[leaver - 1]
    leaving = asyncio.create_task(drain_slices(old, LIMIT_S))
    assert (await head.fault("draining")).endpoint == f"s{leaver}"
    await head.on("a", 2)  # it goes on until it has moved
    await head.route(world.spare(leaver), epoch=1)
    again = await head.open("a", PROMPT, epoch=1)
    head.take(await head.step({"a": 0}, epoch=1, opens=[again]))
    await head.hang_up(f"s{leaver}", closes=("a",) if way == "closes" else ())
    assert await leaving == 0
    # What the leaver passes on of the old route closes nothing on the stages that the session still has.
    await head.on("a", 2, epoch=1)
    assert head.tokens["a"][3:] == whole(PROMPT, 8, seed=3)


async def test_new_sessions_are_refused_and_old_ones_go_on() -> None:
    world = World(0, 2, 4)
    head = world.head
    await head.route()
    await head.go({"a": PROMPT}, 2)
    leaving = asyncio.create_task(drain_slices(world.stages[0], LIMIT_S))
    await head.fault("draining")
    await head.send(opens=(Open(session="b", epoch=0, positions=9, sampling=Sampling()),))
    assert (await head.refusal("b")).code == "draining"
    other = ToyHead(world.net, world.way, pipeline="q")
    await other.route()
    assert (await other.fault("draining")).endpoint == "s1"
    await head.on("a", 3)
    assert head.tokens["a"][3:] == whole(PROMPT, 5, seed=3)
    await head.send(closes=("a",))
    assert await leaving == 0


async def test_both_streams_of_a_pipeline_are_told() -> None:
    world = World(0, 1, 3, 4)
    await world.head.route()
    await drain_slices(world.stages[1], 0)
    assert sum(bool(batch.faults) for batch in world.net.back["s2"]) == 2
    assert (await world.head.fault("draining")).endpoint == "s2"


async def test_it_ends_when_the_time_is_over_and_says_how_many_are_left() -> None:
    world = World(0, 2, 4)
    await world.head.route()
    await world.head.go({"a": PROMPT, "b": [1]}, 2)
    assert await drain_slices(world.stages[0], 0) == 2
    await world.head.send(closes=("a", "b"))
    assert await drain_slices(world.stages[0], 0) == 0
