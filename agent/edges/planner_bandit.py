"""The planner that learns from outcomes and needs no network: `core.bandit`."""

from agent.core.bandit import advise
from agent.core.planning import Proposal, Question


class BanditPlanner:
    mode = "bandit"

    async def propose(self, question: Question) -> Proposal:
        return advise(question).proposal
