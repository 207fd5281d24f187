"""What every host stands before: the street of real vendors of `tests/e2e`, a database of its own, a secret."""

import asyncio
import uuid
from collections.abc import Iterator

import pytest

from agent.vendors import register
from agent.wiring import open_agent
from tests.e2e.conftest import PAYER, Street, street  # noqa: F401 - a fixture
from tests.e2e.conftest import SECRET as VENDORS_SECRET
from tests.e2e.test_processes import VENDORS, settings_of

SECRET = "the-secret-of-this-plane"
BEARER = {"authorization": f"Bearer {SECRET}"}


@pytest.fixture(scope="module")
def environment(street: Street, mongod_url: str) -> Iterator[dict[str, str]]:  # noqa: F811
    """What a control plane is told that stands before the street, its vendors registered in a store of its own."""
    from pymongo import MongoClient

    database = f"livery_test_{uuid.uuid4().hex[:12]}"
    told = {
        "DATABASE_URL": mongod_url,
        "ARTIFACT_URL": mongod_url,
        "MONGODB_DB_NAME": database,
        "LIVERY_AGENT_PRIVATE_KEY": PAYER.key,
        "LIVERY_AGENT_RPC_URL": street.chain.url,
        "LIVERY_AGENT_POLL_INTERVAL_S": "1",
        "GPU_VENDOR_SECRET": VENDORS_SECRET,
        "PLANNER_MODE": "stub",
        "LIVERY_API_SECRET": SECRET,
    }

    async def registered() -> None:
        agent = open_agent(settings_of(told))
        for vendor_id in VENDORS:
            await register(agent, vendor_id, street.vendors_url)
        await agent.store.close()

    asyncio.run(registered())
    yield told
    with MongoClient(mongod_url) as client:
        client.drop_database(database)
