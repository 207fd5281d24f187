"""
`tick(agent, run_id)`: one stateless step of a run. Claim, recover, observe, decide, act, release.

Everything a tick knows it reads from the store; everything it did it writes there. Any process may
serve any tick.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from agent.artifacts import END_WAIT_S, give_up, keep_artifacts
from agent.checkpoints import read_checkpoints
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
    open_artifacts,
    question_of,
    stop_wanted,
    tick_document,
    worth_reading,
)
from agent.core.errors import (
    ArtifactsUnavailable,
    ChainUnavailable,
    NoSigner,
    RunBusy,
    RunFinished,
    StaleClaim,
    Unavailable,
    WalletError,
)
from agent.core.events import Decided, RunEnded
from agent.core.model import Phase, Run, Vendor
from agent.core.planning import Proposal
from agent.core.states import RUN_ENDS
from agent.files import close_files
from agent.observe import observe
from agent.ports import Agent, Busy
from agent.purchase import OVER_BUDGET, SUBMIT_FAILED, start_job, wallet_of
from agent.recover import recover
from agent.refunds import collect_refunds, refundable
from agent.stop import cancel_jobs
from agent.turn import Turn


@dataclass(frozen=True, slots=True)
class Ticked:
    """What one tick did: a message, the planner's wish as it was taken (None if not asked), the run after it."""

    message: str
    action: Action | None
    run: Run
    next_tick_at: datetime | None


async def tick(agent: Agent, run_id: str, *, due_before: datetime | None = None) -> Ticked:
    """
    Advance a run by one step.

    Args:
        due_before: a run that another has served since then is busy.

    Raises:
        UnknownRun, RunFinished, RunBusy: nothing was done.
        NoSigner: the step would have to pay and there is no key; nothing was reserved.
        StoreUnavailable, ChainUnavailable: nothing is lost; the next tick takes up where this one stopped.
    """
    claim = await agent.store.claim(run_id, agent.limits.lease_s, due_before=due_before)
    if isinstance(claim, Busy):
        raise RunBusy(claim.retry_after_s)
    turn = Turn.of(agent, claim)
    if turn.run.status in RUN_ENDS:
        # It stays as due as it was: what is left to do is for `watch_refunds`.
        await agent.store.release(run_id, turn.token, turn.run.next_tick_at)
        raise RunFinished(f"Run already {turn.run.status}")
    message, action = "", None
    try:
        message, action = await _advance(turn)
    except StaleClaim:
        raise RunBusy(agent.limits.lease_s) from None
    finally:
        next_tick_at = _next_tick_at(turn, message, action)
        await agent.store.release(run_id, turn.token, next_tick_at)
    return Ticked(message, action, turn.run, next_tick_at)


async def watch_refunds(agent: Agent, run_id: str) -> bool:
    """
    Do what is left to do for an ended run: close its files, count refunds that came late; return whether any did.
    Busy runs are left alone.
    """
    claim = await agent.store.claim(run_id, agent.limits.lease_s)
    if isinstance(claim, Busy):
        return False
    turn = Turn.of(agent, claim)
    try:
        await _close(turn)
        vendors = await agent.store.list_vendors()
        return await collect_refunds(turn, {vendor.vendor_id: vendor for vendor in vendors})
    finally:
        await agent.store.release(run_id, turn.token, _next_tick_at(turn, ""))


async def _advance(turn: Turn) -> tuple[str, Action | None]:
    vendors = await turn.agent.store.list_vendors()
    by_id = {vendor.vendor_id: vendor for vendor in vendors}
    message = await _catch_up(turn, by_id)
    if message in _AT_ONCE:
        return message, None

    limits = turn.agent.limits
    facts = Facts(
        attempts_max=limits.attempts_max,
        refund_wait_s=limits.refund_wait_s,
        overdue_s=limits.overdue_s,
        keeps_artifacts=True,
        artifacts_wait_s=END_WAIT_S,
        cancel_requested_at=turn.run.cancel_requested_at,
        vendors=tuple(vendors),
        has_slots=True,
    )
    acted, action, proposal = await _step(turn, by_id, facts)
    while going_on := _going_on(turn, action):
        facts = replace(facts, asked=(*facts.asked, *going_on))
        acted, action, proposal = await _step(turn, by_id, facts)
    return message or acted, action if proposal is not None else None


async def _step(turn: Turn, vendors: dict[str, Vendor], facts: Facts) -> tuple[str, Action, Proposal | None]:
    """Decide, record it, act; return the message, what was decided and the planner's wish, None if it was not asked."""
    facts, action = await _decision(turn, vendors, facts)
    if isinstance(action, StartJob):
        wallet_of(turn.agent)
    turn.record_tick(tick_document(TickRecord(now=turn.now, facts=facts, action=action)))
    if facts.proposal is not None or not isinstance(action, Wait):
        turn.record(_decided(turn, facts.proposal, action))
    return await _ACTS[type(action)](turn, vendors, action), action, facts.proposal


async def _decision(turn: Turn, vendors: dict[str, Vendor], facts: Facts) -> tuple[Facts, Action]:
    """
    Return what is to be done, and all that was known for it: the checkpoints, and the planner's wish if it was asked.

    Raises:
        ArtifactsUnavailable: a job would be started, and nobody knows from where. Jobs are stopped all the same.
    """
    away: ArtifactsUnavailable | None = None
    try:
        checkpoints = await read_checkpoints(turn.agent, turn.run, worth_reading(turn.run, turn.now))
        facts = replace(facts, checkpoints=checkpoints)
    except ArtifactsUnavailable as error:
        away = error
    action = decide(turn.run, facts, turn.now)
    if not isinstance(action, AskPlanner):
        return facts, action
    if away is not None:
        raise away
    # The log keeps what was known: of vendors that are gone nothing is asked.
    standings = tuple(one for one in await turn.agent.store.standings() if one.vendor_id in vendors)
    facts = replace(facts, standings=standings)
    wish = await turn.agent.planner.propose(question_of(turn.run, facts, turn.now))
    facts = replace(facts, proposal=wish)
    return facts, decide(turn.run, facts, turn.now)


def _going_on(turn: Turn, action: Action) -> tuple[str, ...]:
    """Return the jobs that were asked to stop and do not, where the run has other work that need not wait for them."""
    run = turn.run
    if not isinstance(action, CancelJobs) or run.job.count == 1:
        return ()
    if stop_wanted(run, run.cancel_requested_at, turn.now):
        return ()
    return tuple(job.job_id for job in active_jobs(run) if job.job_id in action.job_ids)


async def _catch_up(turn: Turn, vendors: dict[str, Vendor]) -> str | None:
    """
    Recover, observe, keep artifacts, count refunds; return the last message of it.

    A key or a chain that is away must not keep running jobs from being watched: what it raised waits its turn.
    """
    messages: list[str | None] = []
    held: list[Unavailable] = []
    for step in (recover, observe, keep_artifacts, _refunds):
        try:
            messages.append(await step(turn, vendors))
        except (ChainUnavailable, NoSigner, WalletError) as error:
            held.append(error)
    if held:
        raise held[0]
    recovered, observed, _, refunded = messages
    return observed or recovered or refunded


async def _refunds(turn: Turn, vendors: dict[str, Vendor]) -> str | None:
    return "Refund received" if await collect_refunds(turn, vendors) else None


async def _start(turn: Turn, vendors: dict[str, Vendor], action: StartJob) -> str:
    return await start_job(turn, vendors[action.vendor_id], action)


async def _wait(turn: Turn, vendors: dict[str, Vendor], action: Wait) -> str:
    await turn.save()
    return action.message


async def _end(turn: Turn, vendors: dict[str, Vendor], action: EndRun) -> str:
    turn.record(*give_up(turn))
    turn.record(RunEnded(at=turn.now, status=action.status, reason=action.reason, detail=action.detail))
    await turn.save()
    await _close(turn)
    return {"completed": "Job completed", "failed": "Run aborted"}.get(action.status, f"Run {action.status}")


async def _close(turn: Turn) -> None:
    """Close the files of a run that has ended; what cannot be closed now is for a later look at it."""
    if turn.run.status in RUN_ENDS:
        with suppress(ArtifactsUnavailable):
            await close_files(turn.agent, turn.run)
            turn.closed = True


async def _cancel(turn: Turn, vendors: dict[str, Vendor], action: CancelJobs) -> str:
    message = await cancel_jobs(turn, vendors, action)
    await collect_refunds(turn, vendors)
    return message


_Act = Callable[[Turn, dict[str, Vendor], Any], Awaitable[str]]
_ACTS: Mapping[type, _Act] = {StartJob: _start, Wait: _wait, EndRun: _end, CancelJobs: _cancel}

_PHASES: Mapping[type, Phase] = {StartJob: "executing", Wait: "waiting", EndRun: "planning", CancelJobs: "waiting"}


def _decided(turn: Turn, proposal: Proposal | None, action: Action) -> Decided:
    """Return the reasoning behind `action`: the planner's wish as it was taken, or the rule that needed no planner."""
    phase = _PHASES[type(action)]
    if proposal is None:
        reason = str(getattr(action, "reason", None) or getattr(action, "status", ""))
        return Decided(at=turn.now, action=action.kind, reason=reason, phase=phase, mode="rule")
    return Decided(
        at=turn.now,
        action="wait" if isinstance(action, Wait) else proposal.action,
        reason=action.reason if isinstance(action, Wait) else proposal.reason,
        phase=phase,
        vendor_id=proposal.vendor_id,
        max_hours=proposal.max_hours,
        mode=proposal.mode,
        prompt=proposal.prompt,
        raw=proposal.raw,
        fallback=proposal.fallback,
        other=proposal.other,
    )


# A step was taken and the next can follow at once; after any other message there is something to wait for.
_AT_ONCE = frozenset({"Job failed", "Refund received", SUBMIT_FAILED, OVER_BUDGET})

# What a planner waits for without a time, as for a vendor to be registered, is looked for again after this.
LOOK_AGAIN_S = 60


def _next_tick_at(turn: Turn, message: str, action: Action | None = None) -> datetime | None:
    """
    Return when the sweep should come again: at once, after a while, or never (all is known).

    `action` is what became of a planner's wish; where it is to wait and no job runs, nothing happens until then.
    """
    run, limits = turn.run, turn.agent.limits
    # An end that could not be stored may not have happened: somebody has to come and look.
    if run.status not in RUN_ENDS or turn.unsaved:
        if message in _AT_ONCE:
            return turn.now
        if not isinstance(action, Wait) or active_jobs(run) or open_artifacts(run):
            return turn.now + timedelta(seconds=limits.poll_interval_s)
        then = action.until or turn.now + timedelta(seconds=LOOK_AGAIN_S)
        return then if run.deadline is None else min(then, run.deadline)
    announced = [paid.refund.announced_at for paid in run.payments if paid.refund and paid.status == "completed"]
    ended = [job.completed_at for job, _ in refundable(turn) if job.completed_at is not None]
    ages = [turn.now - at for at in (*announced, *ended)]
    # Each look at a refund that may come is after twice the time of the last, and there is a last one.
    waits = [max(age, timedelta(seconds=limits.refund_wait_s)) for age in ages if age.days < limits.refund_days_max]
    if not turn.closed:
        waits.append(max(turn.now - (run.completed_at or turn.now), timedelta(seconds=LOOK_AGAIN_S)))
    return turn.now + min(waits) if waits else None
