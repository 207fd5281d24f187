"""The wire's contract: exact numbers of every field, stubs that are what the .proto gives, and the codec over it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker.core.inference.batch import Batch, Hop, LinkFault, Refill, Route
from gpu_worker.core.inference.codes import CODES, InferenceError
from gpu_worker.core.inference.limits import NAME_CHARS_MAX
from gpu_worker.core.inference.sampling import Sampled, Sampling, flaw
from gpu_worker.core.inference.step import Open, Refusal, Run, Tensor
from gpu_worker.core.inference.tensor import Expected
from gpu_worker.edges.grpc.proto_codec import decode, encode
from gpu_worker.edges.grpc.proto_frame import sealed
from gpu_worker.edges.grpc.proto_params import params_of, sampling_of, shortest
from tests.house.tree import ROOT
from wire.proto import check
from wire.proto import inference_pb2 as pb

EXPECTED = Expected(4, ("float32", "bfloat16"))

# Written by hand from the public system's table: name, number, type; `*` is repeated.
PUBLIC = {
    "Empty": "",
    "ForwardRequest": (
        "1 request_id string; 2 hidden_states bytes; 3 shape *int64; 4 dtype string; 5 attention_mask bytes; "
        "6 attention_mask_shape *int64; 7 params GenerationParams; 8 metadata PipelineMetadata; 9 past_token_ids *int32"
    ),
    "ForwardResponse": (
        "1 request_id string; 2 hidden_states bytes; 3 shape *int64; 4 dtype string; 5 generated_text string; "
        "6 num_tokens int32; 7 latency_ms float; 8 success bool; 9 error string; 10 next_token_id int32; 11 is_eos bool"
    ),
    "TokenChunk": (
        "1 request_id string; 2 token_text string; 3 token_id int32; 4 is_finished bool; 5 finish_reason string"
    ),
    "GenerationParams": (
        "1 max_new_tokens int32; 2 temperature float; 3 top_p float; 4 repetition_penalty float; 5 do_sample bool"
    ),
    "PipelineMetadata": (
        "1 total_nodes int32; 2 node_index int32; 3 is_first bool; 4 is_last bool; 5 requester_address string; "
        "6 original_prompt string; 7 next_node_endpoint string"
    ),
    "LayerInfoResponse": (
        "1 model_name string; 2 layer_start int32; 3 layer_end int32; 4 total_layers int32; 5 device string; "
        "6 is_ready bool"
    ),
    "PingResponse": (
        "1 agent_address string; 2 model_name string; 3 layer_start int32; 4 layer_end int32; 5 is_ready bool; "
        "6 uptime_seconds int64"
    ),
}
RPCS = {
    "ForwardPass": ("ForwardRequest", False, "ForwardResponse", False),
    "ForwardPassStream": ("ForwardRequest", False, "TokenChunk", True),
    "GetLayerInfo": ("Empty", False, "LayerInfoResponse", False),
    "Ping": ("Empty", False, "PingResponse", False),
}
OURS_FROM = 20


def fields_of(message: str) -> dict[int, tuple[str, str]]:
    fields = pb.DESCRIPTOR.message_types_by_name[message].fields
    return {field.number: (field.name, ("*" if field.is_repeated else "") + _type(field)) for field in fields}


def _type(field) -> str:
    types = {
        1: "double",
        2: "float",
        3: "int64",
        4: "uint64",
        5: "int32",
        8: "bool",
        9: "string",
        12: "bytes",
        13: "uint32",
    }
    return field.message_type.name if field.message_type else types[field.type]


@pytest.mark.row(44)
@pytest.mark.parametrize("message", PUBLIC)
def test_every_public_field_has_its_number_and_ours_stand_above(message: str) -> None:
    wanted = {
        int(number): (name, kind)
        for number, name, kind in (each.split() for each in PUBLIC[message].split("; ") if each)
    }
    found = fields_of(message)
    assert {number: field for number, field in found.items() if number < OURS_FROM} == wanted


@pytest.mark.row(44)
def test_the_service_has_the_four_rpcs_and_one_of_ours() -> None:
    service = pb.DESCRIPTOR.services_by_name["InferencePipeline"]
    assert service.full_name == "plumise.inference.InferencePipeline"
    found = {
        each.name: (each.input_type.name, each.client_streaming, each.output_type.name, each.server_streaming)
        for each in service.methods
    }
    assert found == RPCS | {"Steps": ("StepBatch", True, "StepBatch", True)}


@pytest.mark.row(154)
def test_the_committed_stubs_are_what_the_proto_gives() -> None:
    assert check.problems() == []


@pytest.mark.row(154)
@pytest.mark.parametrize("name", [*check.SOURCES, *check.STUBS, check.HASHES])
def test_a_stub_that_differs_or_is_missing_is_named(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "wire/proto"
    folder.mkdir(parents=True)
    for path in (ROOT / "wire/proto").iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    (tmp_path / "wire/__init__.py").touch()
    (folder / name).write_text((folder / name).read_text() + "\n{")
    assert name in " ".join(_problems(tmp_path))
    (folder / name).unlink()
    assert name in " ".join(_problems(tmp_path))


def _problems(root: Path) -> list[str]:
    code = "import json; from wire.proto.check import problems; print(json.dumps(problems()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


ids = st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
small = st.integers(0, 2**20)
epochs = st.integers(0, 2**32 - 1)
f32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.3, 0.1]),
    top_k=st.integers(0, 1000),
    top_p=st.sampled_from([0.9, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.1]),
    presence_penalty=st.sampled_from([0.0, -1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.25]),
    logit_bias=st.dictionaries(small, st.sampled_from([-100.0, 0.1, 2.5]), max_size=3),
    seed=st.integers(0, 2**64 - 1),
    logprobs=st.none() | st.integers(0, 20),
    schema=st.none() | st.just('{"type":"object"}'),
    eos=st.lists(small, max_size=3).map(tuple),
    ignore_eos=st.booleans(),
).filter(lambda sampling: flaw(sampling, 2**31) is None)
runs = st.lists(
    st.builds(
        Run,
        session=ids,
        epoch=epochs,
        position=small,
        count=st.integers(1, 5),
        samples=st.booleans(),
        fills=st.booleans(),
    ),
    max_size=4,
).map(tuple)


@st.composite
def batches(draw) -> Batch:
    made = draw(runs)
    rows = sum(run.count for run in made)
    hops = draw(st.lists(st.builds(Hop, endpoint=ids, start=small, end=small), min_size=1, max_size=3).map(tuple))
    route = st.builds(
        Route,
        pipeline=ids,
        epoch=epochs,
        hops=st.just(hops),
        index=st.integers(0, len(hops) - 1),
        answers=st.booleans(),
    )
    opens = st.builds(
        Open,
        session=ids,
        epoch=epochs,
        positions=st.integers(1, 10_000),
        session_pass=ids,
        sampling=st.none() | samplings,
        history=st.lists(small, max_size=5).map(tuple),
        prompt_len=st.integers(0, 5),
    )
    sampled = st.builds(
        Sampled,
        session=ids,
        epoch=epochs,
        position=small,
        token=small,
        is_eos=st.booleans(),
        logprob=st.none() | f32,
        top=st.lists(st.tuples(small, f32), max_size=3).map(tuple),
    )
    codes = st.sampled_from(sorted(CODES))

    def some(strategy):
        return draw(st.lists(strategy, max_size=3).map(tuple))

    return Batch(
        pipeline=draw(ids),
        epoch=draw(epochs),
        number=draw(st.integers(0, 2**64 - 1)),
        group=draw(small),
        route=draw(st.none() | route),
        closes=some(ids),
        opens=some(opens),
        runs=made,
        hidden=Tensor("bfloat16", (rows, 4), draw(st.binary(min_size=rows * 8, max_size=rows * 8))) if made else None,
        refills=some(st.builds(Refill, session=ids, epoch=epochs, length=small, index=small)),
        tokens=some(sampled),
        refusals=some(st.builds(Refusal, session=ids, epoch=epochs, code=codes, detail=st.text(max_size=20))),
        faults=some(st.builds(LinkFault, endpoint=ids, code=codes, detail=st.text(max_size=20))),
        opened=some(ids),
        compute_s=some(f32),
    )


@settings(max_examples=50)
@given(batches())
def test_a_batch_comes_out_as_it_went_in(batch: Batch) -> None:
    assert decode(encode(batch), EXPECTED) == (batch, ())


@given(samplings)
def test_sampling_is_the_same_on_every_stage(sampling: Sampling) -> None:
    assert sampling_of(params_of(sampling)) == sampling


def test_a_number_of_32_bits_is_read_as_it_was_written() -> None:
    for number in (0.7, 0.1, 1e-7, 3.4e38, 16777216.0, 0.0, -1.1):
        assert shortest(pb.GenerationParams(temperature=number).temperature) == number


@pytest.mark.row(45)
def test_zeros_are_zeros() -> None:
    greedy = sampling_of(pb.GenerationParams(temperature=0.0, top_p=0.9, do_sample=True))
    assert (greedy.temperature, greedy.top_p) == (0.0, 0.9)
    only_best = sampling_of(pb.GenerationParams(temperature=0.7, top_p=0.0, do_sample=True))
    assert (only_best.temperature, only_best.top_k) == (0.7, 1)
    assert sampling_of(pb.GenerationParams(temperature=0.7, top_p=0.9, do_sample=False)).temperature == 0.0


def step(**fields) -> bytes:
    return sealed(pb.StepBatch(pipeline="p", **fields).SerializeToString())


RUN = {"session": "s", "count": 1}
ROW = {"dtype": "float32", "shape": [1, 4], "data": bytes(16)}


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(sealed(b"\xff\xff\xff"), "invalid_argument", id="no message"),
        pytest.param(step(runs=[RUN], hidden=ROW)[:-3], "invalid_argument", id="a message cut short"),
        pytest.param(sealed(step(runs=[RUN], hidden=ROW)[:-20]), "invalid_argument", id="half a message"),
        pytest.param(pb.StepBatch(pipeline="p").SerializeToString(), "invalid_argument", id="no checksum"),
        pytest.param(b"", "invalid_argument", id="nothing"),
        pytest.param(sealed(b""), "invalid_argument", id="no pipeline"),
        pytest.param(step(closes=["x" * (NAME_CHARS_MAX + 1)]), "invalid_argument", id="a long session"),
        pytest.param(step(closes=[""]), "invalid_argument", id="an empty session"),
        pytest.param(step(closes=["a\nb"]), "invalid_argument", id="a session of two lines"),
        pytest.param(step(closes=["s"] * 4097), "too_large", id="many closes"),
        pytest.param(step(runs=[RUN] * 4097, hidden=ROW), "too_large", id="many runs"),
        pytest.param(step(opened=["s"] * 4097), "too_large", id="many opened"),
        pytest.param(step(compute_s=[0.0] * 257), "too_large", id="many stages"),
        pytest.param(step(runs=[{"session": "s", "count": 0}], hidden=ROW), "invalid_argument", id="a run of nothing"),
        pytest.param(step(runs=[{"session": "s", "count": -1}], hidden=ROW), "invalid_argument", id="a negative run"),
        pytest.param(
            step(runs=[{"session": "s", "count": 1, "position": -1}], hidden=ROW), "invalid_argument", id="before 0"
        ),
        pytest.param(
            step(runs=[{"session": "s", "count": 2**31 - 1, "position": 2**31 - 1}], hidden=ROW),
            "invalid_argument",
            id="beyond the last position",
        ),
        pytest.param(step(opens=[{"session": "s"}]), "invalid_argument", id="an open of nothing"),
        pytest.param(step(opens=[{"session": "s", "positions": -5}]), "invalid_argument", id="a negative open"),
        pytest.param(
            step(opens=[{"session": "s", "positions": 5, "session_pass": "x" * 8193}]), "too_large", id="a long pass"
        ),
        pytest.param(
            step(opens=[{"session": "s", "positions": 5, "history": [1] * 1_048_577}]), "too_large", id="a long history"
        ),
        pytest.param(
            step(opens=[{"session": "s", "positions": 5, "sampling": {"top_p": 2.0}}]), "invalid_argument", id="top_p 2"
        ),
        pytest.param(
            step(opens=[{"session": "s", "positions": 5, "sampling": {"min_p": float("nan")}}]),
            "invalid_argument",
            id="no number",
        ),
        pytest.param(step(route={"pipeline": "p", "index": 0}), "invalid_argument", id="a route to nowhere"),
        pytest.param(
            step(route={"pipeline": "p", "index": 2, "hops": [{"endpoint": "a"}]}),
            "invalid_argument",
            id="off the route",
        ),
        pytest.param(
            step(route={"pipeline": "p", "hops": [{"endpoint": "a"}] * 257}), "too_large", id="a route without end"
        ),
        pytest.param(step(refusals=[{"session": "s", "detail": "x" * 4097}]), "too_large", id="a long sentence"),
        pytest.param(step(hidden=ROW), "invalid_tensor", id="rows of nobody"),
    ],
)
@pytest.mark.row(49)
def test_a_message_that_breaks_a_limit_is_refused_whole(data: bytes, code: str) -> None:
    with pytest.raises(InferenceError) as raised:
        decode(data, EXPECTED)
    assert raised.value.code == code


@pytest.mark.row(49)
@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param({**ROW, "data": bytes(15)}, id="a byte short"),
        pytest.param({**ROW, "shape": [2, 4], "data": bytes(32)}, id="more rows than the runs have"),
        pytest.param({**ROW, "shape": [2**40, 2**40]}, id="a shape bomb"),
        pytest.param({**ROW, "dtype": "int64"}, id="another dtype"),
        pytest.param(None, id="no rows"),
    ],
)
def test_rows_that_do_not_fit_cost_only_their_sessions(hidden: dict | None) -> None:
    data = step(runs=[RUN], closes=["gone"], **({} if hidden is None else {"hidden": hidden}))
    batch, refusals = decode(data, EXPECTED)
    assert (batch.runs, batch.hidden, batch.closes) == ((), None, ("gone",))
    assert [(each.session, each.code) for each in refusals] == [("s", "invalid_tensor")]


def test_nobody_sends_rows_upwards() -> None:
    batch, refusals = decode(step(runs=[RUN], hidden=ROW), None)
    assert batch.runs == ()
    assert refusals[0].code == "invalid_argument"


def test_a_code_that_nobody_knows_is_an_internal_one() -> None:
    batch, _ = decode(step(refusals=[{"session": "s", "code": "surprise"}]), None)
    assert batch.refusals[0].code == "internal"


@given(st.binary(max_size=300))
@pytest.mark.row(49)
def test_random_bytes_are_a_batch_or_a_named_error(data: bytes) -> None:
    assert code_of(data) == "invalid_argument"
    assert code_of(sealed(data)) in (None, "invalid_argument", "too_large", "invalid_tensor")


@settings(max_examples=50)
@given(batches(), st.data())
@pytest.mark.row(49)
def test_a_batch_with_a_flipped_byte_is_refused_and_one_that_was_made_so_is_one_or_a_named_error(
    batch: Batch, data
) -> None:
    sent = bytearray(encode(batch))
    at, flip = data.draw(st.integers(0, len(sent) - 1)), data.draw(st.integers(1, 255))
    sent[at] ^= flip
    assert code_of(bytes(sent)) == "invalid_argument"
    assert code_of(sealed(bytes(sent[:-6]))) in (None, "invalid_argument", "too_large", "invalid_tensor")


def code_of(data: bytes) -> str | None:
    """Return what `data` is refused for, None where it is a batch."""
    try:
        decode(data, EXPECTED)
    except InferenceError as error:
        return error.code
    return None


def test_what_each_stage_takes_is_told_with_the_route() -> None:
    # A pipeline's name begins with its head's endpoint, however long that is.
    name = "h" * 253 + ":50051/" + "0" * 16
    hops = (
        Hop(endpoint="a:1", start=0, end=2),
        Hop(endpoint="b:1", start=2, end=4, takes=("float32", "x" * 9_000, "int8")),
    )
    route = Route(pipeline=name, epoch=1, hops=hops, index=0)
    found, _ = decode(encode(Batch(pipeline=name, epoch=1, route=route)), None)
    assert found.route == route
    assert [hop.takes for hop in found.route.hops] == [(), ("float32", "int8")]
    assert found.route.takes == ("float32", "int8")
