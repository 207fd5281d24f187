"""A bad network between stages of a real model, each a process behind a proxy: the same tokens, or a named error."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.inference.head.head import Head
from gpu_worker.inference.ports import Engine, TokenRequest
from tests.fixtures.fault_proxy import FaultProxy, Faults, proxy_to
from tests.fixtures.stages import Slice, StageProcess, free_endpoint, head_of, tell, until
from tests.fixtures.tiny_families import TinyFamilies

pytestmark = pytest.mark.slow

COUNT = 24
PROMPTS = {"greedy": tuple(range(2, 12)), "drawn": tuple(range(5, 205))}
WAYS = {
    "greedy": Sampling(temperature=0.0, frequency_penalty=1.0),
    "drawn": Sampling(temperature=1.0, top_p=0.95, repetition_penalty=1.2, seed=7),
}
# What a stage was not told to forget is known to it under that name for minutes.
NAMES = itertools.count()
# Two replicas of each slice; those of one process are of different slices.
SLICES = (("2:4", "4:5"), ("4:5", "2:4"))


class Ports(NamedTuple):
    folder: Path
    topology: Path
    doors: dict[str, tuple[str, str]]


@pytest.fixture(scope="module")
def ports(tiny_families: TinyFamilies, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    folder, place = tiny_families.folder("llama"), tmp_path_factory.mktemp("faults")
    doors = {layers: (free_endpoint(), free_endpoint()) for layers in SLICES[0]}
    topology = tell(place / "who.json", [(each, layers) for layers, some in doors.items() for each in some])
    processes = [
        StageProcess(*(Slice(str(folder), layers, doors[layers][at], str(topology)) for layers in some))
        for at, some in enumerate(SLICES)
    ]
    try:
        for each in processes:
            each.start()
        for each in processes:
            each.wait()
        yield Ports(folder, topology, doors)
    finally:
        for each in processes:
            each.stop()


@dataclass
class Net:
    """`proxies` by the endpoint at which their stages are known."""

    head: Head
    engine: Engine
    proxies: dict[str, FaultProxy]

    def at(self, place: int) -> FaultProxy:
        """Return the proxy before a stage of the route."""
        return self.proxies[self.head.hops[place].endpoint]

    def slow(self, faults: Faults) -> None:
        for proxy in self.proxies.values():
            proxy.faults = faults

    async def tell(
        self, how: str, act: Callable[[], None] | None = None, *, at: int = 8, session: str = ""
    ) -> list[int]:
        """Return the tokens of a session; `act` is called as soon as `at` of them are there."""
        session = session or f"session-{next(NAMES)}"
        request = TokenRequest(session=session, prompt=PROMPTS[how], tokens_max=COUNT, sampling=WAYS[how])
        told: list[int] = []
        async for sampled in await self.head.start(request):
            told.append(sampled.token)
            if len(told) == at and act is not None:
                act()
        return told


@asynccontextmanager
async def net_of(ports: Ports) -> AsyncIterator[Net]:
    async with AsyncExitStack() as stack:
        proxies, known = {}, []
        for layers, doors in ports.doors.items():
            for door in doors:
                proxy = await stack.enter_async_context(proxy_to(door))
                proxies[proxy.endpoint] = proxy
                known.append((proxy.endpoint, layers))
        topology = tell(ports.topology, known)
        head, engine = await stack.enter_async_context(head_of(ports.folder, "0:2", topology, free_endpoint()))
        yield Net(head, engine, proxies)


@pytest.fixture
async def net(ports: Ports) -> AsyncIterator[Net]:
    async with net_of(ports) as net:
        yield net


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param(Faults(delay_s=0.02), id="delay"),
        pytest.param(Faults(delay_s=0.005, jitter_s=0.03), id="jitter"),
        pytest.param(Faults(bytes_per_s=60_000), id="throttle"),
    ],
)
async def test_a_slow_network_costs_time_and_no_token(net: Net, faults: Faults) -> None:
    undisturbed = [await net.tell(how) for how in WAYS]
    net.slow(faults)
    told = await asyncio.gather(*(net.tell(how) for how in WAYS))

    assert told == undisturbed
    assert net.head.stats.failed == 0


async def test_a_head_that_goes_is_forgotten_also_over_a_slow_network(ports: Ports) -> None:
    for _ in range(2):
        # To the second head the name would be refused: it would be another one's.
        async with net_of(ports) as net:
            told = await net.tell("greedy", lambda: net.slow(Faults(delay_s=0.1)), at=COUNT, session="same")
            await until(lambda: net.engine.cache.sessions == 0)
            # It is forgotten here, and the others are about to hear of it.
            assert len(told) == COUNT


@pytest.mark.row(52)
@pytest.mark.parametrize("place", [1, 2], ids=["middle", "last"])
@pytest.mark.parametrize("fault", ["freeze", "cut"])
async def test_a_connection_that_is_half_open_or_reset_loses_no_token(net: Net, fault: str, place: int) -> None:
    undisturbed = [await net.tell(how) for how in WAYS]
    victim = net.at(place)
    told = await asyncio.gather(net.tell("greedy", getattr(victim, fault)), net.tell("drawn"))

    assert told == undisturbed
    assert net.head.stats.failovers >= 1
    assert net.head.stats.failed == 0


# The rows of a step of one session: shape [1, 64], then 256 bytes; the fourth has the exponent of the first number.
ROWS = b"float32\x12\x02\x01\x40\x1a\x80\x02"


@pytest.mark.row(49)
@pytest.mark.parametrize("place", [1, 2], ids=["middle", "last"])
async def test_a_flipped_bit_in_rows_is_seen_and_the_step_is_made_again(net: Net, place: int) -> None:
    undisturbed = await net.tell("greedy")
    victim = net.at(place)
    told = await net.tell("greedy", lambda: victim.spoil(ROWS, 3))

    assert victim.spoiled == 1
    assert told == undisturbed
    assert net.head.stats.failovers == 1


@pytest.mark.row(49)
async def test_a_flipped_bit_in_a_token_is_seen_and_it_is_asked_for_again(net: Net) -> None:
    undisturbed = await net.tell("greedy")
    victim, position = net.at(2), len(PROMPTS["greedy"]) + 12
    # A token's session, epoch and position; what follows them is the token.
    mark = b"the-session\x10\x01\x18" + bytes([position]) + b"\x20"
    told = await net.tell("greedy", lambda: victim.spoil(mark), session="the-session")

    assert victim.spoiled == 1
    assert told == undisturbed
    assert net.head.stats.failovers == 1
