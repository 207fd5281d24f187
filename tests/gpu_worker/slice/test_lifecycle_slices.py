"""The life of a worker's slice: loaded, given up for other layers, waited for, broken, left."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from gpu_worker.config import WorkerSettings
from gpu_worker.core.errors import Bug, OwnersFault
from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.core.inference.step import Done, Step
from gpu_worker.core.inference.topology import hole_of
from gpu_worker.inference.head.desk import HeadLimits
from gpu_worker.inference.head.head import Head
from gpu_worker.inference.ports import TokenRequest
from gpu_worker.inference.slice.parts import SliceParts
from gpu_worker.inference.slice.serving import Serving
from gpu_worker.inference.stage.forward import Forward, Forwarded, ForwardService
from gpu_worker.inference.stage.service import StageService
from gpu_worker.inference.text.service import NotHead, Service
from gpu_worker.wiring.place import Address, Assignment, found_model, must_be_closed, served
from tests.fixtures.toy_links import ToyLinks, ToyNet, ToyRegistry
from tests.fixtures.toy_pipeline import MODEL, MODEL_HASH, ROW, ToyEngine, whole
from tests.gpu_worker.world import until

GREEDY = Sampling(temperature=0.0)
PROMPT = (3, 1, 4, 1, 5)


class SeenLinks(ToyLinks):
    """Links on which every worker says of itself what it says over gRPC."""

    async def describe(self, endpoint: str, timeout_s: float) -> Any:
        await self._reach(endpoint, timeout_s)
        return replace(self._net.stages[endpoint].seen(), endpoint=endpoint)


class Breakable(ToyEngine):
    """An engine that breaks with its next step once `why` is set."""

    why: str | None = None

    async def step(self, step: Step) -> Done:
        if self.why is not None:
            raise Bug(self.why)
        return await super().step(step)


class NoOnward:
    """Nobody chains here. `closed` counts how often it was told that it is over."""

    closed = 0

    async def forward(self, endpoint: str, request: Forward) -> Forwarded:
        raise AssertionError(endpoint)

    async def close(self) -> None:
        self.closed += 1


@dataclass
class Place:
    """Workers of a model with four layers, their links in memory. `layers` is what each is to have."""

    net: ToyNet = field(default_factory=ToyNet)
    registry: ToyRegistry = field(default_factory=ToyRegistry)
    layers: dict[str, tuple[int, int]] = field(default_factory=dict)
    workers: dict[str, Serving] = field(default_factory=dict)
    engines: dict[str, list[Breakable]] = field(default_factory=dict)
    onward: NoOnward = field(default_factory=NoOnward)
    # Set: what loads goes on.
    may_load: asyncio.Event = field(default_factory=asyncio.Event)
    keeping: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def start(self, name: str, start: int, end: int) -> Serving:
        self.layers[name] = (start, end)
        serving = self.workers[name] = Serving(self._parts(name), lambda what, done, total: None)
        self.net.listen(name, serving)
        await serving.load()
        self.keeping[name] = asyncio.create_task(serving.keep())
        self.tell()
        return serving

    def tell(self) -> None:
        """Let the registry say who has what."""
        self.registry.set([Hop(endpoint=name, start=at[0], end=at[1]) for name, at in self.layers.items()])

    def _parts(self, name: str) -> SliceParts:
        links = SeenLinks(self.net, name)

        async def load(layers: Layers, tell: Callable[[str, int, int], None]) -> Any:
            tell("loading", 1, 2)
            await self.may_load.wait()
            engine = Breakable(layers.start, layers.end)
            self.engines.setdefault(name, []).append(engine)
            return engine, object()

        return SliceParts(
            model=MODEL,
            model_hash=MODEL_HASH,
            hidden_size=ROW,
            endpoint=lambda: name,
            next="",
            http_url=f"http://{name}",
            registry=self.registry,
            links=links,
            load=load,
            head=lambda engine: Head(
                engine=engine, links=links, registry=self.registry, endpoint=name, limits=HeadLimits(retry_s=0.05)
            ),
            stage=lambda engine: StageService(engine=engine, links=links, registry=self.registry, endpoint=name),
            forward=lambda engine, text: ForwardService(
                engine=engine,
                registry=self.registry,
                onward=self.onward,
            ),
            layers=lambda: Layers(*self.layers[name], 4),
            head_url=lambda: None,
            service=Service(model=MODEL),
            drain_s=5.0,
        )

    async def ask(self, name: str, count: int, session: str = "s") -> list[int]:
        request = TokenRequest(session=session, prompt=PROMPT, tokens_max=count, sampling=GREEDY, deadline_s=10.0)
        return [each.token async for each in await self.workers[name].start(request)]


@asynccontextmanager
async def workers() -> AsyncIterator[Place]:
    place = Place()
    place.may_load.set()
    try:
        yield place
    finally:
        for task in place.keeping.values():
            task.cancel()
        await asyncio.gather(*place.keeping.values(), return_exceptions=True)
        for serving in place.workers.values():
            await serving.close()


async def test_a_worker_with_all_layers_is_ready_and_says_so() -> None:
    async with workers() as place:
        serving = await place.start("one", 0, 4)
        tokens = await place.ask("one", 8)
        told = serving.document()

    assert tokens == whole(PROMPT, 8, sampling=GREEDY)
    assert (told["state"], told["mode"], told["isHead"], told["problem"]) == ("ready", "single", True, None)
    assert told["layers"] == {"start": 0, "end": 4, "total": 4}
    assert told["progress"] == {"done": 1, "total": 2}
    assert serving.document()["state"] == "gone"


@pytest.mark.row(51)
async def test_other_layers_are_loaded_while_streams_wait_and_none_of_them_fails() -> None:
    async with workers() as place:
        await place.start("head", 0, 2)
        await place.start("tail", 2, 4)
        await until(lambda: len(place.workers["head"].status().hops) == 2)
        asking = asyncio.create_task(place.ask("head", 400))
        await until(lambda: place.workers["head"].status().stats.tokens > 5)

        place.may_load.clear()
        place.layers["tail"] = (2, 3)
        place.tell()
        await until(lambda: place.workers["tail"].state == "loading")
        waiting = asyncio.create_task(place.ask("head", 5, "late"))
        place.may_load.set()
        await place.start("more", 3, 4)
        tokens, late = await asking, await waiting

        assert place.workers["tail"].layers == Layers(2, 3, 4)
        assert [hop.endpoint for hop in place.workers["head"].status().hops] == ["head", "tail", "more"]
        assert len(place.engines["tail"]) == 2
    assert tokens == whole(PROMPT, 400, sampling=GREEDY)
    assert late == whole(PROMPT, 5, sampling=GREEDY)


@pytest.mark.row(51)
async def test_a_head_that_loads_other_layers_ends_its_streams_first_and_new_ones_wait() -> None:
    async with workers() as place:
        head = await place.start("head", 0, 4)
        await place.start("tail", 2, 4)
        asking = asyncio.create_task(place.ask("head", 200))
        await until(lambda: head.status().stats.tokens > 5)
        place.may_load.clear()
        place.layers["head"] = (0, 2)
        place.tell()
        await until(lambda: head.state == "loading")
        assert not head.seen().is_ready
        assert await asking == whole(PROMPT, 200, sampling=GREEDY)
        waiting = asyncio.create_task(place.ask("head", 5, "late"))
        await asyncio.sleep(0)
        assert not waiting.done()
        place.may_load.set()
        assert await waiting == whole(PROMPT, 5, sampling=GREEDY)
        assert [hop.endpoint for hop in head.status().hops] == ["head", "tail"]


async def test_a_stage_that_is_not_the_first_answers_no_requests_and_names_its_head() -> None:
    async with workers() as place:
        await place.start("head", 0, 2)
        tail = await place.start("tail", 2, 4)
        await until(lambda: tail.parts.place.head_url() is not None)
        with pytest.raises(NotHead, match="http://head"):
            await place.ask("tail", 1)
        assert tail.document()["head"] == "http://head"


async def test_layers_that_nobody_serves_are_named() -> None:
    async with workers() as place:
        head = await place.start("head", 0, 2)
        await until(lambda: head.document()["problem"] is not None)
        assert head.document()["problem"] == "layers 2 to 4 are served by nobody"
        with pytest.raises(InferenceError, match="no stages cover all 4 layers"):
            await place.ask("head", 1)
        await place.start("tail", 2, 4)
        await until(lambda: head.document()["problem"] is None)


def test_holes_are_found_whatever_the_replicas_are() -> None:
    def hole(own: str, *others: str) -> str | None:
        hops = [
            Hop(endpoint=text, start=each.start, end=each.end) for text in others if (each := Layers.parse(text, 8))
        ]
        return hole_of(hops, Layers.parse(own, 8))

    assert hole("0:4", "4:8", "4:8", "2:6") is None
    assert hole("0:8") is None
    assert hole("0:4", "5:8") == "layers 4 to 5 are served by nobody"
    assert hole("0:2", "2:4", "6:8") == "layers 4 to 6 are served by nobody"
    assert hole("0:2", "1:8") == "layers 2 to 8 are served by nobody"


@pytest.mark.parametrize("name", ["head", "tail"])
async def test_a_broken_engine_ends_the_worker_loudly(name: str) -> None:
    async with workers() as place:
        await place.start("head", 0, 2)
        await place.start("tail", 2, 4)
        await until(lambda: len(place.workers["head"].status().hops) == 2)
        place.engines[name][-1].why = "the device fell off the bus"
        asking = asyncio.create_task(place.ask("head", 5))
        async with asyncio.timeout(10):
            with pytest.raises(Bug, match="the device fell off the bus"):
                await place.keeping[name]
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def test_who_leaves_takes_nothing_new_and_lets_its_streams_end() -> None:
    async with workers() as place:
        head = await place.start("one", 0, 4)
        asking = asyncio.create_task(place.ask("one", 100))
        await until(lambda: head.status().stats.tokens > 2)
        await head.leave()
        assert await asking == whole(PROMPT, 100, sampling=GREEDY)
        assert head.parts.service.is_draining
        assert not head.seen().is_ready
        with pytest.raises(InferenceError) as refused:
            await place.ask("one", 1, "late")
        assert refused.value.code == "draining"


async def test_a_head_that_is_closed_amid_a_stream_leaves_nothing_open_anywhere() -> None:
    async with workers() as place:
        head, tail = await place.start("head", 0, 2), await place.start("tail", 2, 4)
        await until(lambda: len(head.status().hops) == 2)
        asking = asyncio.create_task(place.ask("head", 4_000))
        await until(lambda: head.status().stats.tokens > 5)
        place.keeping["head"].cancel()
        async with asyncio.timeout(2):
            await head.close()
        with pytest.raises(InferenceError, match="this worker is gone"):
            await asking
        with pytest.raises(InferenceError, match="this worker is gone"):
            await place.ask("head", 1, "late")
        assert place.engines["tail"][-1].cache.sessions == 0
        assert [place.engines[name][-1].is_closed for name in ("head", "tail")] == [True, False]
        assert place.onward.closed == 1
        await tail.close()
        assert place.engines["tail"][-1].is_closed
        assert all(wire in place.net.ended for wire in place.net.links)


async def test_a_head_without_a_way_is_closed_at_once() -> None:
    async with workers() as place:
        head = await place.start("head", 0, 2)
        place.keeping["head"].cancel()
        async with asyncio.timeout(2):
            await head.close()


# --- where a slice stands


def settings(tmp_path: Path, **more: Any) -> WorkerSettings:
    return WorkerSettings.model_validate({"data": tmp_path, **more})


def test_which_layers_are_its_own(tmp_path: Path) -> None:
    from gpu_worker.edges.grpc.topology_file import FileTopology

    path = tmp_path / "who.json"
    path.write_text(json.dumps({"model": "tiny", "stages": [{"endpoint": "a:1", "layers": "2:4"}]}))

    def layers(**more: Any) -> Layers:
        told = settings(tmp_path, **more)
        file = FileTopology(path) if told.topology else None
        return Assignment(settings=told, topology=file, total=6, endpoint=Address(told))()

    assert layers() == Layers(0, 6, 6)
    assert layers(layers="4:") == Layers(4, 6, 6)
    assert layers(topology=path, grpc_endpoint="a:1") == Layers(2, 4, 6)
    assert layers(topology=path, layers="0:2") == Layers(0, 2, 6)
    with pytest.raises(OwnersFault, match=r"gives no layers to 127\.0\.0\.1:50051"):
        layers(topology=path)
    with pytest.raises(OwnersFault, match="no slice of a model with 6 layers"):
        layers(layers="4:9")


def test_the_model_is_a_folder_or_one_of_the_folder_of_models(tmp_path: Path) -> None:
    from tests.gpu_worker.world import make_model

    make_model(tmp_path / "models" / "tiny")
    told = settings(tmp_path, layers="0:1")
    by_name, by_path = found_model(told, "tiny"), found_model(told, str(tmp_path / "models" / "tiny"))

    assert by_name == by_path
    with pytest.raises(OwnersFault, match="there is no model other"):
        found_model(told, "other")
    with pytest.raises(OwnersFault, match="which model"):
        served(told)


def test_a_door_that_strangers_could_reach_stays_shut(tmp_path: Path) -> None:
    from gpu_worker.edges.grpc.tls import Tls

    tls, mutual = Tls(b"cert", b"key", None), Tls(b"cert", b"key", b"ca")
    must_be_closed(settings(tmp_path), None, has_passes=False)
    abroad = {"grpc_host": "192.0.2.1"}
    must_be_closed(settings(tmp_path, **abroad), mutual, has_passes=False)
    must_be_closed(settings(tmp_path, **abroad), tls, has_passes=True)
    must_be_closed(settings(tmp_path, **abroad, grpc_insecure=True), tls, has_passes=False)
    with pytest.raises(OwnersFault, match=r"anybody who reaches 192\.0\.2\.1 could compute here"):
        must_be_closed(settings(tmp_path, **abroad), tls, has_passes=False)
    with pytest.raises(OwnersFault, match="--grpc-endpoint"):
        must_be_closed(settings(tmp_path, grpc_host="::"), mutual, has_passes=True)
