"""The control plane's door, without a socket: over an agent of its own, or over a whole world."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from agent.config import AgentSettings
from agent.ports import Agent
from agent.wiring import open_agent
from api.door import create_app
from tests.fixtures.world import World

JSON = "application/json"
KEY = "0x" + "01" * 32


def door_of(agent: Agent) -> httpx.AsyncClient:
    """Return a client of a server process of its own over `agent`."""
    transport = httpx.ASGITransport(create_app(lambda: agent, hosts=("livery",)), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://livery", headers={"content-type": JSON})


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    """An agent with a store and a key, without vendors or a chain."""
    agent = open_agent(
        AgentSettings.model_validate(
            {
                "database_url": SecretStr(f"sqlite:///{tmp_path}/agent.db"),
                "private_key": SecretStr(KEY),
                "artifact_url": SecretStr(f"{tmp_path}/artifacts"),
            }
        )
    )
    yield agent
    await agent.store.close()


@pytest.fixture
async def door(agent: Agent) -> AsyncIterator[httpx.AsyncClient]:
    async with door_of(agent) as client:
        yield client


@pytest.fixture
async def paid_door(world: World) -> AsyncIterator[httpx.AsyncClient]:
    """The door of a world in which runs are paid for."""
    async with door_of(world.agent) as client:
        yield client
