"""
What the chain says of a payment: paid, never paid, or not yet known; and of a refund: come, or not yet.

Only here does a payment's outcome become known, and only from the chain. A vendor's word is a hint.
"""

from agent.core.events import PaymentSettled, PaymentVoided, RefundSettled
from agent.core.model import Payment
from agent.core.policy import Hold, holds_for
from agent.turn import Turn


async def settle(turn: Turn, payment: Payment) -> bool:
    """
    Record and store the outcome of `payment` if the chain shows one; return whether it does.

    Paid: the nonce is used, and the transaction that used it moved the amount to the payee.
    Never paid: finalised time is past the cheque's last second and the nonce is unused there.
    """
    chain = turn.agent.chain
    if await chain.is_nonce_used(payment.payer, payment.nonce):
        transaction = await chain.settlement(
            payment.payer, payment.nonce, payment.pay_to, payment.amount_atomic, payment.from_block
        )
        if transaction is None:
            return False
        turn.record(PaymentSettled(at=turn.now, payment_id=payment.payment_id, transaction=transaction))
        await turn.save(durable=True)
        return True
    lapsed = await chain.finalized_time_s() > payment.valid_before_s
    if lapsed and not await chain.is_nonce_used_finalized(payment.payer, payment.nonce):
        detail = payment.error_message or "the cheque lapsed unused"
        turn.record(PaymentVoided(at=turn.now, payment_id=payment.payment_id, detail=detail))
        await turn.save(holds=_given_back(turn, payment), durable=True)
        return True
    return False


async def settle_refunds(turn: Turn) -> bool:
    """Count every announced refund that the chain shows by now; return whether any was counted."""
    counted = False
    for payment in turn.run.payments:
        if payment.refund is None or payment.status != "completed":
            continue
        claim = payment.refund
        for transfer in await turn.agent.chain.transfers(claim.transaction, payment.pay_to, payment.payer):
            key = f"{claim.transaction.lower()}:{transfer.index}"
            if transfer.value_atomic != claim.amount_atomic or await turn.agent.store.is_refund_taken(key):
                continue
            turn.record(
                RefundSettled(
                    at=turn.now,
                    payment_id=payment.payment_id,
                    amount_atomic=min(transfer.value_atomic, payment.amount_atomic),
                    transaction=claim.transaction,
                )
            )
            await turn.save(refunds=(key,))
            counted = True
            break
    return counted


def _given_back(turn: Turn, payment: Payment) -> tuple[Hold, Hold]:
    return holds_for(turn.agent.policy, payment.payer, payment.vendor_id, -payment.amount_atomic, payment.created_at)
