"""
What is true of every run at every moment, whatever was killed, lost or lied about. The simulation, the tests and the
audit all ask here.

    I1  spent + reserved + available == total, each what the payments say, none below zero
    I2  a job has at most one payment that was or may be settled, and no two payments share a nonce
    I3  a vendor works on a job of ours only while the run wants it
    I4  a fencing token only grows, and so does a run's log
    I5  what has ended stays ended
    I6  no money moved and no job was started without a payment that was stored before
    I7  a job goes on from, or overtakes, one of the same run and piece of work; two at work on one piece are twins, and
        of all that did it one counts

Source: control-plane goals R1-R14; Lamport, "Proving the Correctness of Multiprocess Programs" (safety).
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from agent.core.model import Payment, Run
from agent.core.slots import done_count
from agent.core.states import JOB_ENDS, JOB_MOVES, OPEN_PAYMENTS, PAID_PAYMENTS, PAYMENT_MOVES, RUN_ENDS, RUN_MOVES
from wire.vendor import VendorJobStatus

Invariant = Literal["I1", "I2", "I3", "I4", "I5", "I6", "I7"]


@dataclass(frozen=True, slots=True)
class Broken:
    """An invariant that does not hold, and where; `subject` is the payment or job in question, empty where none is."""

    invariant: Invariant
    run_id: str
    detail: str
    subject: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """A transfer by authorization that the chain shows: AuthorizationUsed and its Transfer. Addresses in lower case."""

    payer: str
    nonce: str
    pay_to: str
    amount_atomic: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorJob:
    """A job in a vendor's books; `payment_id` is the key that it was bought under."""

    vendor_id: str
    vendor_job_id: str
    payment_id: str
    status: VendorJobStatus


def of_run(run: Run) -> list[Broken]:
    """Return what is broken in `run` alone: I1, I2, I7."""
    found: dict[Invariant, Iterable[str]] = {"I1": _books(run), "I2": _once(run), "I7": _pieces(run)}
    return [Broken(invariant, run.run_id, detail) for invariant, details in found.items() for detail in details]


def of_step(before: Run, after: Run, token_before: int, token_after: int) -> list[Broken]:
    """Return what is broken between two stored states of a run, each with the fencing token that wrote it: I4, I5."""
    found = []
    if token_after < token_before:
        found.append(Broken("I4", after.run_id, f"token {token_after} wrote after token {token_before}"))
    if after.log.seq < before.log.seq:
        found.append(Broken("I4", after.run_id, f"the log shrank from {before.log.seq} to {after.log.seq}"))
    return found + [Broken("I5", after.run_id, detail) for detail in _ends(before, after)]


def of_world(runs: Iterable[Run], settlements: Iterable[Settlement], jobs: Iterable[VendorJob]) -> list[Broken]:
    """
    Return what is broken between the runs, all of one wallet's, and the world at one moment: I3, I6.

    A vendor job whose run has ended is broken from the moment the run ended: the caller says when it looks.
    """
    runs = tuple(runs)
    by_nonce = {(paid.payer.lower(), paid.nonce.lower()): (run, paid) for run in runs for paid in run.payments}
    by_id = {paid.payment_id: (run, paid) for run in runs for paid in run.payments}
    found = [broken for settled in settlements for broken in _unpromised(settled, by_nonce)]
    known = tuple(jobs)
    for job in known:
        run, paid = by_id.get(job.payment_id, (None, None))
        if run is None or paid is None:
            detail = f"{job.vendor_id} has {job.vendor_job_id} under {job.payment_id}, no payment of ours"
            found.append(Broken("I6", "", detail, job.vendor_job_id))
        elif job.vendor_id != paid.vendor_id:
            detail = f"{job.vendor_id} has {job.vendor_job_id} under {paid.payment_id}, which pays {paid.vendor_id}"
            found.append(Broken("I6", run.run_id, detail, job.vendor_job_id))
        elif job.status not in JOB_ENDS and not _is_wanted(run, paid):
            detail = f"{job.vendor_id} still works on {job.vendor_job_id} of {paid.job_id}"
            found.append(Broken("I3", run.run_id, detail, paid.job_id))
    for (vendor_id, payment_id), count in Counter((job.vendor_id, job.payment_id) for job in known).items():
        if count > 1:
            run_id = by_id[payment_id][0].run_id if payment_id in by_id else ""
            detail = f"{vendor_id} has {count} jobs for the one payment {payment_id}"
            found.append(Broken("I6", run_id, detail, payment_id))
    return found


def _books(run: Run) -> Iterable[str]:
    budget = run.budget
    parts = (budget.available_atomic, budget.reserved_atomic, budget.spent_atomic)
    if sum(parts) != budget.total_atomic or min(parts) < 0:
        yield f"available {parts[0]}, reserved {parts[1]}, spent {parts[2]} of {budget.total_atomic}"
    promised = sum(paid.amount_atomic for paid in run.payments if paid.status in OPEN_PAYMENTS)
    if promised != budget.reserved_atomic:
        yield f"{budget.reserved_atomic} is reserved, open payments are {promised}"
    gone = sum(paid.amount_atomic - paid.refunded_atomic for paid in run.payments if paid.status in PAID_PAYMENTS)
    if gone != budget.spent_atomic:
        yield f"{budget.spent_atomic} is spent, settled payments less refunds are {gone}"


def _once(run: Run) -> Iterable[str]:
    for what, names in (
        ("nonce", (paid.nonce.lower() for paid in run.payments)),
        ("payment id", (paid.payment_id for paid in run.payments)),
        ("job", (paid.job_id for paid in run.payments if paid.status != "failed")),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                yield f"{count} payments have the {what} {name}"


def _pieces(run: Run) -> Iterable[str]:
    jobs = {job.job_id: job for job in run.jobs}
    for job in run.jobs:
        for what, other_id in (("resumes", job.resumes), ("hedges", job.hedges)):
            other = None if other_id is None else jobs.get(other_id)
            if other_id is not None and (other is None or job.slot is None or other.slot != job.slot):
                yield f"{job.job_id} of slot {job.slot} {what} {other_id} of slot {other and other.slot}"
            if what == "resumes" and other is not None and other.status not in JOB_ENDS and job.hedges != other_id:
                yield f"{job.job_id} resumes {other_id}, which goes on"
        if job.resumes != (job.checkpoint and job.checkpoint.job_id):
            yield f"{job.job_id} resumes {job.resumes}, its checkpoint is of another"
    for slot in {job.slot for job in run.jobs if job.slot is not None}:
        active = [job for job in run.jobs if job.slot == slot and job.status not in JOB_ENDS]
        if len(active) > 2 or sum(job.hedges is None for job in active) > 1:
            yield f"{', '.join(job.job_id for job in active)} work on slot {slot}"
        if active and run.status in RUN_ENDS:
            yield f"the run ended while {active[0].job_id} works on slot {slot}"
    if run.status == "completed" and done_count(run) < run.job.count:
        yield f"the run completed with {done_count(run)} of {run.job.count} pieces done"


def _ends(before: Run, after: Run) -> Iterable[str]:
    if after.status != before.status and after.status not in RUN_MOVES[before.status]:
        yield f"the run went from {before.status} to {after.status}"
    if before.status in RUN_ENDS and _grown(before, after):
        yield f"an ended run has {len(after.jobs)} jobs and {len(after.payments)} payments"
    jobs = {job.job_id: job.status for job in after.jobs}
    for job in before.jobs:
        now = jobs.get(job.job_id)
        if now is None or (now != job.status and now not in JOB_MOVES[job.status] | _through(job.status)):
            yield f"{job.job_id} went from {job.status} to {now}"
    payments = {paid.payment_id: paid.status for paid in after.payments}
    for paid in before.payments:
        state = payments.get(paid.payment_id)
        if state is None or (state != paid.status and state not in PAYMENT_MOVES[paid.status] | _paid_through(paid)):
            yield f"{paid.payment_id} went from {paid.status} to {state}"


def _grown(before: Run, after: Run) -> bool:
    return (len(before.jobs), len(before.payments)) != (len(after.jobs), len(after.payments))


def _through(status: str) -> frozenset[str]:
    # One save may hold several moves: quoted, submitted, running.
    return frozenset({"running", "completed"}) if status == "quoted" else frozenset()


def _paid_through(paid: Payment) -> frozenset[str]:
    return frozenset({"refunded"}) if paid.status in OPEN_PAYMENTS else frozenset()


def _unpromised(settled: Settlement, known: dict[tuple[str, str], tuple[Run, Payment]]) -> Sequence[Broken]:
    place = known.get((settled.payer.lower(), settled.nonce.lower()))
    if place is None:
        return [Broken("I6", "", f"{settled.amount_atomic} went to {settled.pay_to} by no payment of ours")]
    run, paid = place
    if (settled.pay_to.lower(), settled.amount_atomic) != (paid.pay_to.lower(), paid.amount_atomic):
        detail = f"{settled.amount_atomic} went to {settled.pay_to}, {paid.payment_id} is of {paid.amount_atomic}"
        return [Broken("I6", run.run_id, detail, paid.payment_id)]
    return []


def _is_wanted(run: Run, paid: Payment) -> bool:
    """Return whether the job behind `paid` may go on: neither it nor its run has ended."""
    job = next((job for job in run.jobs if job.job_id == paid.job_id), None)
    return job is not None and job.status not in JOB_ENDS and run.status not in RUN_ENDS
