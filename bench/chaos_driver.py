"""
One process that starts runs and sweeps, and writes down, on disk, every write that the store has acknowledged to it.

`python -m bench.chaos_driver` reads its Orders as JSON from the standard input and works until SIGTERM. It is a client
like any other: what the store could not take it asks for again under the same key.
"""

import asyncio
import json
import logging
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from agent.config import AgentSettings
from agent.core.errors import StoreUnavailable
from agent.core.model import Entry, Run
from agent.ports import Agent, Busy, Claim, Hold, Store
from agent.start import start
from agent.sweep import drive
from agent.wiring import open_agent
from wire.control import StartRequest

ResultT = TypeVar("ResultT")

AGAIN_S = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """`keys` are the idempotency keys of the runs to start, spread over `spread_s`; some of them are cancelled."""

    settings: dict[str, Any]
    journal: str
    keys: list[str]
    spread_s: float
    cancelled_share: float
    seed: int


class Journal:
    """An append-only file: a line is on disk before the acknowledged caller goes on."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def note(self, **words: Any) -> None:
        os.write(self._file, (json.dumps(words) + "\n").encode())
        os.fsync(self._file)


class WitnessedStore:
    """A store, each of whose acknowledged writes is noted, and each of whose refusals to answer is counted."""

    def __init__(self, store: Store, journal: Journal) -> None:
        self.inner = store
        self.journal = journal

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def insert_run(self, run: Run, entries: Sequence[Entry], key: str | None, fingerprint: str) -> Run:
        stored = await self.inner.insert_run(run, entries, key, fingerprint)
        if stored.run_id == run.run_id:
            self.journal.note(what="insert", run=run.run_id, seq=run.log.seq, hash=run.log.hash)
        return stored

    async def claim(self, run_id: str, lease_s: int, **more: Any) -> Claim | Busy:
        claim = await self.inner.claim(run_id, lease_s, **more)
        if isinstance(claim, Claim):
            head = claim.run.log
            self.journal.note(what="claim", run=run_id, token=claim.token, seq=head.seq, hash=head.hash)
        return claim

    async def save(self, token: int, run: Run, entries: Sequence[Entry] = (), **more: Any) -> Hold | None:
        try:
            refused = await self.inner.save(token, run, entries, **more)
        except StoreUnavailable as error:
            self.journal.note(what="unanswered", run=run.run_id, detail=str(error))
            raise
        if refused is None:
            self.journal.note(what="save", run=run.run_id, token=token, seq=run.log.seq, hash=run.log.hash)
        return refused

    async def request_cancel(self, run_id: str) -> Run:
        run = await self.inner.request_cancel(run_id)
        asked = run.cancel_requested_at
        self.journal.note(what="cancel", run=run_id, at=None if asked is None else asked.isoformat())
        return run


async def work(orders: Orders) -> None:
    """Start the runs and sweep, until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    agent = open_agent(AgentSettings.model_validate(orders.settings))
    store = WitnessedStore(agent.store, Journal(Path(orders.journal)))
    agent = replace(agent, store=store)
    async with asyncio.TaskGroup() as group:
        begun = group.create_task(_begin(agent, orders, group))
        await drive(agent, stop)
        begun.cancel()
    await store.close()


async def _begin(agent: Agent, orders: Orders, group: asyncio.TaskGroup) -> None:
    chance = random.Random(orders.seed)
    pause_s = orders.spread_s / max(1, len(orders.keys))
    for key in orders.keys:
        request = StartRequest.model_validate({"goal": f"Fine-tune {key}", "budgetTotal": Decimal(5)})
        run = await _insisted(lambda request=request, key=key: start(agent, request, key))  # type: ignore[misc]
        if chance.random() < orders.cancelled_share:
            group.create_task(_cancel(agent, run.run_id, chance.uniform(0, 20)))
        await asyncio.sleep(pause_s)


async def _cancel(agent: Agent, run_id: str, after_s: float) -> None:
    await asyncio.sleep(after_s)
    await _insisted(lambda: agent.store.request_cancel(run_id))


async def _insisted(ask: Callable[[], Awaitable[ResultT]]) -> ResultT:
    """Return `ask()`, asked again for as long as the store does not answer."""
    while True:
        try:
            return await ask()
        except StoreUnavailable:
            await asyncio.sleep(AGAIN_S)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    asyncio.run(work(Orders(**json.load(sys.stdin))))
