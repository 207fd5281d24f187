"""What each job of a run cost, and which steps of the work it was paid for: all of it is what the run has spent."""

from collections.abc import Iterator
from dataclasses import dataclass

from agent.core.model import Job, Payment, Run
from agent.core.states import PAID_PAYMENTS
from agent.core.wording import money


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """One paid job: from `step` to `to_step`, both None where its vendor told of no steps."""

    job: Job
    payment: Payment
    step: int | None
    to_step: int | None

    @property
    def spent_atomic(self) -> int:
        return self.payment.amount_atomic - self.payment.refunded_atomic


def costs(run: Run) -> tuple[Cost, ...]:
    """Return what was paid for, in the order of the payments."""
    jobs = {job.job_id: job for job in run.jobs}
    paid = [paid for paid in run.payments if paid.status in PAID_PAYMENTS and paid.job_id in jobs]
    return tuple(_cost(run, jobs[payment.job_id], payment) for payment in paid)


def _cost(run: Run, job: Job, payment: Payment) -> Cost:
    begun = job.checkpoint.step if job.checkpoint is not None else None
    # What was done after the last checkpoint was done for nothing, where another had to go on from it.
    handed_on = [one.checkpoint.step for one in run.jobs if one.resumes == job.job_id and one.checkpoint is not None]
    to_step = max(handed_on) if handed_on else job.step
    return Cost(job=job, payment=payment, step=0 if begun is None and to_step is not None else begun, to_step=to_step)


def shares(run: Run) -> Iterator[str]:
    """Yield a sentence for each piece of work that more than one job was paid for."""
    slots = sorted({cost.job.slot for cost in costs(run) if cost.job.slot is not None})
    for slot in slots:
        ours = [cost for cost in costs(run) if cost.job.slot == slot]
        if len(ours) > 1:
            which = "The work" if run.job.count == 1 else f"Piece {slot + 1} of the work"
            total = money(run, sum(cost.spent_atomic for cost in ours))
            yield f"{which} cost {total}: {', '.join(_part(run, cost) for cost in ours)}."


def _part(run: Run, cost: Cost) -> str:
    where = ""
    if cost.step:
        where += f" from step {cost.step}"
    if cost.to_step is not None and cost.to_step != cost.step:
        where += f" to step {cost.to_step}"
    return f"{cost.job.vendor_id} {money(run, cost.spent_atomic)}{where}"


def began(run: Run, job: Job) -> Iterator[str]:
    """Yield what a job goes on from or is to overtake, and that it cannot move where its vendor said so."""
    vendors = {one.job_id: one.vendor_id for one in run.jobs}
    parts = []
    if job.checkpoint is not None:
        at = f"step {job.checkpoint.step} of {job.checkpoint.steps}"
        parts.append(f"goes on from {at}, which {vendors[job.checkpoint.job_id]} had come to")
    if job.hedges is not None:
        parts.append(f"is to be done before {vendors[job.hedges]}, which is late for the deadline or silent")
    if parts:
        yield f"It {' and '.join(parts)}."
    if job.moves is False:
        yield "It says that the work cannot go on elsewhere."
