"""A real model in slices, in one process: whatever is lost when, each stream is that of the whole model."""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.step import CacheUse, Done, SliceInfo, Step
from gpu_worker.engine.slice.slice_engine import EngineOptions, SliceEngine, open_engine
from tests.fixtures.blows import BLOWS, BORDERS, GREEDY, PENALISED, WISHES, Blow, Wish, disturbed
from tests.fixtures.head_world import LAYERS, World, world
from tests.fixtures.tiny_families import make_model
from tests.fixtures.toy_pipeline import MODEL_HASH
from tests.fixtures.virtual_time import run

FIELDS = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}


class Now:
    """`inference.ports.Engine` of a slice that computes in its caller's thread: time is virtual."""

    def __init__(self, engine: SliceEngine) -> None:
        self._engine = engine
        self._open: set[str] = set()

    @property
    def info(self) -> SliceInfo:
        return self._engine.info

    @property
    def cache(self) -> CacheUse:
        return self._engine.cache

    async def step(self, step: Step) -> Done:
        await asyncio.sleep(0)
        self._open |= {each.session for each in step.opens}
        return self._engine.step(step)

    def forget(self) -> None:
        self._engine.step(Step(closes=tuple(sorted(self._open))))
        self._open.clear()

    async def close(self) -> None:
        return


class Slices:
    """Engines of the model in `folder`; each is loaded once and, once nobody has it, empty again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._free: dict[Hop, list[Now]] = defaultdict(list)
        self._lent: list[tuple[Hop, Now]] = []

    def lend(self, start: int, end: int) -> Now:
        key = Hop(endpoint="", start=start, end=end)
        engine = self._free[key].pop() if self._free[key] else self._load(start, end)
        self._lent.append((key, engine))
        return engine

    def _load(self, start: int, end: int) -> Now:
        options = EngineOptions(cache_bytes_max=1 << 22, model_hash=MODEL_HASH, threads=1)
        return Now(open_engine(self._folder, Layers(start, end, LAYERS), options))

    def take_back(self) -> None:
        for key, engine in self._lent:
            engine.forget()
            assert (engine.cache.sessions, engine.cache.positions) == (0, 0)
            self._free[key].append(engine)
        self._lent.clear()


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Slices:
    folder = tmp_path_factory.mktemp("property") / "tiny"
    make_model(folder, "llama", FIELDS)
    return Slices(folder)


@pytest.fixture(scope="module")
def kind(slices: Slices) -> Iterator[type[World]]:
    class RealWorld(World):
        def engine_of(self, its: Hop) -> Now:  # type: ignore[override]
            return slices.lend(its.start, its.end)

        own_engine = engine_of  # type: ignore[assignment]

    return RealWorld


@pytest.fixture(scope="module")
def said(kind: type[World], slices: Slices):
    """What the whole model says, in one slice."""

    @cache
    def of(prompt: int, tokens: int, how: tuple) -> list[int]:
        async def main() -> list[int]:
            async with world(f"0:{LAYERS}", kind=kind) as here:
                return await here.tell("s", range(prompt), tokens, **dict(how))

        try:
            return run(main())
        finally:
            slices.take_back()

    return lambda prompt, tokens, **how: of(len(prompt), tokens, tuple(sorted(how.items())))


@given(borders=BORDERS, wishes=WISHES, blows=BLOWS)
@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.row(52)
def test_streams_of_a_real_model_are_the_undisturbed_ones_whatever_is_lost_when(
    kind: type[World], said, slices: Slices, borders: list[int], wishes: list[Wish], blows: list[Blow]
) -> None:
    told = [said(range(wish.prompt), wish.tokens, seed=number, **wish.how) for number, wish in enumerate(wishes)]
    try:
        run(disturbed(borders, wishes, blows, lambda *_, seed, **__: told[seed], kind))
    finally:
        slices.take_back()


@pytest.mark.row(45)
@pytest.mark.parametrize("how", [GREEDY, PENALISED], ids=["greedy", "drawn"])
def test_what_is_said_is_not_one_word(said, how: dict[str, float]) -> None:
    """Streams that are all alike would hide a lost position."""
    told = said(range(40), 20, seed=3, **how)
    assert len(told) == 20
    assert len(set(told)) > 3
