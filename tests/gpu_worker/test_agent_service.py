"""AgentService: streams of chunks and the status of the worker, by clients with its stubs and by one without any."""

import asyncio
import time

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.grpc.agent_service import AGENT_SERVICE
from gpu_worker.inference.text.admission import Admission
from gpu_worker.inference.text.turns import Turns
from tests.fixtures.agents import AGENT, STATUS, STREAM, Agent, agent_of, machine_of, reflected, refused, two_gpus
from tests.fixtures.talker import GREETING, HASH, MODEL, Talker, service_of
from wire.proto import inference_pb2, titancompute_pb2
from wire.proto.inference_pb2_grpc import InferencePipelineStub


@pytest.mark.row(59)
async def test_a_program_that_knows_no_proto_asks_for_the_status_by_reflection() -> None:
    async with agent_of(service_of(Talker(), turns=Turns(4, 8, 60.0))) as agent:
        await agent.said()
        assert await reflected(agent.endpoint, "list") == [
            ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", AGENT_SERVICE]
        ]
        status, end = await reflected(agent.endpoint, STATUS, {"agent_id": AGENT, "include_jobs": True})
    assert end["code"] == "OK", end
    assert status == {
        "agent_id": AGENT,
        "status": "healthy",
        "free_vram_mb": "5500",
        "free_ram_mb": "9000",
        "active_sessions": 0,
        "total_requests_processed": "1",
        "model_loaded": MODEL,
        "queued_jobs": 0,
        "max_jobs": 4,
    }


@pytest.mark.row(60)
async def test_that_program_reads_a_stream_to_its_done() -> None:
    async with agent_of(service_of(Talker())) as agent:
        asked = {"session_token": "whoever", "model": MODEL, "prompt": "Hello", "max_tokens": 50, "stream": True}
        *chunks, end = await reflected(agent.endpoint, STREAM, asked)
    assert end["code"] == "OK", end
    assert "".join(chunk["content"] for chunk in chunks) == GREETING
    assert [chunk["done"] for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert {chunk["session_token"] for chunk in chunks} == {"whoever"}


@pytest.mark.row(60)
async def test_every_chunk_says_what_it_is_and_the_last_one_how_it_ended() -> None:
    before_ms = time.time_ns() // 1_000_000
    async with agent_of(service_of(Talker(says=b"Good day.", ))) as agent:  # fmt: skip
        chunks = [chunk async for chunk in agent.stream()]
    after_ms = time.time_ns() // 1_000_000
    assert [chunk.content for chunk in chunks] == [*"Good day.", ""]
    assert all(chunk.token == chunk.content for chunk in chunks)
    times = [chunk.created_at for chunk in chunks]
    assert [before_ms, *times, after_ms] == sorted([before_ms, *times, after_ms])
    sessions = {chunk.metadata["session_id"] for chunk in chunks}
    assert len(sessions) == 1
    assert all(dict(chunk.metadata) == {"model": MODEL, "session_id": min(sessions)} for chunk in chunks[:-1])
    told = dict(chunks[-1].metadata)
    assert told == {
        "model": MODEL,
        "session_id": min(sessions),
        "finish_reason": "stop",
        "prompt_tokens": str(len("<user>Hello<assistant>")),
        "completion_tokens": "10",
        "model_hash": HASH,
    }


async def test_without_stream_the_whole_answer_is_one_message() -> None:
    async with agent_of(service_of(Talker())) as agent:
        (only,) = [chunk async for chunk in agent.stream(stream=False)]
    assert (only.content, only.token, only.done) == (GREETING, GREETING, True)
    assert only.metadata["finish_reason"] == "stop"


async def test_what_a_request_names_reaches_the_engine() -> None:
    talker = Talker()
    async with agent_of(service_of(talker)) as agent:
        options = {"top_p": "0.9", "top_k": "40", "seed": "7", "repeat_penalty": "1.1", "stop": '["wel", "!"]'}
        said = await agent.said(max_tokens=12, temperature=0.7, options=options)
        await agent.said(options={"num_predict": "3", "temperature": "0.25", "system": "Be kind."})
        await agent.said("go on: ", options={"raw": "true"})
    first, second, third = talker.requests
    assert said == "Grüße, 世"[: len(said)]
    assert len(said.encode()) <= 12
    sampling = first.sampling
    # A float of 32 bits is the number that was meant.
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.7, 0.9, 40, 7)
    assert (sampling.repetition_penalty, first.tokens_max) == (1.1, 12)
    assert (second.tokens_max, second.sampling.temperature) == (3, 0.25)
    assert bytes(second.prompt) == b"<system>Be kind.<user>Hello<assistant>"
    assert (bytes(third.prompt), third.sampling.temperature) == (b"go on: ", 0.0)


async def test_a_stop_string_ends_the_answer() -> None:
    async with agent_of(service_of(Talker(says=b"one two three"))) as agent:
        assert await agent.said(options={"stop": " three"}) == "one two"


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("temperature", {"temperature": 2.5}),
        ("temperature", {"temperature": float("nan")}),
        ("max_tokens", {"max_tokens": -1}),
        ("prompt", {"prompt": ""}),
        ("top_p", {"options": {"top_p": "1.5"}}),
        ("max_tokens", {"options": {"num_predict": "many"}}),
        ("max_tokens", {"max_tokens": 5, "options": {"num_predict": "6"}}),
        ("num_ctx", {"options": {"num_ctx": "64"}}),
        ("stop", {"options": {"stop": "[" * 5_000}}),
        ("raw", {"options": {"raw": "perhaps"}}),
        ("session_token", {"session_token": "x" * 4_097}),
    ],
)
async def test_a_value_that_cannot_be_is_refused_and_the_next_one_served(param: str, fields: dict) -> None:
    talker = Talker()
    async with agent_of(service_of(talker)) as agent:
        status, detail, trailing = await refused(agent.stream(**fields))
        assert (status, trailing["livery-code"]) == ("INVALID_ARGUMENT", "invalid_argument")
        assert param in detail
        assert talker.requests == []
        assert await agent.said() == GREETING


async def test_a_prompt_over_the_context_is_refused_before_anything_is_computed() -> None:
    talker = Talker(context=64)
    async with agent_of(service_of(talker)) as agent:
        status, detail, trailing = await refused(agent.stream("w" * 100))
        assert (status, trailing["livery-code"]) == ("INVALID_ARGUMENT", "context_length_exceeded")
        assert "64 tokens" in detail
        assert (await refused(agent.stream(max_tokens=2**31 - 1)))[2]["livery-code"] == "context_length_exceeded"
        assert talker.requests == []
        assert await agent.said() == GREETING


async def test_a_model_that_is_not_here_is_not_found() -> None:
    async with agent_of(service_of(Talker(), aliases={"small": MODEL})) as agent:
        assert (await refused(agent.stream(model="acme/other")))[0] == "NOT_FOUND"
        chunks = [chunk async for chunk in agent.stream(model="small")]
        assert chunks[0].metadata["model"] == MODEL


@pytest.mark.parametrize("knows", ["token", "metadata"])
async def test_who_does_not_know_the_secret_gets_no_answer(knows: str) -> None:
    talker = Talker()
    async with agent_of(service_of(talker, admission=Admission(secret="horse"))) as agent:
        for fields in ({}, {"session_token": "mule"}, {"metadata": (("authorization", "Bearer mule"),)}):
            assert (await refused(agent.stream(**fields)))[0] == "UNAUTHENTICATED"
        assert (await refused(agent.status()))[0] == "UNAUTHENTICATED"
        assert talker.requests == []
        bearer = (("authorization", "Bearer horse"),)
        shown = {"session_token": "horse"} if knows == "token" else {"metadata": bearer}
        assert await agent.said(**shown) == GREETING
        assert (await agent.status(metadata=bearer)).total_requests_processed == 1


async def test_a_priced_model_is_not_given_away() -> None:
    async with agent_of(service_of(talker := Talker(), admission=Admission(is_priced=True))) as agent:
        status, detail, trailing = await refused(agent.stream())
        assert (status, trailing["livery-code"]) == ("PERMISSION_DENIED", "payment_required")
        assert "key" in detail
        assert talker.requests == []


async def test_while_nothing_is_loaded_it_says_so_and_so_it_does_once_it_is_about_to_go() -> None:
    async with agent_of(service := service_of(None)) as agent:
        told = await asyncio.gather(_health(agent), _state(agent))
        assert (told, await refused(agent.stream())) == (
            ["NOT_SERVING", ("loading", "")],
            ("UNAVAILABLE", f"{MODEL} is being loaded", {"livery-code": "not_ready", "retry-after": "1"}),
        )
        service.engine = service_of(Talker()).engine
        await agent.door.tell_health()
        assert [await _health(agent), await _state(agent)] == ["SERVING", ("healthy", MODEL)]
        service.is_draining = True
        await agent.door.tell_health()
        assert [await _health(agent), await _state(agent)] == ["NOT_SERVING", ("draining", MODEL)]
        assert (await refused(agent.stream()))[2]["livery-code"] == "draining"


async def _health(agent: Agent) -> str:
    stub = health_pb2_grpc.HealthStub(agent.channel)
    states = [(await stub.Check(health_pb2.HealthCheckRequest(service=name))).status for name in ("", AGENT_SERVICE)]
    assert states[0] == states[1]
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(states[0]))


async def _state(agent: Agent) -> tuple[str, str]:
    status = await agent.status()
    return status.status, status.model_loaded


async def test_a_service_that_is_not_served_here_is_unimplemented() -> None:
    async with agent_of(service_of(Talker())) as agent:
        pipeline = InferencePipelineStub(agent.channel)
        assert (await refused(pipeline.Ping(inference_pb2.Empty())))[0] == "UNIMPLEMENTED"


async def test_the_status_never_fails_and_does_not_make_the_driver_work_for_each_who_asks() -> None:
    looks = 0

    async def counted():
        nonlocal looks
        looks += 1
        return await two_gpus()

    async with agent_of(service_of(Talker()), counted) as agent:
        answers = await asyncio.gather(*[agent.status() for _ in range(50)])
    assert {answer.free_vram_mb for answer in answers} == {5_500}
    assert looks == 1

    async def bare():
        return machine_of()

    async with agent_of(service_of(Talker()), bare) as agent:
        assert (await agent.status()).free_vram_mb == 0


async def test_what_breaks_in_the_middle_ends_the_stream_with_a_status_and_tells_nothing_of_ours() -> None:
    talker = Talker(fails_after=6)
    async with agent_of(service_of(talker, turns=Turns(1, 0, 1.0))) as agent:
        assert (await refused(agent.stream()))[::2] == ("UNAVAILABLE", {"livery-code": "lost_stage"})
        talker.fails_with = RuntimeError("secret.gguf, line 7")
        status, detail, _ = await refused(agent.stream())
        assert (status, detail) == ("INTERNAL", "the server failed; its log says why")
        talker.fails_with, talker.refuses = InferenceError("upstream_timeout", "it was silent for 120 s"), None
        assert (await refused(agent.stream()))[0] == "DEADLINE_EXCEEDED"
        talker.fails_after = None
        # The one slot was given back each time.
        assert await agent.said() == GREETING


async def test_bytes_that_are_no_message_cost_their_own_call_alone() -> None:
    async with agent_of(service_of(Talker())) as agent:
        for method in ("StreamInference", "GetStatus"):
            call = agent.channel.unary_unary(f"/{AGENT_SERVICE}/{method}")
            assert (await refused(call(b"\xff\xff\xff\xff")))[0] == "INVALID_ARGUMENT"
        too_long = titancompute_pb2.StreamRequest(prompt="w" * (9 * 1024 * 1024))
        assert (await refused(agent.stub.StreamInference(too_long)))[0] == "RESOURCE_EXHAUSTED"
        assert await agent.said() == GREETING
