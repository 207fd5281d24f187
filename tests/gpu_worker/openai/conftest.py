"""The door of every engine: one for all tests of a file, since engines take a while to open."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.contracts.text_engine_place import KINDS, tooled
from tests.fixtures.tiny_gguf import TinyGguf
from tests.gpu_worker.openai.doors import Door, engine_door


@pytest.fixture(scope="session")
def folder(tiny_gguf: TinyGguf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tooled(tiny_gguf, tmp_path_factory.mktemp("conformance"))


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=KINDS)
async def door(request: pytest.FixtureRequest, folder: Path) -> AsyncIterator[Door]:
    async with engine_door(request.param, folder) as found:
        yield found
