"""What a head serves over healthy stages: batches, limits, cancels, deadlines, slow readers."""

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_worker.core.errors import Bug
from gpu_worker.core.inference.codes import InferenceError
from tests.fixtures.head_world import LAYERS, expected, ids, world
from tests.fixtures.toy_pipeline import CONTEXT, VOCABULARY
from tests.fixtures.virtual_time import run

WAYS = {
    "1": ("0:4",),
    "2": ("0:2", "2:4"),
    "3": ("0:1", "1:3", "3:4"),
    "4": ("0:1", "1:2", "2:3", "3:4"),
}
ALL = pytest.mark.parametrize("way", list(WAYS))


def now() -> float:
    return asyncio.get_running_loop().time()


async def refusal(what: Any) -> str:
    with pytest.raises(InferenceError) as refused:
        await what
    return refused.value.code


@given(
    way=st.sampled_from(list(WAYS)),
    sessions=st.lists(st.tuples(st.integers(1, 700), st.integers(1, 24), st.integers(0, 60)), min_size=1, max_size=8),
    chunk=st.sampled_from((16, 256)),
)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_sessions_that_join_and_leave_at_any_step_get_what_they_get_alone(
    way: str, sessions: list[tuple[int, int, int]], chunk: int
) -> None:
    async def one(here: Any, number: int, prompt: int, tokens: int, turns: int) -> list[int]:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await here.tell(f"s{number}", [(number + i) % 512 for i in range(prompt)], tokens, seed=number)

    async def main() -> None:
        async with world(*WAYS[way], chunk_rows=chunk) as here:
            told = await asyncio.gather(*(one(here, number, *each) for number, each in enumerate(sessions)))
            for number, (prompt, tokens, _) in enumerate(sessions):
                assert told[number] == expected([(number + i) % 512 for i in range(prompt)], tokens, seed=number)
            await asyncio.sleep(1)
            assert set(here.open_at.values()) == {0}

    run(main())


@pytest.mark.row(53)
@ALL
def test_eight_sessions_take_hardly_more_steps_than_one(way: str) -> None:
    async def steps(sessions: int) -> int:
        async with world(*WAYS[way]) as here:
            await asyncio.gather(*(here.tell(f"s{n}", range(8), 40, seed=n) for n in range(sessions)))
            return here.head.stats.steps

    async def main() -> None:
        # As many micro-batches as there are stages are under way together.
        assert await steps(8) * 3 < await steps(1) * 8 * len(WAYS[way])

    run(main())


@pytest.mark.row(47)
def test_a_step_carries_one_row_however_long_the_session_is() -> None:
    async def main() -> None:
        async with world("0:2", "2:4") as here:
            await here.tell("s", range(8), 520)
            sent = [each.hidden for each in here.net.sent["2:4"] if each.hidden is not None]
            assert [each.shape[0] for each in sent] == [8, *[1] * 519]
            assert len({len(each.data) for each in sent[1:]}) == 1

    run(main())


def test_a_long_prompt_goes_in_chunks_between_the_steps_of_others() -> None:
    async def main() -> None:
        async with world("0:2", "2:4", chunk_rows=16) as here:
            short = asyncio.create_task(here.tell("short", range(4), 60))
            await here.until(lambda: here.tokens() >= 5)
            long = await here.ask("long", [each % 512 for each in range(320)], 3)
            await anext(long)
            # A chunk a step: twenty steps, and in each of them a token for the other.
            assert here.tokens() >= 5 + 19
            assert max(sum(run.count for run in step.runs) for step in here.engine.steps) <= 17
            assert await short == expected(range(4), 60)

    run(main())


@pytest.mark.parametrize(
    ("prompt", "tokens", "code"),
    [
        pytest.param([], 4, "invalid_argument", id="empty"),
        pytest.param([0, VOCABULARY], 4, "invalid_argument", id="no-such-token"),
        pytest.param([-1], 4, "invalid_argument", id="negative-token"),
        pytest.param([1], 0, "invalid_argument", id="no-token-wanted"),
        pytest.param([1] * (CONTEXT - 3), 4, "context_length_exceeded", id="over-the-context"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything(prompt: list[int], tokens: int, code: str) -> None:
    async def main() -> None:
        async with world("0:2", "2:4") as here:
            sent = len(here.net.sent["2:4"])
            assert await refusal(here.ask("s", prompt, tokens)) == code
            await asyncio.sleep(1)
            assert len(here.net.sent["2:4"]) == sent
            assert (here.head.stats.refused, here.head.stats.started) == (1, 0)

    run(main())


def test_a_stream_ends_with_the_first_eos_and_with_tokens_max() -> None:
    async def main() -> None:
        async with world("0:2", "2:4") as here:
            tokens = expected(range(9), 30)
            eos = tokens[7]
            assert await here.tell("a", range(9), 30, eos=(eos,)) == tokens[: tokens.index(eos) + 1]
            assert await here.tell("b", range(9), 1) == tokens[:1]

    run(main())


@ALL
def test_a_cancel_reaches_every_stage_within_one_step(way: str) -> None:
    async def main() -> None:
        async with world(*WAYS[way]) as here:
            goes_on = asyncio.create_task(here.tell("goes on", range(9), 200))
            stream = await here.ask("stops", range(9), 400)
            for _ in range(3):
                await anext(stream)
            steps = here.head.stats.steps
            await stream.cancel()
            await stream.cancel()
            assert [each async for each in stream] == []
            await here.until(lambda: set(here.open_at.values()) == {1})
            # The one in flight when it was cancelled, and the one that the close went with.
            assert here.head.stats.steps - steps <= 2
            assert await goes_on == expected(range(9), 200)
            assert here.head.stats.cancelled == 1

    run(main())


def test_a_waiting_session_can_be_cancelled_and_leaves_nothing() -> None:
    async def main() -> None:
        async with world("0:2", "2:4", sessions=1) as here:
            first = asyncio.create_task(here.tell("first", range(9), 50))
            await here.until(lambda: here.tokens() > 0)
            second = await here.ask("second", range(9), 50)
            await second.cancel()
            await first
            await asyncio.sleep(1)
            assert set(here.open_at.values()) == {0}

    run(main())


def test_sessions_wait_in_line_and_the_line_is_bounded() -> None:
    async def main() -> None:
        async with world("0:2", "2:4", sessions=2, waiting=3) as here:
            running = [asyncio.create_task(here.tell(f"r{n}", range(9), 40)) for n in range(2)]
            await here.until(lambda: here.tokens() > 4)
            waiting = [asyncio.create_task(here.tell(f"w{n}", range(9), 40)) for n in range(3)]
            await here.until(lambda: here.head.status().stats.waiting == 3)
            assert await refusal(here.ask("one too many", range(9), 40)) == "no_capacity"
            told = await asyncio.gather(*running, *waiting)
            assert told == [expected(range(9), 40)] * 5

    run(main())


def test_what_fits_in_no_cache_is_refused_and_what_fits_later_waits() -> None:
    async def main() -> None:
        async with world("0:2", "2:4", positions_max=100) as here:
            assert await refusal(here.tell("never", range(60), 60)) == "no_capacity"
            told = await asyncio.gather(*(here.tell(f"s{n}", range(20), 40) for n in range(4)))
            assert told == [expected(range(20), 40)] * 4
            await asyncio.sleep(1)
            assert set(here.open_at.values()) == {0}

    run(main())


def test_a_session_ends_at_its_deadline() -> None:
    async def main() -> None:
        async with world("0:2", "2:4", unread=4) as here:
            stream = await here.ask("s", range(9), 400, deadline_s=3)
            await asyncio.sleep(5)
            assert len(ids([each for each in [await anext(stream) for _ in range(4)]])) == 4
            assert await refusal(anext(stream)) == "deadline"
            assert set(here.open_at.values()) == {0}

    run(main())


def test_a_slow_reader_pauses_its_own_session_alone() -> None:
    async def main() -> None:
        async with world("0:2", "2:4", unread=4) as here:
            slow = await here.ask("slow", range(9), 40)
            assert await here.tell("fast", range(5), 100) == expected(range(5), 100)
            assert here.tokens() == 104
            assert ids([each async for each in slow]) == expected(range(9), 40)

    run(main())


def test_a_reader_that_is_gone_is_given_up() -> None:
    async def main() -> None:
        async with world("0:2", "2:4", unread=4, unread_s=10) as here:
            await here.ask("gone", range(9), 40)
            await asyncio.sleep(9)
            assert set(here.open_at.values()) == {1}
            await asyncio.sleep(3)
            assert set(here.open_at.values()) == {0}

    run(main())


def test_a_name_is_served_once_at_a_time() -> None:
    async def main() -> None:
        async with world("0:2", "2:4") as here:
            first = asyncio.create_task(here.tell("s", range(9), 40))
            await here.until(lambda: here.tokens() > 0)
            assert await refusal(here.ask("s", range(9), 40)) == "invalid_argument"
            assert await first == expected(range(9), 40)
            assert await here.tell("s", range(9), 40) == expected(range(9), 40)

    run(main())


def test_a_head_that_drains_takes_nothing_new_and_ends_what_it_has() -> None:
    async def main() -> None:
        async with world("0:2", "2:4") as here:
            stream = asyncio.create_task(here.tell("s", range(9), 40))
            await here.until(lambda: here.tokens() > 0)
            here.head.drain()
            assert await refusal(here.ask("next", range(9), 40)) == "draining"
            await here.head.drained()
            assert await stream == expected(range(9), 40)
            assert here.head.status().is_draining

    run(main())


@ALL
def test_a_head_that_closes_leaves_no_session_behind(way: str) -> None:
    async def main() -> None:
        async with world(*WAYS[way]) as here:
            stream = await here.ask("s", range(9), 400)
            await anext(stream)
            await here.head.close()
            assert set(here.open_at.values()) == {0}
            with pytest.raises(InferenceError) as ended:
                async for _ in stream:
                    pass
            assert ended.value.code == "draining"

    run(main())


def test_a_broken_engine_ends_the_head_and_all_streams() -> None:
    async def main() -> None:
        async with world("0:2", "2:4") as here:
            stream = await here.ask("s", range(9), 400)
            await anext(stream)
            here.engine.fails = Bug("out of order")
            with pytest.raises(InferenceError) as ended:
                async for _ in stream:
                    pass
            assert ended.value.code == "internal"

    with pytest.raises(Bug, match="out of order"):
        run(main())


def test_the_status_says_what_is_served() -> None:
    async def main() -> None:
        async with world("0:1", "1:3", "3:4") as here:
            stream = asyncio.create_task(here.tell("s", range(9), 40))
            await here.until(lambda: here.tokens() >= 7)
            status = here.head.status()
            assert [(each.start, each.end) for each in status.hops] == [(0, 1), (1, 3), (3, LAYERS)]
            assert (status.epoch, status.stats.running, status.stats.waiting) == (1, 1, 0)
            await stream
            stats = here.head.status().stats
            assert (stats.started, stats.finished, stats.prompt_tokens, stats.tokens, stats.rows) == (1, 1, 9, 40, 48)
            assert (stats.running, stats.failed, stats.stale_answers) == (0, 0, 0)

    run(main())
