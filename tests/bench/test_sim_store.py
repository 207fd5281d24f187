"""The simulation's store keeps the contract of the real ones, as far as one process can ask."""

import inspect
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from agent.ports import Store
from bench.sim.store import MemoryStore
from tests.contracts import test_storage_outbox, test_storage_records, test_storage_runs, test_storage_standings


class Awaited:
    """A MemoryStore whose verbs are awaited."""

    def __init__(self) -> None:
        self._store = MemoryStore(lambda: datetime.now(UTC))

    def __getattr__(self, verb: str) -> Any:
        return partial(self._call, getattr(self._store, verb))

    async def _call(self, step: Any, *args: Any, **named: Any) -> Any:
        return step(*args, **named)


@pytest.fixture
def store() -> Store:
    return Awaited()  # type: ignore[return-value]


for suite in (test_storage_runs, test_storage_records, test_storage_outbox, test_storage_standings):
    for name, test in vars(suite).items():
        if name.startswith("test_") and "place" not in inspect.signature(test).parameters:
            globals()[name] = test
