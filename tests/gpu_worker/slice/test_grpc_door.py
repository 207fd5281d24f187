"""The gRPC door: its five RPCs by a real client, health and reflection, and strangers' bytes."""

import asyncio
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gpu_worker.core.errors import OwnersFault, Unavailable
from gpu_worker.core.inference.batch import Batch, Hop
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.sampling import Sampled, Sampling
from gpu_worker.core.inference.tensor import ROWS_MAX, message_bytes
from gpu_worker.edges.grpc_channel import CODE_KEY, SERVICE
from gpu_worker.edges.grpc_door import DoorOptions, GrpcDoor
from gpu_worker.edges.links_grpc import GrpcLinks
from gpu_worker.inference.ports import TokenRequest
from tests.fixtures.fault_proxy import proxy_to
from tests.fixtures.toy_pipeline import MODEL, whole
from tests.gpu_worker.slice.doors import ByteText, Known, Stage, ToyHead, stages
from wire.proto import inference_pb2 as pb
from wire.proto.inference_pb2_grpc import InferencePipelineStub

PROMPT = (3, 1, 4, 1, 5)
GREEDY = Sampling(temperature=0.0)


@pytest.fixture
async def last() -> AsyncIterator[Stage]:
    stage = Stage(2, 4)
    async with stages(stage):
        yield stage


@pytest.fixture
async def dial() -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:

        async def channel(stage: Stage) -> grpc.aio.Channel:
            return await stack.enter_async_context(grpc.aio.insecure_channel(stage.endpoint))

        yield channel


def ids_of(tokens: Sequence[int]) -> dict[str, Any]:
    data = b"".join(token.to_bytes(8, "little", signed=True) for token in tokens)
    return {"hidden_states": data, "shape": [1, len(tokens)], "dtype": "int64"}


async def refused(call: Any) -> tuple[str, str]:
    """Return the status and the code of a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    error = raised.value
    return error.code().name, dict(error.trailing_metadata()).get(CODE_KEY, "")


async def alive(stage: Stage) -> None:
    links = GrpcLinks()
    head = ToyHead(await links.connect(stage.endpoint), stage.endpoint, "alive")
    assert await head.generate("alive", PROMPT, 3) == whole(PROMPT, 3, sampling=GREEDY)
    await links.close()


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


# --- ForwardPass


@pytest.mark.parametrize("how", ["ids as a tensor", "past_token_ids"])
@pytest.mark.parametrize(
    "sampling",
    [GREEDY, Sampling(temperature=0.7, top_p=0.9, seed=3, presence_penalty=0.5)],
    ids=["greedy", "sampled with a penalty"],
)
async def test_three_stages_chain_to_the_tokens_of_the_unsplit_model(dial: Any, how: str, sampling: Sampling) -> None:
    known = Known()
    three = Stage(0, 1, known=known), Stage(1, 2, known=known), Stage(2, 4, known=known)
    params = pb.GenerationParams(
        max_new_tokens=8, temperature=sampling.temperature, top_p=sampling.top_p, do_sample=sampling.temperature > 0,
        seed=sampling.seed, presence_penalty=sampling.presence_penalty,
    )  # fmt: skip
    async with stages(*three):
        stub = InferencePipelineStub(await dial(three[0]))
        tokens, position = list(PROMPT), 0
        for _ in range(5):
            # Only the new rows are sent; those before them are in the caches.
            rows = ids_of(tokens[position:]) if how == "ids as a tensor" else {}
            metadata = pb.PipelineMetadata(next_node_endpoint=three[1].endpoint)
            asked = {"request_id": "r", "params": params, "metadata": metadata, "position": position}
            answer = await stub.ForwardPass(pb.ForwardRequest(**asked, past_token_ids=tokens, **rows))
            assert answer.success
            assert answer.generated_text
            position = len(tokens)
            tokens.append(answer.next_token_id)
        assert tokens[len(PROMPT) :] == whole(PROMPT, 5, sampling=sampling)
        assert len(three[0].engine.steps[-1].rows) == 1


@pytest.mark.row(45)
async def test_three_processes_give_the_greedy_tokens_of_one() -> None:
    running, known = [], []
    for start, end in ((2, 4), (1, 2), (0, 1)):
        command = [sys.executable, "-m", "tests.gpu_worker.slice.doors", str(start), str(end), *known]
        process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        running.append(process)
        known.append((await process.stdout.readline()).decode().strip())
    endpoints = [each.partition("=")[0] for each in known]
    tokens = list(PROMPT)
    async with grpc.aio.insecure_channel(endpoints[2]) as channel:
        stub = InferencePipelineStub(channel)
        for _ in range(4):
            # As a client of the public system asks: greedy by temperature 0, and the whole sequence each time.
            request = pb.ForwardRequest(
                request_id="r",
                past_token_ids=tokens,
                params=pb.GenerationParams(max_new_tokens=4, temperature=0.0, top_p=0.9, do_sample=True),
                metadata=pb.PipelineMetadata(total_nodes=3, is_first=True, next_node_endpoint=endpoints[1]),
            )
            tokens.append((await stub.ForwardPass(request)).next_token_id)
    assert tokens[len(PROMPT) :] == whole(PROMPT, 4, sampling=GREEDY)
    for process in running:
        process.stdin.close()
        assert await process.wait() == 0


async def test_a_middle_stage_that_chains_to_nobody_gives_its_hidden_states(dial: Any) -> None:
    middle = Stage(1, 3)
    async with stages(middle):
        stub = InferencePipelineStub(await dial(middle))
        row = bytes(range(32))
        request = pb.ForwardRequest(request_id="r", hidden_states=row, shape=[1, 1, 8], dtype="float32")
        answer = await stub.ForwardPass(request)
        assert (list(answer.shape), answer.dtype, len(answer.hidden_states)) == ([1, 1, 8], "float32", 32)
        assert answer.hidden_states != row
        again = await stub.ForwardPass(request)
        assert again.hidden_states == answer.hidden_states
        assert len(middle.engine.steps) == 1


async def test_a_stage_dials_nobody_whom_only_a_stranger_names(dial: Any) -> None:
    first = Stage(0, 2)
    calls = []
    listener = await asyncio.start_server(lambda reader, writer: calls.append(writer), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with stages(first):
        stub = InferencePipelineStub(await dial(first))
        metadata = pb.PipelineMetadata(next_node_endpoint=f"127.0.0.1:{port}")
        request = pb.ForwardRequest(request_id="r", past_token_ids=PROMPT, metadata=metadata)
        assert await refused(stub.ForwardPass(request)) == ("PERMISSION_DENIED", "forbidden")
        assert first.engine.steps == []
    listener.close()
    assert calls == []


async def test_a_next_stage_that_is_gone_is_said_to_be(dial: Any) -> None:
    known = Known()
    first, gone = Stage(0, 2, known=known), Stage(2, 4, known=known)
    async with stages(first, gone):
        await gone.door.stop(0)
        metadata = pb.PipelineMetadata(next_node_endpoint=gone.endpoint)
        request = pb.ForwardRequest(request_id="r", past_token_ids=PROMPT, metadata=metadata)
        stub = InferencePipelineStub(await dial(first))
        assert await refused(stub.ForwardPass(request)) == ("UNAVAILABLE", "lost_stage")


GOOD = {"request_id": "r", "hidden_states": bytes(32), "shape": [1, 8], "dtype": "float32"}


@pytest.mark.row(49)
@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        pytest.param({"hidden_states": bytes(31)}, "INVALID_ARGUMENT", "invalid_tensor", id="wrong length"),
        pytest.param({"shape": [2**40, 8]}, "INVALID_ARGUMENT", "invalid_tensor", id="a shape bomb"),
        pytest.param({"shape": [-1, 8]}, "INVALID_ARGUMENT", "invalid_tensor", id="negative"),
        pytest.param({"shape": [2**61, 2**3]}, "INVALID_ARGUMENT", "invalid_tensor", id="overflow"),
        pytest.param({"dtype": "float64"}, "INVALID_ARGUMENT", "invalid_tensor", id="dtype"),
        pytest.param({"dtype": "bfloat16"}, "INVALID_ARGUMENT", "invalid_tensor", id="bf16 of four bytes"),
        pytest.param({"request_id": ""}, "INVALID_ARGUMENT", "invalid_argument", id="no session"),
        pytest.param({"position": -1}, "INVALID_ARGUMENT", "invalid_argument", id="before 0"),
        pytest.param({"position": 2**62}, "INVALID_ARGUMENT", "invalid_argument", id="far beyond"),
        pytest.param({"position": 7}, "FAILED_PRECONDITION", "unknown_session", id="unknown session"),
        pytest.param({"past_token_ids": [-1]}, "INVALID_ARGUMENT", "invalid_argument", id="no token"),
        pytest.param({"params": {"top_p": 7.0}}, "INVALID_ARGUMENT", "invalid_argument", id="top_p"),
        pytest.param(
            {"hidden_states": bytes(32 * (ROWS_MAX + 1)), "shape": [ROWS_MAX + 1, 8]},
            "INVALID_ARGUMENT",
            "invalid_tensor",
            id="more rows than a step has",
        ),
        pytest.param({"position": 4096}, "INVALID_ARGUMENT", "context_length_exceeded", id="over the context"),
    ],
)
async def test_what_a_stage_cannot_take_is_named(
    last: Stage, dial: Any, changes: dict[str, Any], status: str, code: str
) -> None:
    stub = InferencePipelineStub(await dial(last))
    assert await refused(stub.ForwardPass(pb.ForwardRequest(**GOOD | changes))) == (status, code)
    await alive(last)


async def test_a_gap_in_positions_is_refused_and_the_session_lives_on(last: Stage, dial: Any) -> None:
    stub = InferencePipelineStub(await dial(last))
    first = await stub.ForwardPass(pb.ForwardRequest(**GOOD))
    gap = stub.ForwardPass(pb.ForwardRequest(**GOOD | {"position": 5}))
    assert await refused(gap) == ("FAILED_PRECONDITION", "position_gap")
    assert (await stub.ForwardPass(pb.ForwardRequest(**GOOD))).next_token_id == first.next_token_id


async def test_a_call_without_its_session_pass_is_unauthenticated(dial: Any) -> None:
    class OneSession:
        def check(self, session_pass: str, session: str, hop: Hop) -> None:
            if (session_pass, session, hop.start) != ("the pass", "r", 2):
                raise InferenceError("unauthenticated", "no")

    async with stages(stage := Stage(2, 4, passes=OneSession())):
        stub = InferencePipelineStub(await dial(stage))
        assert (await refused(stub.ForwardPass(pb.ForwardRequest(**GOOD))))[0] == "UNAUTHENTICATED"
        bearer = (("authorization", "Bearer the pass"),)
        other = stub.ForwardPass(pb.ForwardRequest(**GOOD | {"request_id": "s"}), metadata=bearer)
        assert await refused(other) == ("UNAUTHENTICATED", "unauthenticated")
        assert (await stub.ForwardPass(pb.ForwardRequest(**GOOD), metadata=bearer)).success


# --- ForwardPassStream


class Tokens:
    """A generator of the tokens 1, 2, 3, ...; it notes what it was asked and whether it was cancelled."""

    def __init__(self, *, ends_after: int | None = None) -> None:
        self.asked: list[TokenRequest] = []
        self.cancelled = asyncio.Event()
        self._ends_after = ends_after

    async def start(self, request: TokenRequest) -> "Tokens":
        if request.prompt == (0,):
            raise InferenceError("no_capacity", "full")
        self.asked.append(request)
        return self

    async def __aiter__(self) -> AsyncIterator[Sampled]:
        for token in range(1, self.asked[-1].tokens_max + 1):
            is_eos = self._ends_after is not None and token > self._ends_after
            yield Sampled(session="r", epoch=1, position=token, token=token, is_eos=is_eos)
            if is_eos:
                return
            await asyncio.sleep(0)

    async def cancel(self) -> None:
        self.cancelled.set()


async def streamed(stub: Any, **fields: Any) -> list[Any]:
    return [chunk async for chunk in stub.ForwardPassStream(pb.ForwardRequest(request_id="r", **fields))]


@pytest.mark.row(46)
async def test_the_head_streams_n_chunks_and_then_is_finished(dial: Any) -> None:
    tokens = Tokens()
    async with stages(head := Stage(0, 2, speaker=lambda: (tokens, ByteText()))):
        stub = InferencePipelineStub(await dial(head))
        chunks = await streamed(stub, past_token_ids=PROMPT, params=pb.GenerationParams(max_new_tokens=7))
        assert [chunk.token_id for chunk in chunks[:-1]] == [1, 2, 3, 4, 5, 6, 7]
        assert [chunk.is_finished for chunk in chunks] == [False] * 7 + [True]
        assert "".join(chunk.token_text for chunk in chunks) == "bcdefgh"
        assert chunks[-1].finish_reason == "length"
        assert tokens.asked[0].prompt == PROMPT
        assert tokens.asked[0].sampling.temperature == 0.0


async def test_a_stream_ends_with_the_models_end_and_with_a_stop_string(dial: Any) -> None:
    tokens = Tokens(ends_after=4)
    async with stages(head := Stage(0, 2, speaker=lambda: (tokens, ByteText()))):
        stub = InferencePipelineStub(await dial(head))
        ended = await streamed(stub, **ids_of(PROMPT), params=pb.GenerationParams(max_new_tokens=9))
        assert "".join(chunk.token_text for chunk in ended) == "bcde"
        assert ended[-1].finish_reason == "stop"
        stopped = await streamed(
            stub,
            metadata=pb.PipelineMetadata(original_prompt="hi"),
            params=pb.GenerationParams(max_new_tokens=9, stop=["de"]),
        )
        assert "".join(chunk.token_text for chunk in stopped) == "bc"
        assert stopped[-1].finish_reason == "stop"
        assert tokens.asked[-1].prompt == (104, 105)


async def test_a_client_that_hangs_up_cancels_its_tokens(dial: Any) -> None:
    tokens = Tokens()
    async with stages(head := Stage(0, 2, speaker=lambda: (tokens, ByteText()))):
        params = pb.GenerationParams(max_new_tokens=1_000_000)
        request = pb.ForwardRequest(request_id="r", past_token_ids=PROMPT, params=params)
        call = InferencePipelineStub(await dial(head)).ForwardPassStream(request)
        assert (await call.read()).token_id == 1
        call.cancel()
        async with asyncio.timeout(5):
            await tokens.cancelled.wait()


async def test_a_refused_stream_has_its_code(dial: Any) -> None:
    async with stages(head := Stage(0, 2, speaker=lambda: (Tokens(), ByteText()))):
        stub = InferencePipelineStub(await dial(head))
        assert await refused(streamed(stub, past_token_ids=[0])) == ("RESOURCE_EXHAUSTED", "no_capacity")
        assert await refused(streamed(stub)) == ("INVALID_ARGUMENT", "invalid_tensor")


# --- Steps, by strangers


def raw_steps(channel: Any) -> Any:
    return channel.stream_stream(f"/{SERVICE}/Steps")()


@pytest.mark.row(49)
@pytest.mark.parametrize("seed", range(8))
async def test_random_bytes_end_their_own_stream_with_a_name(last: Stage, dial: Any, seed: int) -> None:
    links = GrpcLinks()
    head = ToyHead(await links.connect(last.endpoint), last.endpoint)
    made = await head.generate("s", PROMPT, 2)
    call = raw_steps(await dial(last))
    await call.write(b"\xff" + random.Random(seed).randbytes(200))
    assert await refused(read_to_the_end(call)) == ("INVALID_ARGUMENT", "invalid_argument")
    # The neighbour's session goes on where it was.
    made.append((await head.token("s", len(PROMPT) + 1, made[-1:])).token)
    assert made == whole(PROMPT, 3, sampling=GREEDY)
    await links.close()


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

    async def receive(self, batch: Batch, reply: Any) -> None:
        self.replies.append(reply)
        await reply(batch)

    def ended(self, reply: Any) -> None:
        self.over.set()


@pytest.mark.row(49)
async def test_an_answer_to_who_is_gone_is_refused_and_the_process_lives(last: Stage) -> None:
    steps = Kept()
    door = GrpcDoor(DoorOptions(), last.seen, steps)
    await door.start()
    links = GrpcLinks()
    link = await links.connect(f"127.0.0.1:{door.port}")
    await link.send(Batch(pipeline="p", epoch=1))
    await anext(link.batches())
    await link.close()
    await steps.over.wait()
    await links.close()
    await door.stop(0)
    # gRPC has let go of the call: it must not be touched any more.
    with pytest.raises(Unavailable):
        await steps.replies[0](Batch(pipeline="p", epoch=1))


@pytest.mark.row(49)
@pytest.mark.parametrize("mark", [b"float32", b"marked-session", b"marked-pipe"], ids=["dtype", "session", "pipeline"])
async def test_a_byte_that_is_spoiled_on_the_way_costs_its_own_stream_at_most(last: Stage, mark: bytes) -> None:
    links = GrpcLinks()
    neighbour = ToyHead(await links.connect(last.endpoint), last.endpoint, "neighbour")
    made = await neighbour.generate("s", PROMPT, 2)
    async with proxy_to(last.endpoint) as proxy:
        head = ToyHead(await links.connect(proxy.endpoint), last.endpoint, "marked-pipe")
        await head.open("marked-session", PROMPT)
        proxy.spoil(mark)
        asking = asyncio.create_task(head.token("marked-session", 0, PROMPT))
        # It is refused, the stream breaks, or the step is of no session that is known, which its head notices by time.
        await asyncio.wait({asking}, timeout=0.5)
        assert not asking.done() or asking.exception() is not None
        asking.cancel()
        await asyncio.wait({asking})
        assert proxy.spoiled == 1
        made.append((await neighbour.token("s", len(PROMPT) + 1, made[-1:])).token)
        assert made == whole(PROMPT, 3, sampling=GREEDY)
        await links.close()


async def test_one_stream_too_many_is_refused() -> None:
    stage = Stage(2, 4, streams_max=1)
    links = GrpcLinks()
    async with stages(stage):
        first = await links.connect(stage.endpoint)
        with pytest.raises(Exception, match="1 streams are open") as raised:
            await links.connect(stage.endpoint)
        assert raised.value.code == "no_capacity"
        await first.close()
        await alive(stage)
        await links.close()


async def test_more_calls_than_the_door_takes_are_refused(dial: Any) -> None:
    async with stages(stage := Stage(2, 4, rpcs_max=2)):
        stage.engine.may_step.clear()
        stub = InferencePipelineStub(await dial(stage))
        waiting = [stub.ForwardPass(pb.ForwardRequest(**GOOD | {"request_id": f"r{i}"})) for i in range(2)]
        for _ in waiting:
            await stage.engine.entered.acquire()
        assert (await refused(stub.Ping(pb.Empty())))[0] == "RESOURCE_EXHAUSTED"
        stage.engine.may_step.set()
        assert all([(await call).success for call in waiting])


async def test_a_port_that_is_taken_is_the_owners_fault(last: Stage) -> None:
    door = GrpcDoor(DoorOptions(port=last.door.port), last.seen, None)
    with pytest.raises(OwnersFault, match="taken"):
        await door.start()
