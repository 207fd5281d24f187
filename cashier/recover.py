"""Ends what a crash left open: the chain says which settlements happened, and their work is started."""

import logging
from dataclasses import dataclass, replace

from cashier.charge import is_void, serve, settlement_of
from cashier.core.errors import ChainUnavailable
from cashier.core.model import Lease, Taking
from cashier.ports import Desk, Start

_LOG = logging.getLogger("livery.cashier")


@dataclass(frozen=True, slots=True)
class Recovered:
    """How many payments were served, how many can never settle and were dropped, how many stay open."""

    served: int = 0
    void: int = 0
    open: int = 0


async def recover(desk: Desk, start: Start) -> Recovered:
    """
    Return what became of the rows without an answer; run it at start-up, before the door opens.

    Every row is taken over: should another process be at work on one, it finds its lease gone and
    answers 202, and the work, idempotent by its payment id, is started once.
    """
    count = {"served": 0, "void": 0, "open": 0}
    for taking in await desk.till.unfinished():
        lease = desk.lease()
        await desk.till.take_over(taking, lease)
        count[await _end(desk, lease, taking, start)] += 1
    return Recovered(**count)


async def _end(desk: Desk, lease: Lease, taking: Taking, start: Start) -> str:
    try:
        if taking.state == "claimed" or (taking.state == "settling" and await is_void(desk, taking)):
            await desk.till.drop(taking, lease)
            return "void"
        settled = await _settled(desk, lease, taking)
    except ChainUnavailable:
        settled = None
    if settled is None:
        await desk.till.release(taking, lease)
        return "open"
    try:
        await serve(desk, lease, settled, start)
    except Exception:
        # One payment that cannot be served must not close the door to all others: its resend tries again.
        _LOG.exception("payment %s is settled and its work did not start", taking.payment_id)
        await desk.till.release(taking, lease)
        return "open"
    return "served"


async def _settled(desk: Desk, lease: Lease, taking: Taking) -> Taking | None:
    if taking.state == "settled":
        return taking
    transaction = await settlement_of(desk, taking)
    if transaction is None:
        return None
    settled = replace(taking, state="settled", transaction=transaction)
    return settled if await desk.till.save(settled, lease, durable=True) else None
