"""
Links to other stages over gRPC.

One stream each, bytes as they are. A stage that lacks `Steps` is served by the four older RPCs (`links_unary.py`).
A link that broke stays broken: who had it finds another way.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.batch import Batch
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.limits import DTYPES_MAX
from gpu_worker.core.inference.seen import Seen
from gpu_worker.edges.grpc.grpc_channel import (
    SERVICE,
    STEPS_ARE_SERVED,
    LinkLost,
    bearer_of,
    lost,
    open_channel,
    stub_of,
)
from gpu_worker.edges.grpc.links_unary import DTYPES as UNARY_DTYPES
from gpu_worker.edges.grpc.links_unary import Told, UnaryLink
from gpu_worker.edges.grpc.proto_codec import decode, encode, known_dtypes
from gpu_worker.edges.grpc.tls import Tls
from gpu_worker.inference.ports import Link
from wire.proto import inference_pb2 as pb

CONNECT_S = 5.0
FAREWELL_S = 0.5


class GrpcLinks:
    """`insecure` lets it speak to other machines without TLS. Rows that come back have `width` numbers, 0: none do."""

    def __init__(
        self, tls: Tls | None = None, *, insecure: bool = False, width: int = 0, connect_s: float = CONNECT_S
    ) -> None:
        self._tls, self._width = tls, width
        self._insecure = insecure
        self._connect_s = connect_s
        self._open: set[Link] = set()
        self._told = Told()

    async def connect(self, endpoint: str, session_pass: str = "") -> Link:
        channel = self._channel(endpoint)
        try:
            async with asyncio.timeout(self._connect_s):
                link = await self._choose(endpoint, channel, session_pass)
        except TimeoutError:
            await channel.close()
            raise LinkLost("lost_stage", f"{endpoint} does not answer within {self._connect_s:g} s") from None
        except BaseException:
            await channel.close()
            raise
        self._open.add(link)
        return link

    async def _choose(self, endpoint: str, channel: Any, session_pass: str) -> Link:
        stub = stub_of(channel)
        try:
            info = await stub.GetLayerInfo(pb.Empty())
        except grpc.aio.AioRpcError as error:
            raise lost(endpoint, error) from None
        if info.has_steps:
            call = channel.stream_stream(f"/{SERVICE}/Steps")(metadata=bearer_of(session_pass))
            # One that refuses says nothing ahead of its status, which may come a moment later.
            if STEPS_ARE_SERVED in tuple(await call.initial_metadata()):
                return StepsLink(endpoint, channel, call, self._open)
            if await call.code() != grpc.StatusCode.UNIMPLEMENTED:
                raise lost(endpoint, await _error_of(call))
        return UnaryLink(endpoint, channel, stub, self._told, self._open)

    async def describe(self, endpoint: str, timeout_s: float) -> Seen:
        channel = self._channel(endpoint)
        try:
            info = await stub_of(channel).GetLayerInfo(pb.Empty(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise lost(endpoint, error) from None
        finally:
            await channel.close()
        try:
            layers = Layers(info.layer_start, info.layer_end, info.total_layers)
        except OwnersFault as fault:
            raise LinkLost("invalid_argument", f"{endpoint}: {fault}") from None
        return Seen(
            endpoint=endpoint,
            layers=layers,
            model=info.model_name,
            model_hash=info.model_hash,
            is_ready=info.is_ready,
            next=info.next_node_endpoint,
            http_url=info.http_endpoint,
            device=info.device,
            dtype=info.dtype,
            back_end=info.back_end,
            hidden_size=info.hidden_size,
            wire_dtypes=known_dtypes(info.wire_dtypes[:DTYPES_MAX]) if info.has_steps else UNARY_DTYPES,
            has_steps=info.has_steps,
        )

    def _channel(self, endpoint: str) -> Any:
        try:
            return open_channel(endpoint, self._tls, self._insecure, self._width)
        except OwnersFault as fault:
            raise LinkLost("no_route", str(fault)) from None

    async def close(self) -> None:
        await asyncio.gather(*(link.close() for link in tuple(self._open)))


class StepsLink:
    """A `Steps` stream that this side opened."""

    def __init__(self, endpoint: str, channel: Any, call: Any, registry: set[Link]) -> None:
        self._endpoint = endpoint
        self._channel = channel
        self._call = call
        self._registry = registry
        self._writing = asyncio.Lock()
        self._closed = False

    @property
    def endpoint(self) -> str:
        return self._endpoint

    async def send(self, batch: Batch) -> None:
        data = encode(batch)
        async with self._writing:
            try:
                await self._call.write(data)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                raise await self._lost() from None

    async def batches(self) -> AsyncIterator[Batch]:
        while True:
            try:
                data = await self._call.read()
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                task = asyncio.current_task()
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    raise
                if self._closed:
                    return
                raise await self._lost() from None
            if data is grpc.aio.EOF:
                if not self._closed and await self._call.code() != grpc.StatusCode.OK:
                    raise await self._lost()
                return
            try:
                batch, _ = decode(data, None)
            except InferenceError as error:
                await self.close()
                raise LinkLost(error.code, f"{self._endpoint}: {error}") from None
            yield batch

    async def _lost(self) -> LinkLost:
        if self._closed:
            return LinkLost("lost_stage", f"{self._endpoint}: the link was closed")
        return lost(self._endpoint, await _error_of(self._call))

    async def close(self) -> None:
        """Idempotent. What was sent before is delivered, where the other side still reads."""
        if self._closed:
            return
        self._closed = True
        self._registry.discard(self)
        try:
            async with asyncio.timeout(FAREWELL_S):
                await asyncio.shield(self._end())
        except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # it does not listen, or is gone already
        self._call.cancel()
        await self._channel.close()

    async def _end(self) -> None:
        async with self._writing:
            await self._call.done_writing()
        await self._call.code()


async def _error_of(call: Any) -> Exception:
    if not call.done():
        return ConnectionError()
    error: Exception = grpc.aio.AioRpcError(
        await call.code(), await call.initial_metadata(), await call.trailing_metadata(), details=await call.details()
    )
    return error
