"""
`livery bench decode`: how fast layer slices decode, beside engines that do the same, in the same minutes.

Every figure is of random models that are made at the first run. Arms take turns; ratios are medians of pairs of turns.
"""

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from bench.decode.far import long, rtt
from bench.decode.hop import hop
from bench.decode.loss import kill
from bench.decode.profile import profile
from bench.decode.report import Scene, show
from bench.decode.room import memory
from bench.decode.speed import Asked, many, single
from bench.records import commit_of, record

# What the widest table takes.
WIDTH = 100
ROOT = Path(__file__).resolve().parents[2]
SCENES: dict[str, Callable[[Asked], Scene]] = {
    "single": single,
    "many": many,
    "hop": hop,
    "rtt": rtt,
    "memory": memory,
    "kill": kill,
    "long": long,
    "profile": profile,
}


def main(words: list[str]) -> int:
    reader = argparse.ArgumentParser(prog="livery bench decode", description=__doc__)
    reader.add_argument("--scene", action="append", choices=SCENES, help="one of them, or several; all where not given")
    reader.add_argument("--models", type=Path, default=Path.home() / ".cache" / "livery-bench", help="their folder")
    reader.add_argument("--model", default=Asked.model, help="the model of most scenes")
    reader.add_argument("--large", default=Asked.large, help="the model whose memory is measured")
    reader.add_argument("--turns", type=int, default=Asked.turns, help="of each engine")
    reader.add_argument("--tokens", type=int, default=Asked.tokens, help="of a turn")
    reader.add_argument("--seed", type=int, default=0, help="of the prompts")
    reader.add_argument("--peers-python", default=sys.executable, help="an interpreter that has xllamacpp and gguf")
    reader.add_argument("--record", action="store_true", help="append the figures to docs/decode")
    typed = reader.parse_args(words)
    asked = Asked(
        models=typed.models,
        model=typed.model,
        large=typed.large,
        turns=typed.turns,
        tokens=typed.tokens,
        peers_python=typed.peers_python,
        seed=typed.seed,
    )
    # A file is no narrower than the tables.
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    documents: dict[str, Any] = {}
    missed: list[str] = []
    failed: list[str] = []
    for name in typed.scene or SCENES:
        try:
            scene = SCENES[name](asked)
        except Exception as error:
            # The others are measured all the same.
            traceback.print_exc()
            console.print(f"[red]the scene {name} failed:[/] {escape(str(error) or type(error).__name__)}")
            documents[name], failed = {"failed": f"{type(error).__name__}: {error}"}, [*failed, name]
            continue
        show(scene, console)
        documents[name] = scene.document()
        missed += [f"{name}: {what}" for what in scene.missed]
        if typed.record:
            record(name, {"missed": scene.missed, **documents[name]}, ROOT / "docs" / "decode")
    print(json.dumps({"commit": commit_of(ROOT), "missed": missed, "failed": failed, **documents}))
    return 1 if missed or failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
