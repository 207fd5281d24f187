"""Stages of one model as workers, each a process, and a kill or a freeze of one of them in the midst of streams."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import httpx

from tests.fixtures.slice_worker import Worker, until
from tests.fixtures.tiny_words import LAYERS, WORDS

# A victim dies between these tokens of the first stream; how far the others are then is chance. The stream is so much
# longer that its head is not through before who reads it here has seen that token.
TOKENS = 300
FIRST, LAST = 5, 100
HARMS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP}
# Without a penalty a greedy stream of so small a model says one word for ever.
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "frequency_penalty": 1.0},
    "drawn": {"temperature": 1.0, "top_p": 0.95, "seed": 7},
    "penalised": {"temperature": 0.8, "presence_penalty": 0.5, "frequency_penalty": 0.3, "seed": 11},
}
PROMPTS = {
    way: " ".join(f"w{1 + (7 * number + 3 * at) % (WORDS - 1)}" for at in range(length))
    for number, (way, length) in enumerate(zip(WAYS, (5, 40, 200), strict=True))
}
# By the number of stages: the borders of their slices. Each but the first has a replica.
BORDERS = {2: (0, 2, LAYERS), 3: (0, 2, 4, LAYERS)}


@dataclass(frozen=True, slots=True)
class Plan:
    """Harm the stage at `place` of the route, 1 is the one behind the head, once the first stream has `at` tokens."""

    kind: str
    place: int
    at: int


@dataclass(slots=True)
class Trial:
    """`gaps_s` is the longest pause of each stream after the harm; `wrong` is what differs from undisturbed streams."""

    plan: Plan
    stages: int
    victim: str
    gaps_s: list[float]
    refilled: int
    replayed: int
    failovers: int
    was_harmed_before: bool
    back_s: float = 0.0
    lost: int = 0
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)


def draw(chance: Random, stages: int, number: int) -> Plan:
    """Return plan `number`: kinds in turn, the place and the moment by chance."""
    kind = list(HARMS)[number % len(HARMS)]
    return Plan(kind, chance.randrange(1, stages), chance.randint(FIRST, LAST))


class Place:
    """A pipeline of `stages` stages, replicas of all but the head, and what it says when nobody disturbs it."""

    def __init__(self, folder: Path, model: Path, stages: int) -> None:
        self.stages = stages
        slices = [f"{start}:{end}" for start, end in pairwise(BORDERS[stages])]
        path = folder / f"who-{stages}.json"
        names = [(slices[0], "")] + [(layers, replica) for layers in slices[1:] for replica in "ab"]
        self.workers = [
            Worker(folder, model, f"{stages}-{layers.replace(':', '-')}{replica}", "--topology", str(path))
            for layers, replica in names
        ]
        self.head = self.workers[0]
        known = [
            {"endpoint": worker.endpoint, "layers": layers}
            for worker, (layers, _) in zip(self.workers, names, strict=True)
        ]
        path.write_text(json.dumps({"model": model.name, "stages": known}))
        self.harmed: set[str] = set()
        self.undisturbed: dict[str, list[str]] = {}

    def start(self) -> None:
        with ThreadPoolExecutor(len(self.workers)) as pool:
            for started in [pool.submit(worker.start) for worker in self.workers]:
                started.result()
        for worker in self.workers:
            worker.wait_until("worker is online")
        until(lambda: len(self.head.route()) == self.stages, self.head)
        self.undisturbed = {way: self.stream(way)[0] for way in WAYS}

    def stop(self) -> None:
        for worker in self.workers:
            worker.stop()

    def stream(self, way: str, each: Callable[[int], None] = lambda _: None) -> tuple[list[str], list[float]]:
        """Return the tokens of a stream and when each came; `each` is called with how many there are."""
        tokens: list[str] = []
        times: list[float] = []
        for piece in self.head.stream(TOKENS, WAYS[way], PROMPTS[way]):
            for token in piece.split():
                tokens.append(token)
                times.append(time.monotonic())
            each(len(tokens))
        return tokens, times

    def tried(self, plan: Plan) -> Trial:
        """Return what became of one stream of each way while a stage was harmed; the stage is back then."""
        until(lambda: len(self.head.route()) == self.stages, self.head)
        victim = next(worker for worker in self.workers if worker.endpoint == self.head.route()[plan.place])
        before = self.head.counted()
        harmed_at: list[float] = []

        def harm(count: int) -> None:
            if count >= plan.at and not harmed_at:
                harmed_at.append(time.monotonic())
                victim.send(HARMS[plan.kind])

        with ThreadPoolExecutor(len(WAYS)) as pool:
            first = next(iter(WAYS))
            asked = {way: pool.submit(self.stream, way, *([harm] if way == first else [])) for way in WAYS}
            told = {way: each.result() for way, each in asked.items()}
        after = self.head.counted()
        counts = {
            name: round(after[f"livery_{name}"] - before[f"livery_{name}"])
            for name in ("sessions_refilled", "sessions_replayed", "failovers")
        }
        trial = Trial(
            plan=plan,
            stages=self.stages,
            victim=victim.name,
            gaps_s=[gap_s(times, harmed_at[0]) for _, times in told.values()],
            refilled=counts["sessions_refilled"],
            replayed=counts["sessions_replayed"],
            failovers=counts["failovers"],
            was_harmed_before=victim.endpoint in self.harmed,
        )
        for way, (tokens, _) in told.items():
            compare(trial, way, tokens, self.undisturbed[way])
        if not trial.failovers:
            trial.wrong.append("the head has not noticed")
        self.harmed.add(victim.endpoint)
        trial.back_s = self._restored(victim, plan.kind)
        return trial

    def _restored(self, victim: Worker, kind: str) -> float:
        began_s = time.monotonic()
        if kind == "kill":
            victim.server.process.wait()
            victim.start()
            victim.wait_until("worker is online")
        else:
            victim.send(signal.SIGCONT)
        until(lambda: _is_ready(victim), victim)
        return time.monotonic() - began_s


def _is_ready(worker: Worker) -> bool:
    assert worker.is_alive, f"{worker.name} has ended with {worker.server.process.returncode}: {worker.log}"
    try:
        return bool(worker.status()["slice"]["state"] == "ready")
    except httpx.TransportError:
        return False


def gap_s(times: list[float], since_s: float) -> float:
    """Return the longest pause between tokens that ended after `since_s`."""
    return max((after - before for before, after in pairwise(times) if after >= since_s), default=0.0)


def compare(trial: Trial, way: str, tokens: list[str], undisturbed: list[str]) -> None:
    """Write into `trial` what of a stream is not as in the undisturbed one."""
    if tokens == undisturbed:
        return
    trial.lost += max(0, len(undisturbed) - len(tokens))
    trial.doubled += max(0, len(tokens) - len(undisturbed))
    pairs = enumerate(zip(tokens, undisturbed, strict=False))
    at = next((number for number, (one, other) in pairs if one != other), min(len(tokens), len(undisturbed)))
    trial.wrong.append(f"{way}: {len(tokens)} tokens of {len(undisturbed)}, others from token {at} on")


@contextmanager
def opened(place: Place) -> Iterator[Place]:
    try:
        place.start()
        yield place
    finally:
        place.stop()
