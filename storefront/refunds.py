"""
Paying back what ended jobs owe, asked for or not: who never asks again is paid all the same, over a restart too.

The answer to a poll or a cancellation pays by itself and carries the transfer; what is left here is what nobody asked
for, or what the chain did not take then.
"""

import asyncio
import logging
from contextlib import suppress

from cashier.core.errors import CashierError
from storefront.ports import JobT
from storefront.shop import Shop

# What is left to who asks about a job that has just ended.
GRACE_S = 1.0
# What is waited after each round in which the chain did not take all; the last for ever.
RETRIES_S = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)

logger = logging.getLogger("livery.storefront")


async def pay_back(shop: Shop[JobT], *, grace_s: float = GRACE_S) -> None:
    """Pay every refund that an ended job owes; it goes on for ever, and reads nothing until the book wakes it."""
    hopeless: set[str] = set()
    failures = 0
    with shop.store.listen() as rung:
        while True:
            rung.clear()
            failures = 0 if await _pay_all(shop, hopeless) else failures + 1
            wait_s = None if failures == 0 else RETRIES_S[min(failures, len(RETRIES_S)) - 1]
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await rung.wait()
            await asyncio.sleep(grace_s)


async def _pay_all(shop: Shop[JobT], hopeless: set[str]) -> bool:
    """Return whether nothing is left that may be paid later; what never can is told once and put to `hopeless`."""
    is_done = True
    for job in await shop.store.to_pay_back():
        if job.job_id in hopeless:
            continue
        try:
            await shop.settle_refund(job)
        except CashierError as error:
            logger.warning("the refund of %s is still owed: %s", job.job_id, error)
            if error.retryable:
                is_done = False
            else:
                hopeless.add(job.job_id)
    return is_done
