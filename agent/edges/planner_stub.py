"""The planner that needs no network: vendors by order, switched after a failure."""

from collections.abc import Sequence
from datetime import datetime

from agent.core.model import Run, Vendor
from agent.core.planning import Proposal, first_vendor


class StubPlanner:
    mode = "stub"

    async def propose(self, run: Run, vendors: Sequence[Vendor], now: datetime) -> Proposal:
        return first_vendor(run, vendors)
