"""A route that changes: new stages are filled, old ones keep what they have, and the tokens go on."""

from collections.abc import Mapping, Sequence

import pytest

from gpu_worker.core.inference.batch import Refill
from gpu_worker.core.inference.ring import FILL_ROWS
from gpu_worker.core.inference.step import Run, Step
from gpu_worker.inference.stage.pipelines import StageLimits
from tests.fixtures.toy_head import World
from tests.fixtures.toy_pipeline import whole

PROMPTS = {"a": [3, 1, 4], "b": [1], "c": [5, 9, 2, 6, 5, 3, 5]}


def unsplit(n: int, prompts: Mapping[str, Sequence[int]] = PROMPTS) -> dict[str, list[int]]:
    return {name: whole(prompt, n, seed=len(prompt)) for name, prompt in prompts.items()}


@pytest.mark.parametrize(
    ("borders", "lost"),
    [((0, 1, 3, 4), 2), ((0, 1, 2, 3, 4), 2), ((0, 1, 2, 3, 4), 3)],
    ids=["the last of 3", "the second of 4", "the last of 4"],
)
async def test_a_fresh_stage_is_filled_from_the_ring_before_it(borders, lost: int) -> None:
    world = World(*borders)
    head = world.head
    await head.route()
    await head.go(PROMPTS, 4)
    computed = [len(stage._engine.steps) for stage in world.stages]
    world.net.cut(f"s{lost}")
    assert (await head.fault("lost_stage")).endpoint == f"s{lost}"
    way = world.spare(lost)
    await head.route(way, epoch=1)
    opens = [await head.open(name, prompt, epoch=1) for name, prompt in PROMPTS.items()]
    at = {name: len(head.tokens[name]) - 1 for name in PROMPTS}
    refills = tuple(head.refill(name, 1, lost - 1) for name in PROMPTS)
    head.take(await head.step(at, epoch=1, opens=opens, refills=refills))
    await head.on(PROMPTS, 3, epoch=1)
    assert {name: head.tokens[name][len(prompt) :] for name, prompt in PROMPTS.items()} == unsplit(8)
    for index, stage in enumerate(world.stages, start=1):
        steps = stage._engine.steps[computed[index - 1] if index != lost else 0 :]
        rows = sum(run.count for step in steps for run in step.runs)
        refilled = sum(at.values()) if index == lost else 0
        if index > lost:
            sent = world.net.sent[f"s{index}"]
            assert not any(run.fills for batch in sent for run in batch.runs), "fills go one stage"
            assert all(batch.number or batch.opens for batch in sent), "nor does an empty batch in their place"
        assert rows == 4 * len(PROMPTS) + refilled, "only the new stage computes the old rows again"
    assert not [refusal for batch in head.seen for refusal in batch.refusals]


async def test_a_long_session_is_filled_in_parts_that_may_come_twice() -> None:
    world = World(0, 1, 3, 4)
    head, prompt = world.head, [*range(FILL_ROWS)] * 2
    await head.route()
    await head.go({"a": prompt[: FILL_ROWS + 90]}, 2)
    way = world.spare(2)
    world.net.duplicate("spare2", 1_000)
    await head.route(way, epoch=1)
    # What it is drawn with is said anew, too.
    again = await head.open("a", prompt[: FILL_ROWS + 90], epoch=1)
    at = len(head.tokens["a"]) - 1
    head.take(await head.step({"a": at}, epoch=1, opens=[again], refills=[head.refill("a", 1, 1)]))
    assert [run.count for batch in world.net.sent["spare2"] for run in batch.runs] == [FILL_ROWS, 91, 1]
    assert not [refusal for batch in head.seen for refusal in batch.refusals]
    assert sum(run.count for step in world.stages[1]._engine.steps for run in step.runs) == at + 1, "each row once"
    assert head.tokens["a"][-3:] == whole(prompt[: FILL_ROWS + 90], 3, seed=FILL_ROWS + 90)


async def test_without_kept_rows_a_refill_is_refused_and_the_tokens_are_sent_again() -> None:
    world = World(0, 1, 3, 4, limits=StageLimits(ring_bytes=0))
    head = world.head
    await head.route()
    await head.go({"a": [3, 1, 4]}, 4)
    world.net.cut("s2")
    await head.fault("lost_stage")
    await head.route(world.spare(2), epoch=1)
    again = await head.open("a", [3, 1, 4], epoch=1)
    await head.send(opens=(again,), refills=(head.refill("a", 1, 1),))
    assert (await head.refusal("a")).code == "position_gap"
    head.take(await head.step({"a": 0}, epoch=1))
    await head.on("a", 2, epoch=1)
    assert head.tokens["a"][3:] == whole([3, 1, 4], 7, seed=3)


async def test_a_refill_that_no_stage_can_do_is_refused() -> None:
    world = World(0, 1, 3, 4)
    await world.head.route()
    await world.head.go({"a": [3, 1, 4]}, 2)
    await world.head.route(epoch=1)
    await world.head.send(refills=(Refill(session="a", epoch=1, length=4, index=2),))
    assert (await world.head.refusal("a")).code == "position_gap"


async def test_a_token_whose_answer_was_lost_is_drawn_again_after_a_change_of_route() -> None:
    world = World(0, 1, 3, 4)
    head = world.head
    await head.route()
    await head.go({"a": [3, 1, 4]}, 3)
    lost = await head.step({"a": 5})  # computed everywhere, but nobody hears of it
    await head.route(epoch=1)
    again = await head.open("a", [3, 1, 4], epoch=1)
    answer = await head.step({"a": 5}, epoch=1, opens=[again])
    assert [(token.position, token.token) for token in answer.tokens] == [(6, lost.tokens[0].token)]
    assert len(world.stages[0].pipelines._links.made) == 1, "a link that is whole is kept"
    head.take(answer)
    await head.on("a", 2, epoch=1)
    assert head.tokens["a"][3:] == whole([3, 1, 4], 6, seed=3)


async def test_a_head_comes_back_for_its_sessions_on_new_streams() -> None:
    world = World(0, 1, 3, 4)
    await world.head.route()
    await world.head.go({"a": [3, 1, 4]}, 3)
    await world.head.leave()
    await world.head.route()
    await world.head.on("a", 3)
    assert world.head.tokens["a"][3:] == whole([3, 1, 4], 6, seed=3)


async def test_a_new_route_is_heard_while_the_next_stage_is_frozen() -> None:
    world = World(0, 1, 3, 4)
    head = world.head
    await head.route()
    await head.go({"a": [3, 1, 4]}, 3)
    world.net.freeze("s2")
    for _ in range(8):
        await head.send(wait=False)
    await head.route(world.spare(2), epoch=1)
    again = await head.open("a", [3, 1, 4], epoch=1)
    head.take(await head.step({"a": 5}, epoch=1, opens=[again], refills=[head.refill("a", 1, 1)]))
    world.net.restore("s2")
    await head.on("a", 2, epoch=1)
    assert head.tokens["a"][3:] == whole([3, 1, 4], 6, seed=3)


async def test_of_rows_that_fill_and_rows_that_go_on_only_these_go_on() -> None:
    world = World(0, 1, 3, 4)
    head = world.head
    await head.route()
    opens = [await head.open(name, prompt) for name, prompt in PROMPTS.items()]
    ids = tuple(token for prompt in PROMPTS.values() for token in prompt)
    runs = tuple(
        Run(session=name, epoch=0, position=0, count=len(prompt), samples=name != "b", fills=name == "b")
        for name, prompt in PROMPTS.items()
    )
    rows = await head.engine.step(Step(runs=runs, rows=ids))
    answer = await head.send(runs=runs, hidden=rows.hidden, opens=opens)
    assert {token.session: token.token for token in answer.tokens} == {
        name: tokens[0] for name, tokens in unsplit(1).items() if name != "b"
    }
    assert [stage._engine.length("b") for stage in world.stages] == [1, 0]
