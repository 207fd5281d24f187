"""How much memory a slice takes, while it is loaded and while it serves."""

import tempfile
from pathlib import Path

from bench.decode.arms import Worker, free_ports
from bench.decode.models import IN_BF16, SHAPES, make
from bench.decode.report import Scene
from bench.decode.speed import Asked
from gpu_worker.engine.model_files import stored_in, weight_files

_MIB = 1 << 20
_ENDS = {"model.embed_tokens.weight": 0, "lm_head.weight": -1, "model.norm.weight": -1}


def memory(asked: Asked) -> Scene:
    """Peak and present memory of processes that serve halves and the whole of a model, in two dtypes."""
    scene = Scene("memory", f"memory of a process that serves layers: {asked.large}")
    first, last = asked.halves(asked.large)
    whole = f"0:{last.partition(':')[2]}"
    base = _served(make("llama-tiny", asked.models), f"0:{SHAPES['llama-tiny']['num_hidden_layers']}", "fp32")
    scene.add("a process with next to no layers, peak", base[0] / _MIB, "MiB", note="the fixed base")
    now: dict[str, int] = {}
    for name, dtype in ((asked.large, "fp32"), (asked.large + IN_BF16, "bf16"), (asked.large, "bf16")):
        folder = asked.folder(name)
        stored = "bf16" if name.endswith(IN_BF16) else "fp32"
        for layers in (first, last, whole) if stored == dtype == "fp32" else (first, last):
            numbers = _numbers(folder, layers)
            # Of a checkpoint in another dtype both copies of a share may be there at once.
            share = numbers * ({"fp32": 4, "bf16": 2}[dtype] + (0 if dtype == stored else 4))
            peak, rss = _served(folder, layers, dtype)
            what = f"{layers}, {stored} served as {dtype}"
            now[what] = rss
            note = f"{peak / _MIB:,.0f} MiB peak, {rss / _MIB:,.0f} now, share {share / _MIB:,.0f}"
            scene.add(f"{what}: peak above the base / share", (peak - base[0]) / share, most=1.1, note=note)
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


def _served(folder: Path, layers: str, dtype: str) -> tuple[int, int]:
    """Return peak and present bytes of a worker that has loaded these layers, and answered where they are all."""
    with tempfile.TemporaryDirectory() as home:
        worker = Worker(folder, layers, free_ports(1)[0], Path(home), options=("--dtype", dtype))
        worker.start()
        try:
            worker.wait()
            status = Path(f"/proc/{worker.pid}/status").read_text()
        finally:
            worker.stop()
    found = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return tuple(1024 * int(found[name].split()[0]) for name in ("VmHWM", "VmRSS"))  # type: ignore[return-value]
