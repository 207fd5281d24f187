"""A stage goes: its heads are told, it takes no new sessions, and those that it has move to other stages."""

import asyncio
import logging

from gpu_worker.inference.stage.service import LEAVING, StageService

_LOG = logging.getLogger("livery.gpu_worker")


async def drain_slices(stage: StageService, limit_s: float) -> int:
    """
    Return how many sessions are left once there are none, or the time is over.

    Sessions go on until their head has moved them: no token is lost where there is another stage for them.
    """
    stage.leave()
    _LOG.info("draining sessions", extra={"sessions": len(stage.sessions)})
    await stage.pipelines.tell_all("draining", LEAVING)
    try:
        async with asyncio.timeout(limit_s):
            await stage.sessions.gone.wait()
    except TimeoutError:
        _LOG.warning("drained in part", extra={"sessions": len(stage.sessions)})
    return len(stage.sessions)
