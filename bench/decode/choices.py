"""
What the engine's ways bring: each beside another one, in one process, on the shapes of the model.

`python -m bench.decode.choices FOLDER BESIDE_MS` prints one line of JSON. A part is timed by the processor's time of
its thread, both ways in turn. Its gain is that of a whole step of the engine: the step with the way before, over the
step with the way after. What is kept must gain 3 %; what is not kept must not.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from bench.decode import ways
from bench.decode.arms import ROOT
from bench.decode.config import environment
from bench.decode.report import Grid, Scene
from bench.decode.ways import Shape, Way
from gpu_worker.core.inference.step import Run
from gpu_worker.engine.slice.admission import admit
from gpu_worker.engine.slice.cost import rows_for

LEAST = 1.03
ROUNDS = 9
POSITION = 64
# What is measured against the time that a step takes beside its computing, and not against a step.
BESIDE = "beside"


@dataclass(frozen=True)
class Choice:
    """
    Two ways to do `part` of a step of `sessions`, made by `make`: before and after. `why` where it is kept below 3 %.
    """

    name: str
    sessions: int
    quant: str
    is_kept: bool
    make: Callable[[Shape, int], tuple[Way, Way]]
    why: str = ""


KEPT, NOT_KEPT = True, False
CHOICES = (
    Choice(
        "f32 in MKL's order, for F.linear", 1, "none", KEPT, ways.mkl_for_plain, "one copy serves any number of rows"
    ),
    Choice("f32 in MKL's order, for F.linear", 8, "none", KEPT, ways.mkl_for_plain),
    Choice("f32 packed for 256 rows, for 8", 32, "none", KEPT, ways.pack_for_256),
    Choice("int8: q, k, v joined, gate and up too", 1, "int8", KEPT, ways.joined),
    Choice("int8: a scale a row, for one of all", 8, "int8", KEPT, ways.row_scales, "a neighbour changes no row"),
    Choice("int8: _int_mm, for the x86 product", 1, "int8", NOT_KEPT, ways.int_mm),
    Choice("int8: _int_mm, for the x86 product", 8, "int8", NOT_KEPT, ways.int_mm),
    Choice("int8: scales by vector_norm", 32, "int8", NOT_KEPT, ways.largest),
    Choice("int4: packed, for made whole", 1, "int4", KEPT, ways.packed_int4),
    Choice("attention: one call, for one each", 32, "none", KEPT, ways.together),
    Choice("attention: contiguous queries", 32, "none", NOT_KEPT, ways.contiguous_queries),
    Choice("attention: a cache layer by layer", 32, "none", NOT_KEPT, ways.layer_major),
    Choice("attention: keys, values in bf16", 32, "none", NOT_KEPT, ways.bf16_cache),
    Choice("cache: one write for all, for one each", 32, "none", KEPT, ways.cache_loop),
    Choice("cache: all indices of a write first", 32, "none", NOT_KEPT, ways.cache_indices_first),
    Choice("RMS norm by vector_norm", 1, "none", NOT_KEPT, ways.norms),
    Choice("RMS norm by vector_norm", 32, "int8", NOT_KEPT, ways.norms),
    Choice("step times in order, for sorted", 1, BESIDE, KEPT, ways.step_times),
)


@dataclass(frozen=True)
class Found:
    """Milliseconds of the part before and after, and of the step that it is a part of, as the engine does it."""

    before_ms: float
    after_ms: float
    step_ms: float
    is_kept: bool

    @property
    def gain(self) -> float:
        """Return how many times longer a step takes with the way before."""
        saved = self.before_ms - self.after_ms
        return (self.step_ms + saved) / self.step_ms if self.is_kept else self.step_ms / (self.step_ms - saved)


def measured(choice: Choice, shape: Shape, step_ms: float) -> Found:
    before, after = choice.make(shape, choice.sessions)
    times: tuple[list[float], list[float]] = [], []
    with torch.inference_mode():
        for number in range(ROUNDS + 1):
            for way, found in ((before, times[0]), (after, times[1]))[:: 1 if number % 2 else -1]:
                took = _taken(way)
                # The first one finds nothing in the caches of the machine.
                found.extend([took] if number else [])
    return Found(statistics.median(times[0]), statistics.median(times[1]), step_ms, choice.is_kept)


def _taken(way: Way) -> float:
    began = time.thread_time()
    way()
    return 1_000 * (time.thread_time() - began)


def step_times(folder: Path, quant: str, sessions: Sequence[int]) -> dict[int, float]:
    """Return the milliseconds of a decode step of the whole model, for each number of sessions at 64 positions."""
    stage = admit(folder, "0:", cache_bytes_max=1 << 29, dtype="fp32", quant=quant, back_end="lean")
    found = {}
    for count in sessions:
        names = [f"{count}-{at}" for at in range(count)]
        for name in names:
            stage.open(name, POSITION + ROUNDS + 2)
            stage.forward(rows_for(stage, POSITION), [Run(session=name, epoch=0, position=0, count=POSITION)])
        took = []
        for number in range(ROUNDS + 1):
            at = POSITION + number
            runs = [Run(session=name, epoch=0, position=at, count=1, samples=True) for name in names]
            rows = rows_for(stage, count)
            took.append(_taken(lambda rows=rows, runs=runs: stage.forward(rows, runs)))  # type: ignore[misc]
        for name in names:
            stage.close(name)
        found[count] = statistics.median(took[1:])
    return found


def measure(folder: Path, beside_ms: float) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    shape = Shape.of(folder)
    steps: dict[tuple[str, int], float] = {(BESIDE, 1): beside_ms}
    for quant in sorted({each.quant for each in CHOICES} - {BESIDE}):
        counts = sorted({each.sessions for each in CHOICES if each.quant == quant})
        steps |= {(quant, count): took for count, took in step_times(folder, quant, counts).items()}
    return [asdict(measured(each, shape, steps[each.quant, each.sessions])) for each in CHOICES]


def add(scene: Scene, folder: Path, beside_ms: float) -> None:
    """Measure all in a process of one thread; add a table of them, and how many of the decisions hold."""
    said = subprocess.run(
        [sys.executable, "-m", "bench.decode.choices", str(folder), str(beside_ms)],
        stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment(1),
    ).stdout  # fmt: skip
    rows, held = [], 0
    for choice, each in zip(CHOICES, json.loads(said.splitlines()[-1]), strict=True):
        found = Found(**each)
        holds = bool(choice.why) or (found.gain >= LEAST) is choice.is_kept
        held += holds
        less = "gains less" if choice.is_kept else "gains more"
        words = ["kept" if choice.is_kept else "not kept"] + ["*"] * bool(choice.why) + [f", {less}"] * (not holds)
        of = f"{choice.sessions}, {choice.quant.replace('none', 'f32')}"
        numbers = (f"{number:.3g}" for number in (found.before_ms, found.after_ms, found.step_ms))
        rows.append([choice.name, of, *numbers, f"{found.gain:.3f}", "".join(words)])
    columns = ("change", "sessions", "before", "after", "a step", "gain", "")
    title = "what each change brings to a step, ms: gain is the step before / after, kept from 1.03 on"
    scene.grids.append(Grid(title, columns, rows))
    scene.add("changes that gain what was decided by", held, f"of {len(CHOICES)}")
    scene.about["* kept without a gain"] = [f"{each.name}: {each.why}" for each in CHOICES if each.why]


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), float(sys.argv[2]))))
