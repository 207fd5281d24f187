"""
SIGKILL at random moments of real fine-tunes: of the worker, of the job's program, of the control plane.

Runs follow each other; in each, one to three processes die alone, as in a crash, and are started again after a while,
or, a worker now and then, only when its run has ended elsewhere. Chain, facilitator, workers and the training are real.
When nothing is left to happen all is read: the run, its log, the chain, the workers' books, processes, files, and the
model that was made, which has to be to the bit that of a run which nobody disturbed.
`python -m bench.worker_kills [--kills 50] [--seed N] [--record]`
"""

import asyncio
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from random import Random
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import kills
from bench.worker_kill.checks import COUNTED
from bench.worker_kill.place import Place, open_place
from bench.worker_kill.sight import PHASES, Phase
from bench.worker_kill.trial import KILLS_OF_RUN_MAX, VICTIMS, Trial, draw, tried, undisturbed

# Plans for each kill, before the tool gives up: a victim may be gone when its moment comes.
PLANS_MAX = 2


def main() -> int:
    """Run the suite; return 0 where so many were killed and nothing was wrong."""
    words, console = kills.read_words("worker_kills", __doc__), Console(stderr=True)
    trials = asyncio.run(_all(words, lambda line: console.print(line, highlight=False)))
    found = figures(trials)
    show(trials, Console())
    wrong = [f"{trial.run_id}: {name}: {detail}" for trial in trials for name, detail in trial.wrong]
    if found["kills"] < words.kills:
        wrong.append(f"{found['kills']} of {words.kills} were killed")
    return kills.conclude(words, found, wrong)


async def _all(words: kills.Words, tell: Callable[[str], None]) -> list[Trial]:
    tell(f"seed {words.seed}: {words.kills} kills")
    with ExitStack() as stack:
        place = await open_place(stack)
        if words.keep is not None:
            stack.callback(shutil.copytree, place.folder / "logs", words.keep, dirs_exist_ok=True)
        return await all_trials(place, words.kills, Random(words.seed), tell)


async def all_trials(place: Place, wanted: int, chance: Random, tell: Callable[[str], None]) -> list[Trial]:
    """Return a run that nobody disturbs, and then as many as it takes for so many kills."""
    durations: dict[Phase, float] = {}
    first = await undisturbed(place, durations)
    tell(f"undisturbed: {first.status} in {first.seconds:.0f} s; {_spread(durations)}{_wrongs(first)}")
    trials, told, drawn = [first], {*first.wrong}, 0
    while (
        left := wanted - sum(len(trial.hits) for trial in trials)
    ) > 0 and drawn < PLANS_MAX * wanted + KILLS_OF_RUN_MAX:
        count = min(left, chance.randint(1, KILLS_OF_RUN_MAX))
        plans = [draw(chance, drawn + number) for number in range(count)]
        drawn += count
        trial = await tried(place, plans, f"run-{len(trials)}", chance, durations, first.model_sha256)
        # What lies about is found after every run; it is wrong once.
        trial.wrong = [one for one in trial.wrong if one not in told]
        told |= {*trial.wrong}
        trials.append(trial)
        tell(_line_of(len(trials) - 1, trial))
    return trials


def _line_of(number: int, trial: Trial) -> str:
    ended = f"{trial.status}, {trial.jobs} job{'s' * (trial.jobs != 1)}{', moved' * trial.moved}"
    lines = [f"{number:3}  {ended}, {trial.seconds:.0f} s"]
    for hit in trial.hits:
        back = "away until the end" if hit.stayed_away else f"back after {hit.plan.pause_s:.1f} s"
        how = "" if hit.plan.victim == "program" else back
        lines.append(f"{hit.plan.victim:8} killed at {hit.phase} (step {hit.step})  {how}".rstrip())
    lines += [f"not killed: {miss}" for miss in trial.missed]
    return "\n     ".join(lines) + _wrongs(trial)


def _wrongs(trial: Trial) -> str:
    return "".join(f"\n     wrong: {name}: {detail}" for name, detail in trial.wrong)


def _spread(durations: dict[Phase, float]) -> str:
    return ", ".join(f"{phase} {durations.get(phase, 0.0):.1f} s" for phase in PHASES)


def figures(trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the counts to publish; the first trial is the undisturbed one."""
    hits = [hit for trial in trials for hit in trial.hits]
    wrong = Counter(name for trial in trials for name, _ in trial.wrong)
    phases = Counter(hit.phase for hit in hits)
    return {
        "kills": len(hits),
        **{f"{victim}s": sum(hit.plan.victim == victim for hit in hits) for victim in VICTIMS},
        **{f"at_{phase}": phases[phase] for phase in (*PHASES, "away")},
        "runs": len(trials),
        "completed": sum(trial.status == "completed" for trial in trials),
        "went_on_elsewhere": sum(trial.moved for trial in trials),
        "stayed_away": sum(hit.stayed_away for hit in hits),
        "not_killed": sum(len(trial.missed) for trial in trials),
        **{name: wrong[name] for name in COUNTED},
        "outlived_s_max": round(max((hit.outlived_s for hit in hits), default=0.0), 1),
        "run_s_max": round(max((trial.seconds for trial in trials), default=0.0), 1),
    }


def show(trials: Sequence[Trial], console: Console) -> None:
    """Print how often each victim died in each phase, and how its runs ended."""
    phases = (*PHASES, "away")
    page = Table("killed", *phases, "completed", "elsewhere", "wrong", header_style="bold", box=None, pad_edge=False)
    for victim in VICTIMS:
        hit_by = [(trial, hit) for trial in trials for hit in trial.hits if hit.plan.victim == victim]
        at = Counter(hit.phase for _, hit in hit_by)
        runs = {id(trial): trial for trial, _ in hit_by}.values()
        page.add_row(
            victim,
            *(str(at[phase] or "-") for phase in phases),
            f"{sum(trial.status == 'completed' for trial in runs)} of {len(runs)}",
            str(sum(trial.moved for trial in runs)),
            str(sum(len(trial.wrong) for trial in runs)),
        )
    console.print(page)


if __name__ == "__main__":
    sys.exit(main())
