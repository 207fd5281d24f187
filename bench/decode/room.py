"""How much memory a slice takes, while it is loaded and while it serves."""

import tempfile
from pathlib import Path
from typing import NamedTuple

from bench.decode.arms import Worker, free_ports
from bench.decode.client import ask
from bench.decode.models import IN_BF16, SHAPES, make
from bench.decode.report import Scene
from bench.decode.speed import Asked
from gpu_worker.engine.model_files import stored_in, weight_files

_MIB = 1 << 20
_ENDS = {"model.embed_tokens.weight": 0, "lm_head.weight": -1, "model.norm.weight": -1}


class _Taken(NamedTuple):
    """Bytes of a process, at its peak and now; `back_end` is how it served."""

    peak: int
    now: int
    back_end: str


def memory(asked: Asked) -> Scene:
    """Peak and present memory of processes that serve halves and the whole of a model, in two dtypes."""
    # One home: a model's files are hashed once.
    with tempfile.TemporaryDirectory() as home:
        return _memory(asked, Path(home))


def _memory(asked: Asked, home: Path) -> Scene:
    scene = Scene("memory", f"memory of a process that serves layers: {asked.large}")
    first, last = asked.halves(asked.large)
    whole = f"0:{last.partition(':')[2]}"
    tiny = make("llama-tiny", asked.models)
    base = _served(tiny, f"0:{SHAPES['llama-tiny']['num_hidden_layers']}", "fp32", home, answers=True).peak
    scene.add("a process with next to no layers, peak", base / _MIB, "MiB", note="the fixed base")
    now: dict[str, int] = {}
    for name, dtype in ((asked.large, "fp32"), (asked.large + IN_BF16, "bf16"), (asked.large, "bf16")):
        folder = asked.folder(name)
        stored = "bf16" if name.endswith(IN_BF16) else "fp32"
        for layers in (first, last, whole) if stored == dtype == "fp32" else (first, last):
            numbers = _numbers(folder, layers)
            # Of a checkpoint in another dtype both copies of a share may be there at once.
            share = numbers * ({"fp32": 4, "bf16": 2}[dtype] + (0 if dtype == stored else 4))
            taken = _served(folder, layers, dtype, home, answers=layers == whole)
            what = f"{layers}, {stored} served as {dtype}"
            now[what] = taken.now
            note = f"{taken.back_end}: {taken.peak / _MIB:,.0f} MiB peak, {taken.now / _MIB:,.0f} now, "
            note += f"share {share / _MIB:,.0f}"
            scene.add(f"{what}: peak above the base / share", (taken.peak - base) / share, most=1.1, note=note)
    of_whole = now[f"{whole}, fp32 served as fp32"]
    for layers in (first, last):
        scene.add(f"{layers} / whole, memory now", now[f"{layers}, fp32 served as fp32"] / of_whole, most=0.6)
    return scene


def _numbers(folder: Path, layers: str) -> int:
    """Return how many numbers the weights of these layers have, embedding and head where they belong."""
    start, end = map(int, layers.split(":"))
    total, found = 0, []
    for path in weight_files(folder):
        found += [*stored_in(path)]
    count = 1 + max(int(name.split(".")[2]) for name, _ in found if name.startswith("model.layers."))
    for name, stored in found:
        at = _ENDS[name] % count if name in _ENDS else int(name.split(".")[2])
        total += stored.numbers if start <= at < end else 0
    return total


def _served(folder: Path, layers: str, dtype: str, home: Path, *, answers: bool) -> _Taken:
    """Return what a worker takes that has loaded these layers; `answers`: and has said something with them."""
    worker = Worker(folder, layers, free_ports(1)[0], home, options=("--dtype", dtype))
    worker.start()
    try:
        worker.wait()
        if answers:
            worker.await_route()
            ask(worker.url, [list(range(300, 332))], 8, {"ignore_eos": True})
        status, back_end = Path(f"/proc/{worker.pid}/status").read_text(), str(worker.status()["backEnd"])
    finally:
        worker.stop()
    found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    peak, now = (1024 * int(found[name].split()[0]) for name in ("VmHWM", "VmRSS"))
    return _Taken(peak, now, back_end)
