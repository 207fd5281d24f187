"""Rows go out as int8 or bf16 to a stage that says that it takes them, to any other as the slice has them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gpu_worker.core.inference.batch import Batch, Hop
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.core.inference.seen import Seen
from gpu_worker.core.inference.tensor import HIDDEN
from gpu_worker.edges.engines.engine_thread import EngineThread, start_engine
from gpu_worker.edges.grpc.grpc_door import DoorOptions, GrpcDoor
from gpu_worker.edges.grpc.grpc_pipeline import PipelineRpcs
from gpu_worker.edges.grpc.links_grpc import GrpcLinks
from gpu_worker.engine.slice.slice_engine import EngineOptions, open_engine
from gpu_worker.inference.head.desk import HeadLimits
from gpu_worker.inference.head.head import Head
from gpu_worker.inference.ports import TokenRequest
from gpu_worker.inference.stage.pipelines import Reply
from gpu_worker.inference.stage.service import StageService
from tests.fixtures.grpc_servers import open_door
from tests.fixtures.stages import until
from tests.fixtures.tiny_families import LAYERS, TinyFamilies
from tests.fixtures.toy_links import ToyRegistry

PROMPT, COUNT = tuple(range(5, 40)), 12
FLOATS = ("float32", "float16", "bfloat16")
ABLE = {"all": HIDDEN, "floats": FLOATS}


class Heard:
    """`Steps` of a stage; `dtypes` are those of the rows that came, `filled` of those that fill a cache."""

    def __init__(self, stage: StageService) -> None:
        self._stage = stage
        self.begin, self.ended = stage.begin, stage.ended
        self.dtypes: set[str] = set()
        self.filled: set[str] = set()

    async def receive(self, batch: Batch, reply: Reply) -> None:
        if batch.hidden is not None:
            (self.filled if all(run.fills for run in batch.runs) else self.dtypes).add(batch.hidden.dtype)
        await self._stage.receive(batch, reply)


class Swarm:
    """Stages of one model behind real doors, and their head."""

    def __init__(self, folder: Path, wire: str, stack: AsyncExitStack) -> None:
        self._folder, self._wire, self._stack = folder, wire, stack
        self.registry = ToyRegistry()
        self.heard: dict[str, Heard] = {}
        self.doors: dict[str, GrpcDoor] = {}

    async def engine(self, layers: str) -> EngineThread:
        options = EngineOptions(cache_bytes_max=1 << 24, back_end="hf", wire_dtype=self._wire, threads=1)
        engine = await start_engine(lambda: open_engine(self._folder, layers, options))
        self._stack.push_async_callback(engine.close)
        return engine

    async def stage(self, name: str, layers: str, takes: Sequence[str]) -> Hop:
        engine, links = await self.engine(layers), GrpcLinks()
        self._stack.push_async_callback(links.close)
        where = f"{name} as yet"
        seen: dict[str, Any] = {
            "layers": engine.info.layers, "model": "tiny", "model_hash": engine.info.model_hash, "is_ready": True,
            "dtype": engine.info.dtype, "hidden_size": engine.info.hidden_size, "wire_dtypes": tuple(takes),
        }  # fmt: skip
        stage = StageService(engine=engine, links=links, registry=self.registry, endpoint=name)
        self._stack.push_async_callback(stage.close)
        self.heard[name] = Heard(stage)
        door = GrpcDoor(DoorOptions(), [PipelineRpcs(lambda: Seen(endpoint=where, **seen), self.heard[name])])
        self.doors[name] = await self._stack.enter_async_context(open_door(door))
        start, end = map(int, layers.split(":"))
        return Hop(endpoint=f"127.0.0.1:{door.port}", start=start, end=end)

    async def head(self, layers: str, hops: Sequence[Hop]) -> Head:
        engine, links = await self.engine(layers), GrpcLinks()
        self._stack.push_async_callback(links.close)
        self.registry.set(hops)
        head = Head(
            engine=engine,
            links=links,
            registry=self.registry,
            endpoint="127.0.0.1:1",
            limits=HeadLimits(retry_s=0.2, unread=2),
        )
        serving = asyncio.create_task(head.serve())
        self._stack.push_async_callback(asyncio.gather, serving)
        self._stack.push_async_callback(head.close)
        await until(lambda: head.hops)
        return head


@asynccontextmanager
async def swarm(tiny_families: TinyFamilies, wire: str) -> AsyncIterator[Swarm]:
    async with AsyncExitStack() as stack:
        yield Swarm(tiny_families.folder("llama"), wire, stack)


async def asked(head: Head) -> Any:
    sampling = Sampling(temperature=0.0, ignore_eos=True)
    return await head.start(TokenRequest(session="s", prompt=PROMPT, tokens_max=COUNT, sampling=sampling))


async def told(head: Head) -> list[int]:
    return [each.token async for each in await asked(head)]


@pytest.fixture(scope="module")
def plain(tiny_families: TinyFamilies) -> list[int]:
    """The tokens where every row goes as it is."""

    async def main() -> list[int]:
        async with swarm(tiny_families, "same") as here:
            return await told(await here.head(f"0:{LAYERS}", ()))

    return asyncio.run(main())


@pytest.mark.row(47)
@pytest.mark.parametrize("wire", ["int8", "bfloat16"])
@pytest.mark.parametrize("last", ABLE)
@pytest.mark.parametrize("middle", ABLE)
async def test_three_stages_of_mixed_ability_get_what_each_takes(
    tiny_families: TinyFamilies, plain: list[int], middle: str, last: str, wire: str
) -> None:
    async with swarm(tiny_families, wire) as here:
        hops = [
            await here.stage("middle", "2:3", ABLE[middle]),
            await here.stage("last", f"3:{LAYERS}", ABLE[last]),
        ]
        head = await here.head("0:2", hops)
        tokens = await told(head)
        expected = {
            name: wire if wire in ABLE[able] else "float32" for name, able in (("middle", middle), ("last", last))
        }
        assert {name: heard.dtypes for name, heard in here.heard.items()} == {
            name: {dtype} for name, dtype in expected.items()
        }
        assert len(tokens) == COUNT
        assert head.stats.failed == head.stats.failovers == 0
        if set(expected.values()) == {"float32"}:
            assert tokens == plain


async def test_who_tells_nothing_of_what_it_takes_gets_the_slices_own(tiny_families: TinyFamilies) -> None:
    """Its door would take no rows at all: what is sent to it is what counts."""
    async with swarm(tiny_families, "int8") as here:
        hop = await here.stage("silent", f"2:{LAYERS}", ())
        head = await here.head("0:2", [hop])
        stream = await asked(head)
        ring = head._parts.ring
        await until(lambda: ring.dtype("s"))
        assert ring.dtype("s") == "float32"
        await stream.cancel()


@pytest.mark.parametrize(
    ("first", "second", "filled"),
    [("all", "floats", set()), ("floats", "all", {"float32"}), ("all", "all", {"int8"})],
)
async def test_a_session_goes_on_over_a_stage_that_takes_other_rows(
    tiny_families: TinyFamilies, first: str, second: str, filled: set[str]
) -> None:
    async with swarm(tiny_families, "int8") as here:
        one = await here.stage("one", f"2:{LAYERS}", ABLE[first])
        head = await here.head("0:2", [one])
        stream, tokens = await asked(head), []
        async for each in stream:
            tokens.append(each.token)
            if len(tokens) == COUNT // 2:
                here.registry.set([one, await here.stage("two", f"2:{LAYERS}", ABLE[second])])
                await here.doors["one"].stop(0)
        assert len(tokens) == COUNT
        assert head.stats.failed == 0
        two = here.heard["two"]
        assert two.filled == filled, "rows that were kept are of use where they are taken, else tokens are sent again"
        assert head.stats.replayed_sessions == (not filled)
        assert two.dtypes == {"int8" if second == "all" else "float32"}
