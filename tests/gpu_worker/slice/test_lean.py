"""The lean decoder against the whole model of transformers: token by token, sliced, ragged, joined and left."""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.step import Run
from gpu_worker.engine.slice.lean import LeanStage
from gpu_worker.engine.slice.loading import look_at
from tests.fixtures.tiny_families import LAYERS, VOCABULARY, TinyFamilies, make_model

FAMILIES = (
    "llama",
    "llama_tied",
    "qwen2",
    "qwen3",
    "mistral",
    "phi3",
    "smollm3",
    "olmo2",
    "granite",
    "gemma",
)
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
CUTS = ((0, LAYERS), (0, 2, LAYERS), (0, 1, 3, LAYERS), (0, 1, 2, 4, LAYERS))
_CACHE = 16 * 2**20
_PROMPTS = {"a": 3, "b": 41, "c": 17, "d": 70, "e": 9}
_TOKENS = 6


def _stages(folder: Path, cuts: Sequence[int] = (0, LAYERS), **how: Any) -> list[LeanStage]:
    seen = look_at(folder)
    return [
        LeanStage(seen, Layers(begin, end, seen.layers), cache_bytes_max=_CACHE, **how)
        for begin, end in itertools.pairwise(cuts)
    ]


def _whole(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _prompts() -> dict[str, list[int]]:
    dice = random.Random(1)
    return {name: [dice.randrange(VOCABULARY) for _ in range(count)] for name, count in _PROMPTS.items()}


def _run(session: str, position: int, count: int, *, samples: bool = True) -> Run:
    return Run(session=session, epoch=0, position=position, count=count, samples=samples)


def _through(stages: Sequence[LeanStage], tokens: Sequence[int], runs: Sequence[Run]) -> Tensor:
    x = torch.tensor(tokens)
    for stage in stages:
        x = stage.forward(x, runs)
    return x


def _together(stages: Sequence[LeanStage]) -> tuple[dict[str, list[int]], dict[str, Tensor]]:
    """
    Return the greedy tokens of all sessions, and the logits behind each one's last prompt row.

    They join and leave at odd steps, some prompts in chunks, in an order that changes.
    """
    dice, known, first = random.Random(2), _prompts(), dict[str, Tensor]()
    at, limit = dict.fromkeys(known, 0), {name: len(each) + _TOKENS for name, each in known.items()}
    opened: set[str] = set()
    while waiting := [name for name in known if len(known[name]) < limit[name]]:
        chosen = [name for name in waiting if dice.random() < 0.7]
        dice.shuffle(chosen)
        runs, tokens = [], []
        for name in chosen:
            if name not in opened:
                opened.add(name)
                for stage in stages:
                    stage.open(name, limit[name])
            left = len(known[name]) - at[name]
            count = min(left, dice.choice((1, 5, 13, 80)))
            runs.append(_run(name, at[name], count, samples=count == left))
            tokens += known[name][at[name] : at[name] + count]
            at[name] += count
        if not runs:
            continue
        rows = _through(stages, tokens, runs)
        for run, row in zip((run for run in runs if run.samples), rows, strict=True):
            first.setdefault(run.session, row)
            known[run.session].append(int(row.argmax()))
            if len(known[run.session]) == limit[run.session]:
                for stage in stages:
                    stage.close(run.session)
    assert all(stage.cache.sessions == 0 for stage in stages)
    return {name: each[_PROMPTS[name] :] for name, each in known.items()}, first


@pytest.mark.row(48)
@pytest.mark.parametrize("family", FAMILIES)
def test_slices_give_the_tokens_of_the_whole_model(family: str, tiny_families: TinyFamilies) -> None:
    folder = tiny_families.folder(family)
    model, wanted, logits = _whole(folder), dict[str, list[int]](), dict[str, Tensor]()
    for name, prompt in _prompts().items():
        tokens = list(prompt)
        with torch.inference_mode():
            for _ in range(_TOKENS):
                row = model(torch.tensor([tokens])).logits[0, -1]
                logits.setdefault(name, row)
                tokens.append(int(row.argmax()))
        wanted[name] = tokens[len(prompt) :]
    for cuts in CUTS:
        found, first = _together(_stages(folder, cuts))
        assert found == wanted, cuts
        for name, row in first.items():
            assert float((row - logits[name]).abs().max() / logits[name].abs().max()) < 1e-5, (cuts, name)


@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
def test_a_session_can_be_rolled_back_and_goes_on_as_if_nothing_had_been(
    quant: str, tiny_families: TinyFamilies
) -> None:
    stages = _stages(tiny_families.folder("llama"), (0, 2, LAYERS), quant=quant)
    prompt, other = _prompts()["c"], _prompts()["d"][:9]
    for stage in stages:
        stage.open("a", 40)
    straight = _through(stages, prompt, [_run("a", 0, len(prompt))])
    _through(stages, other, [_run("a", len(prompt), len(other))])
    for stage in stages:
        stage.rollback("a", 5)
        assert stage.length("a") == 5
    again = _through(stages, prompt[5:], [_run("a", 5, len(prompt) - 5)])
    assert float((again - straight).norm() / straight.norm()) < (1e-5 if quant == "none" else 2e-2)
    assert stages[0].length("a") == len(prompt)


@pytest.mark.parametrize("quant", ["none", "int8", "int4"])
def test_a_neighbour_changes_nothing_whatever_its_rows_are(quant: str, tiny_families: TinyFamilies) -> None:
    """A hundred times larger, or no numbers at all: on slots beside it, and on the slot that it had before."""
    stage = _stages(tiny_families.folder("qwen3"), (0, 2, LAYERS), quant=quant)[1]
    dice = torch.Generator().manual_seed(3)
    mine = torch.randn(24, stage.info.hidden_size, generator=dice)
    stage.open("a", 24)
    alone = [stage.forward(mine[:20], [_run("a", 0, 20)])]
    alone += [stage.forward(mine[at : at + 1], [_run("a", at, 1)]) for at in range(20, 24)]
    stage.close("a")
    for factor in (100.0, float("nan"), float("inf")):
        for name, positions in (("x", 64), ("a", 24), ("y", 64)):
            stage.open(name, positions)
        for name in "xy":
            stage.forward(torch.full((40, stage.info.hidden_size), factor), [_run(name, 0, 40)])
        wild = torch.randn(1, stage.info.hidden_size, generator=dice) * factor
        beside = [stage.forward(mine[:20], [_run("a", 0, 20)])]
        for at in range(20, 24):
            rows = torch.cat([wild, mine[at : at + 1], wild])
            runs = [_run("y", at + 20, 1), _run("a", at, 1), _run("x", at + 20, 1)]
            beside.append(stage.forward(rows, runs)[1:2])
        for one, other in zip(alone, beside, strict=True):
            # A sum in another order may fall to the next of the 255 (or, in bfloat16, 256) numbers of an activation.
            off = float((one - other).norm() / one.norm())
            assert off < (1e-5 if quant == "none" else 1e-2), (factor, off)
        for name in "xay":
            stage.close(name)


def test_sessions_that_lie_far_apart_are_read_together_as_well(tiny_families: TinyFamilies) -> None:
    stages = _stages(tiny_families.folder("mistral"))
    prompts = [each[:9] for each in _prompts().values() if len(each) >= 9]
    names = [f"session {number}" for number in range(24)]
    for name in names:
        stages[0].open(name, 12)
    # Two of 24 slots; two of four; all; and in another order than their slots'.
    for chosen in ((0, 23), (1, 3), (5, 4, 7, 6), (10, 8)):
        alone = []
        for turn, number in enumerate(chosen):
            prompt = prompts[turn][: 6 + turn]
            name = names[number]
            _through(stages, prompt, [_run(name, 0, len(prompt))])
            alone.append(_through(stages, [turn], [_run(name, len(prompt), 1)])[0])
            stages[0].rollback(name, len(prompt))
        runs = [_run(names[number], 6 + turn, 1) for turn, number in enumerate(chosen)]
        together = _through(stages, range(len(chosen)), runs)
        for one, other in zip(alone, together, strict=True):
            assert float((one - other).abs().max() / one.abs().max()) < 1e-5, chosen


def test_a_long_neighbour_is_read_apart_from_short_ones_and_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "long"
    make_model(folder, "mistral", {**SMALL, "max_position_embeddings": 4_096, "sliding_window": 700})
    stages = _stages(folder, (0, 2))
    lengths = {"a": 3, "b": 2_000, "c": 9, "d": 1_990, "e": 600, "f": 5}
    alone = {}
    for turn, (name, length) in enumerate(lengths.items()):
        stages[0].open(name, length + 8)
        _through(stages, [each * (turn + 1) % VOCABULARY for each in range(length)], [_run(name, 0, length)])
        alone[name] = _through(stages, [turn], [_run(name, length, 1)])[0]
        stages[0].rollback(name, length)
    # All of them, and beside a prompt's chunk.
    chunk = [1, 2, 3, 4]
    for names, more in (("abcdef", []), ("fbadce", chunk)):
        runs = [_run(name, lengths[name], 1) for name in names]
        tokens = [list(lengths).index(name) for name in names]
        if more:
            stages[0].open("g", 8)
            runs, tokens = [*runs[:3], _run("g", 0, len(more)), *runs[3:]], [*tokens[:3], *more, *tokens[3:]]
        together = _through(stages, tokens, runs)
        for run, one in zip(runs, together, strict=True):
            if run.session in alone:
                assert float((one - alone[run.session]).abs().max() / one.abs().max()) < 1e-5, (names, run.session)
        for name in names:
            stages[0].rollback(name, lengths[name])


def test_what_a_step_allocates_does_not_grow_with_the_session(tmp_path: Path) -> None:
    """The time of a step grows by attention alone: nothing is copied that is longer than a row."""
    folder = tmp_path / "long"
    make_model(folder, "llama", {**SMALL, "max_position_embeddings": 4_096})
    stages = _stages(folder, (0, 2))
    for name in "ab":
        stages[0].open(name, 4_000)

    def allocated(position: int) -> int:
        for name in "ab":
            at = stages[0].length(name) or 0
            tokens = [each % VOCABULARY for each in range(position - at)]
            _through(stages, tokens, [_run(name, at, len(tokens))])
        kind = torch.profiler.ProfilerActivity.CPU
        with torch.profiler.profile(activities=[kind], profile_memory=True) as profile:
            _through(stages, [1], [_run("a", position, 1)])
        return sum(max(0, event.self_cpu_memory_usage) for event in profile.events())

    sizes = {position: allocated(position) for position in (1_000, 2_000, 3_900)}
    assert len(set(sizes.values())) == 1, sizes


def test_wrong_rows_are_refused_and_no_session_has_changed(tiny_families: TinyFamilies) -> None:
    first, last = _stages(tiny_families.folder("llama"), (0, 2, LAYERS))
    for stage in (first, last):
        stage.open("a", 8)
    wrong: list[tuple[LeanStage, Tensor, list[Run], str]] = [
        (first, torch.tensor([1, 2]), [_run("a", 0, 3)], "invalid_tensor"),
        (first, torch.tensor([1.0]), [_run("a", 0, 1)], "invalid_tensor"),
        (first, torch.tensor([VOCABULARY]), [_run("a", 0, 1)], "invalid_tensor"),
        (first, torch.tensor([-1]), [_run("a", 0, 1)], "invalid_tensor"),
        (first, torch.tensor([], dtype=torch.int64), [], "invalid_tensor"),
        (last, torch.zeros(1, 63), [_run("a", 0, 1)], "invalid_tensor"),
        (last, torch.zeros(1, 64, dtype=torch.float16), [_run("a", 0, 1)], "invalid_tensor"),
        (first, torch.tensor([1]), [_run("a", 1, 1)], "position_gap"),
        (first, torch.tensor([1]), [_run("b", 0, 1)], "unknown_session"),
        (first, torch.zeros(9, dtype=torch.int64), [_run("a", 0, 9)], "no_capacity"),
    ]
    for stage, x, runs, code in wrong:
        with pytest.raises(InferenceError) as caught:
            stage.forward(x, runs)
        assert (caught.value.code, stage.length("a")) == (code, 0)


def test_a_slice_that_does_not_fit_is_refused_before_it_is_loaded(tiny_families: TinyFamilies) -> None:
    with pytest.raises(OwnersFault, match=r"the layers 0:5 of llama need \d+ MiB as fp32, 1 are free: \d+ MiB"):
        _stages(tiny_families.folder("llama"), free_bytes=2**20)


def test_a_run_that_does_not_sample_has_no_logits(tiny_families: TinyFamilies) -> None:
    (stage,) = _stages(tiny_families.folder("llama"))
    stage.open("a", 8)
    stage.open("b", 8)
    runs = [_run("a", 0, 2, samples=False), _run("b", 0, 3)]
    assert stage.forward(torch.arange(5), runs).shape == (1, VOCABULARY)
    none = stage.forward(torch.arange(2), [_run("a", 2, 2, samples=False)])
    assert (tuple(none.shape), none.dtype) == ((0, VOCABULARY), torch.float32)


def test_a_window_far_behind_the_longest_session_is_no_nothing(tmp_path: Path) -> None:
    """Whole blocks of keys are hidden from a row here: their softmax must not become a number that is none."""
    folder = tmp_path / "sliding"
    make_model(folder, "mistral", {**SMALL, "max_position_embeddings": 2_048, "sliding_window": 8})
    (stage,) = _stages(folder, (0, 2))
    lengths = {"a": 1_500, "b": 5, "c": 700}
    alone = {}
    for name, length in lengths.items():
        stage.open(name, length + 1)
        for begin in range(0, length, 600):
            tokens = [each % VOCABULARY for each in range(begin, min(length, begin + 600))]
            _through([stage], tokens, [_run(name, begin, len(tokens))])
        alone[name] = _through([stage], [7], [_run(name, length, 1)])[0]
        stage.rollback(name, length)
    together = _through([stage], [7, 7, 7], [_run(name, length, 1) for name, length in lengths.items()])
    for one, other in zip(alone.values(), together, strict=True):
        assert float((one - other).abs().max() / one.abs().max()) < 1e-5
    with torch.inference_mode():
        wanted = _whole(folder)(torch.tensor([[each % VOCABULARY for each in range(1_500)] + [7]])).logits[0, -1]
    assert float((together[0] - wanted).abs().max() / wanted.abs().max()) < 1e-5
