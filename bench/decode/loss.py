"""A stage that is killed in the middle of a long answer, while a replica of it waits."""

import asyncio
import json
import random
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from bench.decode.arms import Worker, free_ports
from bench.decode.report import Scene
from bench.decode.speed import Asked, prompt

CONTEXT = 2_000
TOKENS = 64
KILLED_AT = 24
TRIALS = 3
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 1.0, "top_p": 0.9, "seed": 7, "logit_bias": {str(token): -100 for token in range(2)}},
}


def kill(asked: Asked) -> Scene:
    """SIGKILL of the last stage at 2,000 tokens of context, again and again, each of two replicas in its turn."""
    scene = Scene("kill", f"the last stage is killed at {CONTEXT} tokens of context, a replica waits: {asked.model}")
    first, last = asked.halves()
    ports = free_ports(3)
    nexts = ",".join(f"127.0.0.1:{port}" for port in ports[1:])
    with tempfile.TemporaryDirectory() as home:
        homes = [Path(home) / str(index) for index in range(3)]
        head = Worker(asked.folder(), first, ports[0], homes[0], nexts)
        stages = {
            f"127.0.0.1:{port}": Worker(asked.folder(), last, port, homes[at]) for at, port in enumerate(ports) if at
        }
        workers = [*stages.values(), head]
        try:
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.wait()
            head.await_route()
            scene.about["processes"] = [f"{worker.pid} {worker.layers}" for worker in workers]
            _measure(scene, head, stages, prompt(random.Random(asked.seed), CONTEXT))
        finally:
            for worker in workers:
                worker.stop()
    return scene


def _measure(scene: Scene, head: Worker, stages: dict[str, Worker], words: list[int]) -> None:
    gaps: list[float] = []
    for name, way in WAYS.items():
        whole, _ = asyncio.run(_stream(head.url, words, way, None))
        same = 0
        for _ in range(TRIALS):
            # Whom the head uses dies; the other one is there, and has nothing of this session.
            used = next(each["endpoint"] for each in head.status()["route"] if each["isUsed"] and each["start"])
            text, times = asyncio.run(_stream(head.url, words, way, stages[used]))
            same += text == whole
            gaps.append(max(after - before for before, after in pairwise(times[KILLED_AT - 2 :])))
            stages[used].start()
            stages[used].wait()
        scene.add(f"{name}: answers equal to the undisturbed one", same, f"of {TRIALS}", least=TRIALS)
    scene.add("gap, longest", max(gaps), "s", most=3.0)
    scene.add("gap, shortest", min(gaps), "s")


async def _stream(url: str, words: list[int], way: dict[str, Any], victim: Worker | None) -> tuple[str, list[float]]:
    """Return the text of an answer and when its tokens came; `victim` is killed after some of them."""
    body = {"prompt": words, "max_tokens": TOKENS, "stream": True, "ignore_eos": True, **way}
    text, times = "", []
    async with (
        httpx.AsyncClient(timeout=120) as client,
        client.stream("POST", f"{url}/v1/completions", json=body) as reply,
    ):
        if reply.status_code != 200:
            raise RuntimeError((await reply.aread()).decode())
        async for line in reply.aiter_lines():
            if not line.startswith("data: {"):
                continue
            said = json.loads(line.removeprefix("data: "))
            if "choices" not in said:
                raise RuntimeError(line)
            text += said["choices"][0]["text"]
            times.append(time.perf_counter())
            if victim is not None and len(times) == KILLED_AT:
                victim.kill()
    return text, times
