"""The two stores that keep the one contract."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.ports import Store
from tests.contracts.store_values import Place


@pytest.fixture(params=["sqlite", "mongo"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty store of each kind, of this test alone."""
    if request.param == "sqlite":
        return Place("sqlite", str(tmp_path / "data" / "livery.db"))
    mongo = request.getfixturevalue("mongo_place")
    return Place("mongo", mongo.url, mongo.database)


@pytest.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    store = place.open()
    yield store
    await store.close()
