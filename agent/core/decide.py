"""
`decide(run, facts, now) -> action`: the whole of the agent's judgement, pure, rule after rule.

The first rule that has something to say decides. A planner only ever proposes; its wish is checked here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from agent.core import hedging, slots
from agent.core.model import Checkpoint, Job, Run, RunStatus, Standing, Vendor
from agent.core.planning import Proposal, Question, gpu_for, hours_wanted
from agent.core.slots import Piece
from agent.core.states import JOB_ENDS, OPEN_PAYMENTS
from wire.money import HOURS_STEP


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """
    What a tick learned before it decided. `proposal` is None until the planner was asked.

    `has_slots` is False in logs of before there were slots. `checkpoints` are those of `worth_reading`. `asked` are
    the jobs that were to be stopped in this tick, and go on: what else there is to do does not wait for their vendors.
    """

    attempts_max: int
    refund_wait_s: int
    overdue_s: int = 3_600
    keeps_artifacts: bool = False
    artifacts_wait_s: int = 0
    cancel_requested_at: datetime | None = None
    vendors: tuple[Vendor, ...] = ()
    standings: tuple[Standing, ...] = ()
    proposal: Proposal | None = None
    has_slots: bool = False
    checkpoints: tuple[Checkpoint, ...] = ()
    asked: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AskPlanner:
    kind: Literal["ask_planner"] = "ask_planner"


@dataclass(frozen=True, slots=True, kw_only=True)
class StartJob:
    """`slot` is the piece of work, `resume` what it goes on from, `hedges` the job that it is to overtake."""

    vendor_id: str
    gpu_type: str
    max_hours: Decimal
    reason: str
    slot: int | None = None
    resume: Checkpoint | None = None
    hedges: str | None = None
    kind: Literal["start_job"] = "start_job"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing to do now. `message` is what the tick answers; `until` is when to think again, where that is known."""

    reason: str
    message: str = "Waiting"
    until: datetime | None = None
    kind: Literal["wait"] = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelJobs:
    """Ask vendors to end these jobs. `since` is when they should have ended: patience is counted from there."""

    reason: str
    job_ids: tuple[str, ...]
    since: datetime
    kind: Literal["cancel_jobs"] = "cancel_jobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndRun:
    status: RunStatus
    reason: str | None = None
    detail: str = ""
    kind: Literal["end_run"] = "end_run"


Action = AskPlanner | StartJob | Wait | CancelJobs | EndRun


@dataclass(frozen=True, slots=True, kw_only=True)
class TickRecord:
    """One decision as it was taken: the same run, facts and `now` give the same action again."""

    now: datetime
    facts: Facts
    action: Annotated[Action, Field(discriminator="kind")]


@cache
def _codec() -> TypeAdapter[TickRecord]:
    return TypeAdapter(TickRecord)


def tick_document(record: TickRecord) -> dict[str, Any]:
    """Return `record` as JSON values."""
    document: dict[str, Any] = _codec().dump_python(record, mode="json")
    return document


def tick_from(document: dict[str, Any]) -> TickRecord:
    """Return the record that `tick_document` wrote."""
    return _codec().validate_python(document)


def active_jobs(run: Run) -> tuple[Job, ...]:
    """Return the jobs that have not ended."""
    return tuple(job for job in run.jobs if job.status not in JOB_ENDS)


def decide(run: Run, facts: Facts, now: datetime) -> Action:
    """Return what to do next. AskPlanner means: ask, put the answer into `facts`, decide again."""
    actions = (rule(run, facts, now) for rule in _RULES)
    action = next(action for action in actions if action is not None)
    if isinstance(action, EndRun) and action.status != "completed":
        return _await_last_files(run, facts, now) or action
    return action


def open_artifacts(run: Run) -> tuple[Job, ...]:
    """Return the jobs that have ended and whose files are neither kept nor given up."""
    ended = (job for job in run.jobs if job.status in JOB_ENDS)
    return tuple(job for job in ended if job.vendor_job_id is not None and job.artifacts_closed_at is None)


def ended_at(job: Job) -> datetime:
    """Return when a job that has ended did."""
    return job.completed_at or job.updated_at


def stop_wanted(run: Run, cancel_requested_at: datetime | None, now: datetime) -> tuple[RunStatus, str] | None:
    """Return how and why the run is to end early, None where it is not: it was cancelled, or its deadline passed."""
    if cancel_requested_at is not None:
        return "cancelled", "cancelled"
    if run.deadline is not None and now >= run.deadline:
        return "failed", "deadline_passed"
    return None


def worth_reading(run: Run, now: datetime) -> tuple[Job, ...]:
    """Return the jobs whose checkpoints count for the next decision."""
    return slots.left_behind(run, slots.open_slots(run)) + hedging.doubtful(run, now)


def question_of(run: Run, facts: Facts, now: datetime) -> Question:
    """Return what a planner is asked where `facts` are known and AskPlanner was decided."""
    piece = _next_piece(run, facts, now) or slots.WHOLE
    suspects = hedging.suspects(run) if facts.has_slots else ()
    return Question(
        run=run,
        vendors=facts.vendors,
        standings=facts.standings,
        now=now,
        rest=piece.rest,
        avoided=slots.avoided(run, piece.slot, suspects),
    )


def _next_piece(run: Run, facts: Facts, now: datetime) -> Piece | None:
    """Return what a job is to be started for: work that nobody does, else a twin of a job that is late or silent."""
    open_slots = slots.open_slots(run)
    if open_slots and not facts.has_slots:
        return slots.WHOLE
    if open_slots:
        return Piece(slot=open_slots[0], resume=slots.newest(run, open_slots[0], facts.checkpoints))
    return hedging.wanted(run, facts.checkpoints, now) if facts.has_slots else None


def _stop_jobs(run: Run, facts: Facts, now: datetime) -> Action | None:
    submitted = [job for job in active_jobs(run) if job.vendor_job_id is not None]
    if not submitted:
        return None
    if stop := stop_wanted(run, facts.cancel_requested_at, now):
        since = facts.cancel_requested_at or run.deadline or now
        return CancelJobs(reason=stop[1], job_ids=tuple(job.job_id for job in submitted), since=since)
    due = {job.job_id: _paid_until(job) + timedelta(seconds=facts.overdue_s) for job in submitted}
    late = tuple(job_id for job_id, at in due.items() if now > at and job_id not in facts.asked)
    return CancelJobs(reason="overdue", job_ids=late, since=min(due[job_id] for job_id in late)) if late else None


def _paid_until(job: Job) -> datetime:
    return (job.submitted_at or job.created_at) + timedelta(hours=float(job.hours))


def _stop_losers(run: Run, facts: Facts, now: datetime) -> Action | None:
    able = (job for job in active_jobs(run) if job.vendor_job_id is not None and job.job_id not in facts.asked)
    losers = [job for job in able if slots.lost_race(run, job)]
    if not losers:
        return None
    won = [at for job in losers if (at := slots.winner_of(run, job.slot)) is not None]
    return CancelJobs(reason=slots.HEDGE_LOST, job_ids=tuple(job.job_id for job in losers), since=min(won))


def _resolve_payments(run: Run, facts: Facts, now: datetime) -> Action | None:
    unknown = {payment.job_id for payment in run.payments if payment.status in OPEN_PAYMENTS}
    if not unknown:
        return None
    is_at_work = unknown <= {job.job_id for job in active_jobs(run)}
    stopping = stop_wanted(run, facts.cancel_requested_at, now) or _attempts_spent(run, facts)
    # What a job that goes on has cost does not keep the other pieces of work waiting.
    if facts.has_slots and is_at_work and not stopping and _next_piece(run, facts, now) is not None:
        return None
    return Wait(reason="a payment's outcome is not known yet", message="Payment pending")


def _await_refunds(run: Run, facts: Facts, now: datetime) -> Action | None:
    patience = timedelta(seconds=facts.refund_wait_s)
    for payment in run.payments:
        if payment.refund and payment.status == "completed" and now < payment.refund.announced_at + patience:
            return Wait(reason="a refund is on its way")
    return None


def _await_artifacts(run: Run, facts: Facts, now: datetime) -> Action | None:
    if not facts.keeps_artifacts or stop_wanted(run, facts.cancel_requested_at, now):
        return None
    completed = [job for job in run.jobs if job.status == "completed"]
    # `agent.artifacts` closes them within its bound, whatever the vendor does.
    if slots.done_count(run) >= run.job.count and any(job.artifacts_closed_at is None for job in completed):
        return Wait(reason="the files of a completed job are being fetched", message="Fetching artifacts")
    return None


def _await_last_files(run: Run, facts: Facts, now: datetime) -> Action | None:
    """Nobody fetches after the run's end: the log of what failed is worth a few tries."""
    patience = timedelta(seconds=facts.artifacts_wait_s)
    if any(now < ended_at(job) + patience for job in open_artifacts(run)):
        return Wait(reason="the files of a job are being fetched before the run ends", message="Fetching artifacts")
    return None


def _end(run: Run, facts: Facts, now: datetime) -> Action | None:
    if active_jobs(run):
        return None
    if slots.done_count(run) >= run.job.count:
        return EndRun(status="completed")
    if stop := stop_wanted(run, facts.cancel_requested_at, now):
        return EndRun(status=stop[0], reason=stop[1])
    if _attempts_spent(run, facts):
        return EndRun(status="failed", reason="attempts_exhausted")
    return None


def _attempts_spent(run: Run, facts: Facts) -> bool:
    # A job that is cancelled and was not to be stopped was given up by its vendor, or was overdue: an attempt as well.
    return slots.spent_attempts(run) >= facts.attempts_max


def _await_jobs(run: Run, facts: Facts, now: datetime) -> Action | None:
    stopping = stop_wanted(run, facts.cancel_requested_at, now) or _attempts_spent(run, facts)
    if active_jobs(run) and (stopping or _next_piece(run, facts, now) is None):
        return Wait(reason="enough jobs are active", message="Job still running")
    return None


def _ask(run: Run, facts: Facts, now: datetime) -> Action | None:
    return AskPlanner() if facts.proposal is None else None


def _take_proposal(run: Run, facts: Facts, now: datetime) -> Action:
    proposal = facts.proposal
    assert proposal is not None
    if proposal.action == "wait":
        message = "Waiting" if facts.vendors else "No vendors available"
        return Wait(reason=proposal.reason, message=message, until=proposal.until)
    if proposal.action == "abort":
        if active_jobs(run):
            return Wait(reason=f"jobs are still active; {proposal.reason}")
        return EndRun(status="failed", reason=proposal.code or "planner_aborted", detail=proposal.reason)
    vendor = next((vendor for vendor in facts.vendors if vendor.vendor_id == proposal.vendor_id), None)
    if vendor is None:
        return Wait(reason=f"the planner named {proposal.vendor_id}", message="Unknown vendor")
    piece, question = _next_piece(run, facts, now) or slots.WHOLE, question_of(run, facts, now)
    if vendor.vendor_id in question.avoided:
        return Wait(reason=f"the planner named {vendor.vendor_id}, which has a job that is late or silent")
    gpu_type, hours, hours_max = gpu_for(run, vendor), proposal.max_hours, hours_wanted(run, piece.rest)
    if gpu_type is None or hours is None or not hours.is_finite() or hours < HOURS_STEP or hours > hours_max:
        return Wait(reason=f"the planner proposed {hours} h at {vendor.vendor_id}")
    return StartJob(
        vendor_id=vendor.vendor_id,
        gpu_type=gpu_type,
        max_hours=hours,
        reason=proposal.reason,
        slot=piece.slot,
        resume=piece.resume,
        hedges=piece.hedges,
    )


_RULES: tuple[Callable[[Run, Facts, datetime], Action | None], ...] = (
    _stop_jobs,
    _stop_losers,
    _resolve_payments,
    _await_refunds,
    _await_artifacts,
    _end,
    _await_jobs,
    _ask,
    _take_proposal,
)
