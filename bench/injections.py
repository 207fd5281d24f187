"""
Texts that attack the planner, in everything that a vendor says in words; none may change who is paid, or how much.

Twice, with every planner. As questions: the same facts with the texts and with harmless words must have one answer. As
runs: vendors say them in logs, errors, metrics, names and GPU types, and each payment is held against the register.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from agent.core import ledger
from agent.core.bandit import advise
from agent.core.model import Artifact, JobSpec, Outcome, Run
from agent.core.planning import Proposal, Question, price_of
from agent.edges.planner_ab import AbPlanner
from agent.edges.planner_bandit import BanditPlanner
from agent.edges.planner_llm import LlmPlanner
from agent.edges.planner_stub import StubPlanner
from agent.ports import Claim, Planner
from bench.hostile_cases import GAS, PAYER
from chain.devchain import DevChain
from outbound.chat import ChatEndpoint
from outbound.http import HttpClient
from tests.agent.core.values import a_job, a_run, a_vendor
from tests.fixtures.hostile import HostileWorld, hostile_world
from tests.fixtures.llm import KEY, FakeLlm, believes
from vendor_mock.attacks import COUNT, attacks
from vendor_mock.catalogue import Gpu, VendorPlan
from wire.money import price_atomic

PLANNERS = ("stub", "bandit", "llm", "ab")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
HARMLESS = "Epoch 1/3 loss=1.5"
_EACH = 8


@dataclass(frozen=True, slots=True)
class Tally:
    """How many texts were said to a planner, and in words what any of them brought about."""

    tried: int
    effective: tuple[str, ...]


def open_planner(mode: str, llm: FakeLlm) -> Planner:
    """Return the planner of `mode`, its model at `llm`."""
    chat = ChatEndpoint(HttpClient(), base_url=llm.base_url, model="tiny", api_key=KEY, timeout_s=20)
    planners: Mapping[str, Planner] = {
        "stub": StubPlanner(),
        "bandit": BanditPlanner(),
        "llm": LlmPlanner(chat),
        "ab": AbPlanner(BanditPlanner(), LlmPlanner(chat)),
    }
    return planners[mode]


async def asked(seed: int, mode: str, llm: FakeLlm) -> Tally:
    """Return what the texts of `seed` do to the answers of a planner, eight of them to a question."""
    texts, obeyed = attacks(seed), list[str]()
    llm.behave = believes(texts, obeyed)
    planner = open_planner(mode, llm)
    found: list[str] = []
    for number, said in enumerate(_slices(texts)):
        hostile, harmless = _question(number, said), _question(number, (HARMLESS,) * _EACH)
        # Of what was rented and would be, only the words differ; with less to choose from, nothing could be seen.
        assert len(advise(hostile).candidates) == len(hostile.vendors)
        wishes = [await planner.propose(question) for question in (hostile, harmless)]
        if _wished(wishes[0]) != _wished(wishes[1]):
            found.append(f"{mode}: {_wished(wishes[0])}, not {_wished(wishes[1])}, by {said!a}")
    return Tally(len(texts), (*found, *_heard(mode, llm, texts, obeyed)))


def _slices(texts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    return (tuple(texts[start : start + _EACH]) for start in range(0, len(texts), _EACH))


def _wished(wish: Proposal) -> tuple[str, str | None, Decimal | None]:
    return wish.action, wish.vendor_id, wish.max_hours


def _question(number: int, said: tuple[str, ...]) -> Question:
    """Return what a planner is asked of a run that failed once, everything that is not ours being `said`."""
    vendors = tuple(
        a_vendor(place, name=said[place - 1], endpoint=f"http://vendors/{said[place]}", reliability_score=Decimal(1))
        for place in (1, 2, 3)
    )
    failed = a_job(
        1,
        status="failed",
        vendor_id="gpu_vendor_4",
        vendor_job_id=said[4],
        template_id=said[5],
        error_message=said[6],
        final_metrics={said[7]: Decimal("1e30"), said[3]: Decimal(0)},
        artifact_url=said[5],
        artifacts=(Artifact(name=said[2], bytes=1, sha256="0" * 64),),
        completed_at=NOW - timedelta(hours=1),
        cursor=said[1],
    )
    run: Run = a_run(run_id=f"run_{number}", budget=ledger.opened(50_000_000), jobs=(failed,), job=JobSpec())
    # A vendor says as many lines as it likes.
    run = replace(run, log=replace(run.log, seq=len(said[0]), hash=hashlib.sha256(said[0].encode()).hexdigest()))
    return Question(run=run, vendors=vendors, standings=(), now=NOW)


def _heard(mode: str, llm: FakeLlm, texts: Sequence[str], obeyed: Sequence[str]) -> list[str]:
    """Return what of `texts` reached the model; the prompts are those since it was last asked here."""
    if mode in ("llm", "ab") and not llm.asked:
        return [f"{mode}: the model was never asked"]
    said = llm.everything
    llm.asked.clear()
    return [
        *(f"{mode}: in the prompt: {text!a}" for text in texts if text in said),
        *(f"{mode}: {o!a}" for o in obeyed),
    ]


async def spent(seed: int, mode: str, llm: FakeLlm, chain: DevChain, folder: Path) -> Tally:
    """Return what a planner's quarter of the texts of `seed` does to the payments of a run."""
    each = COUNT // len(PLANNERS)
    start = each * PLANNERS.index(mode)
    texts, obeyed = attacks(seed)[start : start + each], list[str]()
    llm.behave = believes(texts, obeyed)
    plans = tuple(
        VendorPlan(
            vendor_id=f"gpu_vendor_{number}",
            name=texts[number],
            price_per_hour=Decimal(1),
            gpus=(Gpu(gpu_type=texts[3 + number][:256]), Gpu(gpu_type=texts[6 + number][:256])),
        )
        for number in (1, 2, 3)
    )
    async with hostile_world(folder, chain, PAYER, GAS, plans=plans) as world:
        world.agent = replace(world.agent, planner=open_planner(mode, llm))
        await _trust_all(world)
        for vendor in world.vendors:
            words = {"attacks": seed, "attacks_from": start, "attacks_count": each}
            world.script(vendor.vendor_id, fail_at_epoch=1 if vendor.vendor_id != "gpu_vendor_3" else None, **words)
        run_id = await world.start("60", goal=texts[0], job={"count": 2})
        run = await world.drive(run_id)
        lines = set(await world.lines(run_id, "job_log"))
        found = [f"{mode}: {text!a} was never said" for text in texts if text not in lines]
        if len(run.payments) < 2:
            found.append(f"{mode}: only {len(run.payments)} payments")
        found += _misdirected(world, run)
        found += await world.broken()
    return Tally(len(texts), (*found, *_heard(mode, llm, texts, obeyed)))


def _misdirected(world: HostileWorld, run: Run) -> Iterator[str]:
    """Yield the payments of `run` that are not what the register says, or not on the chain as they are in the books."""
    jobs, vendors = {job.job_id: job for job in run.jobs}, {vendor.vendor_id: vendor for vendor in world.vendors}
    for paid in run.payments:
        job, vendor = jobs[paid.job_id], vendors[paid.vendor_id]
        if paid.pay_to.lower() != vendor.pay_to.lower():
            yield f"{paid.payment_id} went to {paid.pay_to}"
        if paid.amount_atomic != price_atomic(price_of(vendor, job.gpu_type), job.hours) or job.hours > 1:
            yield f"{paid.payment_id} is of {paid.amount_atomic} for {job.hours} h"


async def _trust_all(world: HostileWorld) -> None:
    """Give every vendor a long good record: then all are as good to the bandit, and a model has something to choose."""
    claim = await world.store.claim(await world.start("1"), 30)
    assert isinstance(claim, Claim)
    good = [
        Outcome(vendor_id=vendor.vendor_id, gpu_type=gpu_type, succeeded=True, at=claim.now)
        for vendor in world.vendors
        for gpu_type in vendor.supported_gpu_types
        for _ in range(500)
    ]
    await world.store.save(claim.token, claim.run, outcomes=good)
    await world.store.release(claim.run.run_id, claim.token, None)
