"""Two planners answer and one of them acts: what the other would have done is kept beside it."""

import hashlib
from dataclasses import replace

from agent.core.planning import Proposal, Question
from agent.ports import Planner


class AbPlanner:
    """Who acts is drawn from the run and its attempts so far, so half of all attempts are each planner's."""

    mode = "ab"

    def __init__(self, first: Planner, second: Planner) -> None:
        self._planners = (first, second)

    async def propose(self, question: Question) -> Proposal:
        wishes = [await planner.propose(question) for planner in self._planners]
        run = question.run
        acting = hashlib.sha256(f"ab|{run.run_id}|{len(run.jobs)}".encode()).digest()[0] & 1
        return replace(wishes[acting], other=wishes[1 - acting])
