"""ForwardPass and ForwardPassStream by a real client: what they compute, what they refuse, and to whom."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.limits import ROWS_MAX
from gpu_worker.core.inference.passes import Shown
from gpu_worker.core.inference.sampling import Sampled, Sampling
from gpu_worker.inference.ports import TokenRequest
from tests.fixtures.toy_pipeline import whole
from tests.gpu_worker.slice.doors import GREEDY, ByteText, Known, Stage, alive, ids_of, refused, stages
from wire.proto import inference_pb2 as pb
from wire.proto.inference_pb2_grpc import InferencePipelineStub

PROMPT = (3, 1, 4, 1, 5)


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


# --- who may ask for text


SECRET = "a secret of the API"


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


class OneSession:
    """`inference.sessions.Passes`: one pass, of the session `r`."""

    def check(self, session_pass: str, session: str, hop: Hop) -> str:
        if (session_pass, session) != ("the pass", "r"):
            raise InferenceError("unauthenticated", "no")
        return ""

    def check_stream(self, session_pass: str, hop: Hop) -> Shown:
        return Shown(session_pass=session_pass)


SHOWN = {"nothing": (), "another secret": bearer("a secret of thE API"), "no bearer": (("authorization", SECRET),)}


@pytest.mark.parametrize("passes", [None, OneSession()], ids=["no passes", "passes"])
@pytest.mark.parametrize("shown", SHOWN)
async def test_no_text_is_made_for_who_does_not_know_the_apis_secret(dial: Any, shown: str, passes: Any) -> None:
    tokens = Tokens()
    async with stages(head := Stage(0, 2, speaker=lambda: (tokens, ByteText()), secret=SECRET, passes=passes)):
        stub = InferencePipelineStub(await dial(head))
        request = pb.ForwardRequest(request_id="r", past_token_ids=PROMPT, params=pb.GenerationParams(max_new_tokens=3))
        metadata = SHOWN[shown]

        async def read(**more: Any) -> int:
            return len([chunk async for chunk in stub.ForwardPassStream(request, **more)])

        assert await refused(read(metadata=metadata)) == ("UNAUTHENTICATED", "unauthenticated")
        assert await refused(stub.ForwardPass(request, metadata=metadata)) == ("UNAUTHENTICATED", "unauthenticated")
        assert tokens.asked == []
        assert head.engine.steps == []
        assert await read(metadata=bearer(SECRET)) == 4
        assert (await stub.ForwardPass(request, metadata=bearer(SECRET))).success
        if passes is not None:
            assert await read(metadata=bearer("the pass")) == 4


async def test_text_that_is_paid_for_is_not_made_for_a_stranger_here(dial: Any) -> None:
    tokens = Tokens()
    async with stages(head := Stage(0, 2, speaker=lambda: (tokens, ByteText()), is_priced=True)):
        stub = InferencePipelineStub(await dial(head))
        request = pb.ForwardRequest(request_id="r", past_token_ids=PROMPT)
        for metadata in SHOWN.values():
            assert (await refused(stub.ForwardPass(request, metadata=metadata)))[0] == "UNAUTHENTICATED"
            assert (await refused(anext(aiter(stub.ForwardPassStream(request, metadata=metadata)))))[
                0
            ] == "UNAUTHENTICATED"
    assert (tokens.asked, head.engine.steps) == ([], [])


async def test_the_secret_of_the_api_is_not_shown_to_the_next_stage(dial: Any) -> None:
    known, signed = Known(), []

    def sign(session: str, layers: Any) -> str:
        signed.append((session, *layers))
        return "the pass"

    known.sign = sign
    first = Stage(0, 1, known=known, secret=SECRET, passes=OneSession())
    others = Stage(1, 2, known=known, passes=OneSession()), Stage(2, 4, known=known, passes=OneSession())
    async with stages(first, *others):
        stub = InferencePipelineStub(await dial(first))
        metadata = pb.PipelineMetadata(next_node_endpoint=others[0].endpoint)
        request = pb.ForwardRequest(request_id="r", past_token_ids=PROMPT, metadata=metadata)
        answer = await stub.ForwardPass(request, metadata=bearer(SECRET))
        assert answer.next_token_id == whole(PROMPT, 1, sampling=GREEDY)[0]
        assert signed == [("r", (1, 4))]


async def test_rows_of_another_stage_come_without_the_secret_of_the_api(dial: Any) -> None:
    async with stages(last := Stage(2, 4, secret=SECRET)):
        assert (await InferencePipelineStub(await dial(last)).ForwardPass(pb.ForwardRequest(**GOOD))).success
