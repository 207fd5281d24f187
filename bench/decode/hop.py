"""
What a hop costs: the steps of a pipeline whose engines compute nothing, beside bare gRPC that carries the same bytes.

The head, its link, the gRPC door, the stage and both engine threads are the worker's own, in two processes. A step goes
to the last stage and its token comes back; an echo is a message of as many bytes and an answer of as many.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any

import grpc
import grpc.aio

from bench.decode.arms import ROOT
from bench.decode.config import environment
from bench.decode.report import Scene
from bench.decode.speed import Asked
from bench.records import percentile
from gpu_worker.core.inference.batch import Batch, Hop
from gpu_worker.core.inference.layers import Layers
from gpu_worker.core.inference.sampling import Sampled, Sampling
from gpu_worker.core.inference.seen import Seen
from gpu_worker.core.inference.step import CacheUse, Done, Run, SliceInfo, Step, Tensor
from gpu_worker.core.inference.tensor import Expected
from gpu_worker.edges.engines.engine_thread import start_engine
from gpu_worker.edges.grpc.grpc_door import DoorOptions, GrpcDoor
from gpu_worker.edges.grpc.grpc_pipeline import PipelineRpcs
from gpu_worker.edges.grpc.links_grpc import GrpcLinks
from gpu_worker.edges.grpc.proto_codec import decode, encode
from gpu_worker.inference.head.head import Head
from gpu_worker.inference.ports import TokenRequest
from gpu_worker.inference.stage.service import StageService

WIDTH = 768
ROUNDS, STEPS = 8, 250
# To the last stage, and from it to the head.
HOPS = 2
_ECHO = "/bench.Echo/Echo"


class Nothing:
    """`edges.engine_thread.SyncEngine` of one of two slices: rows of zeros, always the same token."""

    def __init__(self, start: int, end: int) -> None:
        self.cache = CacheUse(sessions=0, positions=0, positions_max=1 << 20, bytes_max=1 << 30)
        self.info = SliceInfo(
            model="nothing",
            model_hash="0" * 64,
            family="llama",
            layers=Layers(start, end, 2),
            hidden_size=WIDTH,
            vocab_size=8192,
            context=1 << 16,
            dtype="float32",
            device="cpu",
            back_end="none",
            batching="ragged",
            cost_s={1: 0.001},
        )
        self._row = bytes(4 * WIDTH)

    def prepare(self, schema: str) -> None:
        return  # it says the same with any

    def step(self, step: Step) -> Done:
        if not self.info.layers.is_last:
            count = sum(run.count for run in step.runs)
            hidden = Tensor("float32", (count, WIDTH), self._row * count) if count else None
            return Done(runs=step.runs, hidden=hidden)
        tokens = tuple(
            Sampled(session=run.session, epoch=run.epoch, position=run.end, token=7) for run in step.runs if run.samples
        )
        return Done(runs=step.runs, tokens=tokens)

    def close(self) -> None:
        pass


class Known:
    """`inference.ports.Registry` of stages that stay."""

    def __init__(self, hops: Sequence[Hop]) -> None:
        self._hops = tuple(hops)

    async def stages(self) -> Sequence[Hop]:
        return self._hops

    async def changed(self) -> None:
        await asyncio.Event().wait()

    def session_pass(self, session: str, layers: Sequence[tuple[int, int]]) -> str:
        return ""


async def last_stage() -> None:
    """Serve the last slice and an echo until stdin ends; one line of JSON says at which ports."""
    engine = await start_engine(lambda: Nothing(1, 2))
    links = GrpcLinks()
    service = StageService(engine=engine, links=links, registry=Known(()), endpoint="last")

    def seen() -> Seen:
        return Seen(
            endpoint="last", layers=Layers(1, 2, 2), model="nothing", model_hash="0" * 64, is_ready=True,
            hidden_size=WIDTH, wire_dtypes=("float32",), has_steps=True,
        )  # fmt: skip

    door = GrpcDoor(DoorOptions(), [PipelineRpcs(seen, service)])
    await door.start()
    server = grpc.aio.server()

    async def echo(_: Any, context: Any) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:
            await context.write(data[: int.from_bytes(data[:4], "little")])

    handler = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"door": door.port, "echo": port}), flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def head_stage(door: int, echo: int, rounds: int, steps: int) -> dict[str, Any]:
    """Return the seconds of steps and echoes, and the bytes of both messages of one."""
    engine, links = await start_engine(lambda: Nothing(0, 1)), GrpcLinks()
    hops = [Hop(endpoint="head", start=0, end=1), Hop(endpoint=f"127.0.0.1:{door}", start=1, end=2)]
    head = Head(engine=engine, links=links, registry=Known(hops), endpoint="head")
    leading = asyncio.create_task(head.serve())
    while not head.hops:  # noqa: ASYNC110 - nothing to wait for tells, and it is there at once
        await asyncio.sleep(0.01)
    down, up = _messages()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{echo}")
    call = channel.stream_stream(_ECHO)()
    asking = len(up).to_bytes(4, "little") + down[4:]

    async def one_echo() -> None:
        await call.write(asking)
        await call.read()

    found: dict[str, list[float]] = {"step": [], "echo": []}
    for number in range(rounds + 1):
        # One at a time: a session's steps go on by themselves, and would be in the way of the echoes.
        times = {"echo": await _timed(one_echo, steps), "step": await _steps(head, number, steps)}
        for name, each in times.items():
            found[name] += each if number else []
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)
    return {**found, "bytes": [len(down), len(up)], "parts": await _parts(engine)}


async def _steps(head: Head, number: int, count: int) -> list[float]:
    """Return the seconds from one token to the next of a session that runs alone."""
    sampling = Sampling(temperature=0.0)
    request = TokenRequest(session=f"{number:032}", prompt=(1,), tokens_max=count + 1, sampling=sampling)
    at = [time.perf_counter() async for _ in await head.start(request)]
    return [after - before for before, after in pairwise(at)]


async def _timed(do: Callable[[], Awaitable[None]], count: int) -> list[float]:
    times = []
    for _ in range(count):
        began_s = time.perf_counter()
        await do()
        times.append(time.perf_counter() - began_s)
    return times


def _messages() -> tuple[bytes, bytes]:
    """Return what a decode step of one session sends, and the answer to it."""
    name = "127.0.0.1:50051/0123456789abcdef"
    run = Run(session="s" * 32, epoch=1, position=1_000, count=1, samples=True)
    hidden = Tensor("float32", (1, WIDTH), bytes(4 * WIDTH))
    token = Sampled(session="s" * 32, epoch=1, position=1_001, token=7_777)
    down = Batch(pipeline=name, epoch=1, number=1_000, runs=(run,), hidden=hidden, compute_s=(0.01,))
    up = Batch(pipeline=name, epoch=1, number=1_000, tokens=(token,), compute_s=(0.01, 0.01))
    return encode(down), encode(up)


async def _parts(engine: Any) -> dict[str, float]:
    """Return microseconds of what a step is made of, each alone and without a network."""
    down, up = _messages()
    run = Run(session="s" * 32, epoch=1, position=1_000, count=1, samples=True)
    step = Step(runs=(run,), rows=(7,))
    expected = Expected(WIDTH, ("float32",))
    batch, _ = decode(down, expected)
    answer, _ = decode(up, None)

    async def thread() -> None:
        await engine.step(step)

    async def sync(do: Callable[[], Any]) -> None:
        do()

    return {
        "encode rows": _us(await _timed(lambda: sync(lambda: encode(batch)), 500)),
        "decode rows": _us(await _timed(lambda: sync(lambda: decode(down, expected)), 500)),
        "encode answer": _us(await _timed(lambda: sync(lambda: encode(answer)), 500)),
        "decode answer": _us(await _timed(lambda: sync(lambda: decode(up, None)), 500)),
        "engine thread, there and back": _us(await _timed(thread, 500)),
    }


def _us(times: Sequence[float]) -> float:
    return 1e6 * statistics.median(times)


def hop(asked: Asked) -> Scene:
    """A step of two stages that compute nothing, beside the echo of the same bytes."""
    command = [sys.executable, "-m", "bench.decode.hop"]
    with subprocess.Popen(
        [*command, "last"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(1)
    ) as last:
        assert last.stdin is not None
        assert last.stdout is not None
        try:
            ports = json.loads(last.stdout.readline())
            words = [str(each) for each in (ports["door"], ports["echo"], ROUNDS, STEPS)]
            said = subprocess.run(
                [*command, "head", *words], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment(1)
            ).stdout
        finally:
            last.stdin.close()
    found = json.loads(said.splitlines()[-1])
    step, echo = ([1_000 * each for each in found[name]] for name in ("step", "echo"))
    scene = Scene("hop", "a step of two stages that compute nothing, and the echo of the same bytes, on loopback")
    for percent, most in ((50, 1.5), (99, 4.0)):
        ours, bare = percentile(step, percent), percentile(echo, percent)
        scene.add(f"step p{percent}", ours, "ms", note="head, link, door, stage, both engine threads, there and back")
        scene.add(f"echo p{percent}", bare, "ms", note="grpc.aio, one stream")
        scene.add(f"step / echo, p{percent}", ours / bare)
        scene.add(f"a hop / echo, p{percent}", ours / bare / HOPS, most=most, note="a step of two stages has two hops")
    for name, microseconds in found["parts"].items():
        scene.add(name, microseconds, "us", note="alone")
    scene.about = {"steps": len(step), "echoes": len(echo), "bytes there and back": found["bytes"]}
    scene.about["cores"] = "one for each process"
    return scene


def _stay_on(place: int) -> None:
    """
    Keep this process on one core, each on its own where there are two.

    On one core together both take longer, the echo most of all: where they land would decide the ratio.
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[place % len(cores)]})


if __name__ == "__main__":
    reader = argparse.ArgumentParser()
    reader.add_argument("part", choices=("last", "head"))
    reader.add_argument("numbers", type=int, nargs="*")
    typed = reader.parse_args()
    _stay_on(typed.part == "head")
    if typed.part == "last":
        asyncio.run(last_stage())
    else:
        print(json.dumps(asyncio.run(head_stage(*typed.numbers))))
