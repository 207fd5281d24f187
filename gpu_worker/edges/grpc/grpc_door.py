"""
The gRPC door of a stage: the service InferencePipeline, health and reflection, on one server.

What it is handed is held against the wire's limits here; what a batch then means is the use case's (`Steps`).
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from gpu_worker.core.errors import OwnersFault, Unavailable
from gpu_worker.core.inference.batch import Batch
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.seen import Seen
from gpu_worker.core.inference.tensor import Expected
from gpu_worker.edges.grpc.grpc_channel import SERVICE, STEPS_ARE_SERVED, LinkLost, abort, server_options, shown_bearer
from gpu_worker.edges.grpc.grpc_forward import ForwardRpcs
from gpu_worker.edges.grpc.grpc_streams import Place, Streams
from gpu_worker.edges.grpc.proto_codec import decode, encode
from gpu_worker.edges.grpc.tls import Tls, must_be_safe
from gpu_worker.inference.ports import Steps
from wire.proto import inference_pb2 as pb

STOP_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DoorOptions:
    """
    `port` 0 takes a free one. `insecure` allows other machines without TLS. `address` is what Ping tells: who owns the
    worker, or where it is. A stream without a message for its first `first_s` is ended; while all places for streams
    are taken, such a one is ended for each that comes.
    """

    host: str = "127.0.0.1"
    port: int = 0
    tls: Tls | None = None
    insecure: bool = False
    rpcs_max: int = 512
    streams_max: int = 256
    streams_per_peer: int = 128
    first_s: float = 10.0
    address: str = ""


class GrpcDoor:
    """
    `seen` is asked anew for every call, so that readiness and layers are today's. `forward` serves ForwardPass and
    ForwardPassStream; without it they are UNIMPLEMENTED.
    """

    def __init__(
        self,
        options: DoorOptions,
        seen: Callable[[], Seen],
        steps: Steps | None,
        forward: ForwardRpcs | None = None,
    ) -> None:
        must_be_safe(options.host, options.tls, options.insecure)
        self._options = options
        self._seen = seen
        self._steps_port = steps
        self._forward = forward
        self.streams = Streams(options.streams_max, options.streams_per_peer, options.first_s)
        self._began = time.monotonic()
        self._health = health.HealthServicer()
        self._server: Any = None
        self.port = 0

    async def start(self) -> None:
        """Serve. Raises OwnersFault: the port is taken, or the certificate and its key do not fit."""
        options = server_options(self._seen().hidden_size)
        server = grpc.aio.server(options=options, maximum_concurrent_rpcs=self._options.rpcs_max)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        host = f"[{self._options.host}]" if ":" in self._options.host else self._options.host
        address, tls = f"{host}:{self._options.port}", self._options.tls
        try:
            if tls is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, tls.server())
        except RuntimeError:
            raise OwnersFault(
                f"gRPC cannot listen on {address}: the port is taken, or the TLS files are wrong"
            ) from None
        await server.start()
        self._server = server
        await self.tell_health()

    async def tell_health(self) -> None:
        """Answer health checks from now on by what `seen` says."""
        states = health_pb2.HealthCheckResponse
        state = states.SERVING if self._seen().is_ready else states.NOT_SERVING
        for name in ("", SERVICE):
            await self._health.set(name, state)

    async def stop(self, grace_s: float = STOP_S) -> None:
        """Take nothing new, wait `grace_s` for what runs, then end it. Idempotent."""
        if self._server is not None:
            server, self._server = self._server, None
            await self._health.enter_graceful_shutdown()
            await server.stop(grace_s)

    def _handlers(self) -> dict[str, Any]:
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
