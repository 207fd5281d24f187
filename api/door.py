"""
Makes the control plane an ASGI application. Its settings are read when it is made, so that what cannot work is told
then; nothing is connected before the first request.
"""

import logging
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from functools import cache, partial

from fastapi import FastAPI

from agent.config import AgentSettings
from agent.core.errors import AgentError, RunBusy
from agent.ports import Agent
from agent.wiring import open_agent
from api.routes import router
from inbound.web import create_door
from livery import __version__
from wire.money import MoneyError
from wire.problems import ProblemDocument, problem_document

logger = logging.getLogger("livery.api")


def create_app(make_agent: Callable[[], Agent] | None = None, *, hosts: Collection[str] = ()) -> FastAPI:
    """
    Return the control plane; each route also stands without the `/api` prefix.

    Args:
        make_agent: called once, at the first request; None makes the environment's agent.
        hosts: names besides loopback's that requests may call this server by.

    Raises:
        pydantic.ValidationError: the environment's settings cannot work.
    """
    agent = cache(make_agent or partial(open_agent, AgentSettings()))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if agent.cache_info().currsize:
            await agent().store.close()
        logger.info("stopped")

    app = create_door(
        title="Livery control plane",
        version=__version__,
        description="Rents GPUs on your behalf: a goal and a budget become a paid, finished job.",
        errors=(AgentError, MoneyError),
        translate=_problem,
        hosts=hosts,
        lifespan=lifespan,
    )
    app.state.agent = agent
    app.include_router(router, prefix="/api")
    app.include_router(router, include_in_schema=False)
    return app


def _problem(error: Exception) -> ProblemDocument:
    if isinstance(error, MoneyError):
        return problem_document(error.code, str(error))
    assert isinstance(error, AgentError)
    if error.code == "internal":
        logger.error("a bug: %s", error, exc_info=error)
        return problem_document("internal", type(error).__name__)
    retry_after = error.retry_after_s if isinstance(error, RunBusy) else None
    return problem_document(error.code, str(error), retry_after)
