"""gRPC doors over toy slices, for the tests of the transport: real servers on free ports, a model of hashes behind."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from gpu_worker.core.inference.batch import Batch, Hop, Route
from gpu_worker.core.inference.sampling import Sampled, Sampling
from gpu_worker.core.inference.seen import Seen
from gpu_worker.core.inference.step import Done, Open, Run, Step, Tensor
from gpu_worker.edges.grpc.grpc_channel import CODE_KEY
from gpu_worker.edges.grpc.grpc_door import DoorOptions, GrpcDoor
from gpu_worker.edges.grpc.grpc_forward import ForwardRpcs, GrpcOnward
from gpu_worker.edges.grpc.grpc_pipeline import PipelineOptions, PipelineRpcs
from gpu_worker.edges.grpc.links_grpc import GrpcLinks
from gpu_worker.inference.ports import Link
from gpu_worker.inference.stage.forward import ForwardService
from gpu_worker.inference.stage.service import StageService
from gpu_worker.inference.text.admission import Admission
from tests.fixtures.toy_pipeline import MODEL, MODEL_HASH, ToyEngine, whole

GREEDY = Sampling(temperature=0.0)
_PROMPT = (3, 1, 4, 1, 5)
HEAD = Hop(endpoint="127.0.0.1:1", start=0, end=2)


class Known:
    """A registry of a list."""

    def __init__(self) -> None:
        self.hops: list[Hop] = []
        self.sign: Callable[[str, Sequence[tuple[int, int]]], str] = lambda session, layers: ""

    async def stages(self) -> Sequence[Hop]:
        return self.hops

    def session_pass(self, session: str, layers: Sequence[tuple[int, int]]) -> str:
        return self.sign(session, layers)


class ByteText:
    """A tokenizer: a token is a letter of the alphabet, 0 the end."""

    eos = (0,)
    token_chars_max = 1

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(ord(letter) for letter in text)

    def stream(self) -> "ByteText":
        return self

    def push(self, token: int) -> str:
        return chr(97 + token % 26)

    def end(self) -> str:
        return ""


class CountedEngine(ToyEngine):
    """`entered` is released by every step that is asked for, also by those that must wait."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__(start, end)
        self.entered = asyncio.Semaphore(0)

    async def step(self, step: Step) -> Done:
        self.entered.release()
        return await super().step(step)


def no_speaker() -> Any:
    raise AssertionError("only a head is asked for text")


class Stage:
    """A toy slice behind a door. `has_steps` False: an older one, with the four RPCs alone."""

    def __init__(
        self, start: int, end: int, *, known: Known | None = None, has_steps: bool = True, **more: Any
    ) -> None:
        self.engine = CountedEngine(start, end)
        self.known = known or Known()
        self.links, self.onward = GrpcLinks(more.get("tls")), GrpcOnward(more.get("tls"))
        self.forward = ForwardService(engine=self.engine, registry=self.known, onward=self.onward, text=ByteText())
        self.is_ready = True
        self._has_steps, self._passes = has_steps, more.pop("passes", None)
        self._speaker = more.pop("speaker", no_speaker)
        self._admission = Admission(secret=more.pop("secret", ""), is_priced=more.pop("is_priced", False))
        self._options = more

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.door.port}"

    @property
    def hop(self) -> Hop:
        layers = self.engine.info.layers
        return Hop(endpoint=self.endpoint, start=layers.start, end=layers.end)

    def seen(self) -> Seen:
        return Seen(
            endpoint=self.endpoint,
            layers=self.engine.info.layers,
            model=MODEL,
            model_hash=MODEL_HASH,
            is_ready=self.is_ready,
            next="127.0.0.1:2",
            http_url="http://127.0.0.1:3",
            dtype="float32",
            hidden_size=self.engine.info.hidden_size,
        )

    async def start(self, port: int = 0) -> "Stage":
        self.steps = StageService(
            engine=self.engine, links=self.links, registry=self.known, endpoint="", passes=self._passes
        )
        rpcs = ForwardRpcs(
            lambda: self.engine.info, lambda: self.hop, self.forward, self._passes, self._speaker, self._admission
        )
        of_pipeline = {key: value for key, value in self._options.items() if hasattr(PipelineOptions, key)}
        of_door = {key: value for key, value in self._options.items() if key not in of_pipeline}
        steps = self.steps if self._has_steps else None
        self.pipeline = PipelineRpcs(self.seen, steps, rpcs, PipelineOptions(**of_pipeline))
        self.door = GrpcDoor(DoorOptions(port=port, **of_door), [self.pipeline])
        await self.door.start()
        self.known.hops.append(self.hop)
        return self

    async def close(self) -> None:
        await self.door.stop(0)
        await self.steps.close()
        await self.links.close()
        await self.onward.close()


@asynccontextmanager
async def stages(*made: Stage) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for stage in made:
            stack.push_async_callback(stage.close)
            await stage.start()
        yield


class ToyHead:
    """The first slice and the words of a head, with the link to the second and last stage; one `pipeline` of it."""

    def __init__(self, link: Link, endpoint: str, pipeline: str = "p") -> None:
        self.engine = ToyEngine(0, 2)
        self.link, self.batches = link, link.batches()
        self.route = Route(
            pipeline=pipeline, epoch=1, hops=(HEAD, Hop(endpoint=endpoint, start=2, end=4)), index=1, answers=True
        )
        self._number = 0

    async def open(self, session: str, prompt: Sequence[int], sampling: Sampling = GREEDY) -> None:
        opened = Open(session=session, epoch=1, positions=100)
        await self.engine.step(Step(opens=(opened,)))
        await self.send(opens=(last_open(session, prompt, sampling),), route=self.route)
        await self.until(lambda batch: session in batch.opened)

    async def send(self, **what: Any) -> None:
        self._number += 1
        await self.link.send(Batch(pipeline=self.route.pipeline, epoch=1, number=self._number, **what))

    async def rows(self, run: Run, tokens: Sequence[int]) -> Tensor:
        done = await self.engine.step(Step(runs=(run,), rows=tuple(tokens)))
        assert done.hidden is not None
        return done.hidden

    async def until(self, is_it) -> Batch:
        """Return the next batch for which it is; what comes before is passed over."""
        async for batch in self.batches:
            if is_it(batch):
                return batch
        raise AssertionError("the link has ended")

    async def token(self, session: str, position: int, tokens: Sequence[int]) -> Sampled:
        """Return the token behind `tokens`, which begin at `position`."""
        run = Run(session=session, epoch=1, position=position, count=len(tokens), samples=True)
        await self.send(runs=(run,), hidden=await self.rows(run, tokens))
        batch = await self.until(
            lambda batch: any(each.session == session for each in (*batch.tokens, *batch.refusals))
        )
        assert not batch.refusals, batch.refusals
        return batch.tokens[0]

    async def generate(self, session: str, prompt: Sequence[int], count: int, sampling: Sampling = GREEDY) -> list[int]:
        await self.open(session, prompt, sampling)
        made = [(await self.token(session, 0, prompt)).token]
        while len(made) < count:
            made.append((await self.token(session, len(prompt) + len(made) - 1, made[-1:])).token)
        return made


def last_open(session: str, prompt: Sequence[int], sampling: Sampling) -> Open:
    history = tuple(prompt) if sampling.needs_history else ()
    return Open(session=session, epoch=1, positions=100, sampling=sampling, history=history, prompt_len=len(history))


def ids_of(tokens: Sequence[int]) -> dict[str, Any]:
    """Return the fields of a ForwardRequest with these tokens as its rows."""
    data = b"".join(token.to_bytes(8, "little", signed=True) for token in tokens)
    return {"hidden_states": data, "shape": [1, len(tokens)], "dtype": "int64"}


async def refused(call: Any) -> tuple[str, str]:
    """Return the status and the code of a call that must be refused."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    error = raised.value
    return error.code().name, dict(error.trailing_metadata()).get(CODE_KEY, "")


async def alive(stage: "Stage") -> None:
    """Return if the stage still serves a head."""
    links = GrpcLinks()
    try:
        head = ToyHead(await links.connect(stage.endpoint), stage.endpoint, "alive")
        assert await head.generate("alive", _PROMPT, 3) == whole(_PROMPT, 3, sampling=GREEDY)
    finally:
        await links.close()


async def main(start: int, end: int, known: Sequence[str]) -> None:
    """Serve a slice as a process until stdin ends; `known` are other stages, as `endpoint=start:end`."""
    registry = Known()
    for each in known:
        endpoint, _, layers = each.partition("=")
        first, _, last = layers.partition(":")
        registry.hops.append(Hop(endpoint=endpoint, start=int(first), end=int(last)))
    async with stages(stage := Stage(start, end, known=registry)):
        print(f"{stage.endpoint}={start}:{end}", flush=True)
        await asyncio.to_thread(sys.stdin.buffer.read)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
