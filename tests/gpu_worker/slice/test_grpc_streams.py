"""Who gets a stream at the gRPC door, by real clients: passes, places, and heads that are gone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from time import time
from typing import Any

import grpc
import grpc.aio
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gpu_worker.core.errors import Unavailable
from gpu_worker.core.inference.batch import Batch, Hop
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.passes import Admission, claims_of
from gpu_worker.core.inference.step import Open, Step
from gpu_worker.edges.grpc.grpc_channel import SERVICE
from gpu_worker.edges.grpc.grpc_streams import Streams
from gpu_worker.edges.grpc.links_grpc import GrpcLinks
from gpu_worker.edges.passes.passes_jwt import JwtPasses
from gpu_worker.inference.head.desk import HeadLimits
from gpu_worker.inference.head.head import Head
from gpu_worker.inference.ports import TokenRequest
from tests.fixtures.fault_proxy import proxy_to
from tests.fixtures.stages import until
from tests.fixtures.toy_links import ToyRegistry
from tests.fixtures.toy_pipeline import MODEL_HASH, ToyEngine, whole
from tests.gpu_worker.slice.doors import GREEDY, Known, Stage, ToyHead, stages
from tests.gpu_worker.slice.test_passes import private_pem

PROMPT = (3, 1, 4, 1, 5)
KEY = Ed25519PrivateKey.generate()
WHO = "the head"


def signed(session: str, *, head: str = WHO, layers: Sequence[tuple[int, int]] = ((0, 2), (2, 4)), **more: Any) -> str:
    admission = Admission(session=session, head=head, model="toy", model_hash=MODEL_HASH, layers=layers)
    claims = claims_of(admission, issuer="us", jti=f"{session} {head}", now_s=int(time())) | more
    return jwt.encode(claims, KEY, algorithm="EdDSA")


def passes() -> JwtPasses:
    return JwtPasses([private_pem(KEY)], issuer="us", model_hash=MODEL_HASH)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with stages(found := Stage(2, 4, passes=passes())):
        yield found


async def opened(head: ToyHead, session: str, session_pass: str) -> None:
    await head.engine.step(Step(opens=(Open(session=session, epoch=1, positions=100),)))
    await head.send(opens=(Open(session=session, epoch=1, positions=100, session_pass=session_pass, sampling=GREEDY),))
    batch = await head.until(lambda batch: session in batch.opened or batch.refusals)
    if batch.refusals:
        raise InferenceError(batch.refusals[0].code, batch.refusals[0].detail)


async def told(head: ToyHead, session: str, count: int = 3) -> list[int]:
    made = [(await head.token(session, 0, PROMPT)).token]
    while len(made) < count:
        made.append((await head.token(session, len(PROMPT) + len(made) - 1, made[-1:])).token)
    return made


WRONG = {
    "none": lambda: "",
    "no token": lambda: "a.b.c",
    "expired": lambda: signed("p", exp=1),
    "other layers": lambda: signed("p", layers=((0, 2), (2, 3))),
    "another model": lambda: signed("p", model_hash="ab" * 32),
    "another issuer": lambda: signed("p", iss="them"),
    "no head": lambda: signed("p", head=7),
}


@pytest.mark.row(72)
@pytest.mark.parametrize("case", WRONG)
async def test_a_stream_without_a_pass_for_these_layers_is_unauthenticated_at_once(
    stage: Stage, links: GrpcLinks, case: str
) -> None:
    with pytest.raises(Unavailable) as refused:
        await links.connect(stage.endpoint, WRONG[case]())
    assert refused.value.code == "unauthenticated"
    assert len(stage.pipeline.streams) == 0


@pytest.mark.row(72)
async def test_a_stream_carries_many_sessions_each_with_its_pass(stage: Stage, links: GrpcLinks) -> None:
    head = ToyHead(await links.connect(stage.endpoint, signed("p")), stage.endpoint)
    await head.send(route=head.route)
    for session in ("a", "b"):
        with pytest.raises(InferenceError, match="asks for a session pass"):
            await opened(head, session, "")
        with pytest.raises(InferenceError, match="another head"):
            await opened(head, session, signed(session, head="another"))
    for session in ("c", "d"):
        await opened(head, session, signed(session))
        assert await told(head, session) == whole(PROMPT, 3, sampling=GREEDY)


async def test_a_stream_may_be_opened_again_with_its_pass_and_a_session_goes_on(stage: Stage, links: GrpcLinks) -> None:
    passed = signed("p")
    head = ToyHead(await links.connect(stage.endpoint, passed), stage.endpoint)
    await head.send(route=head.route)
    await opened(head, "s", signed("s"))
    first = await head.token("s", 0, PROMPT)
    await head.link.close()
    again = ToyHead(await links.connect(stage.endpoint, passed), stage.endpoint)
    again.engine = head.engine
    await again.send(route=again.route)
    second = await again.token("s", len(PROMPT), [first.token])
    assert [first.token, second.token] == whole(PROMPT, 2, sampling=GREEDY)


@pytest.mark.parametrize(("pipeline", "who"), [("q", WHO), ("q", "another"), ("p", "another")])
async def test_a_pass_of_another_pipeline_or_head_reaches_no_session(
    stage: Stage, links: GrpcLinks, pipeline: str, who: str
) -> None:
    head = ToyHead(await links.connect(stage.endpoint, signed("p")), stage.endpoint)
    await head.send(route=head.route)
    await opened(head, "s", signed("s"))
    first = await head.token("s", 0, PROMPT)
    thief = ToyHead(await links.connect(stage.endpoint, signed(pipeline, head=who)), stage.endpoint)
    await thief.link.send(Batch(pipeline="p", epoch=9, route=replace(thief.route, epoch=9), closes=("s",)))
    with pytest.raises(Unavailable) as ended:
        await thief.until(lambda batch: batch.faults)
    assert ended.value.code == "forbidden"
    second = await head.token("s", len(PROMPT), [first.token])
    assert [first.token, second.token] == whole(PROMPT, 2, sampling=GREEDY)


# --- places


async def idle(channel: Any) -> Any:
    """Return a stream that stands and by which nothing is sent."""
    call = channel.stream_stream(f"/{SERVICE}/Steps")()
    await call.initial_metadata()
    return call


async def test_streams_that_say_nothing_keep_no_head_out(links: GrpcLinks) -> None:
    async with (
        stages(stage := Stage(2, 4, streams_max=4, first_s=600.0)),
        grpc.aio.insecure_channel(stage.endpoint) as channel,
    ):
        calls = [await idle(channel) for _ in range(4)]
        head = ToyHead(await links.connect(stage.endpoint), stage.endpoint)
        await head.open("s", PROMPT)
        assert await calls[0].code() == grpc.StatusCode.RESOURCE_EXHAUSTED, "the oldest went"
        # However many come: who has a session stays.
        calls += [await idle(channel) for _ in range(20)]
        assert await told(head, "s") == whole(PROMPT, 3, sampling=GREEDY)
        assert len(stage.pipeline.streams) == 4
        for call in calls:
            call.cancel()
        await until(lambda: len(stage.pipeline.streams) == 1)


def test_one_host_has_a_share_of_the_places_and_pays_for_its_own_crowd() -> None:
    async def main() -> None:
        streams = Streams(6, 4, 600.0)
        async with contextlib.AsyncExitStack() as stack:

            async def enter(host: str, port: int) -> Any:
                place = streams.enter(f"ipv4:{host}:{port}")
                await stack.enter_async_context(place.first)
                return place

            quiet = await enter("10.0.0.2", 1)
            crowd = [await enter("10.0.0.1", port) for port in range(4)]
            for each in crowd:
                each.is_proven = True
            with pytest.raises(InferenceError, match="4 streams are open"):
                await enter("10.0.0.1", 9)
            crowd[1].is_proven = False
            crowd.append(await enter("10.0.0.1", 10))
            assert [each.is_given_up for each in crowd] == [False, True, False, False, False]
            third = await enter("10.0.0.3", 1)
            fourth = await enter("10.0.0.4", 1)
            # All taken: of hosts with equally many unproven streams the oldest goes.
            assert [each.is_given_up for each in (quiet, third, fourth, crowd[-1])] == [True, False, False, False]
            assert len(streams) == 6
            for each in (quiet, crowd[1]):
                each.first.reschedule(None)

    asyncio.run(main())


async def test_the_streams_of_a_head_that_is_gone_are_ended(links: GrpcLinks) -> None:
    async with stages(stage := Stage(2, 4)), proxy_to(stage.endpoint) as proxy:
        head = ToyHead(await links.connect(proxy.endpoint), stage.endpoint)
        await head.open("s", PROMPT)
        assert len(stage.pipeline.streams) == 1
        # Its machine is gone without a word: no end, no reset, only silence.
        proxy.freeze()
        await until(lambda: len(stage.pipeline.streams) == 0, within_s=15.0)
        assert stage.steps.pipelines.all["p"].answers is None


class Signs(ToyRegistry):
    """A registry that signs passes; `signed` are the names of their sessions."""

    def __init__(self, hops: Sequence[Hop]) -> None:
        super().__init__(hops)
        self.signed: list[str] = []

    def session_pass(self, session: str, layers: Sequence[tuple[int, int]]) -> str:
        self.signed.append(session)
        return signed(session, layers=layers)


@pytest.mark.row(72)
async def test_a_head_goes_through_stages_that_ask_for_passes_each_by_its_own_key(links: GrpcLinks) -> None:
    known = Known()
    three = [Stage(*layers, known=known, passes=passes()) for layers in ((1, 2), (2, 3), (3, 4))]
    async with stages(*three):
        registry = Signs([stage.hop for stage in three])
        head = Head(engine=ToyEngine(0, 1), links=links, registry=registry, endpoint="127.0.0.1:1", name="pipe")
        serving = asyncio.create_task(head.serve())
        try:
            await until(lambda: head.hops)
            request = TokenRequest(session="s", prompt=PROMPT, tokens_max=5, sampling=GREEDY)
            assert [each.token async for each in await head.start(request)] == whole(PROMPT, 5, sampling=GREEDY)
            for stage in three:
                assert {each.head for each in stage.steps.pipelines.all.values()} == {WHO}
            assert set(registry.signed) == {"pipe", "s"}
        finally:
            await head.close()
            await serving


async def test_a_head_without_the_registrys_key_gets_nobody_to_compute(links: GrpcLinks) -> None:
    async with stages(stage := Stage(1, 4, passes=passes())):
        registry = ToyRegistry([stage.hop])
        head = Head(
            engine=ToyEngine(0, 1), links=links, registry=registry, endpoint="127.0.0.1:1",
            limits=HeadLimits(route_s=0.5, retry_s=0.1),
        )  # fmt: skip
        serving = asyncio.create_task(head.serve())
        try:
            await until(lambda: head.hops)
            request = TokenRequest(session="s", prompt=PROMPT, tokens_max=5, sampling=GREEDY)
            stream = await head.start(request)
            with pytest.raises(InferenceError) as ended:
                await anext(aiter(stream))
            assert ended.value.code in {"lost_stage", "no_route"}
            assert stage.engine.steps == []
        finally:
            await head.close()
            await serving
