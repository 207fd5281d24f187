"""Stages that say they are there and serve nothing, are ready late, leave and come back, or compute otherwise."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gpu_worker.core.inference.batch import Batch
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.stage.drain import drain_slices
from tests.fixtures.head_world import World, expected, hop, world
from tests.fixtures.virtual_time import VirtualLoop, run

PENALISED = {"repetition_penalty": 1.3}
OTHER = {"dtype": "float16", "back_end": "lean int8"}


def now() -> float:
    return asyncio.get_running_loop().time()


def way(here: World) -> list[str]:
    return [each.endpoint for each in here.head.hops]


class Refusing:
    """A stage that says what it is and takes no step."""

    def __init__(self, stage: Any) -> None:
        self.info = stage.info

    def begin(self, reply: Callable[[Batch], Awaitable[None]], session_pass: str) -> None:
        return

    async def receive(self, batch: Batch, reply: Callable[[Batch], Awaitable[None]]) -> None:
        raise InferenceError("internal", "broken")

    def ended(self, reply: Callable[[Batch], Awaitable[None]]) -> None:
        return


async def fate(stream: Any) -> str:
    with pytest.raises(InferenceError) as ended:
        async for _ in stream:
            pass
    return ended.value.code


def test_thousands_of_routes_in_vain_are_no_more_than_that() -> None:
    async def main() -> None:
        async with world("0:2", "2:4", retry_s=0.2) as here:
            here.net.cut("2:4")
            here.net.stages["2:4"] = Refusing(here.stages["2:4"])
            here.net.restore("2:4")
            await here.until(lambda: here.head.stats.failovers > 1_100)
            here.start_stage("2:4")
            assert await here.tell("s", range(5), 5) == expected(range(5), 5)

    run(main())


def test_a_head_that_stood_still_itself_blames_nobody() -> None:
    async def main() -> None:
        async with world("0:2", "2:4") as here:
            told = asyncio.create_task(here.tell("s", range(9), 20))
            await here.until(lambda: here.tokens() >= 5)
            engine = here.engines["2:4"]
            engine.may_step.clear()
            await asyncio.sleep(0.01)
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            loop.stand_still(60)
            engine.may_step.set()
            assert await told == expected(range(9), 20)
            assert here.head.stats.failovers == 0

    run(main())


@pytest.mark.parametrize("stages", [("0:2", "2:4"), ("0:1", "1:3", "3:4")], ids=["two", "three"])
def test_sessions_end_where_an_engine_hangs_whose_stage_says_that_it_is_there(stages: tuple[str, ...]) -> None:
    async def main() -> None:
        async with world(*stages) as here:
            streams = [await here.ask(f"s{n}", range(9), 20) for n in range(2)]
            await here.until(lambda: here.tokens() >= 10)
            engine = here.engines[stages[-1]]
            engine.may_step.clear()
            hung_s = now()
            async with asyncio.timeout(200):
                assert await asyncio.gather(*map(fate, streams)) == ["lost_stage"] * 2
            assert 30 <= now() - hung_s <= 36
            # One that comes then has its own time, and is served where the engine works again.
            late = asyncio.create_task(here.tell("late", range(9), 20))
            await asyncio.sleep(5)
            engine.may_step.set()
            assert await late == expected(range(9), 20)

    run(main())


async def leave(here: World, name: str) -> None:
    """A stage is told to go, and says so; its sessions are its heads' until they have moved."""
    here.links.says[name] = {"is_ready": False}
    await drain_slices(here.stages[name], 0.01)


def test_a_stage_that_is_ready_later_is_taken_in_place_of_one_that_leaves() -> None:
    async def main() -> None:
        async with world("0:2", "2:4a", "2:4b") as here:
            here.links.says["2:4b"] = {"is_ready": False}
            stream = await here.ask("s", range(40), 400)
            read = [await anext(stream) for _ in range(5)]
            await leave(here, "2:4a")
            new = asyncio.create_task(here.tell("new", range(9), 20))
            await asyncio.sleep(20)
            assert way(here) == ["0:2", "2:4a"]
            here.links.says.pop("2:4b")
            await here.until(lambda: way(here) == ["0:2", "2:4b"])
            assert now() < 23
            assert await new == expected(range(9), 20)
            assert [each.token for each in read] + [each.token async for each in stream] == expected(range(40), 400)
            assert (here.head.stats.failovers, here.head.stats.moves, here.head.stats.failed) == (0, 1, 0)

    run(main())


@pytest.mark.parametrize(("after_s", "taken"), [(5, "2:4c"), (16, "2:4a")], ids=["soon", "later"])
def test_a_stage_that_left_and_is_there_again_is_as_good_as_the_others(after_s: float, taken: str) -> None:
    async def main() -> None:
        async with world("0:2", "2:4a", "2:4b", "2:4c") as here:
            stream = await here.ask("s", range(40), 400)
            read = [await anext(stream) for _ in range(5)]
            await leave(here, "2:4a")
            await here.until(lambda: way(here) == ["0:2", "2:4b"])
            here.start_stage("2:4a")
            here.links.says.clear()
            await asyncio.sleep(after_s)
            here.net.cut("2:4b")
            await here.until(lambda: way(here) == ["0:2", taken])
            assert [each.token for each in read] + [each.token async for each in stream] == expected(range(40), 400)

    run(main())


def test_a_lost_stage_is_replaced_by_one_that_computes_as_it_did() -> None:
    async def main() -> None:
        async with world("0:2", "2:4a", "2:4b", "2:4c") as here:
            here.links.says["2:4b"] = OTHER
            stream = asyncio.create_task(here.tell("s", range(40), 20))
            await here.until(lambda: here.tokens() >= 5)
            here.net.cut("2:4a")
            assert await stream == expected(range(40), 20)
            assert way(here) == ["0:2", "2:4c"]
            assert here.head.stats.changed_kinds == 0

    run(main())


@pytest.mark.parametrize("how", ["lost", "leaves"])
def test_one_that_computes_otherwise_is_taken_where_there_is_no_other_and_that_is_told(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with world("0:2", "2:4a", "2:4b") as here:
            here.links.says["2:4b"] = OTHER
            streams = [asyncio.create_task(here.tell(f"s{n}", range(40), 100)) for n in range(2)]
            await here.until(lambda: here.tokens() >= 20)
            if how == "lost":
                here.net.cut("2:4a")
            else:
                await leave(here, "2:4a")
            await asyncio.gather(*streams)
            assert way(here) == ["0:2", "2:4b"]
            assert here.head.status().stats.changed_kinds == 2

    with caplog.at_level(logging.WARNING, "livery.gpu_worker"):
        run(main())
    assert caplog.text.count("2:4b compute in another way") == 1


def test_a_stage_that_is_another_kind_since_it_was_started_again_is_told() -> None:
    async def main() -> None:
        async with world("0:2", "2:4") as here:
            stream = asyncio.create_task(here.tell("s", range(40), 100))
            await here.until(lambda: here.tokens() >= 20)
            here.links.says["2:4"] = OTHER
            here.start_stage("2:4")
            await stream
            assert here.head.stats.changed_kinds == 1

    run(main())


def test_open_streams_are_not_moved_to_a_better_route_that_computes_otherwise() -> None:
    async def main() -> None:
        async with world("0:1", "1:2", "2:4") as here:
            here.start_stage("1:4")
            here.links.says["1:4"] = OTHER
            stream = await here.ask("s", range(40), 400)
            read = [await anext(stream) for _ in range(5)]
            here.registry.set([*here.registry.hops, hop("1:4")])
            await asyncio.sleep(5)
            assert way(here) == ["0:1", "1:2", "2:4"]
            assert [each.token for each in read] + [each.token async for each in stream] == expected(range(40), 400)
            here.registry.set(here.registry.hops)
            await here.until(lambda: way(here) == ["0:1", "1:4"])
            assert here.head.stats.changed_kinds == 0

    run(main())


def test_open_streams_stay_where_they_are_served_again_though_it_broke_lately() -> None:
    async def main() -> None:
        async with world("0:2", "2:4a") as here:
            here.start_stage("2:4b")
            here.links.says["2:4b"] = OTHER
            stream = await here.ask("s", range(40), 400)
            read = [await anext(stream) for _ in range(5)]
            here.start_stage("2:4a")
            await here.until(lambda: here.head.stats.failovers == 1 and here.tokens() > 200)
            here.registry.set([*here.registry.hops, hop("2:4b")])
            await asyncio.sleep(5)
            assert [each.token for each in read] + [each.token async for each in stream] == expected(range(40), 400)
            assert here.head.stats.changed_kinds == 0

    run(main())


@pytest.mark.parametrize(("how", "told"), [({}, ()), (PENALISED, tuple(range(9)))], ids=["plain", "penalised"])
def test_the_last_stage_is_told_the_prompt_only_where_the_choice_asks_for_it(
    how: dict[str, float], told: tuple[int, ...]
) -> None:
    async def main() -> None:
        async with world("0:1", "1:3", "3:4") as here:
            assert await here.tell("s", range(9), 5, **how) == expected(range(9), 5, **how)
            opens = [each for batches in here.net.sent.values() for batch in batches for each in batch.opens]
            assert {(each.history, each.prompt_len) for each in opens if each.sampling} == {(told, len(told))}
            assert {each.history for each in opens if each.sampling is None} == {()}

    run(main())
