"""Four things that happen where many processes serve one store. Each scene returns figures, and what went wrong."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from random import Random

from agent.core.errors import RunBusy, RunFinished
from agent.core.policy import CHEQUE_S_MAX
from agent.core.states import RUN_ENDS
from agent.ports import Busy
from bench.concurrent.crowd import Lost, Member, at_once
from bench.concurrent.place import Place, before, begin, broken, opened, unavailable
from bench.concurrent.witness import holders_max
from bench.concurrent.worker import Answer, Exit, Order
from bench.records import percentile

WAVES_MAX = 40
LEASE_S = 60
EVERYTHING = 100_000
# A frozen process holds its run no longer than this.
SHORT_LEASE_S = 1
# Runs that a vendor had no price for in time, and that never came to the cap, in percent.
UNREACHED_PERCENT_MAX = 1


@dataclass(slots=True, kw_only=True)
class Scene:
    """What came of a scene: figures, and one line for each thing that is not as it has to be."""

    figures: dict[str, float] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


async def one_run(place: Place, members: Sequence[Member], ticks: int) -> Scene:
    """
    Tick one run `ticks` times at once, from all processes, and again until it has ended.

    Its first vendor fails, so that it takes two steps: two jobs and two payments, one after the other.
    """
    scene = Scene()
    async with opened(place, "gpu_vendor_1", "gpu_vendor_2") as agent:
        began = before(place)
        run_id = (await begin(agent, [Decimal(1)]))[0]
        each = ticks // len(members)
        order = Order(verb="burst", settings=place.settings, arguments={"run_id": run_id, "ticks": each})
        answers: list[Answer] = []
        waves = 0
        while (run := await agent.store.read_run(run_id)).status not in RUN_ENDS and waves < WAVES_MAX:
            answers += at_once(members, [order] * len(members))
            waves += 1
        scene.broken += await broken(place, agent, [run], began, answers)
    exits = [one for answer in answers for one in answer.exits]
    served, lost = [one for one in exits if one.error is None], [one for one in exits if one.error is not None]
    bought = [(job.vendor_id, job.status) for job in run.jobs]
    if bought != [("gpu_vendor_1", "failed"), ("gpu_vendor_2", "completed")] or len(run.payments) != 2:
        scene.broken.append(f"{bought} were bought by {len(run.payments)} payments")
    loser_s = percentile([one.elapsed_s for one in lost], 99)
    winner_s = percentile([one.elapsed_s for one in served], 50)
    scene.figures = {
        "ticks": ticks * waves,
        "served": len(served),
        "busy": sum(one.error == RunBusy.code for one in lost),
        "unavailable": unavailable(exits),
        "holders_max": holders_max(one for answer in answers for one in answer.seen.held),
        "jobs": len(run.jobs),
        "payments": len(run.payments),
        "loser_ms_p99": round(loser_s * 1000, 1),
        "winner_ms_p50": round(winner_s * 1000, 1),
        "loser_per_winner": round(loser_s / winner_s, 3) if winner_s else 0.0,
    }
    return scene


async def day_cap(place: Place, members: Sequence[Member], runs: int, seed: int) -> Scene:
    """
    Let `runs` runs of one wallet buy at once, for amounts that differ, under a day's cap that a part of them fits in.

    No payment is given back, so what was left at a refusal was never more again: it was less than what was refused.
    """
    scene = Scene()
    chance = Random(seed)
    hours = [Decimal(chance.randint(10, 60)) / 100 for _ in range(runs)]
    cap_atomic = int(place.settings.wallet_day_max * 10**6)
    async with opened(place, "gpu_vendor_2") as agent:
        began = before(place)
        run_ids = await begin(agent, hours)
        size = len(members)
        orders = [
            Order(verb="drive", settings=place.settings, arguments={"run_ids": run_ids[number::size]})
            for number in range(size)
        ]
        answers = at_once(members, orders)
        found = [await agent.store.read_run(run_id) for run_id in run_ids]
        scene.broken += await broken(place, agent, found, began, answers)
        everything = (await agent.store.list_runs(None, None, EVERYTHING)).runs
    # What the wallet paid before in this store is of the same day; a refund does not give it back.
    paid_atomic = sum(paid.amount_atomic for run in everything for paid in run.payments)
    why = {job.job_id: (job.error_message or "").partition(":")[0] for run in found for job in run.jobs}
    refused = [job for run in found for job in run.jobs if why[job.job_id] == "over_day_cap"]
    # A vendor that had no time to give its price: the run ended before it came to the cap.
    unreached = [job_id for job_id, code in why.items() if code == "vendor_unreachable"]
    paying = [run for run in found if run.payments]
    left_atomic = cap_atomic - paid_atomic
    if left_atomic < 0:
        scene.broken.append(f"{-left_atomic} over the day's cap")
    scene.broken += untried(len(paying), len(refused), len(unreached), runs)
    dearest_atomic = max((job.expected_cost_atomic for run in found for job in run.jobs), default=0)
    if left_atomic >= dearest_atomic:
        scene.broken.append(f"{left_atomic} of the day's cap are left, the dearest job is of {dearest_atomic}")
    scene.broken += [
        f"{job.job_id} would have fitted: {job.expected_cost_atomic} in {left_atomic}"
        for job in refused
        if job.expected_cost_atomic <= left_atomic
    ]
    ends = Counter((run.status, run.reason) for run in found)
    wanted = Counter({("completed", None): len(paying), ("failed", "no_vendor_left"): len(refused) + len(unreached)})
    if ends != wanted or len(why) != runs:
        scene.broken.append(f"refused: {Counter(why.values())}, ended: {ends}, paid: {len(paying)}")
    scene.figures = {
        "runs": runs,
        "paid": len(paying),
        "refused": len(refused),
        "unreached": len(unreached),
        "overspend": max(0, -left_atomic),
        "cap_used_percent": round(100 * paid_atomic / cap_atomic, 2),
        "holders_max": holders_max(one for answer in answers for one in answer.seen.held),
    }
    return scene


def untried(paid: int, refused: int, unreached: int, runs: int) -> list[str]:
    """Return why a day's cap was not tried: nobody got below it, nobody came to it, or too few got so far."""
    found = [] if paid and refused else [f"{paid} paid and {refused} were refused: the cap was not reached"]
    if unreached * 100 > UNREACHED_PERCENT_MAX * runs:
        found.append(f"{unreached} of {runs} did not come to the cap")
    return found


async def frozen(place: Place, members: Sequence[Member], names: Sequence[str] | None = None) -> Scene:
    """
    Freeze processes, SIGSTOP, in the middle of a paying tick, each at another moment of it, for longer than its lease.

    The last process of the crowd takes their runs over and brings them to their end. Then the frozen ones wake, go on
    where they stood, and whatever they would still have to save is refused. `names` None is every moment.
    """
    scene = Scene()
    async with opened(place, "gpu_vendor_2") as agent:
        moments = await _moments(place, members, (await begin(agent, [Decimal(1)]))[0])
        chosen = [number for number, name in enumerate(moments) if names is None or name in names]
        last_save = max(number for number, name in enumerate(moments) if name == "before store.save")
        frozen_ones, taker = members[:-1], members[-1]
        refused = 0
        for first in range(0, len(chosen), len(frozen_ones)):
            numbers = chosen[first : first + len(frozen_ones)]
            began = before(place)
            run_ids = await begin(agent, [Decimal(1)] * len(numbers))
            woken = _freeze(place, frozen_ones, taker, dict(zip(run_ids, numbers, strict=True)))
            runs = [await agent.store.read_run(run_id) for run_id in run_ids]
            scene.broken += await broken(place, agent, runs, began, woken)
            for number, run, answer in zip(numbers, runs, woken[1:], strict=True):
                left = answer.exits[0]
                said = left.error or left.said
                wanted = _wanted(number, last_save, moments)
                refused += said == RunBusy.code
                if said not in wanted:
                    scene.broken.append(f"{moments[number]} ({number}): it woke and said {said}, not {wanted}")
                if (run.status, len(run.jobs), len(run.payments)) != ("completed", 1, 1):
                    scene.broken.append(f"{moments[number]} ({number}): {run.status}, {len(run.payments)} payments")
            nonces = {nonce.lower() for one in woken for nonce in one.signed}
            if len(nonces) != len(runs):
                scene.broken.append(f"{len(nonces)} nonces were signed for {len(runs)} payments")
    if not 0 < refused == sum(0 < number <= last_save for number in chosen):
        scene.broken.append(f"{refused} of {len(chosen)} were refused, the last save is at moment {last_save}")
    scene.figures = {"frozen": len(chosen), "frozen_refused": refused, "moments": len(moments)}
    return scene


def _wanted(number: int, last_save: int, moments: Sequence[str]) -> tuple[str, ...]:
    """Return what one that was frozen at moment `number` may say when it wakes."""
    if number == 0:
        return (RunFinished.code,)
    return (RunBusy.code,) if number <= last_save else ("Job started",)


async def _moments(place: Place, members: Sequence[Member], run_id: str) -> list[str]:
    """Return the moments of a paying tick, having bought with one that nobody stopped."""
    first = Order(verb="stop_at", settings=place.settings, arguments={"run_id": run_id, "moment": None})
    moments = at_once(members[:1], [first])[0].moments
    at_once(members[:1], [Order(verb="drive", settings=place.settings, arguments={"run_ids": [run_id]})])
    return moments


def _freeze(place: Place, members: Sequence[Member], taker: Member, moments: dict[str, int]) -> list[Answer]:
    """Return what the taker answers, and then what each frozen one does when it wakes, in the order of `moments`."""
    busy = list(zip(members, moments.items(), strict=False))
    for member, (run_id, moment) in busy:
        arguments = {"run_id": run_id, "moment": moment}
        member.send(Order(verb="stop_at", settings=place.settings, arguments=arguments, lease_s=SHORT_LEASE_S))
        member.hear()
        member.send("go")
    for member, (run_id, _) in busy:
        if isinstance(said := member.hear(), Answer):
            raise Lost(f"process {member.pid} was done before moment {moments[run_id]}: {said.moments}")
        member.freeze()
    taker.send(Order(verb="drive", settings=place.settings, arguments={"run_ids": list(moments)}))
    taker.hear()
    taker.send("go")
    answers = [taker.answer()]
    for member, _ in busy:
        member.send("go on")
        member.thaw()
        answers.append(member.answer())
    return answers


async def skewed(place: Place, members: Sequence[Member], ticks: int) -> Scene:
    """
    Let processes whose clocks are wrong find a run that is held, then serve one together.

    A lease, a wallet's day and the last second of a cheque go by the store's clock: nobody takes what is held, and
    every cheque is as long as anybody's.
    """
    scene = Scene()
    async with opened(place, "gpu_vendor_2") as agent:
        run_id = (await begin(agent, [Decimal(1)]))[0]
        claim = await agent.store.claim(run_id, LEASE_S)
        assert not isinstance(claim, Busy)
        order = Order(verb="burst", settings=place.settings, arguments={"run_id": run_id, "ticks": 1})
        answers = at_once(members, [order] * len(members))
        await agent.store.release(run_id, claim.token, None)
        for member, answer in zip(members, answers, strict=True):
            scene.broken += _fooled(member, answer, answer.exits[0])
        first = await agent.store.now()
    together = await one_run(place, members, ticks)
    async with opened(place) as agent:
        last = await agent.store.now()
        page = await agent.store.list_runs("completed", None, 1)
    for paid in page.runs[0].payments:
        life_s = paid.valid_before_s - paid.created_at.timestamp()
        if not (first <= paid.created_at <= last and 0 < life_s <= CHEQUE_S_MAX):
            scene.broken.append(f"{paid.payment_id} was signed at {paid.created_at}, for {life_s} s")
    scene.broken += together.broken
    scene.figures = {"skew_minutes": max(abs(member.skew_s) for member in members) // 60, **together.figures}
    return scene


def _fooled(member: Member, answer: Answer, left: Exit) -> list[str]:
    """Return how a process with a wrong clock took a run that was held, or believed its own clock."""
    if abs(answer.behind_s + member.skew_s) > timedelta(seconds=30).total_seconds():
        return [f"process {member.pid} is {-answer.behind_s:.0f} s ahead, not {member.skew_s}"]
    if left.error != RunBusy.code or left.retry_after_s is None or not 1 <= left.retry_after_s <= LEASE_S:
        return [f"{member.skew_s} s ahead: {left.said}, again in {left.retry_after_s} s"]
    return []
