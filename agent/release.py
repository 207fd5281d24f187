"""
Taking reserved money back before its cheque lapses: the wallet cancels the cheque on the chain.

The vendor may be faster. Which of the two it was only `settle` tells, from finalised blocks: until then the money stays
reserved.
"""

from dataclasses import dataclass
from typing import Literal

from agent.core.apply import find_job, find_payment
from agent.core.errors import CannotRevoke, RunBusy
from agent.core.events import ChequeRevoked
from agent.core.model import Payment
from agent.core.states import JOB_ENDS, OPEN_PAYMENTS, RUN_ENDS
from agent.ports import Agent, Busy
from agent.settle import elsewhere, settle
from agent.turn import Turn


@dataclass(frozen=True, slots=True)
class Released:
    """
    What became of one open payment.

    paid, not_paid: the chain shows it. revoked: the cancellation is sent or mined and not final yet. kept: the vendor
    works on the job, so its cheque is left in its hand. cannot: it stays as it was, and `why` says what was in the way.
    """

    payment: Payment
    outcome: Literal["paid", "not_paid", "revoked", "kept", "cannot"]
    why: str = ""


async def release(agent: Agent, run_id: str) -> tuple[Released, ...]:
    """
    Cancel the run's open cheques on the chain; return what is known of each.

    Raises:
        UnknownRun, RunBusy: nothing was done.
        WalletError, ChainUnavailable, StoreUnavailable: nothing is lost; ask again.
    """
    claim = await agent.store.claim(run_id, agent.limits.lease_s)
    if isinstance(claim, Busy):
        raise RunBusy(claim.retry_after_s)
    turn = Turn.of(agent, claim)
    try:
        return tuple(
            [await _release(turn, payment) for payment in turn.run.payments if payment.status in OPEN_PAYMENTS]
        )
    finally:
        # A run that has ended may still be watched for refunds.
        next_tick_at = claim.run.next_tick_at if turn.run.status in RUN_ENDS else turn.now
        await agent.store.release(run_id, turn.token, next_tick_at)


async def _release(turn: Turn, payment: Payment) -> Released:
    agent = turn.agent
    if why := elsewhere(agent, payment):
        return Released(payment, "cannot", why)
    if await settle(turn, payment):
        return _known(turn, payment)
    job = find_job(turn.run, payment.job_id)
    if job.vendor_job_id is not None and job.status not in JOB_ENDS:
        return Released(payment, "kept")
    # Cancelled in a block that is not final yet: there is nothing left to ask for.
    refusal: CannotRevoke | None = None
    if not await agent.chain.is_nonce_used(payment.payer, payment.nonce):
        try:
            transaction = await _revoke(agent, payment)
            turn.record(ChequeRevoked(at=turn.now, payment_id=payment.payment_id, transaction=transaction))
            await turn.save(durable=True)
        except CannotRevoke as error:
            # The vendor may have been faster: the chain says so below.
            refusal = error
    if await settle(turn, payment):
        return _known(turn, payment)
    now = find_payment(turn.run, payment.payment_id)
    return Released(now, "revoked") if refusal is None else Released(now, "cannot", str(refusal))


async def _revoke(agent: Agent, payment: Payment) -> str:
    if agent.wallet is None:
        raise CannotRevoke("cancelling a cheque takes the key that signed it, and none is configured")
    if agent.revoker is None:
        raise CannotRevoke("a CDP wallet cannot cancel: wait for the cheque to lapse")
    return await agent.revoker.revoke(payment.payer, payment.nonce)


def _known(turn: Turn, payment: Payment) -> Released:
    now = find_payment(turn.run, payment.payment_id)
    return Released(now, "paid" if now.status == "completed" else "not_paid")
