"""What a slice takes of the memory, its peak while it loads included: its share, and not the model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[3]
MIB = 2**20
# 8 layers of 25 MB each.
MODEL = {
    "vocab_size": 512,
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
}
# What the program takes for one forward pass, whatever the slice.
BASE_BYTES = 40 * MIB

# Every case is a child that has what was imported so far, and no more.
PROGRAM = """
import json, os, sys
from pathlib import Path
asked = []
sys.addaudithook(lambda event, about: asked.append(event) if event.startswith("socket.") else None)
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.step import Run
from gpu_worker.engine.slice.hf import HfStage
from gpu_worker.engine.slice.loading import load_slice, look_at

def status(word):
    line = next(line for line in open("/proc/self/status") if line.startswith(word))
    return int(line.split()[1]) * 1024

def unsplit(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        model(torch.zeros(1, 4, dtype=torch.int64))
    return sum(each.nbytes for each in model.parameters())

def part(folder, start, end, dtype):
    loaded = load_slice(look_at(folder), Layers(start, end, 8), dtype=dtype)
    stage = HfStage(loaded, cache_bytes_max=2**20)
    stage.open("a", 8)
    ids = torch.zeros(4, dtype=torch.int64)
    rows = ids if start == 0 else torch.zeros(4, 768, dtype=next(loaded.model.parameters()).dtype)
    stage.forward(rows, [Run(session="a", epoch=0, position=0, count=4, samples=True)])
    return loaded.bytes

folder, found = Path(sys.argv[1]), {}
for case in ("unsplit", "0:8 auto", "0:4 auto", "4:8 auto", "2:4 auto", "0:4 bf16"):
    read, write = os.pipe()
    if os.fork() == 0:
        before = status("VmRSS")
        span, _, dtype = case.partition(" ")
        size = unsplit(folder) if span == "unsplit" else part(folder, *map(int, span.split(":")), dtype)
        os.write(write, json.dumps([size, status("VmHWM") - before, asked]).encode())
        os._exit(0)
    os.close(write)
    found[case] = json.loads(os.read(read, 1000))
    os.wait()
print(json.dumps(found))
"""

# A smaller one of widths that no back end pads: what its slices take in the checkpoint.
ADMITTED_MODEL = {"hidden_size": 512, "num_attention_heads": 8}
LAYER, END = 512 * (2 * 512 + 2 * 256 + 3 * 2_048 + 2), 512 * 512
SHARES = {
    "fp32 0:8 auto": 4 * (8 * LAYER + 2 * END),
    "fp32 4:8 auto": 4 * (4 * LAYER + END),
    "fp32 0:4 hf": 4 * (4 * LAYER + END),
    "bf16 0:8 auto": 2 * (8 * LAYER + 2 * END),
}
# As above, of what a worker does: the back end is admitted. A small model's slice says what is no slice's.
ADMITTED = """
import json, os, re, sys
from pathlib import Path
from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.layers import Layers
from gpu_worker.engine.slice.admission import admit
from gpu_worker.engine.slice.lean import LeanStage
from gpu_worker.engine.slice.loading import SPARE_BYTES, load_slice, look_at

def status(word):
    line = next(line for line in open("/proc/self/status") if line.startswith(word))
    return int(line.split()[1]) * 1024

def said(folder, layers, back_end):
    # What it asks for before it is loaded.
    seen, owned = look_at(folder), Layers.parse(layers, 8)
    try:
        if back_end == "hf":
            load_slice(seen, owned, free_bytes=0)
        LeanStage(seen, owned, cache_bytes_max=2**20, free_bytes=0)
    except OwnersFault as error:
        return int(re.search("need ([0-9]+) MiB", str(error))[1]) * 2**20 - SPARE_BYTES

folder, found = Path(sys.argv[1]), {}
admit(folder / "small fp32", "0:8", cache_bytes_max=2**20)
for case in sys.argv[2:]:
    size, dtype, layers, back_end = case.split()
    model = f"{size} {dtype}"
    read, write = os.pipe()
    if os.fork() == 0:
        before = status("VmRSS")
        stage = admit(folder / model, layers, cache_bytes_max=2**20, back_end=back_end)
        peak = status("VmHWM") - before
        told = [stage.info.back_end, peak, said(folder / model, layers, back_end)]
        os.write(write, json.dumps(told).encode())
        os._exit(0)
    os.close(write)
    found[case] = json.loads(os.read(read, 1000))
    os.wait()
print(json.dumps(found))
"""


def _make_model(folder: Path, *, dtype: torch.dtype = torch.float32, **sizes: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**MODEL, **sizes}, tie_word_embeddings=False)
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: each.shape for name, each in LlamaForCausalLM(config).named_parameters()}
    tensors = {name: torch.full(shape, 0.01, dtype=dtype) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return for every case the bytes of its weights, its peak above what the program took before, and its calls."""
    folder = tmp_path_factory.mktemp("large")
    _make_model(folder)
    return _told_by(PROGRAM, folder)


@pytest.fixture(scope="module")
def admitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return for every case the back end, its peak above what the program took before, and what it asks for."""
    folder = tmp_path_factory.mktemp("admitted")
    for word, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        _make_model(folder / f"small {word}", dtype=dtype, hidden_size=96, intermediate_size=128)
        _make_model(folder / f"large {word}", dtype=dtype, **ADMITTED_MODEL)
    return _told_by(ADMITTED, folder, *(f"{size} {case}" for case in SHARES for size in ("small", "large")))


def _told_by(program: str, folder: Path, *cases: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), *cases],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "nothing")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.row(43)
def test_a_slice_takes_its_share_of_the_memory(found: dict[str, Any]) -> None:
    whole, whole_peak, _ = found["unsplit"]
    assert whole > 190 * MIB
    for half in ("0:4 auto", "4:8 auto"):
        assert found[half][1] < 0.6 * whole_peak
    for case in ("0:8 auto", "0:4 auto", "4:8 auto", "2:4 auto"):
        size, peak, _ = found[case]
        assert size < peak < 1.1 * size + BASE_BYTES
    # In another dtype the pages of the file are seen once as well.
    size, peak, _ = found["0:4 bf16"]
    assert peak < 1.1 * (size + 2 * size) + BASE_BYTES


def test_loading_asks_no_network(found: dict[str, Any]) -> None:
    assert [asked for case, (_, _, asked) in found.items() if case != "unsplit"] == [[]] * 5


@pytest.mark.row(43)
@pytest.mark.parametrize("case", SHARES)
def test_an_admitted_slice_takes_its_share_and_what_it_asked_for(admitted: dict[str, Any], case: str) -> None:
    """Its self-test and what is packed included, in the dtype of its checkpoint; on a CPU half precision too."""
    back_end, peak, asked = admitted[f"large {case}"]
    _, base, asked_by_small = admitted[f"small {case}"]
    assert back_end == ("hf" if case.endswith("hf") else {"fp32": "lean fp32", "bf16": "lean fp16"}[case[:4]])
    taken = peak - base
    assert 0.9 * SHARES[case] < taken < 1.15 * SHARES[case]
    assert 0.9 < taken / (asked - asked_by_small) < 1.1
