"""The gRPC door: Ping, layer info and Steps by a real client, health and reflection, and strangers' bytes."""

import asyncio
import random
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gpu_worker.core.errors import OwnersFault, Unavailable
from gpu_worker.core.inference.batch import Batch
from gpu_worker.core.inference.limits import ROWS_MAX
from gpu_worker.core.inference.tensor import message_bytes
from gpu_worker.edges.grpc.grpc_channel import SERVICE
from gpu_worker.edges.grpc.grpc_door import DoorOptions, GrpcDoor
from gpu_worker.edges.grpc.grpc_pipeline import PipelineRpcs
from gpu_worker.edges.grpc.links_grpc import GrpcLinks
from tests.fixtures.fault_proxy import proxy_to
from tests.fixtures.grpc_servers import open_door
from tests.fixtures.toy_pipeline import MODEL, whole
from tests.gpu_worker.slice.doors import GREEDY, Stage, ToyHead, alive, refused, stages
from tests.gpu_worker.world import until
from wire.proto import inference_pb2 as pb
from wire.proto.inference_pb2_grpc import InferencePipelineStub

PROMPT = (3, 1, 4, 1, 5)


@pytest.mark.row(44)
async def test_a_client_that_knows_nothing_calls_ping_by_reflection(last: Stage, dial: Any) -> None:
    channel = await dial(last)
    reflection = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()

    async def ask(**question: str) -> Any:
        await reflection.write(reflection_pb2.ServerReflectionRequest(**question))
        return await reflection.read()

    listed = await ask(list_services="")
    assert SERVICE in [each.name for each in listed.list_services_response.service]
    found = await ask(file_containing_symbol=SERVICE)
    pool = descriptor_pool.DescriptorPool()
    for data in found.file_descriptor_response.file_descriptor_proto:
        pool.Add(descriptor_pb2.FileDescriptorProto.FromString(data))
    ping = pool.FindServiceByName(SERVICE).methods_by_name["Ping"]
    request, answer = GetMessageClass(ping.input_type), GetMessageClass(ping.output_type)
    call = channel.unary_unary(f"/{SERVICE}/Ping", request.SerializeToString, answer.FromString)
    said = await call(request())
    assert said.agent_address == last.endpoint
    assert said.model_name == MODEL
    assert (said.layer_start, said.layer_end, said.is_ready) == (2, 4, True)
    assert said.uptime_seconds >= 0


async def test_the_layer_info_has_the_public_fields_and_ours(last: Stage, dial: Any) -> None:
    info = await InferencePipelineStub(await dial(last)).GetLayerInfo(pb.Empty())
    assert (info.model_name, info.layer_start, info.layer_end, info.total_layers) == (MODEL, 2, 4, 4)
    assert info.is_ready
    assert info.has_steps
    assert {"float32", "bfloat16", "int8"} <= set(info.wire_dtypes)


async def test_health_says_whether_the_stage_serves(last: Stage, dial: Any) -> None:
    stub = health_pb2_grpc.HealthStub(await dial(last))

    async def state(service: str) -> str:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    assert [await state(""), await state(SERVICE)] == ["SERVING", "SERVING"]
    last.is_ready = False
    await last.door.tell_health()
    assert [await state(""), await state(SERVICE)] == ["NOT_SERVING", "NOT_SERVING"]
    assert (await refused(stub.Check(health_pb2.HealthCheckRequest(service="another"))))[0] == "NOT_FOUND"


async def test_a_door_that_stops_says_so_and_lets_calls_end(last: Stage, dial: Any) -> None:
    stub = InferencePipelineStub(await dial(last))
    last.engine.may_step.clear()
    request = pb.ForwardRequest(request_id="r", hidden_states=bytes(32), shape=[1, 8], dtype="float32")
    call = stub.ForwardPass(request)
    await last.engine.entered.acquire()
    stopping = asyncio.create_task(last.door.stop(10.0))
    await asyncio.wait({stopping}, timeout=0.1)
    assert not stopping.done()
    last.engine.may_step.set()
    assert (await call).success
    await stopping


# --- Steps, by strangers


def raw_steps(channel: Any) -> Any:
    return channel.stream_stream(f"/{SERVICE}/Steps")()


@pytest.mark.row(49)
@pytest.mark.parametrize("seed", range(8))
async def test_random_bytes_end_their_own_stream_with_a_name(
    last: Stage, dial: Any, seed: int, links: GrpcLinks
) -> None:
    head = ToyHead(await links.connect(last.endpoint), last.endpoint)
    made = await head.generate("s", PROMPT, 2)
    call = raw_steps(await dial(last))
    await call.write(b"\xff" + random.Random(seed).randbytes(200))
    assert await refused(read_to_the_end(call)) == ("INVALID_ARGUMENT", "invalid_argument")
    # The neighbour's session goes on where it was.
    made.append((await head.token("s", len(PROMPT) + 1, made[-1:])).token)
    assert made == whole(PROMPT, 3, sampling=GREEDY)


async def read_to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass
    if await call.code() != grpc.StatusCode.OK:
        raise grpc.aio.AioRpcError(await call.code(), await call.initial_metadata(), await call.trailing_metadata())


@pytest.mark.row(49)
async def test_a_message_that_is_cut_short_ends_its_own_stream(last: Stage, dial: Any) -> None:
    call = raw_steps(await dial(last))
    run = {"session": "s", "count": 1}
    whole_message = pb.StepBatch(
        pipeline="p", runs=[run], hidden={"dtype": "float32", "shape": [1, 8], "data": bytes(32)}
    )
    await call.write(whole_message.SerializeToString()[:-5])
    assert await refused(read_to_the_end(call)) == ("INVALID_ARGUMENT", "invalid_argument")
    await alive(last)


@pytest.mark.row(49)
async def test_a_message_over_the_limit_is_refused_before_it_is_read(last: Stage, dial: Any) -> None:
    channel = grpc.aio.insecure_channel(last.endpoint, options=[("grpc.max_send_message_length", -1)])
    call = raw_steps(channel)
    # The length stands in front of the bytes: more is announced than rows of this model need, and nothing is kept.
    most = message_bytes(last.seen().hidden_size)
    assert ROWS_MAX * 8 * 4 < most < 9 * 1024 * 1024
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await write_and_read(call, bytes(most + 1))
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.aio.AioRpcError) as read:
        await write_and_read(raw_steps(channel), bytes(most))
    assert read.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    await channel.close()
    await alive(last)


async def write_and_read(call: Any, data: bytes) -> None:
    await call.write(data)
    await read_to_the_end(call)


class Kept:
    """Steps that keep by what they could answer, and know when they no longer can."""

    def __init__(self) -> None:
        self.replies: list[Any] = []
        self.over = asyncio.Event()

    def begin(self, reply: Any, session_pass: str) -> None:
        return

    async def receive(self, batch: Batch, reply: Any) -> None:
        self.replies.append(reply)
        await reply(batch)

    def ended(self, reply: Any) -> None:
        self.over.set()


@pytest.mark.row(49)
async def test_an_answer_to_who_is_gone_is_refused_and_the_process_lives(last: Stage, links: GrpcLinks) -> None:
    steps = Kept()
    async with open_door(GrpcDoor(DoorOptions(), [PipelineRpcs(last.seen, steps)])) as door:
        link = await links.connect(f"127.0.0.1:{door.port}")
        await link.send(Batch(pipeline="p", epoch=1))
        await anext(link.batches())
        await link.close()
        await steps.over.wait()
    # gRPC has let go of the call: it must not be touched any more.
    with pytest.raises(Unavailable):
        await steps.replies[0](Batch(pipeline="p", epoch=1))


@pytest.mark.row(49)
@pytest.mark.parametrize("mark", [b"float32", b"marked-session", b"marked-pipe"], ids=["dtype", "session", "pipeline"])
async def test_a_byte_that_is_spoiled_on_the_way_costs_its_own_stream_at_most(
    last: Stage, mark: bytes, links: GrpcLinks
) -> None:
    neighbour = ToyHead(await links.connect(last.endpoint), last.endpoint, "neighbour")
    made = await neighbour.generate("s", PROMPT, 2)
    async with proxy_to(last.endpoint) as proxy:
        head = ToyHead(await links.connect(proxy.endpoint), last.endpoint, "marked-pipe")
        await head.open("marked-session", PROMPT)
        proxy.spoil(mark)
        asking = asyncio.create_task(head.token("marked-session", 0, PROMPT))
        await until(lambda: proxy.spoiled == 1)
        # It is refused, the stream breaks, or the step is of no session that is known, which its head notices by time.
        await asyncio.wait({asking}, timeout=0.5)
        assert not asking.done() or asking.exception() is not None
        asking.cancel()
        await asyncio.wait({asking})
        made.append((await neighbour.token("s", len(PROMPT) + 1, made[-1:])).token)
        assert made == whole(PROMPT, 3, sampling=GREEDY)


async def test_one_stream_too_many_is_refused(links: GrpcLinks) -> None:
    stage = Stage(2, 4, streams_max=1)
    async with stages(stage):
        first = await links.connect(stage.endpoint)
        await ToyHead(first, stage.endpoint).open("s", PROMPT)
        with pytest.raises(Exception, match="1 streams are open") as raised:
            await links.connect(stage.endpoint)
        assert raised.value.code == "no_capacity"
        await first.close()
        await alive(stage)


async def test_more_calls_than_the_door_takes_are_refused(dial: Any) -> None:
    async with stages(stage := Stage(2, 4, rpcs_max=2)):
        stage.engine.may_step.clear()
        stub = InferencePipelineStub(await dial(stage))
        waiting = [
            stub.ForwardPass(
                pb.ForwardRequest(request_id=f"r{i}", hidden_states=bytes(32), shape=[1, 8], dtype="float32")
            )
            for i in range(2)
        ]
        for _ in waiting:
            await stage.engine.entered.acquire()
        assert (await refused(stub.Ping(pb.Empty())))[0] == "RESOURCE_EXHAUSTED"
        stage.engine.may_step.set()
        assert all([(await call).success for call in waiting])


async def test_a_port_that_is_taken_is_the_owners_fault(last: Stage) -> None:
    with pytest.raises(OwnersFault, match="taken"):
        async with open_door(GrpcDoor(DoorOptions(port=last.door.port), [])):
            pass
