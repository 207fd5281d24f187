"""A client that knows the public fields alone, those with the numbers 1 to 9: what it gets of a real model."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import grpc.aio
import pytest

from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.seen import Seen
from gpu_worker.edges.grpc.grpc_door import DoorOptions, GrpcDoor
from gpu_worker.edges.grpc.grpc_forward import ForwardRpcs, GrpcOnward
from gpu_worker.edges.grpc.grpc_pipeline import PipelineRpcs
from gpu_worker.engine.slice.text import FolderText, tokenizer_in
from gpu_worker.inference.stage.forward import ForwardService
from tests.fixtures.grpc_servers import open_door
from tests.fixtures.stages import free_endpoint, head_of, tell
from tests.fixtures.tiny_words import LAYERS
from tests.gpu_worker.slice.doors import Known
from wire.proto import inference_pb2 as pb
from wire.proto.inference_pb2_grpc import InferencePipelineStub

PROMPT = (5, 17, 9)
MANY = 12


class Text(FolderText):
    """A tokenizer whose end a test says."""

    ends: tuple[int, ...] = ()

    @property
    def eos(self) -> tuple[int, ...]:
        return self.ends


class Real(NamedTuple):
    stub: Any
    text: Text
    service: ForwardService


@pytest.fixture
async def real(tiny_words: Path, tmp_path: Path) -> AsyncIterator[Real]:
    """All layers of the model behind a door; the end of its texts is said by a test."""
    own = free_endpoint()
    topology = tell(tmp_path / "topology.json", [(own, f"0:{LAYERS}")])
    tokenizer, _ = tokenizer_in(tiny_words)
    text = Text(tokenizer, ())
    async with AsyncExitStack() as stack:
        head, engine = await stack.enter_async_context(head_of(tiny_words, f"0:{LAYERS}", topology, own))
        info, onward = engine.info, GrpcOnward()
        service = ForwardService(engine=engine, registry=Known(), onward=onward, text=text)
        hop = Hop(endpoint=own, start=0, end=LAYERS)
        rpcs = ForwardRpcs(lambda: info, lambda: hop, service, None, lambda: (head, text))
        seen = Seen(
            endpoint=own, layers=info.layers, model="tiny", model_hash=info.model_hash, is_ready=True, next="",
            http_url="", hidden_size=info.hidden_size,
        )  # fmt: skip
        door = await stack.enter_async_context(
            open_door(GrpcDoor(DoorOptions(), [PipelineRpcs(lambda: seen, None, rpcs)]))
        )
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{door.port}"))
        yield Real(InferencePipelineStub(channel), text, service)


async def streamed(real: Real, name: str, **params: Any) -> tuple[list[int], str]:
    """Return the tokens of a stream, and why it ended."""
    said = pb.GenerationParams(**{"max_new_tokens": MANY, "temperature": 0.0, "top_p": 1.0} | params)
    request = pb.ForwardRequest(request_id=name, params=said, past_token_ids=PROMPT)
    chunks = [chunk async for chunk in real.stub.ForwardPassStream(request)]
    return [chunk.token_id for chunk in chunks if not chunk.is_finished], chunks[-1].finish_reason


async def passed(real: Real, name: str, past: list[int]) -> Any:
    params = pb.GenerationParams(max_new_tokens=MANY, temperature=0.0, top_p=1.0)
    return await real.stub.ForwardPass(pb.ForwardRequest(request_id=name, params=params, past_token_ids=past))


@pytest.mark.row(46)
async def test_a_stream_ends_where_the_model_ends_it(real: Real) -> None:
    tokens, reason = await streamed(real, "long")
    assert (len(tokens), reason) == (MANY, "length")
    end = tokens[3]
    real.text.ends = (end,)
    assert await streamed(real, "short") == (tokens[: tokens.index(end)], "stop")


@pytest.mark.row(45)
async def test_a_call_says_that_its_token_is_the_end(real: Real) -> None:
    past = list(PROMPT)
    for _ in range(4):
        answer = await passed(real, "long", past)
        assert not answer.is_eos
        past.append(answer.next_token_id)
    real.text.ends = (past[-1],)
    last = await passed(real, "again", past[:-1])
    assert (last.next_token_id, last.is_eos, last.generated_text) == (past[-1], True, "")


async def test_two_streams_that_sample_are_not_the_same(real: Real) -> None:
    sampled = {"temperature": 2.0, "do_sample": True}
    first, second, again = [(await streamed(real, name, **sampled))[0] for name in "abc"]
    assert len({tuple(first), tuple(second), tuple(again)}) == 3
    seeded = [(await streamed(real, name, seed=7, **sampled))[0] for name in "de"]
    assert seeded[0] == seeded[1], "a seed that is named is that one"


async def test_a_prompt_that_no_context_holds_is_refused_before_it_is_read(real: Real) -> None:
    request = pb.ForwardRequest(request_id="r", metadata=pb.PipelineMetadata(original_prompt="w1 " * 20_000))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        async for _ in real.stub.ForwardPassStream(request):
            pass
    assert dict(raised.value.trailing_metadata())["livery-code"] == "context_length_exceeded"
