"""What the door takes of a model's speed: the same file in llama.cpp's own server, and behind the worker."""

import random
import statistics
from collections.abc import Callable, Sequence

from bench.decode.arms import Arm
from bench.decode.client import Turn
from bench.decode.report import Scene, median_rate, ratio
from bench.decode.speed import in_turns, prompt, running
from bench.serving.arms import Direct, Through
from bench.serving.asked import Asked

STREAMS = 8
PROMPT = 32


def door(asked: Asked) -> Scene:
    """Return tokens a second and the time to the first token, at one stream and at eight, side by side."""
    scene = Scene("door", f"{asked.model} in llama.cpp, 1 thread: asked itself, and through the worker's door")
    dice = random.Random(asked.seed)
    arms: list[Arm] = [Direct(asked.file(), STREAMS), Through(asked.file(), STREAMS)]
    with running(arms):
        scene.about["processes"] = [line for arm in arms for line in arm.processes]
        for streams, least in ((1, 0.97), (STREAMS, 0.95)):
            found = in_turns(arms, asked.turns, asked.tokens, _prompts(dice, streams))
            direct, through = (found[arm.name] for arm in arms)
            what = "1 stream" if streams == 1 else f"{streams} streams"
            scene.add(f"{what}, llama.cpp itself", median_rate(direct), "tok/s")
            scene.add(f"{what}, through the door", median_rate(through), "tok/s")
            scene.add(f"{what}, through / itself", ratio(through, direct), least=least)
            scene.add(f"{what}, first token, through / itself", _first(through, direct), most=1.1)
    scene.about["asked"] = f"{asked.turns} turns of {asked.tokens} tokens behind prompts of {PROMPT}, taking turns"
    return scene


def _first(turns: Sequence[Turn], others: Sequence[Turn]) -> float:
    return statistics.median(one.first_s / other.first_s for one, other in zip(turns, others, strict=True))


def _prompts(dice: random.Random, streams: int) -> Callable[[], list[list[int]]]:
    return lambda: [prompt(dice, PROMPT) for _ in range(streams)]
