"""How many tokens a second: one stream alone, and 32 sessions together."""

import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.decode import peers
from bench.decode.arms import Arm, Livery, Program
from bench.decode.client import Turn
from bench.decode.models import BYTES, VOCABULARY, layers_of, make
from bench.decode.report import Scene, median_rate, ratio
from bench.decode.wire import bytes_of_a_step

SESSIONS = 32
# Measured once with the same model and the same threads, on the machine of that day: they cannot be installed here.
RECORDED = {"Petals": 17.3, "llama.cpp RPC": 27.1, "distributed-llama": 51.7}
GOALS_RECORDED = {"Petals": 1.5, "llama.cpp RPC": 0.97}
PIPE = "two engines and a bare pipe"
PIPELINE_WORDS = (
    *("-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"),
    *("-m", "bench.decode.programs", "hf-pipeline"),
)


@dataclass(frozen=True)
class Asked:
    """What the scenes are to measure. `turns` of each arm, of `tokens` tokens; `models` is where models are made."""

    models: Path
    model: str = "llama-88m"
    large: str = "llama-629m"
    turns: int = 5
    tokens: int = 48
    peers_python: str = sys.executable
    seed: int = 0

    def folder(self, name: str = "") -> Path:
        return make(name or self.model, self.models)

    def halves(self, name: str = "") -> tuple[str, str]:
        count = layers_of(name or self.model)
        return f"0:{count // 2}", f"{count // 2}:{count}"


def prompt(dice: random.Random, length: int) -> list[int]:
    return [dice.randrange(2 + BYTES, VOCABULARY) for _ in range(length)]


@contextmanager
def running(arms: Sequence[Arm]) -> Iterator[None]:
    started: list[Arm] = []
    try:
        for arm in arms:
            arm.start()
            started.append(arm)
        yield
    finally:
        for arm in started:
            arm.stop()


def in_turns(
    arms: Sequence[Arm], turns: int, count: int, prompts: Callable[[], list[list[int]]]
) -> dict[str, list[Turn]]:
    """Return the turns of each arm; all have one with the same prompts before the next. The first ones are let go."""
    found: dict[str, list[Turn]] = {arm.name: [] for arm in arms}
    for number in range(turns + 1):
        asked = prompts()
        for place in range(len(arms)):
            arm = arms[(place + number) % len(arms)]
            turn = arm.turn(asked, count)
            if number:
                found[arm.name].append(turn)
    return found


def single(asked: Asked) -> Scene:
    """One stream in float32, one thread in each process."""
    folder, count = asked.folder(), layers_of(asked.model)
    ours, alone = Livery("ours", folder, asked.halves()), Livery("ours unsplit", folder, (f"0:{count}",))
    hf = Program("HF unsplit", ("-m", "bench.decode.programs", "hf", str(folder)))
    native = Program("HF pipeline", (*PIPELINE_WORDS, str(folder)))
    pipe = Program(PIPE, ("-m", "bench.decode.bare", str(folder), *asked.halves()))
    arms: list[Arm] = [ours, alone, pipe, hf, native]
    without = peers.problem(asked.peers_python)
    if without is None:
        arms.append(peers.LlamaCpp("llama.cpp f32 unsplit", asked.peers_python, folder, "f32"))
    dice = random.Random(asked.seed)
    with running(arms):
        found = in_turns(arms, asked.turns, asked.tokens + 1, lambda: [prompt(dice, 32)])
        about = {arm.name: arm.processes for arm in arms}
    scene = Scene("single", f"one stream, f32, 1 thread per process: {asked.model}")
    rates = {name: median_rate(turns) for name, turns in found.items()}
    for name, rate in rates.items():
        scene.add(name, rate, "tok/s")
    for name, least in (("ours unsplit", 0.95), ("HF unsplit", 1.1), ("HF pipeline", 1.15)):
        scene.add(f"ours / {name}", ratio(found["ours"], found[name]), least=least)
    scene.add(f"ours / {PIPE}", ratio(found["ours"], found[PIPE]), note="no gRPC, no HTTP, no scheduler")
    scene.add(f"{PIPE} / ours unsplit", ratio(found[PIPE], found["ours unsplit"]), note="what two processes can reach")
    name = "ours / llama.cpp f32 unsplit"
    scene.add(name, None if without else ratio(found["ours"], found[name[7:]]), note=without or "")
    scene.add("ours unsplit / HF unsplit", ratio(found["ours unsplit"], found["HF unsplit"]))
    for name, rate in RECORDED.items():
        scene.add(
            f"ours / {name}", rates["ours"] / rate, least=GOALS_RECORDED.get(name), note=f"recorded, {rate} tok/s"
        )
    scene.about = {"processes": about, "tokens in a turn": asked.tokens, "turns": asked.turns}
    scene.about["bytes of a step"] = bytes_of_a_step(folder, asked.halves(), prompt(dice, 32), min(asked.tokens, 32))
    return scene


def many(asked: Asked) -> Scene:
    """32 sessions together, prompts of 32 to 95 tokens, beside one and eight of them."""
    folder, count = asked.folder(), layers_of(asked.model)
    whole = (f"0:{count}",)
    int8 = ("--quant", "int8")
    f32 = Livery("ours f32", folder, asked.halves())
    quantised = Livery("ours int8", folder, asked.halves(), options=int8)
    arms: list[Arm] = [
        f32,
        quantised,
        Livery("ours f32 unsplit", folder, whole, threads=2),
        Livery("ours int8 unsplit", folder, whole, threads=2, options=int8),
    ]
    without = peers.problem(asked.peers_python)
    if without is None:
        arms.append(
            peers.LlamaCpp("llama.cpp q8_0", asked.peers_python, folder, "q8_0", 2, SESSIONS, _context(asked.tokens))
        )
    dice = random.Random(asked.seed)

    def mixed(sessions: int) -> list[list[int]]:
        return [prompt(dice, 32 + 63 * index // max(1, sessions - 1)) for index in range(sessions)]

    def turns_of(sessions: int) -> dict[str, list[Turn]]:
        turns = asked.turns if sessions == SESSIONS else 2
        return in_turns(arms, turns, asked.tokens + 16, lambda: mixed(sessions))

    with running(arms):
        found = {sessions: turns_of(sessions) for sessions in (1, 8, SESSIONS)}
        about: dict[str, Any] = {arm.name: arm.processes for arm in arms}
        system = [arm.said["system"] for arm in arms if isinstance(arm, peers.LlamaCpp)]
    scene = Scene("many", f"sessions together, prompts of 32 to 95 tokens: {asked.model}")
    for sessions, by_arm in found.items():
        for name, turns in by_arm.items():
            whole_rate = statistics.median(turn.wall_tokens / turn.wall_s for turn in turns)
            note = f"{whole_rate:.1f} with the prompts' time"
            scene.add(f"{name}, {sessions} sessions", median_rate(turns), "tok/s", note=note)
    at, one = found[SESSIONS], found[1]
    scene.add("ours f32: 32 sessions / one", median_rate(at["ours f32"]) / median_rate(one["ours f32"]), least=12)
    theirs = None if without else ratio(at["ours int8"], at["llama.cpp q8_0"])
    scene.add("ours int8 / llama.cpp q8_0", theirs, least=2, note=without or "llama.cpp: the wheel's own build")
    scene.about = {"processes": about, "llama.cpp": system, "tokens in a turn": asked.tokens + 16, "turns": asked.turns}
    return scene


def _context(tokens: int) -> int:
    """Return the positions of a slot that has room for the longest prompt and its answer."""
    return -(-(95 + tokens + 32) // 256) * 256
