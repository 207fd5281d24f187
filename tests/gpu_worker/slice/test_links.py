"""Links to other stages: one suite over the stream and over the older RPCs, against real servers."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import grpc
import pytest

from gpu_worker.core.errors import Unavailable
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.core.inference.step import Run, Step, Tensor
from gpu_worker.core.inference.tensor import HIDDEN, message_bytes
from gpu_worker.edges.grpc.grpc_channel import SERVICE, STEPS_ARE_SERVED
from gpu_worker.edges.grpc.links_grpc import GrpcLinks, StepsLink
from gpu_worker.edges.grpc.links_unary import DTYPES, UnaryLink
from tests.fixtures.fault_proxy import proxy_to
from tests.fixtures.grpc_servers import server_of
from tests.fixtures.toy_pipeline import MODEL, MODEL_HASH, whole
from tests.gpu_worker.slice.doors import GREEDY, Stage, ToyHead, last_open, stages
from wire.proto import inference_pb2 as pb

PROMPT = (3, 1, 4, 1, 5)
DETECTED_S = 20.0
ANSWER_S = 30.0


@dataclass
class World:
    stage: Stage
    links: GrpcLinks

    async def head(self, pipeline: str = "p") -> ToyHead:
        return ToyHead(await self.links.connect(self.stage.endpoint), self.stage.endpoint, pipeline)


@pytest.fixture(params=["steps", "four older RPCs"])
async def world(request: pytest.FixtureRequest, links: GrpcLinks) -> AsyncIterator[World]:
    async with stages(stage := Stage(2, 4, has_steps=request.param == "steps")):
        yield World(stage, links)


async def test_the_link_is_of_the_kind_that_the_stage_has(world: World) -> None:
    link = await world.links.connect(world.stage.endpoint)
    seen = await world.links.describe(world.stage.endpoint, ANSWER_S)
    assert isinstance(link, StepsLink if seen.has_steps else UnaryLink)
    assert link.endpoint == world.stage.endpoint


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(temperature=0.7, seed=7), Sampling(temperature=0.7, seed=7, presence_penalty=0.5)],
    ids=["greedy", "sampled", "with a penalty"],
)
async def test_the_tokens_are_those_of_the_unsplit_model(world: World, sampling: Sampling) -> None:
    head = await world.head()
    assert await head.generate("s", PROMPT, 6, sampling) == whole(PROMPT, 6, sampling=sampling)


async def test_a_stage_describes_itself(world: World) -> None:
    seen = await world.links.describe(world.stage.endpoint, ANSWER_S)
    assert seen.layers == Layers(2, 4, 4)
    assert (seen.model, seen.model_hash, seen.is_ready) == (MODEL, MODEL_HASH, True)
    assert (seen.next, seen.http_url) == ("127.0.0.1:2", "http://127.0.0.1:3")
    assert (seen.hop.endpoint, seen.hop.start, seen.hop.end) == (world.stage.endpoint, 2, 4)
    assert seen.wire_dtypes == (HIDDEN if seen.has_steps else DTYPES)


async def test_sessions_of_one_batch_are_answered_each_for_itself(world: World) -> None:
    head = await world.head()
    prompts = {f"s{i}": tuple(range(i + 1, i + 4)) for i in range(5)}
    runs, rows = [], []
    for session, prompt in prompts.items():
        await head.open(session, prompt)
        run = Run(session=session, epoch=1, position=0, count=3, samples=True)
        runs.append(run)
        rows.append(bytes((await head.rows(run, prompt)).data))
    await head.send(runs=tuple(runs), hidden=Tensor("float32", (3 * len(runs), 8), b"".join(rows)))
    tokens = {}
    while len(tokens) < len(prompts):
        batch = await head.until(lambda batch: batch.tokens)
        tokens |= {each.session: each.token for each in batch.tokens}
    assert tokens == {session: whole(prompt, 1, sampling=GREEDY)[0] for session, prompt in prompts.items()}


async def test_a_run_that_is_sent_again_gets_the_same_token(world: World) -> None:
    head = await world.head()
    await head.open("s", PROMPT)
    first = await head.token("s", 0, PROMPT)
    second = await head.token("s", len(PROMPT), [first.token])
    assert await head.token("s", len(PROMPT), [first.token]) == second
    assert second.token == whole(PROMPT, 2, sampling=GREEDY)[1]


async def test_a_gap_is_refused_and_the_neighbour_goes_on(world: World) -> None:
    head = await world.head()
    await head.open("gap", PROMPT)
    run = Run(session="gap", epoch=1, position=0, count=5)
    hidden = await head.rows(run, PROMPT)
    await head.send(runs=(Run(session="gap", epoch=1, position=50, count=5, samples=True),), hidden=hidden)
    batch = await head.until(lambda batch: batch.refusals)
    assert [(each.session, each.code) for each in batch.refusals] in (
        [("gap", "position_gap")],
        [("gap", "unknown_session")],
    )
    assert await head.generate("s", PROMPT, 3) == whole(PROMPT, 3, sampling=GREEDY)


async def test_a_session_that_nobody_opened_is_unknown(world: World) -> None:
    head = await world.head()
    await head.open("s", PROMPT)
    run = Run(session="s", epoch=1, position=0, count=5)
    hidden = await head.rows(run, PROMPT)
    await head.send(runs=(Run(session="nobody", epoch=1, position=0, count=5, samples=True),), hidden=hidden)
    batch = await head.until(lambda batch: batch.refusals)
    assert [(each.session, each.code) for each in batch.refusals] == [("nobody", "unknown_session")]


async def test_a_closed_link_takes_nothing_and_ends(world: World) -> None:
    head = await world.head()
    await head.open("s", PROMPT)
    await head.link.close()
    await head.link.close()
    assert [batch async for batch in head.batches] == []
    with pytest.raises(Unavailable):
        await head.send(closes=("s",))


async def test_a_stage_that_goes_breaks_the_link(world: World) -> None:
    head = await world.head()
    await head.open("s", PROMPT)
    run = Run(session="s", epoch=1, position=0, count=5, samples=True)
    hidden = await head.rows(run, PROMPT)
    await world.stage.close()
    with pytest.raises(Unavailable) as broke:  # noqa: PT012 - either of the two may hear of it first
        await head.send(runs=(run,), hidden=hidden)
        await head.until(lambda batch: batch.tokens)
    assert broke.value.code == "lost_stage"
    with pytest.raises(Unavailable):
        await head.send(runs=(run,), hidden=hidden)


async def test_nobody_at_an_address_is_unavailable(world: World) -> None:
    endpoint = world.stage.endpoint
    await world.stage.close()
    with pytest.raises(Unavailable):
        await world.links.connect(endpoint)
    with pytest.raises(Unavailable):
        await world.links.describe(endpoint, ANSWER_S)
    await world.stage.start(int(endpoint.rpartition(":")[2]))
    assert (await world.links.describe(endpoint, ANSWER_S)).model == MODEL


async def test_a_stage_that_stops_answering_is_noticed(world: World) -> None:
    async with proxy_to(world.stage.endpoint) as proxy:
        head = ToyHead(await world.links.connect(proxy.endpoint), world.stage.endpoint)
        await head.open("s", PROMPT)
        run = Run(session="s", epoch=1, position=0, count=5, samples=True)
        hidden = await head.rows(run, PROMPT)
        proxy.freeze()
        began = time.monotonic()
        with pytest.raises(Unavailable) as broke:  # noqa: PT012
            await head.send(runs=(run,), hidden=hidden)
            await head.until(lambda batch: batch.tokens)
        assert broke.value.code == "lost_stage"
        assert time.monotonic() - began < DETECTED_S
        with pytest.raises(Unavailable):
            await GrpcLinks(connect_s=0.3).connect(proxy.endpoint)


async def test_a_stage_that_is_behind_holds_its_sender_back(links: GrpcLinks) -> None:
    stage = Stage(2, 4)
    async with stages(stage):
        head = ToyHead(await links.connect(stage.endpoint), stage.endpoint)
        await head.open("s", PROMPT)
        stage.engine.may_step.clear()
        run = Run(session="s", epoch=1, position=0, count=5, samples=True)
        hidden = await head.rows(run, PROMPT)
        # A megabyte of closes with each: what waits on the way is bounded, wherever it waits.
        ballast = tuple(f"{i:0100}" for i in range(4000))
        sent = 0

        async def send_on() -> None:
            nonlocal sent
            while not stage.engine.may_step.is_set():
                await head.send(runs=(run,), hidden=hidden, closes=ballast)
                sent += 1

        sending = asyncio.create_task(send_on())
        done, _ = await asyncio.wait({sending}, timeout=1.0)
        assert not done
        assert 0 < sent < 100
        stage.engine.may_step.set()
        assert (await head.until(lambda batch: batch.tokens)).tokens[0].token == whole(PROMPT, 1, sampling=GREEDY)[0]
        await sending


async def test_a_stage_that_says_it_has_steps_and_has_none_is_served_by_the_others(links: GrpcLinks) -> None:
    async def layer_info(_request, _context):
        return pb.LayerInfoResponse(model_name="m", layer_end=1, total_layers=1, has_steps=True)

    handler = grpc.unary_unary_rpc_method_handler(
        layer_info, pb.Empty.FromString, pb.LayerInfoResponse.SerializeToString
    )
    async with server_of(SERVICE, {"GetLayerInfo": handler}) as endpoint:
        assert isinstance(await links.connect(endpoint), UnaryLink)


async def test_an_older_stage_behind_a_stage_that_does_not_know_the_sampling_is_refused(links: GrpcLinks) -> None:
    stage = Stage(2, 4, has_steps=False)
    async with stages(stage):
        head = ToyHead(await links.connect(stage.endpoint), stage.endpoint)
        opened = last_open("s", PROMPT, GREEDY)
        await head.engine.step(Step(opens=(opened,)))
        await head.send(opens=(replace(opened, sampling=None),), route=head.route)
        run = Run(session="s", epoch=1, position=0, count=5, samples=True)
        await head.send(runs=(run,), hidden=await head.rows(run, PROMPT))
        assert (await head.until(lambda batch: batch.refusals)).refusals[0].code == "no_route"


@pytest.mark.row(49)
@pytest.mark.parametrize("over", [False, True], ids=["as large as may be", "one byte more"])
async def test_an_answer_over_the_limit_is_refused_before_it_is_read(over: bool) -> None:
    async def layer_info(_request, _context):
        return pb.LayerInfoResponse(model_name="m", layer_end=1, total_layers=1, has_steps=True)

    async def steps(_requests, context):
        await context.send_initial_metadata((STEPS_ARE_SERVED,))
        await context.write(bytes(message_bytes(8) + over))

    handlers = {
        "GetLayerInfo": grpc.unary_unary_rpc_method_handler(
            layer_info, pb.Empty.FromString, pb.LayerInfoResponse.SerializeToString
        ),
        "Steps": grpc.stream_stream_rpc_method_handler(steps),
    }
    links = GrpcLinks(width=8)
    async with server_of(SERVICE, handlers) as endpoint:
        try:
            link = await links.connect(endpoint)
            with pytest.raises(Unavailable) as refused:
                await anext(link.batches())
        finally:
            await links.close()
        # What is read is no batch; what is larger is not read.
        assert refused.value.code == ("no_capacity" if over else "invalid_argument")
