"""What a shop does by itself, beside answering: it calls buyers back and pays what it owes."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from outbound.http import HttpClient
from storage.errors import StorageError
from storefront.callbacks import LOOK_S, call_back
from storefront.ports import JobT
from storefront.refunds import GRACE_S, pay_back
from storefront.shop import Shop

AGAIN_S = 5.0

logger = logging.getLogger("livery.storefront")


async def tend(
    shop: Shop[JobT],
    http: HttpClient,
    *,
    look_s: float = LOOK_S,
    grace_s: float = GRACE_S,
    again_s: float = AGAIN_S,
) -> None:
    """
    Open the shop, then call back and pay back for ever.

    Args:
        http: what buyers are called with; their addresses are strangers'.
        look_s: how often a running job is looked at whose buyer wants to be called. A seller whose jobs end by
            themselves may say a long time: each end wakes this.
        grace_s: how long a refund is left to the answer of who asks.
        again_s: what is waited after the database failed.
    """
    await shop.open()
    async with asyncio.TaskGroup() as group:
        group.create_task(_kept_up(lambda: call_back(shop, http, look_s=look_s), again_s))
        group.create_task(_kept_up(lambda: pay_back(shop, grace_s=grace_s), again_s))


async def _kept_up(work: Callable[[], Awaitable[None]], again_s: float) -> None:
    """Do `work` anew where the database failed it; whatever else it raises is a bug."""
    while True:
        try:
            await work()
        except* StorageError as group:
            logger.warning("the book cannot be read: %s", group.exceptions[0])
        await asyncio.sleep(again_s)
