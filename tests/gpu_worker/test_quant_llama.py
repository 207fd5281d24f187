"""Plans held against llama.cpp itself: what it says that it takes, and which headers it stumbles over."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gpu_worker.core.hardware import MIB
from gpu_worker.core.quantization.estimate import KvType, Memory, Serving, cells_of, compute_bytes, plan
from gpu_worker.core.quantization.header import BadGguf
from gpu_worker.edges.engines.gguf_file import read_model
from tests.fixtures.gguf_bytes import Shape, TensorInfo, gguf, llama, llama_tensors, model_bytes, write

pytestmark = pytest.mark.slow

# Loads a model as the worker's engine does and ends at once, without waiting for its threads.
LOAD = """
import os, sys, xllamacpp as llama
p = llama.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.verbosity = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), 4
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
p.kv_unified, p.ui, p.warmup, p.cache_ram_mib, p.n_ubatch = False, False, False, 0, 512
p.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED
p.cache_type_k = p.cache_type_v = getattr(llama.ggml_type, "GGML_TYPE_" + sys.argv[4].upper())
try:
    server = llama.Server(p)
except RuntimeError:
    os._exit(3)
os._exit(0)
"""
PLENTY = Memory(vram_bytes=0, ram_bytes=2**40, total_bytes=2**40)


class Took(NamedTuple):
    code: int
    weights: float
    cache: float
    compute: float


def load(path: Path, serving: Serving) -> Took:
    """Return what llama.cpp says that it takes of each, in MiB, and how the program ended."""
    tokens = str(cells_of(serving.context) * serving.slots)
    command = [sys.executable, "-c", LOAD, str(path), tokens, str(serving.slots), serving.kv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    said = done.stdout + done.stderr

    def told(what: str) -> float:
        return sum(float(size) for size in re.findall(rf"{what} buffer size = +([\d.]+) MiB", said))

    return Took(done.returncode, told("model"), told("KV"), told("compute"))


@pytest.mark.parametrize(
    ("shape", "serving"),
    [
        (Shape(), Serving(context=4_096)),
        (Shape(), Serving(context=3_000, slots=3)),
        (Shape(vocabulary=8_000), Serving(context=4_096, slots=2)),
        (Shape(kind="Q8_0", is_tied=True), Serving(context=16_384)),
        (Shape(width=1_024, inner=4_096, heads=16, kv_heads=4, kind="Q6_K"), Serving(context=8_192, kv="q8_0")),
        (Shape(heads=8, kv_heads=4), Serving(context=8_192, kv="q4_0")),
        (Shape(experts=8), Serving(context=4_096)),
    ],
)
@pytest.mark.row(65)
def test_a_plan_is_what_llama_cpp_takes_and_not_much_more(tmp_path: Path, shape: Shape, serving: Serving) -> None:
    more: dict[str, Any] = {"llama__rope__dimension_count": shape.width // shape.heads}
    model = read_model(write(tmp_path / "model.gguf", model_bytes(shape, **more)))
    took = load(model.path, serving)
    planned = plan(model.weights, serving, PLENTY).host

    assert took.code == 0
    assert took.cache == pytest.approx(planned.cache / MIB, abs=0.02)
    assert took.weights == pytest.approx(planned.weights / MIB, rel=0.02, abs=0.1)
    # What is computed with is allowed for, its scores too, which llama.cpp does not always make.
    assert took.compute <= compute_bytes(model.weights, serving) / MIB
    assert (
        planned.bytes / MIB
        <= 1.25 * (took.weights + took.cache + took.compute) + 128 + 4 * 512 * shape.vocabulary / MIB
    )


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_a_window_is_planned_as_llama_cpp_keeps_it(tmp_path: Path, kv: KvType) -> None:
    shape = Shape(architecture="gemma2", layers=4, is_tied=True)
    norms = [f"blk.{layer}.post_{name}_norm.weight" for layer in range(4) for name in ("attention", "ffw")]
    tensors = [*llama_tensors(shape), *(TensorInfo(name, (shape.width,)) for name in norms)]
    model = read_model(write(tmp_path / "g.gguf", gguf(llama(shape, gemma2__attention__sliding_window=1_024), tensors)))
    serving = Serving(context=8_192, slots=2, kv=kv)
    took = load(model.path, serving)

    assert took.code == 0
    assert took.cache == pytest.approx(plan(model.weights, serving, PLENTY).host.cache / MIB, abs=0.02)


@pytest.mark.parametrize("broken", [{"llama__block_count": 4_000_000}, {"llama__attention__head_count_kv": 1 << 30}])
def test_a_file_that_ends_llama_cpp_is_refused_before_it(tmp_path: Path, broken: dict[str, Any]) -> None:
    path = write(tmp_path / "broken.gguf", model_bytes(**broken))

    with pytest.raises(BadGguf) as refused:
        read_model(path)
    assert str(tmp_path) not in str(refused.value)
    assert load(path, Serving(context=256)).code not in (0, 1)
