"""
Before anything else a tick settles what earlier ticks left open: signed cheques and quoted jobs.
"""

from agent.core.apply import find_payment
from agent.core.decide import active_jobs, stop_wanted
from agent.core.errors import NoVendorSecret, VendorError, VendorRefused
from agent.core.events import JobEnded, SubmissionUnanswered
from agent.core.model import Job, Payment, Vendor
from agent.core.slots import HEDGE_LOST, lost_race
from agent.core.states import OPEN_PAYMENTS
from agent.purchase import PENDING, pay, send, take_up
from agent.settle import settle
from agent.turn import Turn


async def recover(turn: Turn, vendors: dict[str, Vendor]) -> str | None:
    """Resolve what is open, as far as the world allows now; return the message of the last step that was taken."""
    message: str | None = None
    for job in active_jobs(turn.run):
        if job.vendor_job_id is None:
            message = await _recover_job(turn, vendors.get(job.vendor_id), job) or message
    for payment in turn.run.payments:
        if payment.status in OPEN_PAYMENTS and find_payment(turn.run, payment.payment_id).status in OPEN_PAYMENTS:
            await settle(turn, payment)
    return message


async def _recover_job(turn: Turn, vendor: Vendor | None, job: Job) -> str | None:
    payment = _payment_of(turn, job)
    if payment is None:
        return await _resume(turn, vendor, job)
    if payment.status in OPEN_PAYMENTS and turn.now.timestamp() >= payment.valid_before_s:
        await settle(turn, payment)
        payment = find_payment(turn.run, payment.payment_id)
    if payment.status == "failed" and lost_race(turn.run, job):
        return await _dropped(turn, job, HEDGE_LOST)
    if payment.status == "failed":
        why = payment.error_message or ""
        return await _fail(turn, job, why if why.startswith("terms_changed: ") else f"payment_refused: {why}")
    lapsed = turn.now.timestamp() > payment.valid_before_s
    if vendor is None:
        if payment.status == "completed" and lapsed:
            return await _fail(turn, job, "vendor_not_registered: it was paid, and can no longer be asked for the job")
        return "Active job missing vendor configuration"
    silence: str | None = None
    try:
        if await _found(turn, vendor, payment):
            return "Job started"
    except VendorRefused:
        pass  # It keeps no list of its jobs, and can only be sent the same bytes.
    except VendorError as error:
        silence = f"{NoVendorSecret.refusal if isinstance(error, NoVendorSecret) else 'jobs'}: {error}"
    if payment.status == "completed" and lapsed and _is_given_up(turn, payment, silence):
        why = payment.error_message or ""
        return await _fail(turn, job, why if why.startswith(NoVendorSecret.refusal) else f"paid_not_served: {why}")
    # A run that is to end does not offer its cheque again, nor one whose work is done, nor is a revoked one; what was
    # paid for is asked for, to be cancelled.
    is_over = stop_wanted(turn.run, turn.run.cancel_requested_at, turn.now) or lost_race(turn.run, job)
    wanted = not is_over and payment.revoked_in is None
    if payment.status == "completed" or (wanted and turn.now.timestamp() < payment.valid_before_s):
        return await (send(turn, vendor, payment) if silence is None else _held_back(turn, payment, silence))
    return None


async def _resume(turn: Turn, vendor: Vendor | None, job: Job) -> str:
    """Go on with a job that was quoted and never signed for; nothing has been paid."""
    stop = stop_wanted(turn.run, turn.run.cancel_requested_at, turn.now)
    if stop or lost_race(turn.run, job):
        return await _dropped(turn, job, stop[1] if stop else HEDGE_LOST)
    if vendor is None:
        return await _fail(turn, job, "vendor_not_registered: nothing was paid")
    return await pay(turn, vendor, job)


def _is_given_up(turn: Turn, payment: Payment, silence: str | None) -> bool:
    """
    Return whether the job that was paid for, and is not there, is waited for no longer.

    A vendor that says so, or keeps no list, was sent the bytes often enough. Silence is not a no: it needs as much time
    as that of a job that was heard of.
    """
    limits = turn.agent.limits
    if silence is None:
        return payment.sends >= limits.unserved_sends_max
    return turn.now.timestamp() > payment.valid_before_s + limits.missed_s_max


async def _held_back(turn: Turn, payment: Payment, silence: str) -> str:
    """Do not send: nobody can say whether the job is there already. The next tick asks again."""
    turn.record(SubmissionUnanswered(at=turn.now, payment_id=payment.payment_id, detail=silence, sent=False))
    await turn.save(durable=True)
    return PENDING


async def _found(turn: Turn, vendor: Vendor, payment: Payment) -> bool:
    """Look the job up at the vendor by its key; take it up if it is there. Raises VendorError."""
    found = await turn.agent.vendors.find(vendor, payment.payment_id)
    return found is not None and await take_up(turn, payment, found.vendor_job_id)


async def _dropped(turn: Turn, job: Job, why: str) -> str:
    turn.record(JobEnded(at=turn.now, job_id=job.job_id, status="cancelled", error_message=why))
    await turn.save()
    return "Waiting"


async def _fail(turn: Turn, job: Job, why: str) -> str:
    turn.record(JobEnded(at=turn.now, job_id=job.job_id, status="failed", error_message=why))
    await turn.save()
    return "Job failed"


def _payment_of(turn: Turn, job: Job) -> Payment | None:
    return next((payment for payment in turn.run.payments if payment.job_id == job.job_id), None)
