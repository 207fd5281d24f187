"""
Telling the owner's program what happened: webhooks of the outbox, at least once each, in no certain order.

What is to be told was stored with the event itself; here it is only delivered. Nothing here ever fails a tick.
"""

import asyncio
import logging

from agent.core.errors import StoreUnavailable
from agent.core.model import Notice
from agent.core.notices import retry_s
from agent.ports import Agent, Webhooks

# A few at a time: telling follows a tick, and hosts give a request only so long.
NOTICES_PER_ROUND_MAX = 10
# Longer than one attempt, so that a notice whose teller died is taken up by another one soon.
LEASE_S = 60

logger = logging.getLogger("livery.agent")


async def notify(agent: Agent) -> bool:
    """
    Deliver a few of the notices that are due, all at once; return whether it is worth going on with the others.

    What is not accepted becomes due again later, ever more rarely. A receiver that accepted nothing is left alone.
    """
    if agent.webhooks is None:
        return False
    try:
        notices = await agent.store.take_notices(NOTICES_PER_ROUND_MAX, LEASE_S)
        accepted = await asyncio.gather(*[_tell(agent, agent.webhooks, notice) for notice in notices])
    except StoreUnavailable as error:
        # What was told and could not be settled is told again: at least once.
        logger.warning("webhooks wait: %s", error)
        return False
    return any(accepted) and len(notices) == NOTICES_PER_ROUND_MAX


async def _tell(agent: Agent, webhooks: Webhooks, notice: Notice) -> bool:
    answer = await webhooks.send(notice)
    again_s = None if answer.is_final else retry_s(notice.attempts)
    if not answer.is_accepted:
        then = "given up" if again_s is None else f"again in {again_s} s"
        what = f"webhook {notice.notice_id} ({notice.kind}), attempt {notice.attempts}"
        logger.warning("%s: %s; %s", what, answer.detail, then)
    await agent.store.settle_notice(notice.notice_id, again_s)
    return answer.is_accepted
