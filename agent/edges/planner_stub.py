"""The planner that needs no network: `core.planning.first_vendor`."""

from agent.core.planning import Proposal, Question, first_vendor


class StubPlanner:
    mode = "stub"

    async def propose(self, question: Question) -> Proposal:
        return first_vendor(question.run, question.vendors, question.rest, question.avoided)
