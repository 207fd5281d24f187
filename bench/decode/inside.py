"""
The two stages of a pipeline, looked into: `python -m bench.decode.inside last|head FOLDER LAYERS QUANT [PORT]`.

They are the worker's own parts around an engine whose steps are timed. A line of JSON comes in for each turn and one
goes out. One clock serves both processes, so that a step can be followed from one into the other.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bench.decode.hop import Known
from bench.decode.speed import prompt
from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.core.inference.seen import Seen
from gpu_worker.core.inference.step import CacheUse, Done, SliceInfo, Step
from gpu_worker.edges.engines.engine_thread import start_engine
from gpu_worker.edges.grpc.grpc_door import DoorOptions, GrpcDoor
from gpu_worker.edges.grpc.grpc_pipeline import PipelineRpcs
from gpu_worker.edges.grpc.links_grpc import GrpcLinks
from gpu_worker.engine.slice.admission import admit
from gpu_worker.engine.slice.slice_engine import SliceEngine
from gpu_worker.inference.head.head import Head
from gpu_worker.inference.ports import TokenRequest
from gpu_worker.inference.stage.service import StageService

CACHE_BYTES = 1 << 29
ROUTE_S = 30
# Both serve the same folder; nobody has to be shown so.
HASH = "0" * 64
# Words in an operator's name -> the part of a step that it is; what has none of them is norms and their like.
PARTS = {
    "linear": "linears", "addmm": "linears", "_int_mm": "linears", "int4pack_mm": "linears",
    "scaled_dot": "attention", "bmm": "attention", "softmax": "attention", "matmul": "attention",
}  # fmt: skip
OTHERS = "others"


@dataclass
class Taken:
    """
    One step: when it began and ended, and seconds of the processor: of its forward pass, of its thread at its beginning
    and end, of the process at its beginning. `parts` are those of its operators, where it was profiled.
    """

    began: float
    ended: float
    forward: float
    thread: tuple[float, float]
    process: float
    runs: int
    position: int
    is_decode: bool
    parts: dict[str, float] = field(default_factory=dict)


class Operators(TorchDispatchMode):  # type: ignore[misc, unused-ignore]
    """Adds up in `seconds` what each operator of torch takes in this thread, by the part of a step that it is."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = time.thread_time()
        made = func(*args, **(kwargs or {}))
        took = time.thread_time() - began
        part = next((part for word, part in PARTS.items() if word in str(func)), OTHERS)
        self.seconds[part] = self.seconds.get(part, 0.0) + took
        return made


class Watched:
    """A `Stage` whose forward pass is timed, and profiled where it is said so."""

    def __init__(self, stage: Any) -> None:
        self._stage = stage
        self.is_profiled = False
        self.seconds = 0.0
        self.parts: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def forward(self, x: Any, runs: Sequence[Any]) -> Any:
        self.parts = {}
        began = time.thread_time()
        if self.is_profiled:
            with Operators() as found:
                made = self._stage.forward(x, runs)
            self.parts = found.seconds
        else:
            made = self._stage.forward(x, runs)
        self.seconds = time.thread_time() - began
        return made


class Probe:
    """`edges.engine_thread.SyncEngine` of a slice that keeps what each of its steps took."""

    def __init__(self, folder: Path, layers: str, quant: str) -> None:
        stage = admit(
            folder, layers, cache_bytes_max=CACHE_BYTES, dtype="fp32", quant=quant, back_end="lean", model_hash=HASH
        )
        self.stage: Any = Watched(stage)
        self._engine = SliceEngine(self.stage)
        self.steps: list[Taken] = []

    @property
    def info(self) -> SliceInfo:
        return self._engine.info

    @property
    def cache(self) -> CacheUse:
        return self._engine.cache

    def prepare(self, schema: str) -> None:
        self._engine.prepare(schema)

    def close(self) -> None:
        self._engine.close()

    def begin(self, is_profiled: bool) -> None:
        """Forget the steps so far."""
        self.stage.is_profiled = is_profiled
        self.steps = []

    def step(self, step: Step) -> Done:
        process, thread, began = time.process_time(), time.thread_time(), time.perf_counter()
        done = self._engine.step(step)
        ended, thread_after = time.perf_counter(), time.thread_time()
        is_decode = bool(step.runs) and not (step.opens or step.closes) and all(run.count == 1 for run in step.runs)
        position = step.runs[0].position if step.runs else -1
        self.steps.append(
            Taken(
                began,
                ended,
                self.stage.seconds,
                (thread, thread_after),
                process,
                len(step.runs),
                position,
                is_decode,
                self.stage.parts,
            )
        )
        return done

    def found(self, sessions: int) -> dict[str, Any]:
        """Return milliseconds for one token of each of `sessions`, of the steps in which all of them decode."""
        return told(longest_decode(self.steps), sessions)


def longest_decode(steps: Sequence[Taken]) -> list[Taken]:
    """Return the longest row of steps of which each has one row for each of its sessions, and none begins or ends."""
    rows: list[list[Taken]] = [[]]
    for step in steps:
        if step.is_decode:
            rows[-1].append(step)
        else:
            rows.append([])
    return max(rows, key=len)


def told(steps: Sequence[Taken], sessions: int) -> dict[str, Any]:
    """
    Return what steps took, as milliseconds for one token of each of `sessions`; `parts` where they were profiled.

    All but `round` are the processor's time: what else runs on the machine makes waits longer, and nothing else.

    Raises RuntimeError: there are too few of them.
    """
    # The first ones are on their way beside the last prompts.
    steps = steps[2:]
    if len(steps) < 3:
        raise RuntimeError("the sessions hardly decoded together: ask for more tokens")
    inside, first, last = steps[:-1], steps[0], steps[-1]
    rounds = sum(step.runs for step in inside) / sessions
    each = 1_000 / rounds
    engine_cpu = sum(step.thread[1] - step.thread[0] for step in inside)
    parts: dict[str, float] = {}
    for step in inside:
        for name, seconds in step.parts.items():
            parts[name] = parts.get(name, 0.0) + seconds * each
    return {
        "round": (last.began - first.began) * each,
        "engine": engine_cpu * each,
        "forward": sum(step.forward for step in inside) * each,
        "beside": (last.process - first.process - engine_cpu) * each,
        "steps": len(inside) / rounds,
        "parts": parts,
        "at": {step.position: [step.began, step.ended] for step in steps} if sessions == 1 else {},
    }


def says(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)


async def last_stage(typed: argparse.Namespace, total: int) -> None:
    """Serve the last slice; of each line `{"profiled"}` begins a turn, `{"sessions"}` ends it."""
    layers = Layers.parse(typed.layers, total)
    probes: list[Probe] = []

    def opened() -> Probe:
        probes.append(Probe(typed.folder, typed.layers, typed.quant))
        return probes[0]

    engine, links = await start_engine(opened), GrpcLinks()
    service = StageService(engine=engine, links=links, registry=Known(()), endpoint="last")

    def seen() -> Seen:
        info = engine.info
        return Seen(
            endpoint="last", layers=layers, model=info.model, model_hash=HASH, is_ready=True,
            hidden_size=info.hidden_size, wire_dtypes=(info.dtype,), has_steps=True,
        )  # fmt: skip

    door = GrpcDoor(DoorOptions(), [PipelineRpcs(seen, service)])
    await door.start()
    says({"port": door.port})
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        if "sessions" in asked:
            says(probes[0].found(asked["sessions"]))
        else:
            probes[0].begin(asked["profiled"])
            says({})
    await door.stop(0)


async def head_stage(typed: argparse.Namespace, total: int) -> None:
    """Lead the pipeline; a line `{"sessions", "tokens", "profiled"}` is one turn of so many sessions."""
    mine = Layers.parse(typed.layers, total)
    probes: list[Probe] = []

    def opened() -> Probe:
        probes.append(Probe(typed.folder, typed.layers, typed.quant))
        return probes[0]

    engine = await start_engine(opened)
    hops = [
        Hop(endpoint="head", start=mine.start, end=mine.end),
        Hop(endpoint=f"127.0.0.1:{typed.port}", start=mine.end, end=total),
    ]
    head = Head(engine=engine, links=GrpcLinks(), registry=Known(hops), endpoint="head")
    leading = asyncio.create_task(head.serve())
    until = time.monotonic() + ROUTE_S
    while not head.hops:
        if time.monotonic() > until:
            raise RuntimeError(head.why_no_route())
        await asyncio.sleep(0.01)
    dice, number = random.Random(0), 0
    says({})
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        probes[0].begin(asked["profiled"])
        sessions, number = asked["sessions"], number + 1

        async def session(index: int, name: str, tokens: int, count: int) -> None:
            words = tuple(prompt(dice, 32 + 63 * index // max(1, count - 1)))
            request = TokenRequest(session=name, prompt=words, tokens_max=tokens, sampling=Sampling(temperature=0.0))
            async for _ in await head.start(request):
                pass

        every = (session(at, f"{number:016}{at:016}", asked["tokens"], sessions) for at in range(sessions))
        await asyncio.gather(*every)
        says(probes[0].found(sessions))
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)


if __name__ == "__main__":
    reader = argparse.ArgumentParser()
    reader.add_argument("part", choices=("last", "head"))
    reader.add_argument("folder", type=Path)
    reader.add_argument("layers")
    reader.add_argument("quant")
    reader.add_argument("port", type=int, nargs="?")
    typed = reader.parse_args()
    torch.set_num_threads(1)
    count = int(json.loads((typed.folder / "config.json").read_text())["num_hidden_layers"])
    asyncio.run({"last": last_stage, "head": head_stage}[typed.part](typed, count))
