"""
Makes the control plane an ASGI application. Its settings are read when it is made, so that what cannot work is told
then; nothing is connected before the first request.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, nullcontext
from functools import cache, partial
from urllib.parse import urlsplit

from fastapi import FastAPI

from agent.config import AgentSettings
from agent.core.errors import AgentError, RunBusy
from agent.ports import Agent
from agent.sweep import drive
from agent.wiring import open_agent
from api import files, live, routes, uploads
from api.config import ApiSettings
from api.gate import Gate, Keys
from inbound.web import create_door
from livery import __version__
from wire.checkpoint import PART_BYTES_MAX
from wire.loopback import is_loopback
from wire.money import MoneyError
from wire.problems import ProblemDocument, problem_document

logger = logging.getLogger("livery.api")

# Every one stands with the prefix /api, and without it.
ROUTERS = (routes.router, files.router, uploads.router, live.router)
# What is sent in parts: the largest that Lambda and Vercel take.
BODIES = dict.fromkeys(
    [f"{prefix}{path}" for prefix in ("/api", "") for path in ("/agent-files/", "/agent-input")], PART_BYTES_MAX
)


def create_app(
    make_agent: Callable[[], Agent] | None = None,
    *,
    hosts: Collection[str] = (),
    settings: ApiSettings | None = None,
) -> FastAPI:
    """
    Return the control plane; each route also stands without the `/api` prefix.

    Args:
        make_agent: called once, at the first request; None makes the environment's agent.
        hosts: names besides loopback's that requests may call this server by, where no secret is asked for.
        settings: None reads the environment's.

    Raises:
        pydantic.ValidationError: the environment's settings cannot work.
    """
    settings = settings or ApiSettings()
    keys = Keys(secret=settings.secret, cron_secret=settings.cron_secret, on_host=settings.on_host)
    if make_agent is None:
        agent_settings = AgentSettings()
        _warn_of_calls_refused(agent_settings.callback_url, settings)
        make_agent = partial(open_agent, agent_settings)
    agent = cache(make_agent)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        driven = settings.tick and not settings.on_host
        async with _driven(agent(), settings.drain_s) if driven else nullcontext():
            yield
        if agent.cache_info().currsize:
            await agent().artifacts.close()
            await agent().store.close()
        logger.info("stopped")

    app = create_door(
        title="Livery control plane",
        version=__version__,
        description="Rents GPUs on your behalf: a goal and a budget become a paid, finished job.",
        errors=(AgentError, MoneyError),
        translate=_problem,
        # Who sends the secret is no web page of a stranger, whatever name the server is called by.
        hosts=None if settings.secret or settings.on_host else hosts,
        statuses=(401, 403),
        bodies=BODIES,
        lifespan=lifespan,
    )
    app.add_middleware(Gate, keys=keys)
    app.state.agent = agent
    app.state.settings = settings
    for router in ROUTERS:
        app.include_router(router, prefix="/api")
        app.include_router(router, include_in_schema=False)
    return app


def _warn_of_calls_refused(callback_url: str | None, settings: ApiSettings) -> None:
    host = urlsplit(callback_url or "").hostname
    if settings.secret is None and host is not None and not is_loopback(host):
        logger.warning("vendors cannot call back at %s: set LIVERY_API_SECRET, without it strangers are refused", host)


@asynccontextmanager
async def _driven(agent: Agent, drain_s: float) -> AsyncIterator[None]:
    """Drive due runs meanwhile. At the end the ticks that were begun have `drain_s` to finish."""
    stop = asyncio.Event()
    driver = asyncio.create_task(drive(agent, stop))
    try:
        yield
    finally:
        stop.set()
        _, late = await asyncio.wait({driver}, timeout=drain_s)
        if late:
            driver.cancel()
            await asyncio.wait(late)


def _problem(error: Exception) -> ProblemDocument:
    if isinstance(error, MoneyError):
        return problem_document(error.code, str(error))
    assert isinstance(error, AgentError)
    if error.code == "internal":
        logger.error("a bug: %s", error, exc_info=error)
        return problem_document("internal", type(error).__name__)
    retry_after = error.retry_after_s if isinstance(error, RunBusy) else None
    return problem_document(error.code, str(error), retry_after)
