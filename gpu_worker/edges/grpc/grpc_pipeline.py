"""The service InferencePipeline of a stage, for the gRPC door: Ping, GetLayerInfo, the older RPCs, and Steps."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from gpu_worker.core.errors import Unavailable
from gpu_worker.core.inference.batch import Batch
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.seen import Seen
from gpu_worker.core.inference.tensor import Expected
from gpu_worker.edges.grpc.grpc_channel import SERVICE, STEPS_ARE_SERVED, LinkLost, abort, shown_bearer
from gpu_worker.edges.grpc.grpc_forward import ForwardRpcs
from gpu_worker.edges.grpc.grpc_streams import Place, Streams
from gpu_worker.edges.grpc.proto_codec import decode, encode
from gpu_worker.inference.ports import Steps
from wire.proto import inference_pb2 as pb


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineOptions:
    """
    `address` is what Ping tells: who owns the worker, or where it is. A stream without a message for its first
    `first_s` is ended; while all places for streams are taken, such a one is ended for each that comes.
    """

    streams_max: int = 256
    streams_per_peer: int = 128
    first_s: float = 10.0
    address: str = ""


class PipelineRpcs:
    """
    `seen` is asked anew for every call, so that readiness and layers are today's. `forward` serves ForwardPass and
    ForwardPassStream; without it they are UNIMPLEMENTED. What is handed over is held against the wire's limits here;
    what a batch then means is the use case's (`steps`).
    """

    service = SERVICE

    def __init__(
        self,
        seen: Callable[[], Seen],
        steps: Steps | None,
        forward: ForwardRpcs | None = None,
        options: PipelineOptions = PipelineOptions(),
    ) -> None:
        self._options = options
        self._seen = seen
        self._steps_port = steps
        self._forward = forward
        self.streams = Streams(options.streams_max, options.streams_per_peer, options.first_s)
        self._began = time.monotonic()

    @property
    def width(self) -> int:
        return self._seen().hidden_size

    @property
    def is_ready(self) -> bool:
        return self._seen().is_ready

    def handlers(self) -> dict[str, Any]:
        bytes_of = pb.PingResponse.SerializeToString
        table = {
            "Ping": grpc.unary_unary_rpc_method_handler(self._ping, pb.Empty.FromString, bytes_of),
            "GetLayerInfo": grpc.unary_unary_rpc_method_handler(
                self._layer_info, pb.Empty.FromString, pb.LayerInfoResponse.SerializeToString
            ),
        }
        if self._steps_port is not None:
            table["Steps"] = grpc.stream_stream_rpc_method_handler(self._steps)
        if self._forward is not None:
            table |= self._forward.handlers()
        return table

    async def _ping(self, _request: Any, _context: Any) -> Any:
        seen = self._seen()
        return pb.PingResponse(
            agent_address=self._options.address or seen.endpoint,
            model_name=seen.model,
            layer_start=seen.layers.start,
            layer_end=seen.layers.end,
            is_ready=seen.is_ready,
            uptime_seconds=int(time.monotonic() - self._began),
        )

    async def _layer_info(self, _request: Any, _context: Any) -> Any:
        seen = self._seen()
        return pb.LayerInfoResponse(
            model_name=seen.model,
            layer_start=seen.layers.start,
            layer_end=seen.layers.end,
            total_layers=seen.layers.total,
            device=seen.device,
            is_ready=seen.is_ready,
            model_hash=seen.model_hash,
            next_node_endpoint=seen.next,
            http_endpoint=seen.http_url,
            dtype=seen.dtype,
            back_end=seen.back_end,
            hidden_size=seen.hidden_size,
            wire_dtypes=seen.wire_dtypes,
            has_steps=self._steps_port is not None,
        )

    async def _steps(self, _requests: Any, context: Any) -> None:
        steps, peer = self._steps_port, StreamPeer(context)
        assert steps is not None
        try:
            steps.begin(peer.send, shown_bearer(context))
            try:
                place = self.streams.enter(context.peer())
                try:
                    await self._receive_all(context, peer, steps, place)
                finally:
                    self.streams.leave(place)
            finally:
                peer.ended = True
                steps.ended(peer.send)
        except InferenceError as error:
            await abort(context, error)
        except Unavailable:
            return  # who would hear of it is gone

    async def _receive_all(self, context: Any, peer: "StreamPeer", steps: Steps, place: Place) -> None:
        try:
            async with place.first:
                # The other side waits for this: the stream stands.
                await context.send_initial_metadata((STEPS_ARE_SERVED,))
                data = await context.read()
        except TimeoutError:
            if place.is_given_up:
                raise InferenceError("no_capacity", "nothing was sent, and another stream needs the place") from None
            raise InferenceError("deadline", f"nothing was sent for {self._options.first_s:g} s") from None
        while not peer.ended and data is not grpc.aio.EOF:
            batch, refusals = decode(data, self._expected())
            if refusals:
                word = Batch(pipeline=batch.pipeline, epoch=batch.epoch, number=batch.number, refusals=refusals)
                await peer.send(word)
            place.is_proven = True
            await steps.receive(batch, peer.send)
            data = await context.read()

    def _expected(self) -> Expected | None:
        seen = self._seen()
        return Expected(seen.hidden_size, seen.wire_dtypes) if seen.hidden_size else None


class StreamPeer:
    """The other end of a stream that was opened to this stage."""

    def __init__(self, context: Any) -> None:
        self._context = context
        # Of a call that is over gRPC does not tell it: it crashes, and the process with it.
        self._name = context.peer()
        self._writing = asyncio.Lock()
        self.ended = False

    async def send(self, batch: Batch) -> None:
        data = encode(batch)
        async with self._writing:
            if self.ended:
                raise LinkLost("lost_stage", f"{self._name}: the stream has ended")
            try:
                await self._context.write(data)
            except asyncio.CancelledError:
                self.ended = True  # what is half written stands in the way of the next
                raise
            except Exception as error:  # gRPC's own, of several kinds, all of them the end of this stream
                raise LinkLost("lost_stage", f"{self._name}: {error}") from None
