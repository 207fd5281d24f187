"""
A link to a stage that lacks `Steps`: the same port over ForwardPass, one call for each run.

Such a stage answers its caller, so it can be the next one behind the head, alone or with others of its kind that it
chains to. What a session's tokens are drawn with stands in every call; `Told` keeps it, for all links of a process.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc.aio

from gpu_worker.core.inference.batch import Batch, Route
from gpu_worker.core.inference.codes import CODES, InferenceError
from gpu_worker.core.inference.sampling import Sampled, Sampling
from gpu_worker.core.inference.step import Open, Refusal, Run, Tensor
from gpu_worker.core.inference.tensor import cut
from gpu_worker.edges.grpc.grpc_channel import LinkLost, bearer_of, lost
from gpu_worker.edges.grpc.proto_params import params_of
from gpu_worker.inference.ports import Link
from wire.proto import inference_pb2 as pb

CALL_S = 60.0
IN_FLIGHT_MAX = 64
# What such a stage knows of numbers.
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(slots=True)
class _Session:
    positions: int
    session_pass: str = ""
    sampling: Sampling | None = None
    history: list[int] = field(default_factory=list)
    # Calls of one session follow each other.
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Told:
    """What the sessions of this process were opened with. The head opens them on the link to the last stage."""

    def __init__(self) -> None:
        self._sessions: dict[str, _Session] = {}

    def open(self, each: Open) -> None:
        known = self._sessions.setdefault(each.session, _Session(each.positions))
        known.positions = each.positions
        known.session_pass = each.session_pass or known.session_pass
        if each.sampling is not None:
            known.sampling, known.history = each.sampling, list(each.history)

    def close(self, session: str) -> None:
        self._sessions.pop(session, None)

    def of(self, session: str) -> _Session | None:
        return self._sessions.get(session)


class UnaryLink:
    def __init__(self, endpoint: str, channel: Any, stub: Any, told: Told, registry: set[Link]) -> None:
        self._endpoint = endpoint
        self._channel = channel
        self._stub = stub
        self._told = told
        self._registry = registry
        self._routes: dict[str, Route] = {}
        self._answers: asyncio.Queue[Batch | LinkLost | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._calls: set[asyncio.Task[None]] = set()
        self._broken: LinkLost | None = None

    @property
    def endpoint(self) -> str:
        return self._endpoint

    async def send(self, batch: Batch) -> None:
        if self._broken is not None:
            raise self._broken
        if batch.route is not None:
            self._routes[batch.pipeline] = batch.route
        for session in batch.closes:
            self._told.close(session)
        for each in batch.opens:
            self._told.open(each)
        opened = tuple(each.session for each in batch.opens if each.sampling is not None)
        if opened:
            await self._answer(batch, opened=opened)
        first = 0
        for run in batch.runs:
            assert batch.hidden is not None
            rows, first = cut(batch.hidden, first, run.count), first + run.count
            await self._room.acquire()
            task = asyncio.create_task(self._call(batch, run, rows))
            self._calls.add(task)
            task.add_done_callback(self._called)

    def _called(self, task: "asyncio.Task[None]") -> None:
        self._calls.discard(task)
        self._room.release()

    async def _call(self, batch: Batch, run: Run, rows: Tensor) -> None:
        try:
            session = self._told.of(run.session)
            if session is None:
                raise InferenceError("unknown_session", f"{run.session} is not open on the link to {self._endpoint}")
            async with session.turn:
                token = await self._forward(batch, run, rows, session)
            if token is not None:
                await self._answer(batch, tokens=(token,))
        except InferenceError as error:
            refusal = Refusal(session=run.session, epoch=run.epoch, code=error.code, detail=str(error))
            await self._answer(batch, refusals=(refusal,))
        except LinkLost as error:
            self._break(error)

    async def _forward(self, batch: Batch, run: Run, rows: Tensor, session: _Session) -> Sampled | None:
        request = self._request(batch, run, rows, session)
        metadata = bearer_of(session.session_pass)
        try:
            response = await self._stub.ForwardPass(request, timeout=CALL_S, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            fault = lost(self._endpoint, error)
            # A stage that cannot be reached is lost with all its sessions; any other word is about this one.
            if fault.code in {"lost_stage", "deadline"}:
                raise fault from None
            raise InferenceError(fault.code, str(fault)) from None
        if not response.success:
            raise InferenceError(response.code if response.code in CODES else "internal", response.error[:1024])
        if not run.samples or run.fills:
            return None
        if response.hidden_states:
            raise InferenceError("no_route", f"{self._endpoint} has no Steps and does not chain to the next stage")
        del session.history[run.end :]
        session.history.append(response.next_token_id)
        return Sampled(
            session=run.session,
            epoch=run.epoch,
            position=run.end,
            token=response.next_token_id,
            is_eos=response.is_eos,
        )

    def _request(self, batch: Batch, run: Run, rows: Tensor, session: _Session) -> Any:
        route = self._routes.get(batch.pipeline)
        if session.sampling is None:
            raise InferenceError(
                "no_route",
                f"{self._endpoint} has no Steps and can only stand behind the head, which knows the sampling",
            )
        if rows.dtype not in DTYPES:
            raise InferenceError("invalid_tensor", f"{self._endpoint} has no Steps and takes no {rows.dtype}")
        after = route.hops[route.index + 1 :] if route is not None and not run.fills else ()
        return pb.ForwardRequest(
            request_id=run.session,
            hidden_states=bytes(rows.data),
            shape=rows.shape,
            dtype=rows.dtype,
            params=params_of(session.sampling, max(1, session.positions - run.end)),
            metadata=pb.PipelineMetadata(
                total_nodes=len(route.hops) if route else 0,
                node_index=route.index if route else 0,
                is_last=not after,
                next_node_endpoint=after[0].endpoint if after else "",
            ),
            past_token_ids=session.history[: run.end] if session.sampling.needs_history else (),
            position=run.position,
        )

    async def _answer(self, batch: Batch, **what: Any) -> None:
        answer = Batch(pipeline=batch.pipeline, epoch=batch.epoch, number=batch.number, group=batch.group, **what)
        await self._answers.put(answer)

    def _break(self, fault: LinkLost) -> None:
        self._broken = self._broken or fault
        self._answers.put_nowait(self._broken)

    async def batches(self) -> AsyncIterator[Batch]:
        while (answer := await self._answers.get()) is not None:
            if isinstance(answer, LinkLost):
                raise answer
            yield answer

    async def close(self) -> None:
        """Idempotent. Calls that run are ended."""
        self._registry.discard(self)
        self._broken = LinkLost("lost_stage", f"{self._endpoint}: the link was closed")
        for task in tuple(self._calls):
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        self._answers.put_nowait(None)
        await self._channel.close()
