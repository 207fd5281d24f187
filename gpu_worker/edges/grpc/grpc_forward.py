"""ForwardPass and ForwardPassStream: the older RPCs of the pipeline, served and called."""

import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.codes import CODES, InferenceError
from gpu_worker.core.inference.limits import HISTORY_MAX, POSITIONS_MAX, ROWS_MAX, TEXT_CHARS_MAX
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.core.inference.step import SliceInfo, Tensor
from gpu_worker.core.inference.stops import Stops, feed
from gpu_worker.core.inference.tensor import HIDDEN, IDS, Expected, check
from gpu_worker.edges.grpc.grpc_channel import LinkLost, abort, bearer_of, lost, open_channel, shown_bearer, stub_of
from gpu_worker.edges.grpc.proto_codec import count, few, name
from gpu_worker.edges.grpc.proto_params import params_of, sampling_of
from gpu_worker.edges.grpc.tls import Tls
from gpu_worker.inference.ports import Generator, Text, TokenRequest, TokenStream
from gpu_worker.inference.stage.forward import SESSIONS_MAX, Forward, Forwarded, Forwards, ending
from gpu_worker.inference.stage.sessions import Passes
from gpu_worker.inference.text.admission import Admission
from gpu_worker.inference.text.prompts import encoded
from wire.proto import inference_pb2 as pb

CALL_S = 60.0
STOPS_MAX = 16
STOP_CHARS_MAX = 256


class ForwardRpcs:
    """
    The handlers of the two RPCs. `speaker` gives who answers with tokens and their text, on the head.

    `info` is None while nothing is loaded. `hop` is this stage, and `passes` are checked for it, None: nobody is asked
    for one. The metadata `authorization: Bearer` of a call must hold a pass for the session that `request_id` names.

    Where `admission` asks for anything, no text is made for a stranger: API_SECRET, or a pass, opens what takes a
    prompt: ForwardPassStream and, on the first stage, ForwardPass. The secret is never shown to another stage.
    """

    def __init__(
        self,
        info: Callable[[], SliceInfo | None],
        hop: Callable[[], Hop],
        service: Forwards,
        passes: Passes | None,
        speaker: Callable[[], tuple[Generator, Text]],
        admission: Admission | None = None,
    ) -> None:
        self._info, self._hop, self._service, self._passes, self._speaker = info, hop, service, passes, speaker
        self._admission = admission or Admission()
        # The pass that opened each session: it is good for that one as long as it is open.
        self._opened_by: OrderedDict[str, str] = OrderedDict()

    def handlers(self) -> dict[str, Any]:
        read, write = pb.ForwardRequest.FromString, pb.ForwardResponse.SerializeToString
        return {
            "ForwardPass": grpc.unary_unary_rpc_method_handler(self._forward_pass, read, write),
            "ForwardPassStream": grpc.unary_stream_rpc_method_handler(
                self._forward_stream, read, pb.TokenChunk.SerializeToString
            ),
        }

    async def _forward_pass(self, request: Any, context: Any) -> Any:
        began_s = time.monotonic()
        try:
            asked = self._asked(request, context)
            if asked.count > ROWS_MAX:
                raise InferenceError("invalid_tensor", f"{asked.count} rows, at most {ROWS_MAX} are taken in a call")
            answer = await self._service.forward(asked)
        except InferenceError as error:
            await abort(context, error)
            raise  # gRPC's abort raises itself
        return _response(request.request_id, answer, (time.monotonic() - began_s) * 1000)

    async def _forward_stream(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            asked = self._asked(request, context, streams=True)
            generator, text = self._speaker()
            stops = Stops(_stops(request.params))
            assert isinstance(asked.rows, tuple)
            prompt = asked.rows or await self._encoded(text, request.metadata.original_prompt)
            stream = await generator.start(
                TokenRequest(
                    session=asked.session,
                    prompt=prompt,
                    tokens_max=asked.tokens_max,
                    sampling=_drawn(ending(asked.sampling, text.eos)),
                    deadline_s=context.time_remaining(),
                )
            )
        except InferenceError as error:
            await abort(context, error)
            raise
        try:
            async for chunk in _chunks(asked.session, stream, text, stops):
                yield chunk
        except InferenceError as error:
            await abort(context, error)
        finally:
            await stream.cancel()

    def _asked(self, request: Any, context: Any, *, streams: bool = False) -> Forward:
        """Return what the message asks for. Raises InferenceError: it breaks a limit, or has no pass."""
        session = name(request.request_id)
        session_pass = self._admit(session, shown_bearer(context), streams=streams)
        past = tuple(few(request.past_token_ids, "past_token_ids", HISTORY_MAX))
        position = count(request.position)
        if position >= POSITIONS_MAX:
            raise InferenceError("invalid_argument", f"position {position} is beyond every context")
        rows = self._rows(request, past, position, may_be_empty=streams and bool(request.metadata.original_prompt))
        return Forward(
            session=session,
            position=position,
            rows=rows,
            sampling=sampling_of(request.params),
            tokens_max=max(1, request.params.max_new_tokens),
            past=past,
            next="" if streams else request.metadata.next_node_endpoint[:TEXT_CHARS_MAX],
            session_pass=session_pass,
        )

    def _admit(self, session: str, session_pass: str, *, streams: bool) -> str:
        """
        Return the pass of a session, to be shown to the next stage: empty where the API's secret was shown here.

        Raises InferenceError unauthenticated: the pass neither opens the session nor has opened it.
        """
        if self._admission.is_secret(session_pass):
            return ""
        if self._passes is None:
            if self._admission.is_guarded and (streams or self._hop().start == 0):
                raise InferenceError("unauthenticated", "this worker makes text for who shows its API secret")
            return session_pass
        if not streams and self._service.has(session) and self._opened_by.get(session) == session_pass:
            return session_pass
        self._passes.check(session_pass, session, self._hop())
        if not streams:
            self._opened_by[session] = session_pass
            self._opened_by.move_to_end(session)
            if len(self._opened_by) > 2 * SESSIONS_MAX:
                self._opened_by.popitem(last=False)
        return session_pass

    async def _encoded(self, text: Text, words: str) -> tuple[int, ...]:
        info = self._info()
        return await encoded(text, words, None if info is None else info.context)

    def _rows(
        self, request: Any, past: tuple[int, ...], position: int, *, may_be_empty: bool
    ) -> tuple[int, ...] | Tensor:
        info = self._info()
        if info is None:
            raise InferenceError("not_ready", "the layers are being loaded")
        data = request.hidden_states
        if not info.layers.is_first:
            expected = Expected(info.hidden_size, HIDDEN)
            rows = check(request.dtype, request.shape, len(data), expected)
            return Tensor(request.dtype, (rows, info.hidden_size), data)
        if data:
            rows = check(request.dtype, request.shape, len(data), Expected(0, (IDS,)))
            return tuple(memoryview(data).cast("q")[:rows])
        if not past[position:] and not may_be_empty:
            raise InferenceError("invalid_tensor", "there are no rows: neither token ids nor past_token_ids")
        return past[position:]


def _drawn(sampling: Sampling) -> Sampling:
    """Return `sampling` with a seed of its own, where its client names none: its answers are to differ."""
    return sampling if sampling.seed or not sampling.temperature else replace(sampling, seed=secrets.randbits(63) or 1)


def _response(request_id: str, answer: Forwarded, latency_ms: float) -> Any:
    response = pb.ForwardResponse(request_id=request_id, success=True, latency_ms=latency_ms)
    if answer.hidden is not None:
        response.hidden_states = bytes(answer.hidden.data)
        response.shape.extend((1, *answer.hidden.shape))
        response.dtype = answer.hidden.dtype
    else:
        response.next_token_id = answer.token
        response.is_eos = answer.is_eos
        response.generated_text = answer.text
        response.num_tokens = 1
    return response


async def _chunks(session: str, stream: TokenStream, text: Text, stops: Stops) -> AsyncIterator[Any]:
    """Yield a chunk for each token, then one that is finished and says why."""
    decoder, reason = text.stream(), "length"
    async for sampled in stream:
        if sampled.is_eos:
            reason = "stop"
            break
        stops, shown, hit = feed(stops, decoder.push(sampled.token))
        yield pb.TokenChunk(request_id=session, token_text=shown, token_id=sampled.token)
        if hit is not None:
            yield pb.TokenChunk(request_id=session, is_finished=True, finish_reason="stop")
            return
    stops, rest, hit = feed(stops, decoder.end())
    rest += "" if hit is not None else stops.held
    reason = reason if hit is None else "stop"
    yield pb.TokenChunk(request_id=session, token_text=rest, is_finished=True, finish_reason=reason)


def _stops(params: Any) -> tuple[str, ...]:
    if len(params.stop) > STOPS_MAX or any(not 0 < len(each) <= STOP_CHARS_MAX for each in params.stop):
        raise InferenceError(
            "invalid_argument", f"at most {STOPS_MAX} stop strings of 1 to {STOP_CHARS_MAX} characters"
        )
    return tuple(params.stop)


class GrpcOnward:
    """`inference.forward.Onward`: ForwardPass of other stages, one channel each. Rows may come with `width` numbers."""

    def __init__(self, tls: Tls | None = None, *, insecure: bool = False, width: int = 0) -> None:
        self._tls, self._insecure, self._width = tls, insecure, width
        self._channels: dict[str, Any] = {}

    async def forward(self, endpoint: str, request: Forward) -> Forwarded:
        assert isinstance(request.rows, Tensor)
        message = pb.ForwardRequest(
            request_id=request.session,
            hidden_states=bytes(request.rows.data),
            shape=(1, *request.rows.shape),
            dtype=request.rows.dtype,
            params=params_of(request.sampling, request.tokens_max),
            metadata=pb.PipelineMetadata(next_node_endpoint=request.next),
            past_token_ids=request.past,
            position=request.position,
        )
        try:
            stub = stub_of(self._channel(endpoint))
            response = await stub.ForwardPass(message, timeout=CALL_S, metadata=bearer_of(request.session_pass))
        except grpc.aio.AioRpcError as error:
            fault = lost(endpoint, error)
            if fault.code == "lost_stage":
                raise fault from None
            raise InferenceError(fault.code, str(fault)) from None
        if not response.success:
            raise InferenceError(response.code if response.code in CODES else "internal", response.error[:1024])
        if response.hidden_states:
            raise InferenceError("no_route", f"{endpoint} answered with hidden states: it does not chain on")
        return Forwarded(token=response.next_token_id, is_eos=response.is_eos, text=response.generated_text)

    def _channel(self, endpoint: str) -> Any:
        if endpoint not in self._channels:
            try:
                self._channels[endpoint] = open_channel(endpoint, self._tls, self._insecure, self._width)
            except OwnersFault as fault:
                raise LinkLost("no_route", str(fault)) from None
        return self._channels[endpoint]

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()
