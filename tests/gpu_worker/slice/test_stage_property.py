"""Whatever comes twice, late, or in another order across sessions, a stage's cache never holds a wrong row."""

import asyncio
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker.core.inference.batch import Batch, Route
from gpu_worker.core.inference.ring import BLOCK_ROWS
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.core.inference.step import Open, Run, Step, Tensor
from gpu_worker.inference.stage.pipelines import StageLimits
from tests.fixtures.toy_head import LIMIT_S, World
from tests.fixtures.toy_pipeline import ROW, ToyEngine, whole

SESSIONS = {"a": (3, 1, 4), "b": (1,), "c": (5, 9, 2, 6)}
TOKENS = 4
EPOCHS = 2

TRUE = {name: [*prompt, *whole(prompt, TOKENS, seed=1)] for name, prompt in SESSIONS.items()}


def rows_of(name: str) -> list[bytes]:
    """Return what the first layer makes of a session's tokens, computed once and alone."""

    async def made() -> Tensor:
        engine = ToyEngine(0, 1)
        tokens = tuple(TRUE[name])
        run = Run(session=name, epoch=0, position=0, count=len(tokens))
        opens = (Open(session=name, epoch=0, positions=99),)
        return (await engine.step(Step(opens=opens, runs=(run,), rows=tokens))).hidden

    data = asyncio.run(made()).data
    return [data[at : at + ROW] for at in range(0, len(data), ROW)]


ROWS = {name: rows_of(name) for name in SESSIONS}


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """A run of true rows, of any session, at any place, of any epoch."""
    name = draw(st.sampled_from(sorted(SESSIONS)))
    position = draw(st.integers(0, len(TRUE[name]) - 1))
    count = draw(st.integers(1, len(TRUE[name]) - position))
    return Run(session=name, epoch=draw(st.integers(0, EPOCHS)), position=position, count=count, samples=True)


BATCHES = st.lists(
    st.lists(runs(), min_size=1, max_size=3, unique_by=lambda each: each.session), min_size=1, max_size=12
)


@settings(max_examples=60)
@given(BATCHES, st.lists(st.booleans(), min_size=12, max_size=12), st.sampled_from([0, 2 * BLOCK_ROWS * ROW, 1 << 20]))
def test_the_cache_never_holds_a_wrong_row(batches: list[list[Run]], twice: list[bool], ring_bytes: int) -> None:
    asyncio.run(_play(batches, twice, ring_bytes))


async def _play(batches: list[list[Run]], twice: list[bool], ring_bytes: int) -> None:
    world = World(0, 1, 3, 4, limits=StageLimits(ring_bytes=ring_bytes))
    answers: list[Batch] = []
    news = asyncio.Condition()

    async def reply(batch: Batch) -> None:
        async with news:
            answers.append(batch)
            news.notify_all()

    async def answered(number: int) -> None:
        async with asyncio.timeout(LIMIT_S), news:
            await news.wait_for(lambda: any(each.number == number and each.compute_s for each in answers))

    opens = tuple(Open(session=name, epoch=0, positions=99, sampling=Sampling(seed=1)) for name in SESSIONS)
    route = Route(pipeline="p", epoch=0, hops=world.way, index=2, answers=True)
    first, last = world.stages
    for stage in world.stages:
        stage.begin(reply, "")
    await last.receive(Batch(pipeline="p", epoch=0, number=1, route=route, opens=opens), reply)
    route = replace(route, index=1, answers=False)
    await first.receive(Batch(pipeline="p", epoch=0, number=2, route=route, opens=opens), reply)
    number = 2
    for batch, again in zip(batches, twice, strict=False):
        hidden = b"".join(row for run in batch for row in ROWS[run.session][run.position : run.end])
        tensor = Tensor("float32", (len(hidden) // ROW, ROW // 4), hidden)
        for _ in range(1 + again):
            number += 1
            await first.receive(Batch(pipeline="p", epoch=0, number=number, runs=tuple(batch), hidden=tensor), reply)
            await answered(number)
    _check(world, answers)
    for stage in world.stages:
        await stage.close()


def _check(world: World, answers: list[Batch]) -> None:
    for answer in answers:
        for token in answer.tokens:
            # The token that follows is known for every row from the prompt's last one on.
            if len(SESSIONS[token.session]) <= token.position < len(TRUE[token.session]):
                assert token.token == TRUE[token.session][token.position]
    for name in SESSIONS:
        lengths = [stage._engine.length(name) for stage in world.stages]
        assert lengths == [stage.sessions._all[name].known.length for stage in world.stages]
        kept = world.stages[0].ring.length(name)
        assert kept in (0, lengths[0]), "what is kept for a refill is what the cache holds"
