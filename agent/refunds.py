"""
Refunds: asked of the vendor while one may still be announced, counted when the chain shows them.
"""

import re
from datetime import datetime, timedelta

from agent.core.apply import find_job
from agent.core.errors import VendorError
from agent.core.events import Event, RefundAnnounced, RefundSettled, Refused
from agent.core.model import Job, Payment, Run, Vendor
from agent.core.policy import once
from agent.settle import elsewhere
from agent.turn import Turn
from wire.money import MoneyError, to_atomic
from wire.vendor import Refund

_TRANSACTION = re.compile(r"0x[0-9a-fA-F]{64}")


def refundable(turn: Turn) -> tuple[tuple[Job, Payment], ...]:
    """
    Return the jobs that have ended and whose payment, or a part of it, may still come back: their work was not done, or
    it cost less than was paid.
    """
    patience = timedelta(days=turn.agent.limits.refund_days_max)
    pairs = [(find_job(turn.run, payment.job_id), payment) for payment in turn.run.payments]
    return tuple(
        (job, payment)
        for job, payment in pairs
        if payment.status == "completed"
        and _is_owed(job, payment)
        and job.completed_at is not None
        and turn.now - job.completed_at < patience
    )


def _is_owed(job: Job, payment: Payment) -> bool:
    if job.status == "completed":
        return job.actual_cost_atomic is not None and job.actual_cost_atomic < payment.amount_atomic
    return job.status in ("failed", "cancelled")


async def collect_refunds(turn: Turn, vendors: dict[str, Vendor]) -> bool:
    """Ask for what may still be announced, count what the chain shows by now; return whether any was counted."""
    for job, payment in refundable(turn):
        vendor = vendors.get(job.vendor_id)
        if vendor is None or not _is_worth_asking(turn, job, payment):
            continue
        try:
            vendor_job_id = job.vendor_job_id or await _started_late(turn, vendor, payment)
            if vendor_job_id is None:
                continue
            status = await turn.agent.vendors.job_status(vendor, vendor_job_id, job.cursor)
        except VendorError:
            continue
        if status.vendor_job_id == vendor_job_id and status.refund is not None:
            said = read_refund(turn.run, job, status.refund, turn.now)
            # Nonsense was told of once, when the job ended.
            turn.record(*(event for event in said if isinstance(event, RefundAnnounced)))
    if turn.unsaved:
        await turn.save()
    return await _settle(turn)


async def _started_late(turn: Turn, vendor: Vendor, payment: Payment) -> str | None:
    """Return the vendor's job that was paid for, given up because nobody heard of it, and is there after all."""
    found = await turn.agent.vendors.find(vendor, payment.payment_id)
    return None if found is None else found.vendor_job_id


def _is_worth_asking(turn: Turn, job: Job, payment: Payment) -> bool:
    """Return whether the vendor may say something new: not in the tick that ended the job, not to a young claim."""
    if payment.refund is None:
        return job.completed_at != turn.now
    return turn.now >= payment.refund.announced_at + timedelta(seconds=turn.agent.limits.refund_wait_s)


async def _settle(turn: Turn) -> bool:
    counted = False
    for payment in turn.run.payments:
        if payment.refund is None or payment.status != "completed" or elsewhere(turn.agent, payment):
            continue
        claim = payment.refund
        for transfer in await turn.agent.chain.transfers(claim.transaction, payment.pay_to, payment.payer):
            # A transfer from before the payment was signed cannot be its refund.
            if transfer.value_atomic != claim.amount_atomic or transfer.block < payment.from_block:
                continue
            settled = RefundSettled(
                at=turn.now,
                payment_id=payment.payment_id,
                amount_atomic=claim.amount_atomic,
                transaction=claim.transaction,
            )
            if await turn.save(settled, holds=[once(f"{claim.transaction}:{transfer.index}")]) is None:
                counted = True
                break
    return counted


def read_refund(run: Run, job: Job, refund: Refund, now: datetime) -> list[Event]:
    """Return what a vendor's `refund` for `job` means: nothing new, a claim (a later one replaces it), or nonsense."""
    payment = next((payment for payment in run.payments if payment.job_id == job.job_id), None)
    if payment is None or payment.status == "refunded":
        return []
    if payment.refund is not None and payment.refund.transaction == refund.transaction.lower():
        return []
    try:
        amount_atomic = to_atomic(refund.amount, run.asset)
        problem = _refund_problem(payment, refund, amount_atomic)
    except MoneyError as error:
        problem = str(error)
    if problem is not None:
        return [Refused(at=now, code="bad_refund", detail=problem, job_id=job.job_id)]
    transaction = refund.transaction.lower()
    return [
        RefundAnnounced(at=now, payment_id=payment.payment_id, amount_atomic=amount_atomic, transaction=transaction)
    ]


def _refund_problem(payment: Payment, refund: Refund, amount_atomic: int) -> str | None:
    if refund.asset.lower() != payment.asset.lower() or refund.network != payment.network:
        return f"announced in {refund.asset} on {refund.network}"
    if not _TRANSACTION.fullmatch(refund.transaction):
        return "the transaction is not a hash"
    if amount_atomic > payment.amount_atomic:
        return "more than was paid"
    return None
