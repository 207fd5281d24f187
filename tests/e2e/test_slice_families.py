"""Models of four families over three processes each: the tokens of the whole model, whoever joins and leaves."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.inference.head.head import Head
from gpu_worker.inference.ports import TokenRequest
from tests.fixtures.stages import Slice, StageProcess, free_endpoint, head_of, tell
from tests.fixtures.tiny_families import LAYERS, VOCABULARY, TinyFamilies

pytestmark = pytest.mark.slow

FAMILIES = ("llama", "qwen3_moe", "bloom", "gpt2")
CHUNK_ROWS = 64
BORDERS = (0, 2, 3, LAYERS)


class Wish(NamedTuple):
    """`after`: it comes when so many tokens have been told in all; `leaves`: after so many of its own, if it does."""

    prompt: tuple[int, ...]
    count: int
    after: int = 0
    leaves: int | None = None


class Family(NamedTuple):
    folder: Path
    topology: Path
    endpoints: tuple[str, ...]


def wishes() -> list[Wish]:
    dice = random.Random(1)
    plans = [
        (3, 16, 0, None),
        (200, 6, 0, None),
        (11, 16, 0, 5),
        (64, 8, 10, None),
        (65, 9, 10, None),
        (130, 5, 25, None),
    ]
    return [Wish(tuple(dice.randrange(2, VOCABULARY) for _ in range(length)), *rest) for length, *rest in plans]


def greedy(folder: Path, wanted: Sequence[Wish]) -> list[list[int]]:
    """Return what the model says that nobody has split."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    told = []
    for wish in wanted:
        tokens, rows, past = [], torch.tensor([wish.prompt]), None
        with torch.inference_mode():
            for _ in range(wish.leaves or wish.count):
                made = model(input_ids=rows, past_key_values=past, use_cache=True)
                past, rows = made.past_key_values, made.logits[:, -1:].argmax(-1)
                tokens.append(int(rows))
        told.append(tokens)
    return told


@pytest.fixture(scope="module")
def families(tiny_families: TinyFamilies, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Family]]:
    """Two processes, each with a slice of every family; the heads are in this one."""
    place = tmp_path_factory.mktemp("families-e2e")
    found = {}
    for name in FAMILIES:
        where = tuple(free_endpoint() for _ in BORDERS[1:])
        slices = [f"{start}:{end}" for start, end in pairwise(BORDERS)]
        topology = tell(place / f"{name}.json", [*zip(where, slices, strict=True)])
        found[name] = Family(tiny_families.folder(name), topology, where)
    processes = [
        StageProcess(
            *(
                Slice(str(each.folder), f"{BORDERS[at]}:{BORDERS[at + 1]}", each.endpoints[at], str(each.topology))
                for each in found.values()
            )
        )
        for at in (1, 2)
    ]
    try:
        for each in processes:
            each.start()
        for each in processes:
            each.wait()
        yield found
    finally:
        for each in processes:
            each.stop()


async def told_by(head: Head, wanted: Sequence[Wish]) -> list[list[int]]:
    told: list[list[int]] = [[] for _ in wanted]
    more = asyncio.Condition()

    async def ask(number: int, wish: Wish) -> None:
        async with more:
            await more.wait_for(lambda: sum(map(len, told)) >= wish.after)
        stream = await head.start(
            TokenRequest(
                session=f"s{number}", prompt=wish.prompt, tokens_max=wish.count, sampling=Sampling(temperature=0.0)
            )
        )
        async for sampled in stream:
            told[number].append(sampled.token)
            async with more:
                more.notify_all()
            if len(told[number]) == wish.leaves:
                await stream.cancel()

    async with asyncio.TaskGroup() as asking:
        for number, wish in enumerate(wanted):
            asking.create_task(ask(number, wish))
    return told


@pytest.mark.row(45)
@pytest.mark.row(48)
@pytest.mark.row(53)
@pytest.mark.parametrize("name", FAMILIES)
async def test_three_processes_tell_the_tokens_of_the_whole_model(name: str, families: dict[str, Family]) -> None:
    family, wanted = families[name], wishes()
    layers = f"{BORDERS[0]}:{BORDERS[1]}"
    async with head_of(family.folder, layers, family.topology, family.endpoints[0], chunk_rows=CHUNK_ROWS) as (head, _):
        assert len(head.hops) == 3
        told = await told_by(head, wanted)

        assert told == greedy(family.folder, wanted)
        stats = head.stats
        assert (stats.finished, stats.cancelled, stats.failed) == (len(wanted) - 1, 1, 0)
        assert (stats.failovers, stats.replayed_sessions) == (0, 0)
        # They were under way together: steps had rows of more than one.
        assert stats.steps < sum(len(each) for each in told) + sum(
            -(-len(each.prompt) // CHUNK_ROWS) for each in wanted
        )
