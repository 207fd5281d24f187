"""Sessions whose tokens are to match a JSON schema: it is compiled beside the steps, and no other one waits."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.core.inference.step import Open
from tests.fixtures.head_world import expected, world
from tests.fixtures.toy_head import World
from tests.fixtures.toy_pipeline import ToyEngine
from tests.fixtures.virtual_time import run

ONE, TWO, THREE = ("0:4",), ("0:2", "2:4"), ("0:1", "1:3", "3:4")


async def refusal(what: Any) -> str:
    with pytest.raises(InferenceError) as refused:
        await what
    return refused.value.code


@pytest.mark.parametrize("way", [TWO, THREE], ids=["two", "three"])
def test_a_schema_that_the_last_stage_compiles_holds_up_nobody_else(way: tuple[str, ...]) -> None:
    async def main() -> None:
        async with world(*way, waiting=8) as here:
            last = here.engines[way[-1]]
            last.may_compile.clear()
            slow = asyncio.create_task(here.tell("slow", range(9), 10, schema="{}"))
            given_up = await here.ask("given up", range(9), 10, schema="{}")
            assert await here.tell("other", range(5), 100) == expected(range(5), 100)
            assert (slow.done(), last.length("slow"), last.length("given up")) == (False, None, None)
            await given_up.cancel()
            assert await here.tell("third", range(5), 20) == expected(range(5), 20)
            last.may_compile.set()
            assert await slow == expected(range(9), 10, schema="{}")
            assert here.head.stats.replayed_sessions == 0
            await asyncio.sleep(1)
            assert set(here.open_at.values()) == {0}, "one that was given up meanwhile is not opened"

    run(main())


@pytest.mark.parametrize("way", [ONE, TWO, THREE], ids=["one", "two", "three"])
def test_a_schema_that_cannot_be_compiled_is_its_sessions_fault(way: tuple[str, ...]) -> None:
    async def main() -> None:
        async with world(*way) as here:
            other = asyncio.create_task(here.tell("other", range(5), 100))
            # The head tries it; what it lets pass and the last stage refuses has the same end.
            assert await refusal(here.ask("s", range(9), 10, schema="bad")) == "invalid_argument"
            here.engine.refuses_schemas = False
            if len(way) > 1:
                assert await refusal(anext(await here.ask("t", range(9), 10, schema="bad"))) == "invalid_argument"
            assert await other == expected(range(5), 100)

    run(main())


def test_a_name_that_is_used_again_gets_what_it_asks_for_itself() -> None:
    async def main() -> None:
        async with world(*TWO) as here:
            last = here.engines[TWO[-1]]
            last.may_compile.clear()
            first = await here.ask("s", range(9), 10, schema="{}", seed=1, temperature=1.0)
            await asyncio.sleep(0.2)
            await first.cancel()
            await asyncio.sleep(0.2)
            again = {"schema": '{"a":1}', "seed": 2, "temperature": 1.0}
            second = asyncio.create_task(here.tell("s", range(9), 10, **again))
            await asyncio.sleep(0.2)
            last.may_compile.set()
            assert await second == expected(range(9), 10, **again)

    run(main())


def test_what_compiling_never_foresaw_ends_one_session_and_no_route() -> None:
    async def main() -> None:
        async with world(*TWO) as here:
            assert await refusal(anext(await here.ask("s", range(9), 10, schema="a mistake of ours"))) == "internal"
            assert here.head.stats.failovers == 0

    run(main())


async def test_a_close_that_overtakes_nobody_is_told_to_who_opens() -> None:
    place = World(0, 2, 4)
    engine = place.stages[-1]._engine
    assert isinstance(engine, ToyEngine)
    engine.may_compile.clear()
    await place.head.route()
    new = Open(session="a", epoch=0, positions=9, sampling=Sampling(schema="{}"), history=(1, 2))
    await place.head.send(wait=False, opens=(replace(new),))
    await place.head.send(wait=False, closes=("a",))
    assert (await place.head.refusal("a")).code == "unknown_session"
    engine.may_compile.set()
    await place.head.send(opens=(new,), wait=False)
    await place.head.until(lambda batch: batch.opened == ("a",))
