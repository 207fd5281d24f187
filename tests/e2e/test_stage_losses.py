"""Losses that come at the worst moment, in real processes: each stream is the undisturbed one, and nothing is left."""

import asyncio
import itertools
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gpu_worker.core.inference.batch import Batch
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.core.inference.seen import Seen
from gpu_worker.core.inference.tensor import HIDDEN
from gpu_worker.edges.grpc.grpc_door import DoorOptions, GrpcDoor
from gpu_worker.edges.grpc.grpc_pipeline import PipelineRpcs
from gpu_worker.inference.head.head import Head
from gpu_worker.inference.ports import Engine, TokenRequest
from tests.fixtures.grpc_servers import open_door
from tests.fixtures.server import WAIT_S
from tests.fixtures.stages import MODEL_HASH, Slice, StageProcess, free_endpoint, head_of, tell, until
from tests.fixtures.tiny_families import LAYERS, TinyFamilies

pytestmark = pytest.mark.slow

OWN, BEHIND = "0:2", f"2:{LAYERS}"
COUNT = 24
SHORT, LONG = tuple(range(2, 12)), tuple(range(5, 205))
WAYS = {
    "greedy": Sampling(temperature=0.0, frequency_penalty=1.0),
    "drawn": Sampling(temperature=1.0, top_p=0.95, repetition_penalty=1.2, seed=7),
}
NAMES = itertools.count()
# Bytes of a cache that has room for one of the sessions here, but not for two.
SMALL_CACHE = 180 * 1024


@dataclass
class Street:
    """`stages` are replicas by their endpoint; `small` is one more of the first process, with little room."""

    folder: Path
    topology: Path
    stages: dict[str, StageProcess]
    small: str

    def known(self, *endpoints: str) -> None:
        tell(self.topology, [(each, BEHIND) for each in endpoints])


@pytest.fixture(scope="module")
def street(tiny_families: TinyFamilies, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    folder = tiny_families.folder("llama")
    topology = tmp_path_factory.mktemp("losses") / "who.json"
    where, small = sorted(free_endpoint() for _ in range(3)), free_endpoint()
    street = Street(folder, topology, {}, small)
    street.known(*where)
    for each in where:
        slices = [Slice(str(folder), BEHIND, each, str(topology))]
        if each == where[0]:
            slices.append(Slice(str(folder), BEHIND, small, str(topology), cache_bytes=SMALL_CACHE))
        street.stages[each] = StageProcess(*slices)
    try:
        for process in street.stages.values():
            process.start()
        for process in street.stages.values():
            process.wait()
        yield street
    finally:
        for process in street.stages.values():
            process.stop()


@dataclass
class Here:
    street: Street
    head: Head
    engine: Engine
    hurt: list[StageProcess] = field(default_factory=list)

    async def ask(self, prompt: tuple[int, ...], how: str, count: int = COUNT) -> Any:
        name = f"session-{next(NAMES)}"
        return await self.head.start(TokenRequest(session=name, prompt=prompt, tokens_max=count, sampling=WAYS[how]))

    async def tell(self, prompt: tuple[int, ...], how: str, count: int = COUNT) -> list[int]:
        return [each.token async for each in await self.ask(prompt, how, count)]

    async def tell_both(self) -> list[list[int]]:
        return await asyncio.gather(self.tell(SHORT, "greedy"), self.tell(LONG, "drawn"))

    @property
    def used(self) -> str:
        """The stage of the route, empty while there is no route."""
        return self.head.hops[1].endpoint if self.head.hops else ""

    def freeze(self) -> str:
        """Freeze the stage of the route; return its endpoint."""
        where = self.used
        self.hurt.append(self.street.stages[where])
        self.hurt[-1].send(signal.SIGSTOP)
        return where


@pytest.fixture
async def here(street: Street) -> AsyncIterator[Here]:
    for process in street.stages.values():
        await asyncio.to_thread(process.revive)
    street.known(*street.stages)
    async with head_of(street.folder, OWN, street.topology, free_endpoint(), chunk_rows=16, route_s=WAIT_S) as (
        head,
        engine,
    ):
        here = Here(street, head, engine)
        try:
            yield here
        finally:
            for process in here.hurt:
                process.send(signal.SIGCONT)


@pytest.mark.row(52)
@pytest.mark.parametrize("moment", ["in the prompt", "at a token"])
async def test_two_losses_in_a_row_the_second_of_the_replica_just_chosen(here: Here, moment: str) -> None:
    undisturbed = await here.tell_both()
    rows, tokens = here.head.stats.rows, here.head.stats.tokens
    streams = asyncio.gather(here.tell(SHORT, "greedy"), here.tell(LONG, "drawn"))
    if moment == "in the prompt":
        await until(lambda: here.head.stats.rows >= rows + 60)
    else:
        await until(lambda: here.head.stats.tokens >= tokens + 20)
    first = here.freeze()
    # It has just been chosen: what it is filled with is under way.
    await until(lambda: here.used not in ("", first))
    second = here.freeze()

    assert await streams == undisturbed
    assert here.used not in (first, second)
    assert here.head.stats.failovers == 2


async def test_a_cancel_in_the_midst_of_recovery_is_a_cancel(here: Here) -> None:
    undisturbed = await here.tell(LONG, "drawn")
    cancelled = await here.ask(SHORT, "greedy", 200)
    other = asyncio.create_task(here.tell(LONG, "drawn"))
    tokens = here.head.stats.tokens
    await until(lambda: here.head.stats.tokens >= tokens + 10)
    here.freeze()
    await cancelled.cancel()

    assert await other == undisturbed
    assert here.head.stats.cancelled == 1
    await until(lambda: here.engine.cache.sessions == 0)


async def test_sessions_over_the_room_of_a_cache_wait_for_it(here: Here) -> None:
    undisturbed = [await here.tell(LONG, "drawn", 8), await here.tell(SHORT, "greedy")]
    here.street.known(here.street.small)
    await until(lambda: here.used == here.street.small)
    asked = [here.tell(LONG, "drawn", 8), here.tell(SHORT, "greedy")]
    more = [here.tell(LONG, "drawn", 8) for _ in range(3)]
    told = await asyncio.gather(*asked, *more)

    assert told == [*undisturbed, *undisturbed[:1] * 3]
    assert here.head.stats.failed == 0


class Silent:
    """A stage that takes everything and does nothing."""

    def begin(self, reply: Callable[[Batch], Awaitable[None]], session_pass: str) -> None:
        return

    async def receive(self, batch: Batch, reply: Callable[[Batch], Awaitable[None]]) -> None:
        return

    def ended(self, reply: Callable[[Batch], Awaitable[None]]) -> None:
        return


async def test_a_stage_that_says_that_it_is_ready_and_never_steps_is_left(here: Here) -> None:
    undisturbed = await here.tell(SHORT, "greedy")
    where = free_endpoint()
    seen = Seen(
        endpoint=where,
        layers=Layers(2, LAYERS, LAYERS),
        model="tiny",
        model_hash=MODEL_HASH,
        is_ready=True,
        next="",
        http_url="",
        dtype="float32",
        hidden_size=64,
        wire_dtypes=HIDDEN,
    )
    async with open_door(
        GrpcDoor(DoorOptions(port=int(where.rpartition(":")[2])), [PipelineRpcs(lambda: seen, Silent())])
    ):
        here.street.known(where)
        await until(lambda: here.used == where)
        stream = asyncio.create_task(here.tell(SHORT, "greedy"))
        await until(lambda: here.head.status().stats.running)
        here.street.known(where, *here.street.stages)

        assert await stream == undisturbed
        assert here.used != where


@pytest.mark.row(52)
async def test_all_replicas_are_killed_one_after_the_other_and_one_comes_back_that_knows_nothing(here: Here) -> None:
    undisturbed = await here.tell_both()
    tokens, killed = here.head.stats.tokens, []
    streams = asyncio.gather(here.tell(SHORT, "greedy"), here.tell(LONG, "drawn"))
    for number in range(3):
        await until(lambda: here.head.stats.tokens >= tokens + 6 * (number + 1))  # noqa: B023
        await until(lambda: here.used not in ("", *killed))
        killed.append(here.used)
        here.street.stages[killed[-1]].send(signal.SIGKILL)
    await until(lambda: not here.head.hops)
    back = here.street.stages[killed[0]]
    await asyncio.to_thread(back.revive)

    assert await streams == undisturbed
    assert here.used == killed[0]
    stats = here.head.stats
    assert (stats.failed, stats.failovers) == (0, 3)
