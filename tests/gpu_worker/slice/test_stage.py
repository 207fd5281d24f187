"""Stages behind a head: the tokens are the unsplit model's, whatever is sent twice, late or wrongly."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from gpu_worker.core.inference.batch import Batch
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.core.inference.step import Open, Run, Step
from gpu_worker.inference.stage.pipelines import StageLimits
from tests.fixtures.toy_head import LIMIT_S, ToyHead, World
from tests.fixtures.toy_links import ToyPasses
from tests.fixtures.toy_pipeline import whole

PROMPTS = {"a": [3, 1, 4], "b": [1], "c": [5, 9, 2, 6, 5, 3, 5]}
WAYS = {2: (0, 2, 4), 3: (0, 1, 3, 4), 4: (0, 1, 2, 3, 4)}


def unsplit(n: int, prompts: Mapping[str, Sequence[int]] = PROMPTS) -> dict[str, list[int]]:
    return {name: whole(prompt, n, seed=len(prompt)) for name, prompt in prompts.items()}


@pytest.mark.parametrize("stages", [2, 3, 4])
async def test_sessions_of_one_batch_get_the_unsplit_models_tokens(stages: int) -> None:
    world = World(*WAYS[stages])
    await world.head.route()
    assert await world.head.go(PROMPTS, 9) == unsplit(9)
    answer = world.head.seen[-1]
    assert len(answer.compute_s) == stages, "every stage adds what it computed"


async def test_two_heads_go_through_the_same_stages() -> None:
    world = World(0, 1, 3, 4)
    other = ToyHead(world.net, world.way, pipeline="q")
    await world.head.route()
    await other.route()
    prompts = {"x": [8, 8], "y": [9] * 5}
    for head, mine in ((world.head, PROMPTS), (other, prompts)):
        opens = [await head.open(name, prompt) for name, prompt in mine.items()]
        head.take(await head.step(dict.fromkeys(mine, 0), opens=opens))
    for _ in range(5):
        await world.head.on(PROMPTS, 1)
        await other.on(prompts, 1)
    assert {name: world.head.tokens[name][len(prompt) :] for name, prompt in PROMPTS.items()} == unsplit(6)
    assert {name: other.tokens[name][len(prompt) :] for name, prompt in prompts.items()} == unsplit(6, prompts)
    assert [len(stage.sessions) for stage in world.stages] == [5, 5]


@pytest.mark.parametrize("ring_bytes", [1 << 20, 0], ids=["from the ring", "made again"])
async def test_what_comes_twice_is_answered_with_the_same_tokens(ring_bytes: int) -> None:
    world = World(0, 1, 3, 4, limits=StageLimits(ring_bytes=ring_bytes))
    await world.head.route()
    for endpoint in ("s1", "s2"):
        world.net.duplicate(endpoint, 1_000)
    assert await world.head.go(PROMPTS, 6) == unsplit(6)
    drawn = {(token.session, token.position, token.token) for batch in world.head.seen for token in batch.tokens}
    assert len(drawn) == 6 * len(PROMPTS), "a token that is told again is the same one"
    computed = sum(len(step.runs) for step in world.stages[1]._engine.steps)
    assert computed == 6 * len(PROMPTS), "the last stage computes nothing twice"


async def test_a_repeat_is_answered_from_what_is_remembered() -> None:
    world = World(0, 2, 4)
    await world.head.route()
    await world.head.go({"a": [3, 1, 4]}, 3)
    last = world.net.sent["s1"][-1]
    steps = len(world.stages[0]._engine.steps)
    again = await world.head.send(runs=last.runs, hidden=last.hidden)
    assert [token.token for token in again.tokens] == world.head.tokens["a"][-1:]
    # One that is older than that has been answered long ago.
    older = world.net.sent["s1"][-3]
    assert (await world.head.send(runs=older.runs, hidden=older.hidden)).tokens == ()
    assert len(world.stages[0]._engine.steps) == steps
    await world.head.on("a", 3)
    assert world.head.tokens["a"][3:] == whole([3, 1, 4], 6, seed=3)


async def test_rows_from_the_midst_of_a_cache_are_not_made_again() -> None:
    """Those behind them would be lost: the head sends the session's tokens again."""
    world = World(0, 1, 3, 4, limits=StageLimits(ring_bytes=0))
    await world.head.route()
    await world.head.go({"a": [3, 1, 4]}, 3)
    older = world.net.sent["s1"][-2]
    await world.head.send(runs=older.runs, hidden=older.hidden)
    assert (await world.head.refusal("a")).code == "position_gap"
    await world.head.on("a", 3)
    assert world.head.tokens["a"][3:] == whole([3, 1, 4], 6, seed=3)


async def test_what_the_engine_refused_is_no_repeat_the_next_time() -> None:
    world = World(0, 2, 4)
    await world.head.route()
    await world.head.go({"a": [3, 1, 4]}, 2)
    del world.stages[0]._engine._sessions["a"]
    for _ in range(2):
        refused = (await world.head.step({"a": 4})).refusals
        assert [each.code for each in refused] == ["unknown_session"]


async def test_a_stale_epoch_is_dropped_without_a_word() -> None:
    world = World(0, 1, 3, 4)
    head = world.head
    await head.route()
    await head.go({"a": [3, 1, 4]}, 3)
    old = world.net.sent["s1"][-1]
    await head.route(epoch=1)
    again = await head.open("a", [3, 1, 4], epoch=1)
    await head.send(opens=[again])
    late = replace(old.runs[0], position=len(head.tokens["a"]) - 1)
    assert (await head.send(runs=(late,), hidden=old.hidden)).tokens == (), "already since it was opened anew"
    head.take(await head.step({"a": len(head.tokens["a"]) - 1}, epoch=1))
    seen = len(head.seen)
    # Of a pipeline's old epoch; of the new one with a session's old epoch, at positions that it has not.
    await head.send(wait=False, epoch=0, runs=old.runs, hidden=old.hidden)
    late = replace(old.runs[0], position=len(head.tokens["a"]) - 1)
    answer = await head.send(runs=(late,), hidden=old.hidden)
    assert (answer.tokens, answer.refusals) == ((), ())
    assert len(head.seen) == seen + 1
    await head.on("a", 4, epoch=1)
    assert head.tokens["a"][3:] == whole([3, 1, 4], 8, seed=3)


async def test_a_gap_is_refused_while_the_others_go_on() -> None:
    world = World(0, 1, 3, 4)
    head = world.head
    await head.route()
    await head.go(PROMPTS, 2)
    lengths = {name: len(tokens) - 1 for name, tokens in head.tokens.items()}
    sent = world.net.sent["s1"][-1]
    gap = tuple(replace(run, position=lengths[run.session] + (run.session == "b")) for run in sent.runs)
    true = await head.engine.step(_step(head, lengths))
    answer = await head.send(runs=gap, hidden=true.hidden)
    assert {token.session for token in answer.tokens} == {"a", "c"}
    refusal = await head.refusal("b")
    assert (refusal.code, refusal.epoch) == ("position_gap", 0)
    assert "ends at 2" in refusal.detail
    head.take(answer)
    head.take(await head.step({"b": 0}, epoch=1))  # its tokens again
    await head.on("ac", 2)
    await head.on("b", 2, epoch=1)
    assert {name: head.tokens[name][len(prompt) :] for name, prompt in PROMPTS.items()} == unsplit(5)


def _step(head: ToyHead, positions: dict[str, int]) -> Step:
    runs = tuple(Run(session=name, epoch=0, position=at, count=1) for name, at in positions.items())
    return Step(runs=runs, rows=tuple(head.tokens[name][at] for name, at in positions.items()))


async def test_an_unknown_session_is_refused() -> None:
    world = World(0, 1, 3, 4)
    head = world.head
    await head.route()
    await head.open("a", [1, 2])
    await head.step({"a": 0})  # the stage between was not told of it
    assert (await head.refusal("a")).code == "unknown_session"


async def test_the_last_stage_is_not_opened_by_what_goes_through_the_others() -> None:
    """They are not told what a session is drawn with."""
    world = World(0, 1, 3, 4)
    await world.head.route()
    answer = await world.head.send(opens=(Open(session="a", epoch=0, positions=9),))
    assert ([len(stage.sessions) for stage in world.stages], answer.opened) == ([1, 0], ())


async def test_a_cancel_reaches_every_stage_with_the_next_batch() -> None:
    world = World(0, 1, 2, 3, 4)
    head = world.head
    await head.route()
    await head.go(PROMPTS, 2)
    head.take(await head.step({"a": 4, "c": 8}, closes=("b",)))
    for stage in world.stages:
        assert stage._engine.length("b") is None
        assert (stage._engine.length("a"), len(stage.sessions), stage.ring.length("b")) == (5, 2, 0)
    await head.send(closes=("a", "c"))
    for stage in world.stages:
        assert (len(stage.sessions), stage.cache.positions, stage.ring.bytes_used) == (0, 0, 0)


async def test_eos_and_the_history_reach_the_last_stage_alone() -> None:
    world = World(0, 1, 3, 4)
    sampling = Sampling(temperature=0.7, seed=11, presence_penalty=0.5)
    sampling = replace(sampling, eos=(whole([7, 7], 4, sampling=sampling)[-1],))
    await world.head.route()
    tokens = await world.head.go({"a": [7, 7]}, 4, a=sampling)
    assert tokens["a"] == whole([7, 7], 9, sampling=sampling)
    assert world.head.seen[-1].tokens[0].is_eos
    middle = [each for batch in world.net.sent["s1"] for each in batch.opens]
    assert [(each.sampling, each.history) for each in middle] == [(None, ())]


async def test_passes_are_checked_at_every_stage() -> None:
    world = World(0, 1, 3, 4, passes=ToyPasses())
    head = world.head
    await head.route()
    assert await head.go({"a": [1, 2]}, 2) == {"a": whole([1, 2], 2, seed=2)}
    for stage, hop in zip(world.stages, world.way[1:], strict=True):
        assert len(stage.sessions) == 1
        await head.send(opens=(Open(session="z", epoch=0, positions=9, session_pass="pass of a", sampling=Sampling()),))
        assert (await head.refusal("z")).code == "unauthenticated", hop
    assert [len(stage.sessions) for stage in world.stages] == [1, 1]


async def test_steps_that_overlap_are_done_and_sent_on_in_their_order() -> None:
    world = World(0, 1, 3, 4)
    head, first = world.head, world.stages[0]
    await head.route()
    opened = await head.open("a", PROMPTS["c"])
    engine = first._engine
    engine.may_step.clear()
    parts = [(0, 3), (3, 2), (5, 2)]
    receiving = []
    for number, (at, count) in enumerate(parts, start=50):
        run = Run(session="a", epoch=0, position=at, count=count, samples=at == 5)
        rows = await head.engine.step(Step(runs=(run,), rows=tuple(PROMPTS["c"][at : at + count])))
        opens = () if at else (opened,)
        batch = Batch(pipeline="p", epoch=0, number=number, opens=opens, runs=(run,), hidden=rows.hidden)
        receiving.append(asyncio.create_task(first.receive(batch, first.pipelines.all["p"].incoming)))
    engine.may_step.set()
    await asyncio.gather(*receiving)
    answer = await head.until(lambda seen: seen.number == 52)
    assert [token.token for token in answer.tokens] == whole(PROMPTS["c"], 1, seed=len(PROMPTS["c"]))
    assert [batch.number for batch in world.net.sent["s2"]][-3:] == [50, 51, 52]


async def test_a_batch_of_which_something_is_refused_is_not_overtaken() -> None:
    world = World(0, 1, 3, 4)
    head, first = world.head, world.stages[0]
    await head.route()
    await head.go({"a": [1, 2]}, 2)
    stuck, done = asyncio.Event(), []
    told = first.pipelines.all["p"].incoming

    async def slow(batch: Batch) -> None:
        await stuck.wait()
        await told(batch)

    first.begin(slow, "")
    first.pipelines.all["p"].incoming = slow
    unknown = Run(session="z", epoch=0, position=0, count=1)
    row = world.net.sent["s1"][-1].hidden
    for number, runs in ((70, (unknown,)), (71, ())):
        batch = Batch(pipeline="p", epoch=0, number=number, runs=runs, hidden=row if runs else None)
        done.append(asyncio.create_task(first.receive(batch, slow)))
        await asyncio.sleep(0)
    stuck.set()
    await asyncio.gather(*done)
    await head.until(lambda seen: seen.number == 71)
    numbers = [batch.number for batch in head.seen if batch.number >= 70]
    assert numbers == [70, 70, 71], "the refusal, then the answers in order"


async def test_a_session_that_is_closed_while_it_is_computed_leaves_nothing() -> None:
    world = World(0, 1, 3, 4)
    head, first = world.head, world.stages[0]
    await head.route()
    opened = await head.open("a", [1, 2])
    first._engine.may_step.clear()
    step = asyncio.create_task(head.step({"a": 0}, opens=[opened]))
    incoming = first.pipelines.all["p"].incoming
    async with asyncio.timeout(LIMIT_S):
        while not len(first.sessions):  # noqa: ASYNC110
            await asyncio.sleep(0)
    close = asyncio.create_task(first.receive(Batch(pipeline="p", epoch=0, closes=("a",)), incoming))
    await asyncio.sleep(0)
    first._engine.may_step.set()
    await asyncio.gather(step, close)
    assert (first.ring.bytes_used, first.cache.sessions, len(first.sessions)) == (0, 0, 0)
