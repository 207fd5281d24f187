"""
How long a vendor goes on with a job that no run wants: trials in which a buyer loses sight of one, at nasty moments.

A trial buys two jobs at a vendor and loses one of them: the vendor does not cancel it, or is away for so long that it
is called lost, or takes the money and says nothing, or the buyer's books are put back to an older copy. The other job,
and one that another control plane bought with the same secret, go on beside it. Then the driver of `livery serve
--tick` sweeps on, in virtual time, over a real chain. An orphan's minutes run from the end of its intent, which is when
the books ended its job, to the end in the vendor's books; for up to one of them the vendor is still away or refuses.
"""

import argparse
import asyncio
import json
import logging
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

from agent.core.states import JOB_ENDS
from agent.edges.store_sqlite import SqliteStore
from agent.ports import Agent
from agent.start import start
from agent.sweep import sweep
from agent.tick import tick
from bench.records import add_arguments, percentile, record
from chain.devchain import DevChain, dev_account
from tests.fixtures.chain import PAYER_USDC
from tests.fixtures.hostile import HostileWorld, hostile_world
from tests.fixtures.world import WatchedStore, register_all
from vendor_mock.catalogue import Gpu, VendorPlan
from vendor_mock.simulation import TERMINAL, Job
from wire.control import StartRequest

VENDOR = "gpu_vendor_1"
STEP_S = 15
TRIALS = 60
MINUTES_P99_MAX, SWEEPS_MAX = 5.0, 2
GPUS = (Gpu(gpu_type="A10", vram_gb=24, count=10_000),)
PLANS = (VendorPlan(vendor_id=VENDOR, name="FastGPU", price_per_hour=Decimal("1.4"), gpus=GPUS),)
# A vendor that is away or refuses does so until a while after the books ended its job.
AWAY_S_MAX = 60


@dataclass(slots=True)
class Trial:
    """
    What one trial came to: the `minutes` of each orphan, and how many were `left`.

    `rounds` are the searches since the intent's end, while the vendor could be asked; `bugs` are the sweeps' own.
    """

    how: str
    minutes: list[float] = field(default_factory=list)
    rounds: int = 0
    left: int = 0
    wrongly_cancelled: int = 0
    unknown: int = 0
    bugs: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Scene:
    """A world, where its books are, and chance."""

    world: HostileWorld
    other: Agent
    other_store: WatchedStore
    books: Path
    chance: Random

    async def go_on(self, trial: Trial, seconds: float) -> None:
        """Let time pass as the driver does: a step, a sweep."""
        while seconds > 0:
            await self.world.pass_time(min(STEP_S, seconds))
            seconds -= STEP_S
            done = await sweep(self.world.agent)
            trial.bugs += done.bugs
            if done.orphans is not None:
                trial.rounds += 1
                trial.unknown = max(trial.unknown, done.orphans.unknown)

    async def until_given_up(self, trial: Trial, run_id: str) -> float:
        """Go on until the books have ended the run's job; return when, in Unix seconds."""
        for _ in range(200):
            run = await self.world.store.read_run(run_id)
            if run.jobs[0].status in JOB_ENDS:
                assert run.jobs[0].completed_at is not None
                trial.rounds = 0
                return float(run.jobs[0].completed_at.timestamp())
            await self.go_on(trial, STEP_S)
        raise AssertionError("the job was never given up")


async def _bought(world: HostileWorld) -> str:
    run_id = await world.start("1.4")
    await world.until(run_id, lambda run: any(job.vendor_job_id for job in run.jobs))
    return run_id


async def refused(scene: Scene, trial: Trial) -> tuple[str, float]:
    """The owner cancels, and the vendor does not."""
    run_id = await _bought(scene.world)
    await scene.go_on(trial, scene.chance.uniform(0, 300))
    scene.world.script(VENDOR, errors=1_000_000, routes=("/cancel-job",))
    await scene.world.store.request_cancel(run_id)
    return run_id, await scene.until_given_up(trial, run_id)


async def away(scene: Scene, trial: Trial) -> tuple[str, float]:
    """The vendor is away until its job is called lost."""
    run_id = await _bought(scene.world)
    await scene.go_on(trial, scene.chance.uniform(0, 300))
    scene.world.hosts.down.add("vendors")
    return run_id, await scene.until_given_up(trial, run_id)


async def unheard(scene: Scene, trial: Trial) -> tuple[str, float]:
    """The money is taken, the job begun, and no answer comes until the run gives it up."""
    scene.world.script(VENDOR, errors=1_000_000, routes=("/jobs",))
    scene.world.hosts.lose_replies("/submit-job", 1_000)
    run_id = await scene.world.start("1.4")
    await scene.world.tick(run_id)
    return run_id, await scene.until_given_up(trial, run_id)


async def put_back(scene: Scene, trial: Trial) -> tuple[str, float]:
    """The buyer's books are put back to before the purchase; the run wants nothing of it."""
    run_id = await _bought(scene.world)
    await scene.go_on(trial, scene.chance.uniform(60, 300))
    await scene.world.store.request_cancel(run_id)
    with sqlite3.connect(scene.books) as books:
        books.execute("DELETE FROM payments WHERE run_id = ?", (run_id,))
        books.execute("DELETE FROM jobs WHERE run_id = ?", (run_id,))
    trial.rounds = 0
    return run_id, (await scene.world.store.now()).timestamp()


HOWS: Mapping[str, Callable[[Scene, Trial], Awaitable[tuple[str, float]]]] = {
    "refused": refused,
    "away": away,
    "unheard": unheard,
    "put_back": put_back,
}


async def tried(scene: Scene, how: str) -> Trial:
    """Return what became of one job that was lost sight of as `how` says, and of those beside it."""
    trial, world = Trial(how), scene.world
    scene.other_store.ahead = world.store.ahead
    theirs = await start(scene.other, StartRequest.model_validate({"goal": "x", "budgetTotal": Decimal("1.4")}))
    await tick(scene.other, theirs.run_id)
    kept = await _bought(world)
    lost, ended_s = await HOWS[how](scene, trial)
    await scene.go_on(trial, scene.chance.uniform(0, AWAY_S_MAX))
    world.script(VENDOR)
    world.hosts.down.clear()
    world.hosts.meddle = None
    trial.rounds = 0
    orphans = {lost: ended_s}
    # Who was away was away for the job beside it as well.
    beside = (await world.store.read_run(kept)).jobs[0]
    if beside.status == "failed" and beside.completed_at is not None:
        orphans[kept] = beside.completed_at.timestamp()
    for _ in range(40):
        if all(job.status in TERMINAL for job in await _jobs_of(world, *orphans)):
            break
        await scene.go_on(trial, STEP_S)
    for run_id, unwanted_s in orphans.items():
        for job in await _jobs_of(world, run_id):
            trial.left += job.status != "cancelled"
            # Who goes on bills until now at least.
            ended_s = job.ended_at_s if job.ended_at_s is not None else (await world.store.now()).timestamp()
            trial.minutes.append(max(0.0, ended_s - unwanted_s) / 60)
    wanted = {kept, theirs.run_id} - orphans.keys()
    trial.wrongly_cancelled = sum(job.status == "cancelled" for job in await _jobs_of(world, *wanted))
    return trial


async def _jobs_of(world: HostileWorld, *run_ids: str) -> list[Job]:
    """Return what the vendor's books have of these runs."""
    jobs: list[Job] = await world.vendor_app.state.shop.store.jobs()
    return [job for job in jobs if job.payment_id.startswith(tuple(f"{run_id}-" for run_id in run_ids))]


async def all_trials(count: int, seed: int, told: Callable[[Trial], None]) -> list[Trial]:
    """Return `count` trials, every way of losing a job in turn."""
    payer, gas = dev_account(1), dev_account(9)
    with DevChain.start(block_time_s=None) as chain, TemporaryDirectory() as name:
        chain.set_clock()
        chain.mint(payer.address, PAYER_USDC)
        chain.mine(3)
        trials = []
        # No job ends by itself before its hour is over: what ends it before is somebody.
        async with hostile_world(Path(name), chain, payer, gas, plans=PLANS, epoch_seconds=1_300, poll_s=30) as world:
            world.limit(attempts_max=1, unserved_sends_max=3)
            world.cap(vendor_day_atomic_max=10**12, wallet_day_atomic_max=10**12)
            store = WatchedStore(SqliteStore(Path(name) / "other.db"))
            other = replace(world.agent, store=store)
            await register_all(store, world.vendor_app, "http://vendors")
            scene = Scene(world, other, store, Path(name) / "agent.db", Random(seed))
            for number in range(count):
                trials.append(await tried(scene, list(HOWS)[number % len(HOWS)]))
                told(trials[-1])
            await store.close()
    return trials


def figures(trials: list[Trial]) -> dict[str, float]:
    """Return the counts to publish; the minutes hold where a vendor is away for at most `away_s_max`."""
    minutes = [minutes for trial in trials for minutes in trial.minutes]
    return {
        "trials": len(trials),
        "trials_without_orphan": sum(not trial.minutes for trial in trials),
        "orphans": len(minutes),
        "left": sum(trial.left for trial in trials),
        "found_in_sweeps_max": max(trial.rounds for trial in trials),
        "orphan_minutes_total": round(sum(minutes), 2),
        "orphan_minutes_p99": round(percentile(minutes, 99), 2),
        "away_s_max": AWAY_S_MAX,
        "wrongly_cancelled": sum(trial.wrongly_cancelled for trial in trials),
        "jobs_of_others_left_alone": sum(trial.unknown > 0 for trial in trials),
        "bugs": sum(len(trial.bugs) for trial in trials),
    }


def failures(document: Mapping[str, float]) -> list[str]:
    """Return what of the figures must not be, in words."""
    found = [
        f"{name}: {document[name]:g}"
        for name in ("trials_without_orphan", "left", "wrongly_cancelled", "bugs")
        if document[name]
    ]
    for name, most in (("found_in_sweeps_max", SWEEPS_MAX), ("orphan_minutes_p99", MINUTES_P99_MAX)):
        if document[name] > most:
            found.append(f"{name}: {document[name]:g}, more than {most:g}")
    if document["jobs_of_others_left_alone"] < document["trials"]:
        found.append(f"jobs of others were seen in {document['jobs_of_others_left_alone']:g} trials only")
    return found


def show(trials: list[Trial], console: Console) -> None:
    table = Table("lost sight of", "orphans", "found", "sweeps, most", "minutes, most", "wrongly cancelled")
    for how in HOWS:
        some = [trial for trial in trials if trial.how == how]
        if some:
            table.add_row(
                how,
                str(sum(len(trial.minutes) for trial in some)),
                str(sum(len(trial.minutes) - trial.left for trial in some)),
                str(max(trial.rounds for trial in some)),
                f"{max((minutes for trial in some for minutes in trial.minutes), default=0.0):.1f}",
                str(sum(trial.wrongly_cancelled for trial in some)),
            )
    table.caption = (
        f"minutes from the end of the intent; for up to {AWAY_S_MAX} s of them the vendor was away or refused"
    )
    console.print(table)


def main() -> int:
    reader = argparse.ArgumentParser(prog="python -m bench.orphans", description=__doc__)
    reader.add_argument("--trials", type=int, default=TRIALS)
    add_arguments(reader)
    asked = reader.parse_args()
    seed = asked.seed if asked.seed is not None else Random().randrange(2**31)
    console = Console(stderr=True)
    logging.disable(logging.ERROR)
    trials = asyncio.run(all_trials(asked.trials, seed, lambda trial: console.print(".", end="")))
    show(trials, Console())
    for bug in (bug for trial in trials for bug in trial.bugs):
        print(f"bug: {bug}")
    document = {**figures(trials), "seed": seed}
    wrong = failures(document)
    for line in wrong:
        print(f"wrong: {line}")
    if asked.record:
        record("orphans", document)
    print(json.dumps(document))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
