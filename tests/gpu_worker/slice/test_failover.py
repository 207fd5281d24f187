"""A stage is lost, frozen, replaced or leaves while sessions are under way: each stream is the undisturbed one."""

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.stage.drain import drain_slices
from tests.fixtures.blows import BLOWS, BORDERS, PENALISED, WISHES, Blow, Wish, disturbed
from tests.fixtures.head_world import expected, hop, world
from tests.fixtures.virtual_time import run


def now() -> float:
    return asyncio.get_running_loop().time()


@given(borders=BORDERS, wishes=WISHES, blows=BLOWS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_streams_are_the_undisturbed_ones_whatever_is_lost_when(
    borders: list[int], wishes: list[Wish], blows: list[Blow]
) -> None:
    run(disturbed(borders, wishes, blows))


SLICED = {
    "2": ("0:2", "2:4a", "2:4b"),
    "3": ("0:1", "1:3a", "3:4a", "1:3b", "3:4b"),
    "4": ("0:1", "1:2a", "2:3a", "3:4a", "1:2b", "2:3b", "3:4b"),
}


@pytest.mark.row(52)
@pytest.mark.parametrize("kind", ["cut", "freeze"])
@pytest.mark.parametrize(("stages", "place"), [("2", 1), ("3", 1), ("3", 2), ("4", 2), ("4", 3)])
def test_a_lost_stage_is_replaced_in_less_than_three_seconds_and_filled_from_what_was_sent(
    stages: str, place: int, kind: str
) -> None:
    async def main() -> None:
        async with world(*SLICED[stages], chunk_rows=16) as here:
            streams = [
                asyncio.create_task(here.tell(f"s{n}", range(40 + n), 20, seed=n, **PENALISED)) for n in range(4)
            ]
            await here.until(lambda: here.tokens() >= 30)
            began = now()
            getattr(here.net, kind)(here.head.hops[place].endpoint)
            rows = here.head.stats.rows
            told = await asyncio.gather(*streams)
            assert now() - began < 3
            assert told == [expected(range(40 + n), 20, seed=n, **PENALISED) for n in range(4)]
            status = here.head.status()
            assert (status.stats.failovers, status.stats.replayed_sessions, status.stats.failed) == (1, 0, 0)
            assert status.stats.refilled_sessions == 4
            assert 0 <= status.gap_s < 3
            # No prompt went through the head's layers again: a row for each token, and those that were under way.
            assert here.head.stats.rows - rows <= 80 - 30 + 8

    run(main())


def test_tokens_are_sent_again_where_the_rows_are_gone() -> None:
    async def main() -> None:
        async with world("0:1", "1:3a", "3:4a", "1:3b", "3:4b", chunk_rows=16, ring_bytes=64) as here:
            streams = [asyncio.create_task(here.tell(f"s{n}", range(40 + n), 20, seed=n)) for n in range(4)]
            await here.until(lambda: here.tokens() >= 30)
            here.net.cut("1:3a")
            assert await asyncio.gather(*streams) == [expected(range(40 + n), 20, seed=n) for n in range(4)]
            assert here.head.stats.replayed_sessions == 4

    run(main())


def test_other_slices_that_cover_the_model_take_over() -> None:
    async def main() -> None:
        async with world("0:1", "1:4", "1:2", "2:4b", chunk_rows=16) as here:
            stream = asyncio.create_task(here.tell("s", range(40), 20, **PENALISED))
            await here.until(lambda: here.tokens() >= 5)
            here.net.cut("1:4")
            assert await stream == expected(range(40), 20, **PENALISED)
            assert [each.endpoint for each in here.head.hops] == ["0:1", "1:2", "2:4b"]

    run(main())


def test_a_restarted_stage_that_knows_nothing_gets_the_tokens_again() -> None:
    async def main() -> None:
        async with world("0:2", "2:4", chunk_rows=16) as here:
            stream = asyncio.create_task(here.tell("s", range(40), 20))
            await here.until(lambda: here.tokens() >= 5)
            here.start_stage("2:4")
            assert await stream == expected(range(40), 20)

    run(main())


def test_without_another_stage_sessions_wait_for_one_until_their_deadline() -> None:
    async def main() -> None:
        async with world("0:2", "2:4") as here:
            waits = asyncio.create_task(here.tell("waits", range(9), 20, deadline_s=20))
            short = asyncio.create_task(here.tell("short", range(9), 20, deadline_s=5))
            await here.until(lambda: here.tokens() >= 10)
            here.net.cut("2:4")
            with pytest.raises(InferenceError) as lost:
                await short
            assert lost.value.code == "lost_stage"
            assert 5 <= now() <= 5.5
            here.start_stage("2:4")
            assert await waits == expected(range(9), 20)

    run(main())


def test_a_session_without_a_deadline_waits_half_a_minute() -> None:
    async def main() -> None:
        async with world("0:2", "2:4") as here:
            stream = await here.ask("s", range(9), 20)
            first = await anext(stream)
            here.net.cut("2:4")
            with pytest.raises(InferenceError) as lost:
                async for _ in stream:
                    pass
            assert (lost.value.code, first.position) == ("lost_stage", 9)
            assert 30 <= now() <= 32
            with pytest.raises(InferenceError) as refused:
                await here.ask("next", range(9), 20)
            assert refused.value.code == "no_route"

    run(main())


def test_a_stage_that_leaves_is_left_before_it_goes() -> None:
    async def main() -> None:
        async with world("0:1", "1:3a", "3:4a", "1:3b", chunk_rows=16) as here:
            streams = [asyncio.create_task(here.tell(f"s{n}", range(40 + n), 40, seed=n)) for n in range(4)]
            await here.until(lambda: here.tokens() >= 30)
            assert await drain_slices(here.stages["1:3a"], 10) == 0
            here.net.cut("1:3a")
            assert await asyncio.gather(*streams) == [expected(range(40 + n), 40, seed=n) for n in range(4)]
            stats = here.head.stats
            assert (stats.failovers, stats.moves, stats.failed) == (0, 1, 0)
            assert [each.endpoint for each in here.head.hops] == ["0:1", "1:3b", "3:4a"]

    run(main())


@pytest.mark.row(51)
def test_a_stage_that_comes_live_is_taken_at_a_steps_border_without_a_failed_request() -> None:
    async def main() -> None:
        async with world("0:1", "1:2", "2:4", chunk_rows=16) as here:
            streams = [asyncio.create_task(here.tell(f"s{n}", range(40 + n), 40, seed=n)) for n in range(4)]
            await here.until(lambda: here.tokens() >= 30)
            here.start_stage("1:4")
            here.registry.set([*here.registry.hops, hop("1:4")])
            await here.until(lambda: [each.endpoint for each in here.head.hops] == ["0:1", "1:4"])
            assert here.tokens() < 160
            assert await asyncio.gather(*streams) == [expected(range(40 + n), 40, seed=n) for n in range(4)]
            stats = here.head.stats
            assert (stats.failovers, stats.moves, stats.failed, stats.finished) == (0, 1, 0, 4)
            await asyncio.sleep(5)
            assert here.open_at == {"1:2": 0, "2:4": 0, "1:4": 0, "head": 0}

    run(main())
