"""The `hf` back end: what its sessions reserve, what a wrong step gets, how they are cut and given back."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.step import Run
from gpu_worker.engine.slice.hf import HfStage
from gpu_worker.engine.slice.loading import load_slice, look_at
from tests.fixtures.tiny_families import LAYERS, VOCABULARY, TinyFamilies, make_model
from tests.gpu_worker.slice.pipeline import CACHE_BYTES, Pipeline, stage_of

# 64 positions of five layers, and the rows of one layer beside them.
CAP = 64 * (1_280 + 256)


@pytest.fixture(scope="module")
def stage(tiny_families: TinyFamilies) -> HfStage:
    return stage_of(tiny_families.folder("llama"), 0, LAYERS, cache_bytes_max=CAP)


def test_sessions_take_what_they_reserve_and_give_it_back(stage: HfStage) -> None:
    assert (stage.cache.positions_max, stage.cache.bytes_max) == (64, CAP)
    stage.open("a", 40)
    with pytest.raises(InferenceError, match="25 positions do not fit") as refused:
        stage.open("b", 25)
    assert refused.value.code == "no_capacity"
    assert stage.length("b") is None
    stage.open("b", 24)
    assert (stage.cache.sessions, stage.cache.positions) == (2, 64)
    with pytest.raises(InferenceError, match="the model has 256") as refused:
        stage.open("c", 257)
    assert refused.value.code == "context_length_exceeded"
    for _ in range(2):
        stage.close("a")
        stage.close("b")
    assert (stage.cache.sessions, stage.cache.positions) == (0, 0)


BAD_STEPS: dict[str, tuple[torch.Tensor, Run, str]] = {
    "unknown": (torch.tensor([1]), Run(session="x", epoch=0, position=3, count=1), "unknown_session"),
    "gap": (torch.tensor([1]), Run(session="a", epoch=0, position=4, count=1), "position_gap"),
    "behind": (torch.tensor([1]), Run(session="a", epoch=0, position=2, count=1), "position_gap"),
    "too many": (torch.tensor([1] * 7), Run(session="a", epoch=0, position=3, count=7), "no_capacity"),
    "fewer rows": (torch.tensor([1]), Run(session="a", epoch=0, position=3, count=2), "invalid_tensor"),
    "floats": (torch.zeros(1, 64), Run(session="a", epoch=0, position=3, count=1), "invalid_tensor"),
    "no token": (torch.tensor([VOCABULARY]), Run(session="a", epoch=0, position=3, count=1), "invalid_tensor"),
    "below": (torch.tensor([-1]), Run(session="a", epoch=0, position=3, count=1), "invalid_tensor"),
}


@pytest.mark.parametrize("what", BAD_STEPS)
def test_a_wrong_step_is_refused_and_changes_nothing(stage: HfStage, what: str) -> None:
    rows, run, code = BAD_STEPS[what]
    stage.open("a", 9)
    before = stage.forward(torch.tensor([5, 6, 7]), [Run(session="a", epoch=0, position=0, count=3, samples=True)])
    with pytest.raises(InferenceError) as refused:
        stage.forward(rows, [run])
    assert (refused.value.code, stage.length("a")) == (code, 3)
    stage.rollback("a", 2)
    after = stage.forward(torch.tensor([7]), [Run(session="a", epoch=0, position=2, count=1, samples=True)])
    assert torch.allclose(before, after, atol=1e-4)
    stage.close("a")


@pytest.mark.parametrize("name", ["mistral", "gemma2", "deepseek_v3"])
def test_a_session_that_was_rolled_back_goes_on_as_if_it_had_never_been_there(
    tiny_families: TinyFamilies, name: str
) -> None:
    stages = [stage_of(tiny_families.folder(name), *layers) for layers in ((0, 2), (2, LAYERS))]
    straight, returning = Pipeline(stages), Pipeline(stages)
    for pipeline, session in ((straight, "straight"), (returning, "returning")):
        pipeline.open(session, list(range(20, 34)), 6)
        for _ in range(3):
            pipeline.step([session])
    # Beyond the window of the sliding layers, whose cache must still be whole.
    told = returning.told["returning"]
    for stage in stages:
        stage.rollback("returning", 6)
    del told.tokens[told.prompt :], told.logits[:]
    while not (straight.told["straight"].is_done and told.is_done):
        for pipeline, session in ((straight, "straight"), (returning, "returning")):
            if not pipeline.told[session].is_done:
                pipeline.step([session])
    assert told.tokens == straight.told["straight"].tokens


def test_a_state_without_positions_is_rolled_back_to_its_beginning_alone(tiny_families: TinyFamilies) -> None:
    stage = stage_of(tiny_families.folder("qwen3_next"), 0, LAYERS)
    stage.open("a", 9)
    first = stage.forward(torch.tensor([5, 6, 7]), [Run(session="a", epoch=0, position=0, count=3, samples=True)])
    stage.rollback("a", 3)
    assert stage.length("a") == 3
    with pytest.raises(InferenceError) as refused:
        stage.rollback("a", 2)
    assert (refused.value.code, stage.length("a")) == ("position_gap", 0)
    again = stage.forward(torch.tensor([5, 6, 7]), [Run(session="a", epoch=0, position=0, count=3, samples=True)])
    assert torch.equal(first, again)


@pytest.mark.parametrize(("name", "left"), [("llama", 3), ("qwen3_next", 0)])
def test_a_pass_that_breaks_half_way_leaves_sessions_that_can_go_on(
    tiny_families: TinyFamilies, name: str, left: int
) -> None:
    loaded = load_slice(look_at(tiny_families.folder(name)), Layers(0, LAYERS, LAYERS))
    stage = HfStage(loaded, cache_bytes_max=CACHE_BYTES)
    rows = [5, 6, 7, 8]

    def forward(position: int, end: int) -> torch.Tensor:
        run = Run(session="a", epoch=0, position=position, count=end - position, samples=True)
        return stage.forward(torch.tensor(rows[position:end]), [run])

    def breaks(block: Any, args: Any) -> None:
        raise RuntimeError("the device is gone")

    stage.open("a", 9)
    whole = forward(0, 4)
    stage.open("a", 9)
    forward(0, 3)
    hook = loaded.model.model.layers[3].register_forward_pre_hook(breaks)
    with pytest.raises(RuntimeError, match="the device is gone"):
        forward(3, 4)
    hook.remove()
    assert stage.length("a") == left
    assert torch.allclose(forward(left, 4), whole, atol=1e-3)


def test_a_long_neighbour_is_a_pass_of_its_own_that_copies_nothing(tmp_path: Path) -> None:
    """Sessions that are read together are copied together, as long as the longest of them."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY}
    make_model(
        tmp_path / "long",
        "llama",
        {**sizes, "hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 4_096},
    )
    long = stage_of(tmp_path / "long", 0, 2)
    lengths, alone = {"a": 3, "b": 2_000, "c": 9, "d": 30}, {}
    for name, length in lengths.items():
        long.open(name, length + 8)
        long.forward(torch.arange(length) % VOCABULARY, [Run(session=name, epoch=0, position=0, count=length)])
        alone[name] = long.forward(
            torch.tensor([5]), [Run(session=name, epoch=0, position=length, count=1, samples=True)]
        )[0]
        long.rollback(name, length)
    runs = [Run(session=name, epoch=0, position=length, count=1, samples=True) for name, length in lengths.items()]
    kind = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind], profile_memory=True) as profile:
        together = long.forward(torch.tensor([5] * 4), runs)
    for one, other in zip(together, alone.values(), strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 1e-5
    # Keys alone of four sessions padded to the longest would be 4 * 2 heads * 2 000 positions * 16 floats.
    most = max(event.self_cpu_memory_usage for event in profile.events())
    assert most < 4 * 2 * 2_000 * 16 * 4


def test_what_a_pass_copies_of_a_layer_is_part_of_the_cap(tmp_path: Path) -> None:
    """Sessions that go together are copied side by side: as many as there is room for, the others are a pass more."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY}
    make_model(tmp_path / "m", "llama", {**sizes, "hidden_size": 64, "intermediate_size": 128})
    # A position is 2 layers of 2 sides of 2 heads of 16 floats.
    positions, of_layer = 600, 2 * 2 * 16 * 4
    loaded = load_slice(look_at(tmp_path / "m"), Layers(0, 2, 2))
    stage = HfStage(loaded, cache_bytes_max=positions * 3 * of_layer)
    assert stage.cache.positions_max == positions
    alone, lengths = {}, {"a": 255, "b": 130, "c": 9, "d": 200}
    for name, length in lengths.items():
        stage.open(name, length + 1)
        stage.forward(torch.arange(length) % VOCABULARY, [Run(session=name, epoch=0, position=0, count=length)])
        run = Run(session=name, epoch=0, position=length, count=1, samples=True)
        alone[name] = stage.forward(torch.tensor([5]), [run])[0]
        stage.rollback(name, length)
    runs = [Run(session=name, epoch=0, position=length, count=1, samples=True) for name, length in lengths.items()]
    passes: list[int] = []
    embed = loaded.model.get_input_embeddings()
    embed.register_forward_pre_hook(lambda block, args: passes.append(len(args[0])))
    together = stage.forward(torch.tensor([5] * 4), runs)
    assert passes == [2, 2]
    for one, other in zip(together, alone.values(), strict=True):
        assert float((one - other).abs().max() / other.abs().max()) < 1e-5
