"""The profile of a decode step: its sums, and the scene with a model so small that only its working is seen."""

import json
from pathlib import Path

import pytest
import torch

from bench.decode import choices, run
from bench.decode.choices import CHOICES, Choice, Found
from bench.decode.inside import Operators, Taken, longest_decode, told
from bench.decode.models import make
from bench.decode.ways import Shape
from gpu_worker.engine.slice.linear import mkl_f32, plain, x86_int8

SHAPE = Shape(hidden=64, inner=128, layers=2, heads=4, vocabulary=256)


def taken(at: float, *, runs: int = 1, is_decode: bool = True) -> Taken:
    """A step of 0.02 s, 0.015 of them its forward pass, in each 0.05 s; beside it the process computes for 0.005."""
    return Taken(
        began=at, ended=at + 0.02, forward=0.015, thread=(0.4 * at, 0.4 * at + 0.02), process=0.5 * at, runs=runs,
        position=round(at / 0.05), is_decode=is_decode, parts={"linears": 0.01},
    )  # fmt: skip


def test_the_longest_row_of_steps_counts_in_which_none_begins_or_ends() -> None:
    steps = [taken(0.0), taken(1.0, is_decode=False), taken(2.0), taken(3.0), taken(4.0, is_decode=False), taken(5.0)]
    assert [step.began for step in longest_decode(steps)] == [2.0, 3.0]


def test_a_process_is_told_of_in_milliseconds_for_one_token_of_each_session() -> None:
    # Two micro-batches of two sessions each: four sessions have a token in two steps, so in 100 ms.
    found = told([taken(0.05 * number, runs=2) for number in range(9)], sessions=4)
    assert found["steps"] == 2
    assert found["round"] == pytest.approx(100)
    assert found["engine"] == pytest.approx(40)
    assert found["forward"] == pytest.approx(30)
    assert found["beside"] == pytest.approx(10)
    assert found["parts"] == {"linears": pytest.approx(20)}


def test_too_few_steps_are_no_profile() -> None:
    with pytest.raises(RuntimeError, match="more tokens"):
        told([taken(0.0), taken(0.05), taken(0.1)], sessions=1)


def test_operators_are_added_up_by_the_part_of_a_step_that_they_are() -> None:
    x, weight = torch.randn(2, 64), torch.randn(64, 64)
    with torch.inference_mode():
        linears = [pack(weight, None) for pack in (plain, mkl_f32, x86_int8)]
        for linear in linears:
            with Operators() as found:
                linear(x)
            assert found.seconds["linears"] > 0
        q = torch.randn(1, 4, 1, 16)
        with Operators() as found:
            torch.nn.functional.scaled_dot_product_attention(q, q, q)
        assert found.seconds["attention"] > 0
        with Operators() as found:
            torch.rms_norm(x, (64,), weight[0], 1e-5)
        assert [*found.seconds] == ["others"]


@pytest.mark.parametrize(
    ("found", "gain"),
    [
        (Found(before_ms=30, after_ms=20, step_ms=100, is_kept=True), 1.1),
        (Found(before_ms=20, after_ms=30, step_ms=100, is_kept=True), 0.9),
        # What is not kept would make the step of today longer or shorter.
        (Found(before_ms=20, after_ms=10, step_ms=100, is_kept=False), 100 / 90),
        (Found(before_ms=10, after_ms=20, step_ms=100, is_kept=False), 100 / 110),
    ],
    ids=["kept, faster", "kept, slower", "not kept, faster", "not kept, slower"],
)
def test_a_gain_is_that_of_a_whole_step(found: Found, gain: float) -> None:
    assert found.gain == pytest.approx(gain)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda each: f"{each.name}, {each.sessions}")
def test_both_ways_of_each_choice_can_be_measured(choice: Choice) -> None:
    found = choices.measured(choice, SHAPE, step_ms=1_000.0)
    assert found.before_ms > 0
    assert found.after_ms > 0


def test_a_model_has_as_many_numbers_joined_as_apart() -> None:
    joined, apart = SHAPE.weights(), SHAPE.weights(is_joined=False)
    assert len(joined) == 2 * 4 + 1
    assert len(apart) == 2 * 7 + 1
    assert sum(out * width for out, width in joined) == sum(out * width for out, width in apart)


def test_the_sizes_are_those_of_the_folder(tmp_path: Path) -> None:
    shape = Shape.of(make("llama-tiny", tmp_path))
    assert (shape.hidden, shape.inner, shape.layers, shape.heads, shape.head_dim) == (64, 128, 4, 4, 16)


def test_a_scene_that_fails_is_told_of_and_the_others_are_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A model that there is none of: the scenes that need it fail, the one of the hop needs none.
    words = ("--scene", "long", "--scene", "hop", "--model", "none", "--models", str(tmp_path))
    assert run.main([*words]) == 1
    said = capsys.readouterr().out
    document = json.loads(said.splitlines()[-1])
    assert "the scene long failed" in said
    assert document["failed"] == ["long"]
    assert document["long"] == {"failed": "KeyError: 'none'"}
    assert document["hop"]["figures"]["step p50"]["figure"] > 0


@pytest.mark.slow
def test_a_step_is_profiled_with_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.main(["--scene", "profile", "--model", "llama-tiny", "--tokens", "16", "--models", str(tmp_path)])
    profile = json.loads(capsys.readouterr().out.splitlines()[-1])["profile"]
    parts, made = profile["tables"].values()
    assert parts[0] == [
        "",
        *(f"{case} {stage}" for case in ("1, f32", "32, f32", "32, int8") for stage in ("head", "last")),
    ]
    named = {row[0]: [float(cell) for cell in row[1:]] for row in parts[1:]}
    together = named.pop("together")
    for column, whole in enumerate(together):
        # Each cell is rounded to a hundredth.
        assert sum(cells[column] for cells in named.values()) == pytest.approx(whole, abs=0.06)
    for part in ("linears", "attention", "serialise"):
        assert all(cell > 0 for cell in named[part])
    assert len(made) == 1 + len(CHOICES)
    assert profile["figures"]["1, f32: all that is not an engine"]["figure"] > 0
