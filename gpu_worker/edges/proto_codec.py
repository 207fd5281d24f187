"""
Batches as messages of the wire and back.

What comes from another machine is held against limits here, before anything is made of it. A message that breaks them
is refused whole; rows that are not what the stage takes cost only the sessions that they are of.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar
from zlib import crc32

from google.protobuf.message import DecodeError

from gpu_worker.core.inference.batch import Batch, Hop, LinkFault, Refill, Route
from gpu_worker.core.inference.codes import CODES, InferenceError
from gpu_worker.core.inference.sampling import Sampled
from gpu_worker.core.inference.step import Open, Refusal, Run, Tensor
from gpu_worker.core.inference.tensor import Expected, check
from gpu_worker.edges.proto_params import params_of, sampling_of
from wire.proto import inference_pb2 as pb

SESSION_CHARS_MAX = 128
TEXT_CHARS_MAX = 4096
PASS_CHARS_MAX = 8192
HOPS_MAX = 256
PER_BATCH_MAX = 4096
HISTORY_MAX = 1_048_576
POSITIONS_MAX = 2**31 - 1
TOP_MAX = 64

# Field 9 of StepBatch and field 3 of Tensor, with a length each.
_HIDDEN_TAG = bytes([9 << 3 | 2])
_DATA_TAG = bytes([3 << 3 | 2])
# Field 20 of StepBatch, four bytes.
_CHECKSUM_TAG = bytes([(20 << 3 | 5) & 0x7F | 0x80, (20 << 3 | 5) >> 7])
_CHECKSUM_BYTES = len(_CHECKSUM_TAG) + 4

_T = TypeVar("_T")


def encode(batch: Batch) -> bytes:
    """Return the message of `batch`."""
    message = pb.StepBatch(
        pipeline=batch.pipeline,
        epoch=batch.epoch,
        number=batch.number,
        group=batch.group,
        closes=batch.closes,
        opens=[_open_message(each) for each in batch.opens],
        runs=[
            pb.Run(
                session=run.session,
                epoch=run.epoch,
                position=run.position,
                count=run.count,
                samples=run.samples,
                fills=run.fills,
            )
            for run in batch.runs
        ],
        refills=[
            pb.Refill(session=each.session, epoch=each.epoch, length=each.length, index=each.index)
            for each in batch.refills
        ],
        tokens=[_sampled_message(each) for each in batch.tokens],
        refusals=[
            pb.Refusal(session=each.session, epoch=each.epoch, code=each.code, detail=each.detail)
            for each in batch.refusals
        ],
        faults=[pb.LinkFault(endpoint=each.endpoint, code=each.code, detail=each.detail) for each in batch.faults],
        opened=batch.opened,
        compute_s=batch.compute_s,
    )
    if batch.route is not None:
        message.route.CopyFrom(_route_message(batch.route))
    head: bytes = message.SerializeToString()
    return sealed(head) if batch.hidden is None else sealed(head, *_tensor_parts(batch.hidden))


def sealed(*parts: bytes | memoryview) -> bytes:
    """
    Return the parts of a StepBatch as one message, with the checksum that it is refused without.

    A byte that changes on the way past TCP's own sum would be another token, and nobody would see it.
    """
    total = 0
    for part in parts:
        total = crc32(part, total)
    return b"".join((*parts, _CHECKSUM_TAG, total.to_bytes(4, "little")))


def _is_whole(data: bytes) -> bool:
    bytes_of_it = memoryview(data)
    body, seal = bytes_of_it[:-_CHECKSUM_BYTES], bytes_of_it[-_CHECKSUM_BYTES:]
    return seal == _CHECKSUM_TAG + crc32(body).to_bytes(4, "little")


def _tensor_parts(tensor: Tensor) -> tuple[bytes | memoryview, ...]:
    """Return the field `hidden` in parts, the rows as they are: through a message they would be copied twice more."""
    head: bytes = pb.Tensor(dtype=tensor.dtype, shape=tensor.shape).SerializeToString()
    data_head = _DATA_TAG + _varint(len(tensor.data))
    size = len(head) + len(data_head) + len(tensor.data)
    return _HIDDEN_TAG + _varint(size), head, data_head, tensor.data


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def decode(data: bytes, expected: Expected | None) -> tuple[Batch, tuple[Refusal, ...]]:
    """
    Return the batch that `data` is, and refusals of the runs whose rows are not `expected`, which are left out of it.

    Without `expected` no rows are taken, as on the way up.

    Raises:
        InferenceError: invalid_argument or too_large: it is no batch, or breaks a limit.
    """
    if not _is_whole(data):
        raise InferenceError("invalid_argument", "the message was damaged on the way: its checksum is another one")
    message = pb.StepBatch()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise InferenceError("invalid_argument", "the message is no StepBatch") from None
    runs = _all(message.runs, "runs", _run)
    hidden, refusals = _rows(message, runs, expected)
    batch = Batch(
        pipeline=name(message.pipeline),
        epoch=message.epoch,
        number=message.number,
        group=message.group,
        route=_route(message.route) if message.HasField("route") else None,
        closes=_all(message.closes, "closes", name),
        opens=_all(message.opens, "opens", _open),
        runs=() if refusals else runs,
        hidden=hidden,
        refills=_all(message.refills, "refills", _refill),
        tokens=_all(message.tokens, "tokens", _sampled),
        refusals=_all(message.refusals, "refusals", _refusal),
        faults=_all(message.faults, "faults", _fault),
        opened=_all(message.opened, "opened", name),
        compute_s=tuple(few(message.compute_s, "compute_s", HOPS_MAX)),
    )
    return batch, refusals


def _all(items: Any, what: str, make: Callable[[Any], _T]) -> tuple[_T, ...]:
    return tuple(map(make, few(items, what))) if items else ()


def _refill(message: Any) -> Refill:
    return Refill(
        session=name(message.session),
        epoch=message.epoch,
        length=count(message.length),
        index=count(message.index),
    )


def _refusal(message: Any) -> Refusal:
    return Refusal(
        session=name(message.session), epoch=message.epoch, code=_code(message.code), detail=_text(message.detail)
    )


def _fault(message: Any) -> LinkFault:
    return LinkFault(endpoint=_text(message.endpoint), code=_code(message.code), detail=_text(message.detail))


def _rows(message: Any, runs: Sequence[Run], expected: Expected | None) -> tuple[Tensor | None, tuple[Refusal, ...]]:
    if not runs and not message.HasField("hidden"):
        return None, ()
    try:
        if expected is None:
            raise InferenceError("invalid_argument", "rows are not taken on the way up")
        sent = message.hidden
        data = sent.data  # a copy each time that it is asked for
        rows = check(sent.dtype, sent.shape, len(data), expected)
        wanted = sum(run.count for run in runs)
        if rows != wanted:
            raise InferenceError("invalid_tensor", f"{rows} rows were sent for runs of {wanted}")
    except InferenceError as error:
        if not runs:
            raise
        return None, tuple(
            Refusal(session=run.session, epoch=run.epoch, code=error.code, detail=str(error)) for run in runs
        )
    return Tensor(sent.dtype, (rows, expected.width), data), ()


def _run(message: Any) -> Run:
    position, rows = message.position, message.count
    if position < 0 or rows < 1 or position + rows > POSITIONS_MAX:
        raise InferenceError("invalid_argument", f"a run of {rows} rows at position {position}")
    return Run(
        session=name(message.session),
        epoch=message.epoch,
        position=position,
        count=rows,
        samples=message.samples,
        fills=message.fills,
    )


def _open_message(each: Open) -> Any:
    message = pb.Open(
        session=each.session,
        epoch=each.epoch,
        positions=each.positions,
        session_pass=each.session_pass,
        history=each.history,
        prompt_len=each.prompt_len,
    )
    if each.sampling is not None:
        message.sampling.CopyFrom(params_of(each.sampling))
    return message


def _open(message: Any) -> Open:
    if not count(message.positions):
        raise InferenceError("invalid_argument", "a session of no positions")
    if len(message.session_pass) > PASS_CHARS_MAX:
        raise InferenceError("too_large", f"a session pass of more than {PASS_CHARS_MAX} characters")
    return Open(
        session=name(message.session),
        epoch=message.epoch,
        positions=message.positions,
        session_pass=message.session_pass,
        sampling=sampling_of(message.sampling) if message.HasField("sampling") else None,
        history=tuple(few(message.history, "tokens of history", HISTORY_MAX)),
        prompt_len=count(message.prompt_len),
    )


def _route_message(route: Route) -> Any:
    hops = [pb.Hop(endpoint=hop.endpoint, start=hop.start, end=hop.end) for hop in route.hops]
    return pb.Route(pipeline=route.pipeline, epoch=route.epoch, hops=hops, index=route.index, answers=route.answers)


def _route(message: Any) -> Route:
    hops = tuple(
        Hop(endpoint=_text(hop.endpoint), start=count(hop.start), end=count(hop.end))
        for hop in few(message.hops, "hops", HOPS_MAX)
    )
    if not 0 <= message.index < len(hops):
        raise InferenceError("invalid_argument", f"place {message.index} of a route of {len(hops)} stages")
    return Route(
        pipeline=name(message.pipeline), epoch=message.epoch, hops=hops, index=message.index, answers=message.answers
    )


def _sampled_message(each: Sampled) -> Any:
    message = pb.Sampled(
        session=each.session,
        epoch=each.epoch,
        position=each.position,
        token=each.token,
        is_eos=each.is_eos,
        top=[pb.Alternative(token=token, logprob=logprob) for token, logprob in each.top],
    )
    if each.logprob is not None:
        message.logprob = each.logprob
    return message


def _sampled(message: Any) -> Sampled:
    position, token, top = message.position, message.token, message.top
    if position < 0 or token < 0:
        raise InferenceError("invalid_argument", f"token {token} at position {position}")
    return Sampled(
        session=name(message.session),
        epoch=message.epoch,
        position=position,
        token=token,
        is_eos=message.is_eos,
        logprob=message.logprob if message.HasField("logprob") else None,
        top=tuple((each.token, each.logprob) for each in few(top, "alternatives", TOP_MAX)) if top else (),
    )


def few(items: Iterable[_T], what: str, most: int = PER_BATCH_MAX) -> Iterable[_T]:
    """Return `items`, of which a message may have `most`. Raises InferenceError too_large."""
    if len(items) > most:  # type: ignore[arg-type]
        raise InferenceError("too_large", f"more than {most} {what} in one message")
    return items


@lru_cache(4096)
def name(text: str) -> str:
    """Return `text`, the id of a session, a request or a pipeline. Raises InferenceError: it cannot be one."""
    if not 0 < len(text) <= SESSION_CHARS_MAX or not text.isprintable():
        raise InferenceError("invalid_argument", f"an id has 1 to {SESSION_CHARS_MAX} printable characters")
    return text


def count(number: int) -> int:
    """Return `number`, which cannot be below 0. Raises InferenceError."""
    if number < 0:
        raise InferenceError("invalid_argument", f"{number} is below 0")
    return number


def _text(text: str) -> str:
    if len(text) > TEXT_CHARS_MAX:
        raise InferenceError("too_large", f"a text of more than {TEXT_CHARS_MAX} characters")
    return text


def _code(code: str) -> str:
    return code if code in CODES else "internal"
