"""One server for each test, which answers well until it is told otherwise."""

from collections.abc import AsyncIterator

import pytest

from tests.fixtures.openai_upstream import FakeUpstream, upstream


@pytest.fixture
async def fake() -> AsyncIterator[FakeUpstream]:
    async with upstream() as server:
        yield server
