"""The measured cost curve: what it has, what it leaves out, and that it leaves nothing behind."""

import pytest

from gpu_worker.core.inference.layers import Layers
from gpu_worker.engine.slice.cost import ROWS, cost_curve
from gpu_worker.engine.slice.hf import HfStage
from gpu_worker.engine.slice.lean import LeanStage
from gpu_worker.engine.slice.loading import load_slice, look_at
from gpu_worker.engine.slice.stage import Stage
from tests.fixtures.tiny_families import LAYERS, TinyFamilies


def _stage(tiny_families: TinyFamilies, back_end: str, cache_bytes_max: int = 2**22) -> Stage:
    seen, layers = look_at(tiny_families.folder("llama")), Layers(2, LAYERS, LAYERS)
    if back_end == "hf":
        return HfStage(load_slice(seen, layers), cache_bytes_max=cache_bytes_max)
    return LeanStage(seen, layers, cache_bytes_max=cache_bytes_max)


@pytest.mark.parametrize("back_end", ["lean", "hf"])
def test_the_curve_has_a_time_for_each_number_of_rows(back_end: str, tiny_families: TinyFamilies) -> None:
    stage = _stage(tiny_families, back_end)
    curve = cost_curve(stage, budget_s=30.0)
    assert tuple(curve) == ROWS
    assert all(seconds > 0 for seconds in curve.values())
    assert (stage.cache.sessions, stage.cache.positions) == (0, 0)


def test_one_row_is_measured_whatever_the_budget_is(tiny_families: TinyFamilies) -> None:
    assert list(cost_curve(_stage(tiny_families, "lean"), budget_s=0.0)) == [1]


def test_a_cache_for_few_sessions_ends_the_curve(tiny_families: TinyFamilies) -> None:
    position_bytes = 2 * 3 * 2 * 16 * 4
    stage = _stage(tiny_families, "lean", cache_bytes_max=5 * position_bytes)
    assert list(cost_curve(stage, budget_s=30.0)) == [1, 2, 4]
    assert stage.cache.sessions == 0
