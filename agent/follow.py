"""
A run's readable log as it grows: what was there, then what comes, until the run has ended.

Nothing is held between two looks, so any number of followers and processes see the same entries in the same order.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from agent.core.errors import StoreUnavailable
from agent.core.model import OBSERVATION_TYPES, Entry
from agent.core.states import RUN_ENDS
from agent.core.views import end_of
from agent.ports import Agent

ENTRIES_PER_READ_MAX = 100

logger = logging.getLogger("livery.agent")

Pause = Callable[[], Awaitable[bool]]
Pages = AsyncIterator[tuple[Entry, ...]]


async def follow(agent: Agent, run_id: str, after: int, pause: Pause) -> Pages | None:
    """
    Return pages of the run's entries with seq > `after`, None where the run has ended and there are none.

    A look that finds nothing gives an empty page, so that a reader can tell its own client that it is still there.

    Args:
        after: the last entry that is known already; one that the run does not have begins at the beginning.
        pause: waits until it is time to look again; False ends the following.

    Raises:
        UnknownRun: there is no such run.
    """
    run = await agent.store.read_run(run_id)
    after = after if 0 <= after <= run.log.seq else 0
    ended = run.status in RUN_ENDS
    if ended and not await _read(agent, run_id, after):
        return None
    return _pages(agent, run_id, after, ended, pause)


async def _pages(agent: Agent, run_id: str, after: int, ended: bool, pause: Pause) -> Pages:
    try:
        while True:
            page = await _read(agent, run_id, after)
            yield page
            if page:
                after = page[-1].seq
                ended = ended or any(end_of(entry) for entry in page)
            elif ended or not await pause():
                return
    except StoreUnavailable as error:
        # What was told stays told: whoever follows comes back with the last entry it has.
        logger.warning("following %s stopped: %s", run_id, error)


async def _read(agent: Agent, run_id: str, after: int) -> tuple[Entry, ...]:
    return tuple(await agent.store.read_log(run_id, types=OBSERVATION_TYPES, after=after, oldest=ENTRIES_PER_READ_MAX))
