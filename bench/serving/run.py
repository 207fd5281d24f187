"""
`livery bench serving`: what the worker's door costs a whole model, beside the same engine without it.

The model is of random weights and made at the first run. Arms take turns; ratios are medians of pairs of turns.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.decode.report import Scene, show
from bench.jwt_cost import RATIO_MAX, costs
from bench.records import commit_of, record
from bench.serving.asked import Asked
from bench.serving.crowd import crowd
from bench.serving.door import door

# What the widest table takes.
WIDTH = 100
ROOT = Path(__file__).resolve().parents[2]


def passes(asked: Asked) -> Scene:
    """Return what checking a session pass costs beside the bare check of its signature."""
    scene = Scene("passes", "A session pass checked, beside the bare check of its signature")
    for cost in costs():
        scene.add(f"{cost.algorithm}, the bare signature", cost.bare_us, "us")
        scene.add(f"{cost.algorithm}, the pass", cost.check_us, "us")
        scene.add(f"{cost.algorithm}, the pass / the signature", cost.ratio, most=RATIO_MAX)
    return scene


SCENES: dict[str, Callable[[Asked], Scene]] = {"door": door, "crowd": crowd, "passes": passes}


def main(words: list[str]) -> int:
    reader = argparse.ArgumentParser(prog="livery bench serving", description=__doc__)
    reader.add_argument("--scene", action="append", choices=SCENES, help="one of them, or several; all where not given")
    reader.add_argument("--models", type=Path, default=Path.home() / ".cache" / "livery-bench", help="their folder")
    reader.add_argument("--model", default=Asked.model, help="the model of the door")
    reader.add_argument("--kind", default=Asked.kind, choices=("f32", "f16", "q8_0"), help="the numbers of its file")
    reader.add_argument("--turns", type=int, default=Asked.turns, help="of each arm")
    reader.add_argument("--tokens", type=int, default=Asked.tokens, help="of a turn")
    reader.add_argument("--streams", type=int, default=Asked.streams, help="of the crowd")
    reader.add_argument("--chunks", type=int, default=Asked.chunks, help="of a stream of the crowd")
    reader.add_argument("--seed", type=int, default=0, help="of the prompts")
    reader.add_argument("--record", action="store_true", help="append the figures to docs/serving")
    typed = vars(reader.parse_args(words))
    scenes, is_recorded = typed.pop("scene") or SCENES, typed.pop("record")
    asked = Asked(**typed)
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    documents: dict[str, Any] = {}
    missed: list[str] = []
    for name in scenes:
        scene = SCENES[name](asked)
        show(scene, console)
        documents[name] = scene.document()
        missed += [f"{name}: {what}" for what in scene.missed]
        if is_recorded:
            record(name, {"missed": scene.missed, **documents[name]}, ROOT / "docs" / "serving")
    print(json.dumps({"commit": commit_of(ROOT), "missed": missed, **documents}))
    return 1 if missed else 0
