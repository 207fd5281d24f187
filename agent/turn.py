"""
A tick's hold on a run: the run as it is now, and the only way to change and store it.

An effect is bracketed: `record` what is intended and `save`, do it, `record` what came of it and `save`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agent.core import log
from agent.core.events import Event
from agent.core.model import Entry, Notice, Outcome, Run
from agent.core.notices import notices_of
from agent.core.policy import Hold
from agent.core.standing import outcomes_of
from agent.ports import Agent, Claim


@dataclass
class Turn:
    """
    `now` is the store's clock at the claim: one time for everything the tick decides. `claimed_s` is the running loop's
    clock then: the lease is counted from there. `closed`: the run has ended and so have its files.
    """

    agent: Agent
    token: int
    now: datetime
    run: Run
    claimed_s: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    unsaved: list[Entry] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    closed: bool = False

    @classmethod
    def of(cls, agent: Agent, claim: Claim) -> "Turn":
        return cls(agent, claim.token, claim.now, claim.run)

    def record(self, *events: Event) -> None:
        """Apply `events` to the run; they are stored with the next `save`."""
        self.run, entries = log.record(self.run, events)
        self.unsaved.extend(entries)
        self.outcomes.extend(outcomes_of(self.run, events))
        if self.agent.webhooks is not None:
            self.notices.extend(notices_of(self.run, zip(events, entries, strict=True)))

    def record_tick(self, document: dict[str, Any]) -> None:
        """Keep one decision for replay, with the next `save`."""
        self.run, entry = log.record_tick(self.run, self.now, document)
        self.unsaved.append(entry)

    async def save(self, *events: Event, holds: Sequence[Hold] = (), durable: bool = False) -> Hold | None:
        """
        Store the run with what was recorded and `events`, in one fenced transaction; return the hold that refused it,
        if any: then nothing was written and `events` did not happen.

        Raises:
            StaleClaim: another tick holds the run by now; nothing was written.
        """
        before = self.run, self.unsaved[:], self.outcomes[:], self.notices[:]
        self.record(*events)
        refused = await self.agent.store.save(
            self.token,
            self.run,
            tuple(self.unsaved),
            holds=holds,
            outcomes=tuple(self.outcomes),
            notices=tuple(self.notices),
            durable=durable,
        )
        if refused is not None:
            self.run, self.unsaved, self.outcomes, self.notices = before
            return refused
        self.unsaved.clear()
        self.outcomes.clear()
        self.notices.clear()
        return None
