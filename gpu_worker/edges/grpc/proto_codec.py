"""
Batches as messages of the wire and back.

What comes from another machine is held against limits here, before anything is made of it. A message that breaks them
is refused whole; rows that are not what the stage takes cost only the sessions that they are of.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from gpu_worker.core.inference.batch import Batch, Hop, LinkFault, Refill, Route
from gpu_worker.core.inference.codes import CODES, InferenceError
from gpu_worker.core.inference.limits import (
    DTYPES_MAX,
    HISTORY_MAX,
    HOPS_MAX,
    NAME_CHARS_MAX,
    PARTS_MAX,
    PASS_CHARS_MAX,
    POSITIONS_MAX,
    TEXT_CHARS_MAX,
    TOP_MAX,
)
from gpu_worker.core.inference.sampling import Sampled
from gpu_worker.core.inference.step import Open, Refusal, Run, Tensor
from gpu_worker.core.inference.tensor import HIDDEN, Expected, check
from gpu_worker.edges.grpc.proto_frame import is_whole, sealed, tensor_parts
from gpu_worker.edges.grpc.proto_params import params_of, sampling_of
from wire.proto import inference_pb2 as pb

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
        refills=[
            pb.Refill(session=each.session, epoch=each.epoch, length=each.length, index=each.index)
            for each in batch.refills
        ],
        refusals=[
            pb.Refusal(session=each.session, epoch=each.epoch, code=each.code, detail=each.detail)
            for each in batch.refusals
        ],
        faults=[pb.LinkFault(endpoint=each.endpoint, code=each.code, detail=each.detail) for each in batch.faults],
        opened=batch.opened,
        compute_s=batch.compute_s,
    )
    # Those that a step has many of are made in their place: a message that is handed over is copied.
    for run in batch.runs:
        message.runs.add(
            session=run.session,
            epoch=run.epoch,
            position=run.position,
            count=run.count,
            samples=run.samples,
            fills=run.fills,
        )
    for token in batch.tokens:
        message.tokens.add(
            session=token.session,
            epoch=token.epoch,
            position=token.position,
            token=token.token,
            is_eos=token.is_eos,
            logprob=token.logprob,
            top=[pb.Alternative(token=other, logprob=logprob) for other, logprob in token.top],
        )
    if batch.route is not None:
        message.route.CopyFrom(_route_message(batch.route))
    head: bytes = message.SerializeToString()
    return sealed(head) if batch.hidden is None else sealed(head, *tensor_parts(batch.hidden))


def decode(data: bytes, expected: Expected | None) -> tuple[Batch, tuple[Refusal, ...]]:
    """
    Return the batch that `data` is, and refusals of the runs whose rows are not `expected`, which are left out of it.

    Without `expected` no rows are taken, as on the way up.

    Raises:
        InferenceError: invalid_argument or too_large: it is no batch, or breaks a limit.
    """
    if not is_whole(data):
        raise InferenceError("invalid_argument", "the message was damaged on the way: its checksum is another one")
    message = pb.StepBatch()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise InferenceError("invalid_argument", "the message is no StepBatch") from None
    # Most batches have few of the fields, and those that are not there are not listed.
    fields = {field.name: value for field, value in message.ListFields()}
    taken = {key: take(fields[key]) for key, take in _TAKES.items() if key in fields}
    hidden, refusals = _rows(message, taken.get("runs", ()), expected)
    if refusals:
        taken["runs"] = ()
    return Batch(pipeline=name(message.pipeline), epoch=message.epoch, hidden=hidden, **taken), refusals


def _all(what: str, make: Callable[[Any], _T]) -> Callable[[Any], tuple[_T, ...]]:
    return lambda items: tuple(map(make, few(items, what)))


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
    hops = [pb.Hop(endpoint=hop.endpoint, start=hop.start, end=hop.end, wire_dtypes=hop.takes) for hop in route.hops]
    return pb.Route(pipeline=route.pipeline, epoch=route.epoch, hops=hops, index=route.index, answers=route.answers)


def _route(message: Any) -> Route:
    hops = tuple(
        Hop(
            endpoint=_text(hop.endpoint),
            start=count(hop.start),
            end=count(hop.end),
            takes=known_dtypes(few(hop.wire_dtypes, "dtypes of a stage", DTYPES_MAX)),
        )
        for hop in few(message.hops, "hops", HOPS_MAX)
    )
    if not 0 <= message.index < len(hops):
        raise InferenceError("invalid_argument", f"place {message.index} of a route of {len(hops)} stages")
    return Route(
        pipeline=name(message.pipeline), epoch=message.epoch, hops=hops, index=message.index, answers=message.answers
    )


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


def few(items: Iterable[_T], what: str, most: int = PARTS_MAX) -> Iterable[_T]:
    """Return `items`, of which a message may have `most`. Raises InferenceError too_large."""
    if len(items) > most:  # type: ignore[arg-type]
        raise InferenceError("too_large", f"more than {most} {what} in one message")
    return items


@lru_cache(4096)
def name(text: str) -> str:
    """Return `text`, the id of a session, a request or a pipeline. Raises InferenceError: it cannot be one."""
    if not 0 < len(text) <= NAME_CHARS_MAX or not text.isprintable():
        raise InferenceError("invalid_argument", f"an id has 1 to {NAME_CHARS_MAX} printable characters")
    return text


def known_dtypes(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of `names` in which rows can be sent; what else is said is dropped."""
    return tuple(each for each in names if each in HIDDEN)


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


# How the fields of a StepBatch are taken over; `pipeline`, `epoch`, `hidden` and the checksum are not among them.
_TAKES: dict[str, Callable[[Any], Any]] = {
    "number": int,
    "group": int,
    "route": _route,
    "closes": _all("closes", name),
    "opens": _all("opens", _open),
    "runs": _all("runs", _run),
    "refills": _all("refills", _refill),
    "tokens": _all("tokens", _sampled),
    "refusals": _all("refusals", _refusal),
    "faults": _all("faults", _fault),
    "opened": _all("opened", name),
    "compute_s": lambda each: tuple(few(each, "compute_s", HOPS_MAX)),
}
