"""What others may not do to a stage, and that nobody else notices when they try."""

import asyncio
from dataclasses import replace

import pytest

from gpu_worker.core.errors import Bug
from gpu_worker.core.inference.batch import Batch, Hop, LinkFault, Refill, Route
from gpu_worker.core.inference.limits import HOPS_MAX, NAME_CHARS_MAX, PARTS_MAX
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.core.inference.step import Open, Run, Tensor
from gpu_worker.inference.stage.pipelines import Reply, StageLimits
from gpu_worker.inference.stage.service import StageService
from tests.fixtures.toy_head import ToyHead, World, hops
from tests.fixtures.toy_links import ToyPasses
from tests.fixtures.toy_pipeline import CONTEXT, ToyEngine, whole

PROMPT = [3, 1, 4]
RUN = Run(session="a", epoch=0, position=3, count=1)
ROW = Tensor("float32", (1, 8), bytes(32))

MALFORMED = {
    "runs without rows": {"runs": (RUN,)},
    "rows without runs": {"hidden": ROW},
    "a shape that is not the bytes": {"runs": (RUN,), "hidden": Tensor("float32", (1, 8), bytes(31))},
    "more rows than the runs": {"runs": (RUN,), "hidden": Tensor("float32", (2, 8), bytes(64))},
    "another width": {"runs": (RUN,), "hidden": Tensor("float32", (1, 16), bytes(64))},
    "a shape bomb": {"runs": (replace(RUN, count=1 << 40),), "hidden": Tensor("float32", (1 << 40, 8), b"")},
    "ids": {"runs": (RUN,), "hidden": Tensor("int64", (1,), bytes(8))},
    "a dtype of its own": {"runs": (RUN,), "hidden": Tensor("float7", (1, 8), bytes(32))},
    "a run of no row": {"runs": (replace(RUN, count=0),), "hidden": Tensor("float32", (0, 8), b"")},
    "a position before the first": {"runs": (replace(RUN, position=-1),), "hidden": ROW},
    "one session twice": {"runs": (RUN, replace(RUN, position=4)), "hidden": Tensor("float32", (2, 8), bytes(64))},
    "a name without end": {"runs": (replace(RUN, session="a" * (NAME_CHARS_MAX + 1)),), "hidden": ROW},
    "too many parts": {"closes": ("a",) * (PARTS_MAX + 1)},
    "a refill backwards": {"refills": (Refill(session="a", epoch=0, length=-1),)},
    "times of stages that cannot be": {"compute_s": (0.1,) * (HOPS_MAX + 1)},
    "another pipeline's route": {"route": Route(pipeline="q", epoch=0, hops=hops(0, 1, 3, 4), index=1)},
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_a_malformed_batch_ends_its_own_stream_alone(case: str) -> None:
    world = World(0, 1, 3, 4)
    stranger = ToyHead(world.net, world.way, pipeline="x")
    await world.head.route()
    await world.head.go({"a": PROMPT}, 2)
    await stranger.route()
    steps = len(world.stages[0]._engine.steps)
    await stranger.send(wait=False, **MALFORMED[case])
    assert "invalid_tensor" in await stranger.end("s1")
    assert len(world.stages[0]._engine.steps) == steps
    await world.head.on("a", 3)
    assert world.head.tokens["a"][3:] == whole(PROMPT, 5, seed=3)


async def test_anothers_session_is_out_of_reach() -> None:
    world = World(0, 1, 3, 4)
    stranger = ToyHead(world.net, world.way, pipeline="x")
    await world.head.route()
    await world.head.go({"a": PROMPT}, 2)
    await stranger.route()
    await stranger.send(opens=(Open(session="a", epoch=7, positions=9),), runs=(RUN,), hidden=ROW, closes=("a",))
    codes = {each.code for batch in stranger.seen for each in batch.refusals}
    assert codes == {"forbidden", "unknown_session"}
    await world.head.on("a", 3)
    assert world.head.tokens["a"][3:] == whole(PROMPT, 5, seed=3)


async def test_only_a_known_stage_is_dialled() -> None:
    world = World(0, 1, 3, 4)
    evil = Hop(endpoint="evil", start=3, end=4)
    world.net.listen("evil", world.stages[1])
    await world.head.send(
        wait=False, route=Route(pipeline="p", epoch=0, hops=(*world.way[:2], evil), index=1), opens=()
    )
    fault = await world.head.fault("forbidden")
    assert (fault.endpoint, world.net.sent.get("evil")) == ("evil", None)
    world.registry.set([*world.way, evil])
    await world.head.route((*world.way[:2], evil), epoch=1)


@pytest.mark.parametrize(
    ("borders", "index", "why"),
    [
        ((0, 1, 4), 1, "has layers 1:3"),
        ((0, 1, 3, 4), 2, "has layers 1:3"),
        ((0, 1, 3, 4), 0, "has layers 1:3"),
        ((0, 1, 3, 4), 9, "has layers 1:3"),
        ((0, 1, 3), 1, "served by nobody"),
        ((1, 3, 4), 0, "served by nobody"),
        ((0, 1, 3, 9), 1, "no slice of a model"),
        ((0,), 0, "no stage serves any layer"),
    ],
)
async def test_a_route_that_does_not_fit_is_refused(borders: tuple[int, ...], index: int, why: str) -> None:
    world = World(0, 1, 3, 4)
    route = Route(pipeline="p", epoch=0, hops=hops(*borders), index=index)
    await world.head.send(wait=False, route=route)
    fault = await world.head.fault("invalid_argument")
    assert fault.endpoint == "s1"
    assert why in fault.detail


async def test_a_batch_before_its_route_is_answered_with_a_fault() -> None:
    world = World(0, 1, 3, 4)
    await world.head.send(wait=False, runs=(RUN,), hidden=ROW)
    assert (await world.head.fault("no_route")).endpoint == "s1"


async def test_sessions_and_pipelines_are_bounded() -> None:
    world = World(0, 2, 4, limits=StageLimits(pipelines=1, sessions=2))
    head = world.head
    await head.route()
    await head.send(opens=[await head.open(name, PROMPT) for name in "abc"])
    assert (await head.refusal("c")).code == "no_capacity"
    assert len(world.stages[0].sessions) == 2
    second = ToyHead(world.net, world.way, pipeline="q")
    await second.send(wait=False, route=second._route(1, True))
    assert (await second.fault("no_capacity")).endpoint == "s1"
    await second.leave()
    await head.leave()
    await head.route()
    await head.send(closes=("a", "b"))
    assert (len(world.stages[0].sessions), len(world.stages[0].pipelines.all)) == (0, 1)


async def test_what_the_engine_has_no_room_for_is_not_open() -> None:
    world = World(0, 1, 2, 3, 4)
    first, others = world.stages[0], world.stages[1:]
    head = world.head
    await head.route()
    await head.go({"a": PROMPT}, 2)
    first._engine.positions_max = 2_000
    opened = Open(session="c", epoch=0, positions=1_024)
    await head.send(opens=(opened,))
    assert (await head.refusal("c")).code == "no_capacity"
    assert [len(stage.sessions) for stage in world.stages] == [1] * 3, "those behind are not asked"
    assert [stage.cache.sessions for stage in others] == [1, 1]
    await head.on("a", 2)
    assert head.tokens["a"][3:] == whole(PROMPT, 4, seed=3)
    await head.send(closes=("a",), opens=(opened,))
    assert [len(stage.sessions) for stage in world.stages] == [1, 1, 0], "a close makes room in the same batch"


@pytest.mark.parametrize("positions", [0, CONTEXT + 1])
async def test_a_session_that_no_cache_can_hold_is_refused(positions: int) -> None:
    world = World(0, 1, 3, 4)
    await world.head.route()
    await world.head.send(opens=(Open(session="a", epoch=0, positions=positions),))
    assert (await world.head.refusal("a")).code == "context_length_exceeded"


async def test_more_positions_than_were_asked_for_are_refused() -> None:
    world = World(0, 1, 3, 4)
    head = world.head
    await head.route()
    await head.go({"a": PROMPT}, 2)
    run = Run(session="a", epoch=0, position=4, count=1_021)
    await head.send(runs=(run,), hidden=Tensor("float32", (1_021, 8), bytes(1_021 * 32)))
    assert (await head.refusal("a")).code == "context_length_exceeded"
    await head.on("a", 2)
    assert head.tokens["a"][3:] == whole(PROMPT, 4, seed=3)


async def test_a_broken_engine_is_told_to_all_heads() -> None:
    world = World(0, 1, 3, 4)
    other = ToyHead(world.net, world.way, pipeline="q")
    await world.head.route()
    await other.route()
    stage = world.stages[1]
    stage._engine.fails = Bug("the device is gone")

    async def reply(batch: Batch) -> None:
        return

    route = Route(pipeline="z", epoch=0, hops=world.way, index=2)
    stage.begin(reply, "")
    with pytest.raises(Bug, match="device"):
        await stage.receive(Batch(pipeline="z", epoch=0, route=route, opens=(_opening("z"),)), reply)
    for head in (world.head, other):
        assert (await head.fault("internal")).endpoint == "s2"


def _opening(session: str) -> Open:
    return Open(session=session, epoch=0, positions=9, sampling=Sampling())


async def test_silent_sessions_lose_their_place_and_their_pipeline_goes_with_its_streams() -> None:
    now = [0.0]
    world = World(0, 1, 3, 4, limits=StageLimits(idle_s=10, sessions=2), clock=lambda: now[0])
    head = world.head
    await head.route()
    await head.go({"a": PROMPT, "b": [5]}, 2)
    now[0] = 8.0
    await head.on("b", 1)
    now[0] = 12.0
    # Who comes gets the place of who is silent.
    await head.send(opens=[await head.open("c", PROMPT)])
    assert [(stage._engine.length("a"), len(stage.sessions)) for stage in world.stages] == [(None, 2)] * 2
    await head.leave()
    assert all(stage.pipelines.all for stage in world.stages)
    now[0] = 23.0
    assert [await stage.tidy() for stage in world.stages] == [2, 2]
    assert not world.stages[0].pipelines.all
    await world.stages[0].close()
    await world.net.quiet()
    assert not world.stages[1].pipelines.all, "it goes with the first one's link"
    assert [(stage.cache.sessions, stage.ring.bytes_used) for stage in world.stages] == [(0, 0)] * 2


async def test_a_next_stage_can_only_answer() -> None:
    """What comes from behind is of its pipeline, and holds nothing that goes down."""
    world = World(0, 1, 3, 4)

    class Evil(StageService):
        async def receive(self, batch: Batch, reply: Reply) -> None:
            for name in ("q", "p"):
                fault = LinkFault(endpoint=name, code="lost_stage", detail="")
                await reply(Batch(pipeline=name, epoch=0, faults=(fault,), closes=("a",), runs=(RUN,), hidden=ROW))

    stage = Evil(engine=ToyEngine(3, 4), links=world.net.links_of("s2"), registry=world.registry, endpoint="s2")
    world.net.listen("s2", stage)
    await world.head.send(wait=False, route=world.head._route(1, False))
    seen = await world.head.until(lambda batch: bool(batch.faults))
    assert (seen.faults[0].endpoint, seen.closes, seen.runs, seen.hidden) == ("p", (), (), None)


async def test_a_head_that_takes_no_answers_holds_up_nobody_else() -> None:
    world = World(0, 2, 4, limits=StageLimits(reply_s=0.05))
    stage = world.stages[0]
    stuck = asyncio.Event()

    async def reply(batch: Batch) -> None:
        await stuck.wait()

    route = Route(pipeline="z", epoch=0, hops=world.way, index=1, answers=True)
    stage.begin(reply, "")
    slow = asyncio.create_task(stage.receive(Batch(pipeline="z", epoch=0, route=route), reply))
    await world.head.route()
    assert await world.head.go({"a": PROMPT}, 3) == {"a": whole(PROMPT, 3, seed=3)}
    await slow
    assert "z" not in stage.pipelines.all


async def test_who_knows_a_pipelines_name_does_not_get_its_answers() -> None:
    world = World(0, 2, 4)
    thief = ToyHead(world.net, world.way)
    await world.head.route()
    await world.head.go({"a": PROMPT}, 2)
    await thief.send(wait=False, route=thief._route(1, True))
    assert "forbidden" in await thief.end("s1")
    await world.head.on("a", 3)
    assert world.head.tokens["a"][3:] == whole(PROMPT, 5, seed=3)
    await world.head.leave()
    await thief.route()  # its stream has ended: a head comes back for its sessions


# What a stream with a pass of its own, which is not the head's, tries on a pipeline that is there.
BLOWS = {
    "a newer route": lambda thief: {"route": replace(thief._route(1, True), epoch=7), "epoch": 7},
    "a newer route and its closes": lambda thief: {
        "route": replace(thief._route(1, True), epoch=7), "epoch": 7, "closes": ("a",),
    },
    "a close": lambda thief: {"route": thief._route(1, False), "closes": ("a",)},
    "a run": lambda thief: {"route": thief._route(1, False), "runs": (RUN,), "hidden": ROW},
    "a refill": lambda thief: {
        "route": thief._route(1, False), "refills": (Refill(session="a", epoch=0, length=3, index=1),),
    },
    "an open": lambda thief: {"route": thief._route(1, False), "opens": (_opening("a"),)},
}  # fmt: skip


@pytest.mark.parametrize("shown", ["pass of x", "pass of x by head", "pass of p by another"])
@pytest.mark.parametrize("blow", BLOWS)
async def test_who_has_a_pass_of_another_pipeline_or_head_disturbs_nothing(blow: str, shown: str) -> None:
    world = World(0, 1, 3, 4, passes=ToyPasses())
    world.head.session_pass = "pass of p"
    thief = ToyHead(world.net, world.way, session_pass=shown)
    await world.head.route()
    await world.head.go({"a": PROMPT}, 2)
    await thief.send(wait=False, **BLOWS[blow](thief))
    assert "forbidden" in await thief.end("s1")
    assert not any(batch.tokens or batch.refusals or batch.opened for batch in thief.seen)
    await world.head.on("a", 3)
    assert world.head.tokens["a"][3:] == whole(PROMPT, 5, seed=3)


async def test_a_stream_without_a_pass_is_ended_at_once() -> None:
    world = World(0, 2, 4, passes=ToyPasses())
    world.head.session_pass = "guessed"
    await world.head.send(wait=False, route=world.head._route(1, True))
    assert "unauthenticated" in await world.head.end("s1")
    assert not world.stages[0].pipelines.all


async def test_a_session_comes_with_a_pass_of_its_own_and_of_the_streams_head() -> None:
    world = World(0, 2, 4, passes=ToyPasses())
    head = world.head
    await head.route()
    for number, wrong in enumerate(("", "pass of p", "pass of another", "pass of s2 by another")):
        await head.send(opens=(replace(_opening(f"s{number - 1}"), session_pass=wrong),))
        assert (await head.refusal(f"s{number - 1}")).code == "unauthenticated"
    assert await head.go({"a": PROMPT, "b": [5]}, 3) == {"a": whole(PROMPT, 3, seed=3), "b": whole([5], 3, seed=1)}


async def test_a_stage_shows_the_heads_pass_to_the_next_one() -> None:
    world = World(0, 1, 2, 3, 4, passes=ToyPasses())
    await world.head.route()
    assert await world.head.go({"a": PROMPT}, 3) == {"a": whole(PROMPT, 3, seed=3)}
    assert {pipeline.head for stage in world.stages for pipeline in stage.pipelines.all.values()} == {""}
    assert {link._pass for link in world.net.links} == {"pass of p"}


async def test_a_head_that_comes_back_has_its_answers_by_its_newer_route() -> None:
    world = World(0, 2, 4, passes=ToyPasses())
    await world.head.route()
    await world.head.go({"a": PROMPT}, 2)
    again = ToyHead(world.net, world.way)
    await again.route(epoch=1)
    opened = replace(_opening("a"), epoch=1, session_pass="pass of a")
    await again.send(wait=False, opens=(opened,))
    await again.until(lambda batch: batch.opened == ("a",))


async def test_rows_of_another_pipelines_session_fill_nothing() -> None:
    world = World(0, 1, 3, 4)
    thief = ToyHead(world.net, world.way, pipeline="x")
    await world.head.route()
    await world.head.go({"a": PROMPT}, 4)
    await thief.route()
    before = len(world.net.sent["s2"])
    await thief.send(wait=False, refills=(Refill(session="a", epoch=0, length=4),))
    refill = Refill(session="a", epoch=0, length=4, index=1)
    await thief.send(wait=False, refills=(refill,))
    assert (await thief.refusal("a")).code == "position_gap"
    assert not any(run.fills for batch in world.net.sent["s2"][before:] for run in batch.runs)
