"""The books against what the vendors say of the jobs that they were paid for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal

from agent.core.audit_log import Difference, differs
from agent.core.model import Job, Payment, Run
from agent.core.states import JOB_ENDS
from agent.core.wording import money
from wire.money import MoneyError, to_atomic, to_atomic_up
from wire.vendor import JobFound, JobStatus


@dataclass(frozen=True, slots=True)
class Answer:
    """What a vendor says of the job that a payment bought; `found` is None where it knows of none."""

    found: JobFound | None
    status: JobStatus | None = None


def of_job(run: Run, payment: Payment, answer: Answer) -> Iterator[Difference]:
    """Yield how the job that a payment bought differs from what its vendor says of it."""
    job = next((job for job in run.jobs if job.job_id == payment.job_id), None)
    found, said = answer.found, answer.status
    if job is None:
        return
    if found is None:
        if job.vendor_job_id is not None:
            books = f"{job.vendor_id} took it as {job.vendor_job_id}"
            yield differs(run, "job_gone", job.job_id, books, "the vendor knows of no job for this payment")
        return
    if payment.status == "failed":
        world = f"the vendor has {found.vendor_job_id}"
        yield differs(run, "job_unpaid", job.job_id, "nothing was paid for it", world)
    elif job.vendor_job_id is None and job.status in JOB_ENDS:
        yield from _unclaimed(run, job, payment, found, any(coming(run, payment, answer)))
        if said is not None:
            yield from _refunded(run, payment, said)
    elif job.vendor_job_id is not None and found.vendor_job_id != job.vendor_job_id:
        yield differs(run, "other_job", job.job_id, f"it is {job.vendor_job_id}", f"it is {found.vendor_job_id}")
    elif said is not None and job.status in JOB_ENDS:
        yield from _ended_otherwise(run, job, payment, said)


def coming(run: Run, payment: Payment, answer: Answer | None) -> Iterator[str]:
    """Yield the transactions of refunds that a tick or the sweep will count when it next looks at the run."""
    if payment.status != "completed" or run.next_tick_at is None:
        return
    if payment.refund is not None:
        yield payment.refund.transaction
    if answer is not None and answer.status is not None and answer.status.refund is not None:
        yield answer.status.refund.transaction.lower()


def _unclaimed(run: Run, job: Job, payment: Payment, found: JobFound, is_coming: bool) -> Iterator[Difference]:
    """Yield the job that was given up unheard of and is there after all, by what was not paid back for it."""
    lost = payment.amount_atomic - payment.refunded_atomic
    if lost > 0 and not is_coming:
        books, world = f"paid, and {job.status} without having begun", f"the vendor has {found.vendor_job_id}"
        yield differs(run, "job_unclaimed", job.job_id, books, world, lost)


def _ended_otherwise(run: Run, job: Job, payment: Payment, said: JobStatus) -> Iterator[Difference]:
    if said.status not in JOB_ENDS:
        return  # a job that nobody wants and that goes on is I3's
    # What we gave up as lost and the vendor then brought back was cancelled by the sweep.
    if said.status != job.status and (job.status, said.status) != ("failed", "cancelled"):
        books = f"{job.status}: {job.error_message}" if job.error_message else job.status
        yield differs(run, "job_status", job.job_id, books, said.status)
        return
    if job.actual_cost_atomic is not None:
        cost = _atomic_or_none(said, run)
        if cost != job.actual_cost_atomic:
            by = None if cost is None else abs(cost - job.actual_cost_atomic)
            world = f"it cost {said.cost_so_far if cost is None else money(run, cost)}"
            yield differs(run, "job_cost", job.job_id, f"it cost {money(run, job.actual_cost_atomic)}", world, by)
    if job.final_metrics is not None and dict(said.final_metrics or {}) != job.final_metrics:
        books, world = _measured(job.final_metrics), _measured(dict(said.final_metrics or {}))
        yield differs(run, "job_metrics", job.job_id, f"it measured {books}", f"it measured {world}")
    yield from _refunded(run, payment, said)


def _measured(metrics: Mapping[str, Decimal]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(metrics.items())) or "nothing"


def _refunded(run: Run, payment: Payment, said: JobStatus) -> Iterator[Difference]:
    if payment.status != "refunded":
        return
    try:
        back = to_atomic(said.refund.amount, run.asset) if said.refund else 0
    except MoneyError:
        back = 0
    if back != payment.refunded_atomic:
        books, world = f"{money(run, payment.refunded_atomic)} came back", f"{money(run, back)} was sent back"
        by = abs(back - payment.refunded_atomic)
        yield differs(run, "refund_amount", payment.payment_id, books, world, by)


def _atomic_or_none(said: JobStatus, run: Run) -> int | None:
    try:
        return to_atomic_up(said.cost_so_far, run.asset)
    except MoneyError:
        return None
