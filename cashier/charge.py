"""
Takes one payment for one request: claim, capacity, verify, write ahead, settle, start, answer.

Rule 1: nothing is charged before there is room for the work, nothing is started before the money is ours.
Rule 2: whatever may have been sent has a durable row first, so a crash anywhere ends in one settlement and one start.
Rule 3: a refusal asks the chain before it is spoken: a cheque may have been settled by anybody.
Rule 4: a cheque that was sent to be settled is refused only when it can be mined no more: it lapsed unused in
        finalised blocks, or the first settlement ever asked for was refused before anything was sent.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from cashier.core import answers
from cashier.core.claiming import Claimed, Conflict, Held, Served
from cashier.core.errors import ChainUnavailable, FacilitatorUnavailable, Unavailable
from cashier.core.model import Answer, Lease, PaidRequest, Price, Taking, sale_of
from cashier.core.reading import mismatch, read_cheque, requirements_for, taking_for
from cashier.ports import Admit, Declined, Desk, HasCapacity, Pending, Settled, Start
from wire.x402 import HeaderError, PaymentRequirements

# Makes the 402 to a payment that is refused for good.
Refuse = Callable[[str], Answer]
# Why no settlement is sent for a claimed row: the payer is not served, or there is no room. None: it may be sent.
Hinder = Callable[[Claimed], Awaitable[Answer | None]]
_LOG = logging.getLogger("livery.cashier")


async def charge(
    desk: Desk,
    request: PaidRequest,
    price: Price,
    has_capacity: HasCapacity,
    start: Start,
    admit: Admit | None = None,
) -> Answer:
    """
    Return the answer to a request that costs `price`; `start` has run, once, when it is a 200.

    The request may come again, after a crash too: the same one gets the same answer.

    Args:
        admit: why nothing is sold to a payer: the payment is refused then, before anything is asked of anybody.
    """
    ask = desk.ask(request, price)
    try:
        cheque = read_cheque(ask, desk.dialects.values())
    except HeaderError as error:
        return answers.problem("payment_malformed", str(error))
    if cheque is None:
        return answers.payment_required(ask, desk.dialects)
    refuse = partial(answers.payment_invalid, ask, desk.dialects, cheque.dialect)
    wrong = mismatch(cheque, ask.asked)
    taking = taking_for(cheque, price, request)
    async with desk.locks.hold(f"{taking.payer}:{taking.nonce}"):
        lease = desk.lease()
        # A row that is there was matched when it was made: a price that has moved since changes nothing.
        claim = await desk.till.claim(taking, lease, insert=wrong is None)
        match claim:
            case Claimed():
                return await _work(desk, lease, claim, refuse, partial(_hinder, refuse, admit, has_capacity), start)
            case Served():
                return claim.answer
            case Held():
                return answers.pending(taking)
            case Conflict():
                return answers.problem("payment_conflict", "this payment or its id came with another request before")
        return refuse(str(wrong))


async def _hinder(refuse: Refuse, admit: Admit | None, has_capacity: HasCapacity, claim: Claimed) -> Answer | None:
    unwanted = None if admit is None else admit(claim.taking.payer)
    if unwanted is not None:
        return refuse(unwanted)
    room = await has_capacity(claim.reserved)
    if isinstance(room, Answer):
        return room
    return None if room else answers.problem("no_capacity", answers.NO_ROOM)


async def _work(desk: Desk, lease: Lease, claim: Claimed, refuse: Refuse, hinder: Hinder, start: Start) -> Answer:
    """Go on from the state of the claimed row; an error leaves the row for the next who comes."""
    taking = claim.taking
    try:
        if taking.state == "claimed":
            opened = await _open(desk, lease, claim, refuse, hinder)
        else:
            opened = taking
        if isinstance(opened, Taking) and opened.state == "settling":
            opened = await _settle(desk, lease, opened, refuse, again=taking.state == "settling")
        if isinstance(opened, Answer):
            return opened
        return await serve(desk, lease, opened, start)
    except Exception:
        await desk.till.release(taking, lease)
        raise


async def _open(desk: Desk, lease: Lease, claim: Claimed, refuse: Refuse, hinder: Hinder) -> Taking | Answer:
    """Return the row once a settlement may be sent, or why none is: up to here a refusal leaves no row."""
    taking = claim.taking
    try:
        refused = await hinder(claim)
        if refused is None:
            verdict = await desk.facilitator.verify(taking.payload, _asked(desk, taking))
            refused = None if verdict.reason is None else refuse(verdict.reason)
        opened = replace(taking, state="settling", from_block=max(0, await desk.chain.head() - desk.lookback_blocks))
        found = None if refused is None else await settlement_of(desk, opened)
    except (FacilitatorUnavailable, ChainUnavailable) as error:
        return await _forget(desk, lease, taking, _unknown(error))
    if found is not None:
        # Paid already, by whoever: the work is owed, room or none.
        return await _book(desk, lease, opened, found)
    if refused is not None:
        return await _forget(desk, lease, taking, refused)
    return opened if await desk.till.save(opened, lease, durable=True) else answers.pending(opened)


async def _settle(desk: Desk, lease: Lease, taking: Taking, refuse: Refuse, *, again: bool) -> Taking | Answer:
    """
    Return the settled row, or the answer to a settlement that is open or refused.

    Args:
        again: a settlement of this cheque may have been sent before this one.
    """
    outcome: Settled | Pending | Declined | None = None
    silent: Answer | None = None
    try:
        found = await settlement_of(desk, taking) if again else None
        if found is not None:
            return await _book(desk, lease, taking, found)
        try:
            outcome = await desk.facilitator.settle(taking.payload, _asked(desk, taking))
        except FacilitatorUnavailable as error:
            silent = _unknown(error)
        # A yes is not believed either: it may be of another payment, or of none. The chain says what is ours.
        if isinstance(outcome, Settled | Pending) and outcome.transaction is not None:
            taking = replace(taking, transaction=outcome.transaction)
            await desk.till.save(taking, lease)
        found = await settlement_of(desk, taking)
        if found is not None:
            return await _book(desk, lease, taking, found)
        if isinstance(outcome, Declined) and outcome.unsent and not again:
            return await _forget(desk, lease, taking, refuse(outcome.reason))
        if await is_void(desk, taking):
            return await _forget(desk, lease, taking, refuse(answers.LAPSED))
    except ChainUnavailable as error:
        silent = _unknown(error)
    await desk.till.release(taking, lease)
    return silent or answers.pending(taking)


async def _forget(desk: Desk, lease: Lease, taking: Taking, answer: Answer) -> Answer:
    """Drop the row and return `answer`; where another holder has the row, what becomes of it is open."""
    return answer if await desk.till.drop(taking, lease) else answers.pending(taking)


def _unknown(error: Unavailable) -> Answer:
    _LOG.warning("%s", error)
    return answers.unknown(error.code)


async def _book(desk: Desk, lease: Lease, taking: Taking, transaction: str) -> Taking | Answer:
    """Store, durably, that the money is ours."""
    settled = replace(taking, state="settled", transaction=transaction)
    return settled if await desk.till.save(settled, lease, durable=True) else answers.pending(settled)


async def serve(desk: Desk, lease: Lease, taking: Taking, start: Start) -> Answer:
    """Start the work of a settled row, store the answer and return it."""
    document = await start(sale_of(taking))
    answer = answers.served(taking, document, desk.dialects, desk.now_s())
    await desk.till.save(replace(taking, state="served", answer=answer), lease)
    return answer


async def settlement_of(desk: Desk, taking: Taking) -> str | None:
    """
    Return the transaction by which the cheque of `taking` reached us, None where it has not.

    Raises:
        ChainUnavailable: nothing is known.
    """
    if not await desk.chain.is_nonce_used(taking.payer, taking.nonce):
        return None
    return await desk.chain.settlement(
        taking.payer, taking.nonce, taking.pay_to, taking.amount.atomic, taking.from_block
    )


async def is_void(desk: Desk, taking: Taking) -> bool:
    """
    Return whether the cheque can never be settled: lapsed in finalised time, its nonce unused there.

    Raises:
        ChainUnavailable: nothing is known.
    """
    if await desk.chain.finalized_time_s() <= taking.valid_before_s:
        return False
    return not await desk.chain.is_nonce_used_finalized(taking.payer, taking.nonce)


def _asked(desk: Desk, taking: Taking) -> PaymentRequirements:
    return requirements_for(taking.amount, taking.pay_to, desk.asset)
