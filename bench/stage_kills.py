"""
Stages of a pipeline killed or frozen at a random token of streams, over the OpenAI API: no token lost or told twice.

Every stage is a worker of its own as an owner starts it; all but the head have a replica. Three streams run, greedy,
drawn and penalised, and a stage of the route is killed (SIGKILL) or frozen (SIGSTOP: its connections stay half-open).
Each stream is held token by token against the one that nobody disturbed. Then the stage comes back and is used again.
`python -m bench.stage_kills [--kills 50] [--seed N] [--record] [--keep FOLDER]`
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import kills, records
from bench.stage_kill_trial import BORDERS, HARMS, Place, Trial, draw, opened
from tests.fixtures.tiny_words import make_words

COUNTED = ("refilled", "replayed", "lost", "doubled")


def main() -> int:
    """Run the suite; return 0 where so many were harmed and nothing was wrong."""
    words, console = kills.read_words("stage_kills", __doc__), Console(stderr=True)
    console.print(f"seed {words.seed}: {words.kills} kills and freezes")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if words.keep is not None:
            stack.callback(_keep_logs, folder, words.keep)
        trials = all_trials(folder, words.kills, Random(words.seed), lambda line: console.print(line, highlight=False))
    show(trials, Console())
    wrong = [f"{number}: {each}" for number, trial in enumerate(trials, 1) for each in trial.wrong]
    return kills.conclude(words, figures(trials), wrong)


def _keep_logs(folder: Path, into: Path) -> None:
    into.mkdir(parents=True, exist_ok=True)
    for log in folder.glob("*.log"):
        shutil.copy(log, into)


def all_trials(folder: Path, count: int, chance: Random, tell: Callable[[str], None]) -> list[Trial]:
    """Return so many trials, half of them with each number of stages."""
    model = make_words(folder / "tiny-words")
    trials: list[Trial] = []
    for done, stages in enumerate(BORDERS, 1):
        with opened(Place(folder, model, stages)) as place:
            while len(trials) < count * done // len(BORDERS):
                trial = place.tried(draw(chance, stages, len(trials)))
                trials.append(trial)
                tell(_line_of(len(trials), trial))
    return trials


def _line_of(number: int, trial: Trial) -> str:
    plan, way = trial.plan, f"{trial.refilled} refilled, {trial.replayed} replayed"
    line = f"{number:3}  {plan.kind:6} {trial.victim} at token {plan.at}: {max(trial.gaps_s):.2f} s, {way}"
    return line + "".join(f"\n     wrong: {each}" for each in trial.wrong)


def figures(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the counts to publish."""
    found: dict[str, Any] = {"kills": len(trials), "streams": sum(len(trial.gaps_s) for trial in trials)}
    for kind in HARMS:
        gaps_s = [gap for trial in trials if trial.plan.kind == kind for gap in trial.gaps_s]
        found[f"by_{kind}"] = sum(trial.plan.kind == kind for trial in trials)
        found[f"{kind}_gap_p50_s"] = round(records.percentile(gaps_s, 50), 2)
        found[f"{kind}_gap_max_s"] = round(max(gaps_s, default=0.0), 2)
    return found | {
        "sessions_refilled": sum(trial.refilled for trial in trials),
        "sessions_replayed": sum(trial.replayed for trial in trials),
        "tokens_lost": sum(trial.lost for trial in trials),
        "tokens_doubled": sum(trial.doubled for trial in trials),
        "wrong": sum(len(trial.wrong) for trial in trials),
        "used_again": sum(trial.was_harmed_before for trial in trials),
    }


def show(trials: Sequence[Trial], console: Console) -> None:
    """Print what each kind of harm did to pipelines of each length."""
    heads = ("stages", "harm", "times", "gap p50 s", "gap max s", *COUNTED, "wrong", "used again")
    page = Table(*heads, header_style="bold", box=None, pad_edge=False)
    for stages in BORDERS:
        for kind in HARMS:
            some = [trial for trial in trials if (trial.stages, trial.plan.kind) == (stages, kind)]
            gaps_s = [gap for trial in some for gap in trial.gaps_s]
            page.add_row(
                *(str(stages), kind, str(len(some))),
                f"{records.percentile(gaps_s, 50):.2f}",
                f"{max(gaps_s, default=0.0):.2f}",
                *(str(sum(getattr(each, name) for each in some)) for name in COUNTED),
                str(sum(len(each.wrong) for each in some)),
                str(sum(each.was_harmed_before for each in some)),
            )
    console.print(page)


if __name__ == "__main__":
    sys.exit(main())
