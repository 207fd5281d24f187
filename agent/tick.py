"""
`tick(agent, run_id)`: one stateless step of a run. Claim, recover, observe, decide, act, release.

Everything a tick knows it reads from the store; everything it did it writes there. Any process may
serve any tick.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from agent.core.decide import (
    Action,
    AskPlanner,
    CancelJobs,
    EndRun,
    Facts,
    StartJob,
    TickRecord,
    Wait,
    active_jobs,
    decide,
    tick_document,
)
from agent.core.errors import RunBusy, RunFinished, StaleClaim, VendorError
from agent.core.events import Decided, JobMissed, RunEnded
from agent.core.model import Phase, Run, Vendor
from agent.core.planning import Proposal
from agent.core.states import RUN_ENDS
from agent.observe import observe, read_status, take
from agent.ports import Agent, Busy
from agent.purchase import OVER_BUDGET, SUBMIT_FAILED, start_job, wallet_of
from agent.recover import recover
from agent.settle import settle_refunds
from agent.turn import Turn


@dataclass(frozen=True, slots=True)
class Ticked:
    """What one tick did: a message, the planner's wish as it was taken (None if not asked), the run after it."""

    message: str
    action: Action | None
    run: Run
    next_tick_at: datetime | None


async def tick(agent: Agent, run_id: str) -> Ticked:
    """
    Advance a run by one step.

    Raises:
        UnknownRun, RunFinished, RunBusy: nothing was done.
        NoSigner: the step would have to pay and there is no key; nothing was reserved.
        StoreUnavailable, ChainUnavailable: nothing is lost; the next tick takes up where this one stopped.
    """
    claim = await agent.store.claim(run_id, agent.limits.lease_s)
    if isinstance(claim, Busy):
        raise RunBusy(claim.retry_after_s)
    turn = Turn.of(agent, claim)
    message = ""
    try:
        if turn.run.status in RUN_ENDS:
            raise RunFinished(f"Run already {turn.run.status}")
        message, action = await _advance(turn)
    except StaleClaim:
        raise RunBusy(agent.limits.lease_s) from None
    finally:
        next_tick_at = _next_tick_at(turn, message)
        await agent.store.release(run_id, turn.token, next_tick_at)
    return Ticked(message, action, turn.run, next_tick_at)


async def watch_refunds(agent: Agent, run_id: str) -> bool:
    """Count refunds of an ended run that came late; return whether any did. Busy runs are left alone."""
    claim = await agent.store.claim(run_id, agent.limits.lease_s)
    if isinstance(claim, Busy):
        return False
    turn = Turn.of(agent, claim)
    try:
        return await settle_refunds(turn)
    finally:
        await agent.store.release(run_id, turn.token, _next_tick_at(turn, ""))


async def _advance(turn: Turn) -> tuple[str, Action | None]:
    vendors = await turn.agent.store.list_vendors()
    by_id = {vendor.vendor_id: vendor for vendor in vendors}
    recovered = await recover(turn, by_id)
    if recovered in _AT_ONCE:
        return recovered, None
    observed = await observe(turn, by_id)
    if observed in _AT_ONCE:
        return observed, None

    facts = Facts(
        attempts_max=turn.agent.limits.attempts_max,
        refund_wait_s=turn.agent.limits.refund_wait_s,
        cancel_requested_at=turn.run.cancel_requested_at,
        vendors=tuple(vendors),
    )
    action = decide(turn.run, facts, turn.now)
    if isinstance(action, AskPlanner):
        facts = replace(facts, proposal=await turn.agent.planner.propose(turn.run, vendors, turn.now))
        action = decide(turn.run, facts, turn.now)
    if isinstance(action, StartJob):
        wallet_of(turn.agent)
    turn.record_tick(tick_document(TickRecord(now=turn.now, facts=facts, action=action)))
    if facts.proposal is not None:
        turn.record(_decided(turn, facts.proposal, action))
    acted = await _ACTS[type(action)](turn, by_id, action)
    return observed or recovered or acted, action if facts.proposal is not None else None


async def _start(turn: Turn, vendors: Mapping[str, Vendor], action: StartJob) -> str:
    return await start_job(turn, vendors[action.vendor_id], action)


async def _wait(turn: Turn, vendors: Mapping[str, Vendor], action: Wait) -> str:
    await turn.save()
    return action.message


async def _end(turn: Turn, vendors: Mapping[str, Vendor], action: EndRun) -> str:
    turn.record(RunEnded(at=turn.now, status=action.status, reason=action.reason, detail=action.detail))
    await turn.save()
    return {"completed": "Job completed", "failed": "Run aborted"}.get(action.status, f"Run {action.status}")


async def _cancel(turn: Turn, vendors: Mapping[str, Vendor], action: CancelJobs) -> str:
    await turn.save()
    message = "Waiting"
    for job in active_jobs(turn.run):
        vendor = vendors.get(job.vendor_id)
        if job.vendor_job_id is None or vendor is None:
            continue
        try:
            status = await turn.agent.vendors.cancel(vendor, job.vendor_job_id)
            message = await take(turn, read_status(turn.run, job, status, turn.now)) or message
        except VendorError as error:
            await take(turn, [JobMissed(at=turn.now, job_id=job.job_id, detail=f"cancel: {error}")])
    return message


_Act = Callable[[Turn, Mapping[str, Vendor], Any], Awaitable[str]]
_ACTS: Mapping[type, _Act] = {StartJob: _start, Wait: _wait, EndRun: _end, CancelJobs: _cancel}

_PHASES: Mapping[type, Phase] = {StartJob: "executing", Wait: "waiting", EndRun: "planning"}


def _decided(turn: Turn, proposal: Proposal, action: Action) -> Decided:
    return Decided(
        at=turn.now,
        action=proposal.action if not isinstance(action, Wait) else "wait",
        reason=action.reason if isinstance(action, Wait) else proposal.reason,
        phase=_PHASES[type(action)],
        vendor_id=proposal.vendor_id,
        max_hours=proposal.max_hours,
        mode=proposal.mode,
        prompt=proposal.prompt,
        raw=proposal.raw,
        fallback=proposal.fallback,
    )


# A step was taken and the next can follow at once; after any other message there is something to wait for.
_AT_ONCE = frozenset({"Job failed", "Refund received", SUBMIT_FAILED, OVER_BUDGET})


def _next_tick_at(turn: Turn, message: str) -> datetime | None:
    """Return when the sweep should come again: at once, after a while, or never (all is known)."""
    run, limits = turn.run, turn.agent.limits
    if run.status not in RUN_ENDS:
        return turn.now if message in _AT_ONCE else turn.now + timedelta(seconds=limits.poll_interval_s)
    ages = [turn.now - paid.refund.announced_at for paid in run.payments if paid.refund and paid.status == "completed"]
    # Each look at an announced refund comes after twice the time of the last, and there is a last one.
    waits = [max(age, timedelta(seconds=limits.refund_wait_s)) for age in ages if age.days < limits.refund_days_max]
    return turn.now + min(waits) if waits else None
