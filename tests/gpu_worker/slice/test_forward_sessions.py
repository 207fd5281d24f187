"""The sessions of single calls: who may go on with them, how many there are, and streams that say nothing."""

from dataclasses import replace

import grpc
import grpc.aio
import pytest

from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.core.inference.step import Tensor
from gpu_worker.edges.grpc.links_grpc import GrpcLinks
from gpu_worker.edges.grpc.proto_codec import name
from gpu_worker.inference.stage.forward import CROWDED_S, PREFIX, SESSIONS_MAX, Forward, ForwardService
from tests.fixtures.toy_pipeline import ToyEngine
from tests.gpu_worker.slice.doors import Known, Stage, stages
from tests.gpu_worker.slice.test_grpc_forward import GOOD, refused
from wire.proto import inference_pb2 as pb
from wire.proto.inference_pb2_grpc import InferencePipelineStub

ROW = Forward(session="s", position=0, rows=Tensor("float32", (1, 8), bytes(32)), sampling=Sampling())


class Expiring:
    """Passes that hold until they expire."""

    has_expired = False

    def check(self, session_pass: str, session: str, hop: Hop) -> None:
        if self.has_expired or session_pass != f"pass of {session}":
            raise InferenceError("unauthenticated", "the session pass has expired")


async def test_a_pass_that_expires_is_good_for_the_session_that_it_opened() -> None:
    passes = Expiring()
    async with stages(stage := Stage(2, 4, passes=passes)), grpc.aio.insecure_channel(stage.endpoint) as channel:
        stub = InferencePipelineStub(channel)

        def call(session: str, said: str, position: int = 0):
            request = pb.ForwardRequest(**GOOD | {"request_id": session, "position": position})
            return stub.ForwardPass(request, metadata=(("authorization", f"Bearer {said}"),))

        assert (await call("r", "pass of r")).success
        passes.has_expired = True
        assert (await call("r", "pass of r", 1)).success
        for session, said in (("r", "pass of s"), ("s", "pass of s"), ("s", "pass of r")):
            assert await refused(call(session, said)) == ("UNAUTHENTICATED", "unauthenticated")
        await stage.forward.close()
        assert await refused(call("r", "pass of r")) == ("UNAUTHENTICATED", "unauthenticated")


async def test_one_session_too_many_waits_until_another_is_idle() -> None:
    now = [0.0]
    service = ForwardService(engine=ToyEngine(2, 4), registry=Known(), onward=None, clock=lambda: now[0])
    for number in range(SESSIONS_MAX):
        await service.forward(replace(ROW, session=f"s{number}"))
    with pytest.raises(InferenceError) as raised:
        await service.forward(ROW)
    assert raised.value.code == "no_capacity"
    await service.forward(replace(ROW, session="s0", position=1))
    now[0] = CROWDED_S + 1
    await service.forward(replace(ROW, session="s0", position=2))
    await service.forward(ROW)
    assert [service.has(each) for each in ("s0", "s1", "s2", "s")] == [True, False, True, True]


def test_no_id_of_the_wire_is_that_of_a_session_of_single_calls() -> None:
    with pytest.raises(InferenceError):
        name(PREFIX + "s")


async def test_a_stream_that_says_nothing_is_ended(links: GrpcLinks) -> None:
    async with stages(stage := Stage(2, 4, first_s=0.1, streams_max=1)):
        link = await links.connect(stage.endpoint)
        with pytest.raises(Exception, match="nothing was sent") as raised:
            await anext(link.batches())
        assert raised.value.code == "deadline"
        await (await links.connect(stage.endpoint)).close()
