"""What suites of kills have in common: their options, and how they end."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom
from typing import Any

from bench import records

KILLS = 50


@dataclass(frozen=True, slots=True)
class Words:
    """What was typed. `seed` is drawn where it was not; `keep` is the folder into which logs are copied at the end."""

    suite: str
    kills: int
    seed: int
    keep: Path | None
    is_recorded: bool
    began_s: float


def read_words(suite: str, about: str | None) -> Words:
    """Return what was typed for `bench.SUITE`. A SIGTERM ends the program from now on as an exit does."""
    reader = argparse.ArgumentParser(prog=f"python -m bench.{suite}", description=about)
    reader.add_argument("--kills", type=int, default=KILLS)
    reader.add_argument("--keep", type=Path, default=None, help="copy the logs there at the end")
    records.add_arguments(reader)
    typed = reader.parse_args()
    seed = SystemRandom().randrange(2**31) if typed.seed is None else typed.seed
    # So that a terminated program takes what it started with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return Words(suite, typed.kills, seed, typed.keep, typed.record, time.monotonic())


def conclude(words: Words, figures: dict[str, Any], wrong: Sequence[str]) -> int:
    """Print what is `wrong`, record the figures where that was typed, print them as JSON; return the exit code."""
    document = {**figures, "minutes": round((time.monotonic() - words.began_s) / 60, 1), "seed": words.seed}
    for line in wrong:
        print(f"wrong: {line}")
    if words.is_recorded:
        records.record(words.suite, document)
    print(json.dumps(document))
    return 1 if wrong else 0
