"""
What the chain says of a payment: paid, never paid, or not yet known.

Only here does a payment's outcome become known, and only from the chain. A vendor's word is a hint.
"""

from agent.core.errors import ChainUnavailable
from agent.core.events import PaymentSettled, PaymentVoided
from agent.core.model import Payment
from agent.core.policy import Hold, holds_for
from agent.ports import Agent
from agent.turn import Turn

# The newest blocks may be reorganised, so a settlement may end up a little below the head that was seen at signing.
HEAD_MARGIN_BLOCKS = 64


def elsewhere(agent: Agent, payment: Payment) -> str | None:
    """Return why the agent's chain shows nothing of `payment`, None where it is the one that it was paid on."""
    asset = agent.policy.asset
    if (payment.asset.lower(), payment.network) == (asset.address.lower(), asset.network):
        return None
    return f"it was paid in {payment.asset} on {payment.network}, this node serves {asset.address} on {asset.network}"


async def settle(turn: Turn, payment: Payment) -> bool:
    """
    Record and store the outcome of `payment` if the chain shows one; return whether it does.

    Paid: the nonce is used, and the transaction that used it moved the amount to the payee.
    Never paid: the cheque was cancelled in a finalised block, or finalised time is past its last second and the nonce
    is unused there. Our own clock proves nothing, nor does a block that may be reorganised.

    Raises:
        ChainUnavailable: or it is another chain than the one that it was paid on, which shows an unused nonce for ever.
    """
    if why := elsewhere(turn.agent, payment):
        raise ChainUnavailable(f"{payment.payment_id}: {why}")
    chain = turn.agent.chain
    if await chain.is_nonce_used(payment.payer, payment.nonce):
        start = max(0, payment.from_block - HEAD_MARGIN_BLOCKS)
        transaction = await chain.settlement(payment.payer, payment.nonce, payment.pay_to, payment.amount_atomic, start)
        if transaction is None:
            cancelled = await chain.cancellation(payment.payer, payment.nonce, start)
            return cancelled is not None and await _void(turn, payment, f"the cheque was cancelled in {cancelled}")
        settled = PaymentSettled(at=turn.now, payment_id=payment.payment_id, transaction=transaction)
        await turn.save(settled, durable=True)
        return True
    lapsed = await chain.finalized_time_s() > payment.valid_before_s
    if lapsed and not await chain.is_nonce_used_finalized(payment.payer, payment.nonce):
        return await _void(turn, payment, payment.error_message or "the cheque lapsed unused")
    return False


async def _void(turn: Turn, payment: Payment, detail: str) -> bool:
    voided = PaymentVoided(at=turn.now, payment_id=payment.payment_id, detail=detail)
    await turn.save(voided, holds=_given_back(turn, payment), durable=True)
    return True


def _given_back(turn: Turn, payment: Payment) -> tuple[Hold, Hold]:
    return holds_for(turn.agent.policy, payment.payer, payment.vendor_id, -payment.amount_atomic, payment.created_at)
