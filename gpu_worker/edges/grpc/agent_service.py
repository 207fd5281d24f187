"""
The service AgentService of a worker, for the gRPC door: answers of whole models, and what the worker does now.

Its messages are those of the public system that first had it, so that its clients are served.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from gpu_worker.core.hardware import Machine, stats_document
from gpu_worker.core.inference.agent_request import agent_request
from gpu_worker.core.inference.callers import CREDENTIAL_CHARS_MAX, Caller, Refusal, Use
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.edges.grpc.grpc_channel import abort
from gpu_worker.edges.grpc.proto_params import shortest
from gpu_worker.edges.http.admission import grpc_refusal, grpc_visit
from gpu_worker.inference.text.answering import Metered, begin
from gpu_worker.inference.text.engine import EngineLoad
from gpu_worker.inference.text.service import Service
from wire.proto import titancompute_pb2 as pb

AGENT_SERVICE = "titancompute.v1.AgentService"
# How long what the machine has free is believed: who asks often does not make the driver work for it.
LOOK_S = 1.0
# How long a client may leave a message unread, once what lies between is full: its slot is another's then.
TAKEN_S = 60.0
_INT32_MAX = 2**31 - 1
_SAID = "the server failed; its log says why"

_LOG = logging.getLogger("livery.gpu_worker.agent")


class AgentRpcs:
    """
    Serves `service` as the agent `agent_id`. `machine` reads what the machine has free.

    Who takes nothing of its answer for `taken_s` gets no more of it.
    """

    service = AGENT_SERVICE
    width = 0

    def __init__(
        self,
        service: Service,
        agent_id: str,
        machine: Callable[[], Awaitable[Machine]],
        taken_s: float = TAKEN_S,
    ) -> None:
        self._service, self._agent_id, self._machine, self._taken_s = service, agent_id, machine, taken_s
        self._looking = asyncio.Lock()
        self._seen: tuple[float, int, int] | None = None

    @property
    def is_ready(self) -> bool:
        return self._service.is_ready

    def handlers(self) -> dict[str, Any]:
        stream, status = (
            _guarded(self._stream_inference, pb.StreamRequest),
            _guarded(self._get_status, pb.AgentStatusRequest),
        )
        return {
            "StreamInference": grpc.unary_stream_rpc_method_handler(stream, None, pb.StreamResponse.SerializeToString),
            "GetStatus": grpc.unary_unary_rpc_method_handler(status, None, pb.AgentStatusResponse.SerializeToString),
        }

    async def _stream_inference(self, request: Any, context: Any) -> None:
        answer = await self._begin(request, context)
        try:
            said = _Said(answer, request.session_token)
            whole = []
            async for piece in answer.pieces():
                if not piece.text:
                    continue
                if request.stream:
                    await self._write(context, said.part(piece.text))
                else:
                    whole.append(piece.text)
            await self._write(context, said.end("".join(whole)))
        finally:
            await answer.close()

    async def _write(self, context: Any, message: Any) -> None:
        try:
            async with asyncio.timeout(self._taken_s):
                await context.write(message)
        except TimeoutError:
            raise InferenceError("deadline", f"nothing of the answer was taken for {self._taken_s:g} s") from None

    async def _begin(self, request: Any, context: Any) -> Metered:
        if len(request.session_token) > CREDENTIAL_CHARS_MAX:  # it is said again in every message
            why = f"session_token has at most {CREDENTIAL_CHARS_MAX} characters"
            raise InferenceError("invalid_argument", why, "session_token")
        caller = await self._admitted(context, "infer", request.session_token)
        asked = agent_request(
            request.prompt,
            model=request.model,
            max_tokens=request.max_tokens,
            temperature=shortest(request.temperature),
            options=request.options,
        )
        return await begin(self._service, asked, caller)

    async def _admitted(self, context: Any, use: Use, session_token: str = "") -> Caller:
        visit = grpc_visit(context.invocation_metadata() or (), context.peer(), session_token)
        caller = await self._service.admission.admit(visit, use)
        if isinstance(caller, Refusal):
            raise grpc_refusal(caller)
        return caller

    async def _get_status(self, _request: Any, context: Any) -> Any:
        await self._admitted(context, "look")
        service = self._service
        load = EngineLoad() if service.engine is None else service.engine.load()
        vram, ram = await self._free_mb()
        return pb.AgentStatusResponse(
            agent_id=self._agent_id,
            status=_status(service),
            free_vram_mb=vram,
            free_ram_mb=ram,
            active_sessions=max(0, service.turns.running - load.waiting),
            total_requests_processed=sum(service.figures.ended.values()),
            model_loaded=next((card.name for card in service.cards() if card.is_loaded), ""),
            queued_jobs=service.turns.waiting + load.waiting,
            max_jobs=service.turns.slots if service.turns.slots <= _INT32_MAX else 0,
        )

    async def _free_mb(self) -> tuple[int, int]:
        """Return the free memory of all GPUs together, and the free RAM, in MiB."""
        async with self._looking:
            if self._seen is None or time.monotonic() - self._seen[0] > LOOK_S:
                stats = stats_document(await self._machine())
                self._seen = time.monotonic(), stats["free_vram_mb"], stats["free_ram_mb"]
            return self._seen[1:]


class _Said:
    """The messages of one answer."""

    def __init__(self, answer: Metered, session_token: str) -> None:
        self._answer, self._token = answer, session_token
        self._metadata = {"model": answer.model, "session_id": answer.session}

    def part(self, text: str) -> Any:
        return self._message(text)

    def end(self, text: str) -> Any:
        """Return the last message; `text` is what no part told."""
        answer = self._answer
        told = {
            "finish_reason": answer.finish_reason or "stop",
            "prompt_tokens": str(answer.prompt_tokens),
            "completion_tokens": str(answer.tokens),
            "model_hash": answer.model_hash,
            "cost": "" if answer.cost is None else f"{answer.cost:f}",
        }
        self._metadata |= {name: value for name, value in told.items() if value}
        return self._message(text, done=True)

    def _message(self, text: str, *, done: bool = False) -> Any:
        return pb.StreamResponse(
            session_token=self._token,
            content=text,
            token=text,
            done=done,
            created_at=time.time_ns() // 1_000_000,
            metadata=self._metadata,
        )


def _status(service: Service) -> str:
    """Return the public system's word: healthy and degraded are its own."""
    if service.is_draining:
        return "draining"
    if not service.is_ready:
        return "loading"
    return "healthy" if service.is_served else "degraded"


def _guarded(handle: Callable[[Any, Any], Awaitable[Any]], message: Any) -> Callable[[bytes, Any], Awaitable[Any]]:
    """
    Return `handle` of a `message` that comes as bytes.

    Its errors end the call with a status; of those of ours nothing is said but that they are.
    """

    async def guarded(data: bytes, context: Any) -> Any:
        try:
            return await handle(_decoded(message, data), context)
        except InferenceError as error:
            await abort(context, error)
        except grpc.aio.BaseError:
            raise  # the call has ended; nobody hears more
        except Exception as error:
            _LOG.error("unexpected error at %s", AGENT_SERVICE, exc_info=error)
            await abort(context, InferenceError("internal", _SAID))

    return guarded


def _decoded(message: Any, data: bytes) -> Any:
    try:
        return message.FromString(data)
    except DecodeError:
        raise InferenceError("invalid_argument", "these bytes are no message of this RPC") from None
