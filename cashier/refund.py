"""
Pays back part of a payment, once per refund key.

Rule 1: a refund that is owed is stored before it is signed, a signed one before it is broadcast.
Rule 2: one transfer at a time per address, so that an account nonce belongs to one refund.
Rule 3: after a crash the same raw transaction is broadcast again; a second one is signed only when the finalised
        chain shows that the first can never be mined.
"""

from dataclasses import replace

from cashier.core.errors import NoRefundKey, RefundFailed, RefundTooLarge, UnknownPayment
from cashier.core.model import PAID, Refund, Taking
from cashier.ports import Desk, Sender, SignedTransfer, Superseded

# Turns of the loop: each ends one transfer, ours or one that was left before it.
TURNS_MAX = 8


async def refund(desk: Desk, payment_id: str, amount_atomic: int, key: str) -> str:
    """
    Send `amount_atomic` of a settled payment back to its payer; return the mined transaction's hash.

    Raises:
        UnknownPayment, RefundTooLarge, RefundConflict, NoRefundKey: refused, nothing is owed.
        ChainUnavailable, RefundFailed: owed; the same call goes on where this one stopped.
    """
    taking = await desk.till.find_payment(payment_id)
    if taking is None or taking.state not in PAID:
        raise UnknownPayment(f"no settled payment has the id {payment_id}")
    if amount_atomic <= 0:
        raise RefundTooLarge("a refund is above zero")
    sender_of(desk, taking.pay_to)
    return await send(desk, await desk.till.ask_refund(_owed(taking, amount_atomic, key)))


def sender_of(desk: Desk, pay_to: str) -> Sender:
    """Return who sends from the address that was paid. Raises NoRefundKey."""
    sender = desk.senders.get(pay_to.lower())
    if sender is None:
        raise NoRefundKey(f"there is no key of {pay_to}")
    return sender


async def send(desk: Desk, refund: Refund) -> str:
    """
    Send a refund that is stored, once, whatever crashes; return the mined transaction's hash.

    Raises:
        NoRefundKey, ChainUnavailable, RefundFailed: it is owed; the same call goes on where this one stopped.
    """
    sender, key = sender_of(desk, refund.pay_to), refund.key
    async with desk.locks.hold(f"refund:{refund.pay_to}"):
        for _ in range(TURNS_MAX):
            owed = await desk.till.read_refund(key)
            if owed.state == "paid":
                return str(owed.transaction)
            await _turn(desk, sender, owed)
    raise RefundFailed(f"the refund {key} is still waiting for its turn")


def _owed(taking: Taking, amount_atomic: int, key: str) -> Refund:
    return Refund(
        key=key,
        payment_id=taking.payment_id,
        pay_to=taking.pay_to.lower(),
        payer=taking.payer,
        amount_atomic=amount_atomic,
    )


async def _turn(desk: Desk, sender: Sender, owed: Refund) -> None:
    """Bring the transfer that is on its way to its end; where there is none, send `owed`."""
    sending = await desk.till.signed_refund(owed.pay_to)
    if sending is None:
        account_nonce = await sender.account_nonce()
        signed = await sender.prepare(owed.payer, owed.amount_atomic, account_nonce)
        sending = replace(
            owed,
            state="signed",
            account_nonce=account_nonce,
            raw=signed.raw,
            transaction=signed.transaction,
        )
        if not await desk.till.sign_refund(sending):
            return
    transfer = SignedTransfer(str(sending.transaction), str(sending.raw), int(sending.account_nonce or 0))
    if isinstance(await sender.broadcast(transfer), Superseded):
        await desk.till.end_refund(sending, paid=False)
        return
    succeeded = await sender.succeeded(transfer.transaction, desk.receipt_timeout_s)
    await desk.till.end_refund(sending, paid=succeeded)
    if not succeeded:
        raise RefundFailed(f"the transfer {sending.transaction} from {owed.pay_to} was reverted")
