"""Where a decode step's time goes in a pipeline of two processes, and what each way of the engine brings."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.decode.arms import ROOT
from bench.decode.config import environment
from bench.decode.report import Grid, Scene
from bench.decode.speed import SESSIONS, Asked
from gpu_worker.core.inference.batch import Batch
from gpu_worker.core.inference.sampling import Sampled
from gpu_worker.core.inference.step import Run, Tensor
from gpu_worker.core.inference.tensor import Expected
from gpu_worker.edges.grpc.proto_codec import decode, encode

CASES = ((1, "none", "1, f32"), (SESSIONS, "none", f"{SESSIONS}, f32"), (SESSIONS, "int8", f"{SESSIONS}, int8"))
PROFILED = 16


class Stage:
    """A process of `bench.decode.inside` that answers each line with one."""

    def __init__(self, *words: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.decode.inside", *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(1),
        )  # fmt: skip
        self.pid = self._process.pid

    def heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a stage ended with {self._process.wait()}; what it said stands above")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, **asked: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return self.heard()

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


@contextmanager
def pair(folder: Path, slices: tuple[str, str], quant: str) -> Iterator[tuple[Stage, Stage]]:
    last = Stage("last", str(folder), slices[1], quant)
    try:
        head = Stage("head", str(folder), slices[0], quant, str(last.heard()["port"]))
        try:
            head.heard()
            yield head, last
        finally:
            head.stop()
    finally:
        last.stop()


def turn(stages: tuple[Stage, Stage], sessions: int, tokens: int, *, is_profiled: bool) -> list[dict[str, Any]]:
    """Return what head and last stage found in one turn."""
    head, last = stages
    last.ask(profiled=is_profiled)
    return [head.ask(sessions=sessions, tokens=tokens, profiled=is_profiled), last.ask(sessions=sessions)]


def profile(asked: Asked) -> Scene:
    """Where a step's time goes, for one stream and for 32 sessions; what each choice of the engine gains."""
    from bench.decode import choices

    folder, slices = asked.folder(), asked.halves()
    scene = Scene("profile", f"where a decode step's time goes, and what each change brought: {asked.model}")
    columns: dict[str, dict[str, float]] = {}
    beside_ms = 0.0
    for quant in ("none", "int8"):
        with pair(folder, slices, quant) as stages:
            for sessions, wanted, name in CASES:
                if wanted != quant:
                    continue
                tokens = asked.tokens + 2 * sessions
                turn(stages, sessions, tokens, is_profiled=False)
                timed = turn(stages, sessions, tokens, is_profiled=False)
                looked = turn(stages, sessions, PROFILED + 2 * sessions, is_profiled=True)
                for place, stage in enumerate(("head", "last")):
                    columns[f"{name} {stage}"] = split(timed[place], looked[place], sessions, place == 1)
                scene.add(f"{name}: a token of each", timed[0]["round"], "ms")
                if sessions == 1:
                    beside_ms = _ways(scene, timed)
            scene.about.setdefault("processes", []).extend(f"{stage.pid}, threads: 1, {quant}" for stage in stages)
    rows = [[part, *(f"{column[part]:.2f}" for column in columns.values())] for part in next(iter(columns.values()))]
    scene.grids.append(
        Grid("where a step's time goes: milliseconds of a process for one token of each session", ["", *columns], rows)
    )
    choices.add(scene, folder, beside_ms)
    scene.about["how"] = (
        "all but waits is the processor's time; operators one by one in a turn of their own; encode and decode alone; "
        "what runs beside an engine may do so while it computes: where waits are below 0, it did"
    )
    return scene


def split(timed: dict[str, Any], looked: dict[str, Any], sessions: int, is_last: bool) -> dict[str, float]:
    """Return the parts of one token of each session in one process, milliseconds; they add up to `together`."""
    parts = looked["parts"]
    operators = sum(parts.values())
    down_ms, up_ms = _serialising(max(1, round(sessions / timed["steps"])))
    # The head encodes rows and decodes the answer, the last stage the other way round.
    serialise = timed["steps"] * (down_ms[is_last] + up_ms[not is_last])
    return {
        "linears": parts.get("linears", 0.0),
        "attention": parts.get("attention", 0.0),
        "norms, rotary, SiLU, cache": parts.get("others", 0.0),
        "views, dispatch, Python": timed["forward"] - operators,
        "checks, sampling": timed["engine"] - timed["forward"],
        "serialise": serialise,
        "Python, gRPC beside the engine": timed["beside"] - serialise,
        "waits": timed["round"] - timed["engine"] - timed["beside"],
        "together": timed["round"],
    }


def _ways(scene: Scene, timed: list[dict[str, Any]]) -> float:
    """Add how long a step of one stream is under way from one engine to the other. Returns both ways, ms."""
    head: dict[str, list[float]] = timed[0]["at"]
    last: dict[str, list[float]] = timed[1]["at"]
    there = [last[at][0] - head[at][1] for at in head if at in last]
    back = [head[str(int(at) + 1)][0] - last[at][1] for at in last if str(int(at) + 1) in head]
    there_ms, back_ms = 1_000 * statistics.median(there), 1_000 * statistics.median(back)
    name = CASES[0][2]
    scene.add(f"{name}: from the head's engine to the last one's", there_ms, "ms", note="both loops, codec, wire")
    scene.add(f"{name}: from the last engine to the head's", back_ms, "ms", note="and the next step's beginning")
    share = 100 * (there_ms + back_ms) / timed[0]["round"]
    scene.add(f"{name}: all that is not an engine", there_ms + back_ms, "ms", note=f"{share:.1f} % of a step")
    return there_ms + back_ms


def _serialising(sessions: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the milliseconds that encoding and decoding take, of a step's rows and of its answer."""
    width, name = 768, "127.0.0.1:50051/0123456789abcdef"
    ids = [f"{at:032}" for at in range(sessions)]
    runs = tuple(Run(session=each, epoch=1, position=1_000, count=1, samples=True) for each in ids)
    tokens = tuple(Sampled(session=each, epoch=1, position=1_001, token=7_777) for each in ids)
    hidden = Tensor("float32", (sessions, width), bytes(4 * width * sessions))
    down = Batch(pipeline=name, epoch=1, number=1_000, runs=runs, hidden=hidden, compute_s=(0.01,))
    up = Batch(pipeline=name, epoch=1, number=1_000, tokens=tokens, compute_s=(0.01, 0.01))
    rows, answer, expected = encode(down), encode(up), Expected(width, ("float32",))
    return (
        (_ms(lambda: encode(down)), _ms(lambda: decode(rows, expected))),
        (_ms(lambda: encode(up)), _ms(lambda: decode(answer, None))),
    )


def _ms(do: Callable[[], Any], times: int = 200) -> float:
    took = []
    for _ in range(times):
        began = time.perf_counter()
        do()
        took.append(time.perf_counter() - began)
    return 1_000 * statistics.median(took)
