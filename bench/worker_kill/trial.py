"""One run, in which some of those who serve it die by SIGKILL; then everything that it touched is read."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import Any, Literal

from agent.core.states import RUN_ENDS
from bench.worker_kill.checks import Since, Wrong, check, model_of, stands
from bench.worker_kill.place import MODEL, Part, Place, WorkerPart
from bench.worker_kill.sight import PHASES, PROGRAM_PHASES, Phase, Sight, is_settled, look, programs
from livery.client import Client, ProblemError, Unreachable
from wire.control import JobRequest

Victim = Literal["worker", "program", "plane"]
VICTIMS: tuple[Victim, ...] = ("worker", "program", "plane")
KILLS_OF_RUN_MAX = 3
BUDGET = Decimal(5)
HOURS = Decimal("0.1")
# A kill meets training before, while and after a checkpoint is made.
PARAMS: dict[str, Any] = {"steps": 60, "checkpointSteps": 12, "learningRate": 0.003}
LOOK_S = 0.02
# The moment lies within this share of what a phase took: it is to be met, not missed.
WITHIN = 0.8
# How long a phase lasts where none was measured.
PHASE_S = 0.5
PAUSE_S_MAX: dict[Victim, float] = {"worker": 3.0, "program": 0.0, "plane": 2.0}
# From the last kill to where nothing is left to happen; a run that is not over by then is stuck.
SETTLED_S_MAX = 300.0
# A worker that stays away comes back when its run is over, at the latest after this.
AWAY_S_MAX = 90.0
# A program has ten seconds to save and go when its worker is dead.
OUTLIVED_S_MAX = 20.0
_TRAINING = {"training", "pushing"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    One kill: `victim` dies once `phase` was seen and `share` of its usual time has passed.

    `stays_away`: a worker is not started again before its run is over elsewhere.
    """

    victim: Victim
    phase: Phase
    share: float = 0.0
    pause_s: float = 0.0
    stays_away: bool = False


@dataclass(slots=True, kw_only=True)
class Hit:
    """A kill that was done, and proved: what it met. `outlived_s` is how long a program outlived its worker."""

    plan: Plan
    phase: Phase
    step: int
    stayed_away: bool = False
    outlived_s: float = 0.0


@dataclass(slots=True, kw_only=True)
class Trial:
    """What came of a run. `missed` are plans whose victim was not there, or ended by itself; `away` stayed away."""

    run_id: str
    hits: list[Hit] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    away: set[str] = field(default_factory=set)
    status: str = ""
    jobs: int = 0
    moved: bool = False
    seconds: float = 0.0
    model_sha256: str | None = None
    wrong: list[Wrong] = field(default_factory=list)


def draw(chance: Random, number: int) -> Plan:
    """Return the plan of kill `number`: each victim in turn, the rest by chance."""
    victim = VICTIMS[number % len(VICTIMS)]
    return Plan(
        victim=victim,
        phase=chance.choice(PROGRAM_PHASES if victim == "program" else PHASES),
        share=chance.random(),
        pause_s=chance.uniform(0, PAUSE_S_MAX[victim]),
        stays_away=victim == "worker" and chance.random() < 1 / 3,
    )


async def undisturbed(place: Place, durations: dict[Phase, float]) -> Trial:
    """Let a run go by itself; tell `durations` how long each phase took, return what it made."""
    since, began_s = stands(place), time.monotonic()
    trial = Trial(run_id=await begin(place, "undisturbed"))
    while time.monotonic() - began_s < SETTLED_S_MAX:
        before_s, sight = time.monotonic(), await look(place, trial.run_id)
        if sight.phase == "over":
            break
        await asyncio.sleep(LOOK_S)
        durations[sight.phase] = durations.get(sight.phase, 0.0) + time.monotonic() - before_s
    return await _read(place, trial, since, began_s, None)


async def tried(
    place: Place,
    plans: Sequence[Plan],
    key: str,
    chance: Random,
    durations: dict[Phase, float],
    model_sha256: str | None,
) -> Trial:
    """Start a run, carry `plans` out one after the other, and return what came of it."""
    since, began_s = stands(place), time.monotonic()
    trial = Trial(run_id=await begin(place, key))
    errands: list[asyncio.Task[None]] = []
    for plan in plans:
        sight = await _reached(place, trial.run_id, plan, durations)
        victim = _victim(place, plan, sight, chance)
        if victim is None:
            trial.missed.append(f"{plan.victim} at {plan.phase}: it was {sight.phase}, and none was alive")
        else:
            errands += await _killed(plan, sight, victim, trial)
    await _come_back(place, trial)
    await asyncio.gather(*errands)
    for hit in trial.hits:
        if hit.outlived_s >= OUTLIVED_S_MAX:
            trial.wrong.append(("orphan_processes", f"a program outlived its worker by {hit.outlived_s:.0f} s"))
    return await _read(place, trial, since, began_s, model_sha256)


async def begin(place: Place, key: str) -> str:
    """Start a run as its owner does, and return its id."""
    job = JobRequest(kind="fine_tune", model=MODEL, max_hours=HOURS, params=PARAMS)
    async with Client(place.plane.url) as client:
        run_id = (await client.start("Fine-tune tiny-llm", BUDGET, job=job, key=key)).id
    # Who started it asks for its first step; the control plane goes on by itself.
    place.errands.add(task := asyncio.create_task(_first_tick(place, run_id)))
    task.add_done_callback(place.errands.discard)
    return run_id


async def _first_tick(place: Place, run_id: str) -> None:
    async with Client(place.plane.url) as client:
        try:
            await client.tick(run_id)
        except (Unreachable, ProblemError):
            return  # it was killed, or the driver was faster


async def _reached(place: Place, run_id: str, plan: Plan, durations: dict[Phase, float]) -> Sight:
    """Return what is seen once the plan's moment has come, or was passed."""
    until_s = time.monotonic() + SETTLED_S_MAX
    while True:
        sight = await look(place, run_id)
        # A program is begun a moment after its job.
        if sight.phase == plan.phase and (plan.victim != "program" or sight.program is not None):
            if (wait_s := plan.share * WITHIN * durations.get(plan.phase, PHASE_S)) < LOOK_S:
                return sight
            await asyncio.sleep(wait_s)
            return await look(place, run_id)
        is_left = sight.phase == "away" and time.monotonic() > until_s - SETTLED_S_MAX + AWAY_S_MAX
        if _is_passed(sight.phase, plan.phase) or is_left or time.monotonic() > until_s:
            return sight
        await asyncio.sleep(LOOK_S)


def _is_passed(phase: Phase, wanted: Phase) -> bool:
    if phase == "over":
        return True
    # Between these two it goes to and fro, and what is away will begin again elsewhere.
    if phase == "away" or {phase, wanted} == _TRAINING:
        return False
    return PHASES.index(phase) > PHASES.index(wanted)


def _victim(place: Place, plan: Plan, sight: Sight, chance: Random) -> Part | Any | None:
    """Return who is to die, None where nobody of its kind is alive, or nothing is left to disturb."""
    if sight.phase == "over":
        return None
    if plan.victim == "plane":
        return place.plane
    if plan.victim == "program":
        return sight.program
    alive = [worker for worker in place.workers if worker.is_alive]
    return sight.worker if sight.worker in alive else chance.choice(alive) if alive else None


async def _killed(plan: Plan, sight: Sight, victim: Part | Any, trial: Trial) -> list[asyncio.Task[None]]:
    """Kill, and prove it; return what is on its way then: the victim's return, the end of what it left."""
    hit = Hit(plan=plan, phase=sight.phase, step=sight.step)
    if not isinstance(victim, Part):
        victim.kill()
        if sight.worker is None or sight.job is None or not await _told(sight.worker, sight.job.job_id, victim.pid):
            trial.missed.append(f"the program {victim.pid} ended by itself")
        else:
            trial.hits.append(hit)
        return []
    left = programs(victim) if isinstance(victim, WorkerPart) else []
    if victim.kill():
        trial.hits.append(hit)
    else:
        trial.missed.append(f"{victim.name} ended by itself")
    if not isinstance(victim, WorkerPart):
        # Who looks at the run and who started it need it.
        await _back(victim, plan.pause_s)
        return []
    # What is only to be delivered or paid cannot be had elsewhere; nor, before its cheque lapses, a job not heard of.
    is_known = sight.job is None or any(job.vendor_job_id == sight.job.job_id for job in sight.run.jobs)
    hit.stayed_away = plan.stays_away and is_known and sight.phase in ("quoting", *PROGRAM_PHASES)
    if hit.stayed_away:
        trial.away.add(victim.name)
    outlive = asyncio.create_task(_outlive(left, hit))
    return [outlive] if hit.stayed_away else [outlive, asyncio.create_task(_back(victim, plan.pause_s))]


async def _back(victim: Part, pause_s: float) -> None:
    await asyncio.sleep(pause_s)
    await asyncio.to_thread(victim.start)


async def _told(worker: WorkerPart, job_id: str, pid: int) -> bool:
    """Return whether the worker says that this program was killed."""
    import psutil

    until_s = time.monotonic() + 10
    while time.monotonic() < until_s:
        if f"the program of {job_id} ended: killed by signal 9" in worker.said and not psutil.pid_exists(pid):
            return True
        await asyncio.sleep(0.05)
    return False


async def _outlive(left: list[Any], hit: Hit) -> None:
    """Note for how many seconds the last of these programs outlived its worker."""
    import psutil

    began_s = time.monotonic()
    await asyncio.to_thread(psutil.wait_procs, left, OUTLIVED_S_MAX)
    hit.outlived_s = time.monotonic() - began_s if left else 0.0


async def _come_back(place: Place, trial: Trial) -> None:
    """Start the workers that stayed away, once the run is over without them."""
    until_s = time.monotonic() + AWAY_S_MAX
    while trial.away and time.monotonic() < until_s:
        if (await place.agent.store.read_run(trial.run_id)).status in RUN_ENDS:
            break
        await asyncio.sleep(0.1)
    for name in sorted(trial.away):
        await asyncio.to_thread(place.worker(name).start)


async def _read(place: Place, trial: Trial, since: Since, began_s: float, model_sha256: str | None) -> Trial:
    """Wait until nothing is left to happen, and read it all."""
    until_s = time.monotonic() + SETTLED_S_MAX
    while time.monotonic() < until_s:
        if await is_settled(place, trial.run_id):
            break
        await asyncio.sleep(0.1)
    for worker in place.workers:
        await worker.await_online()
    trial.wrong += await check(place, trial.run_id, since, model_sha256)
    run = await place.agent.store.read_run(trial.run_id)
    trial.status, trial.jobs = run.status, len(run.jobs)
    trial.moved = any(job.resumes is not None and job.status == "completed" for job in run.jobs)
    trial.model_sha256 = model_of(run)
    trial.seconds = time.monotonic() - began_s
    return trial
