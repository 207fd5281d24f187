"""Over a distance, and far into a text: what a delay between the stages and a long context cost."""

import random
import statistics
from itertools import pairwise

from bench.decode.arms import Arm, Livery, free_ports
from bench.decode.client import Turn
from bench.decode.models import layers_of
from bench.decode.report import Scene, median_rate
from bench.decode.speed import Asked, prompt, running
from bench.decode.wire import Proxy, bytes_of_a_step

RTTS_MS = (20, 60, 100)
CONTEXTS = (32, 512, 2_048)
# Time may grow so much faster than the unsplit model's: what two runs of the same differ by.
SPREAD = 1.05


def rtt(asked: Asked) -> Scene:
    """Tokens of one stream with a delay between the stages, beside what the formula says."""
    scene = Scene("rtt", f"one stream with a delay between the stages: {asked.model}")
    count, turns = layers_of(asked.model), max(2, asked.turns // 2)
    thirds = [0, count // 3, 2 * count // 3, count]
    for slices in (asked.halves(), tuple(f"{a}:{b}" for a, b in pairwise(thirds))):
        _delayed(scene, asked, slices, turns)
    return scene


def _delayed(scene: Scene, asked: Asked, slices: tuple[str, ...], turns: int) -> None:
    """
    The formula: what the stages computed, half a round trip for each way, the last stage's to the head among them, and
    what a step takes beside that where there is no delay, by the same proxies.
    """
    stages, dice = len(slices), random.Random(asked.seed)
    ports = free_ports(stages)
    proxies = [Proxy(port) for port in ports[1:]]
    dialled = {index: proxy.endpoint for index, proxy in enumerate(proxies, 1)}
    arm = Livery("ours", asked.folder(), slices, ports=ports, dialled=dialled)
    took: dict[int, list[tuple[float, float]]] = {each: [] for each in (0, *RTTS_MS)}
    try:
        with running([arm]):
            arm.turn([prompt(dice, 32)], 4)
            for _ in range(turns):
                for each, found in took.items():
                    for proxy in proxies:
                        proxy.set_rtt(each)
                    before = arm.compute()
                    turn = arm.turn([prompt(dice, 32)], asked.tokens + 1)
                    after = arm.compute()
                    computed_ms = (after[1] - before[1]) / (after[0] - before[0])
                    found.append((1_000 / turn.per_second, computed_ms))
            scene.about[f"{stages} stages"] = arm.processes
    finally:
        for proxy in proxies:
            proxy.stop()
    beside_ms = statistics.median(step - computed for step, computed in took[0])
    scene.add(f"{stages} stages, beside computing, no delay", beside_ms, "ms")
    for each in RTTS_MS:
        step_ms = statistics.median(step for step, _ in took[each])
        way_ms = each * stages / 2
        share = statistics.median(step / (computed + beside_ms + way_ms) for step, computed in took[each])
        scene.add(f"{stages} stages, RTT {each} ms", 1_000 / step_ms, "tok/s", note=f"{step_ms:.1f} ms a token")
        scene.add(f"{stages} stages, RTT {each} ms: step / formula", share, least=0.9, most=1.1)


def long(asked: Asked) -> Scene:
    """The same stream at 32, 512 and 2,048 tokens of context: bytes and time of a step."""
    folder, dice = asked.folder(), random.Random(asked.seed)
    ours, alone = Livery("ours", folder, asked.halves()), Livery("unsplit", folder, (f"0:{layers_of(asked.model)}",))
    arms: list[Arm] = [ours, alone]
    found: dict[tuple[str, int], list[Turn]] = {(arm.name, each): [] for arm in arms for each in CONTEXTS}
    scene = Scene("long", f"one stream, from {CONTEXTS[0]} to {CONTEXTS[-1]} tokens of context: {asked.model}")
    with running(arms):
        for number in range(asked.turns + 1):
            for each in CONTEXTS:
                words = [prompt(dice, each)]
                for arm in arms if number % 2 else arms[::-1]:
                    turn = arm.turn(words, asked.tokens + 1)
                    if number:
                        found[arm.name, each].append(turn)
        scene.about["processes"] = {arm.name: arm.processes for arm in arms}
    for key, turns in found.items():
        scene.add(f"{key[0]} at {key[1]}", median_rate(turns), "tok/s")
    growths = {arm.name: _growth(found[arm.name, CONTEXTS[0]], found[arm.name, CONTEXTS[-1]]) for arm in arms}
    for name, growth in growths.items():
        scene.add(f"time of a step at {CONTEXTS[-1]} / at {CONTEXTS[0]}, {name}", growth)
    scene.add("ours grows / unsplit grows", growths["ours"] / growths["unsplit"], most=SPREAD)
    early = 1 / _growth(found["ours", CONTEXTS[0]], found["ours", CONTEXTS[1]])
    scene.add(f"tok/s at {CONTEXTS[1]} / at {CONTEXTS[0]}", early, least=0.9)
    sent = {
        each: bytes_of_a_step(folder, asked.halves(), prompt(dice, each), asked.tokens)
        for each in (CONTEXTS[0], CONTEXTS[-1])
    }
    for each, size in sent.items():
        scene.add(f"bytes of a step at {each}", size, "B", note="both ways, gRPC and TCP payload")
    scene.add("bytes of a step, grown", sent[CONTEXTS[-1]] / sent[CONTEXTS[0]], most=1.02)
    return scene


def _growth(early: list[Turn], late: list[Turn]) -> float:
    """Return how often longer a token takes late, the median of the pairs."""
    return statistics.median(one.per_second / other.per_second for one, other in zip(early, late, strict=True))
