"""A dry run: what a run would do first, and what it would pay. Nothing is stored, signed or paid."""

from dataclasses import dataclass, replace

from agent.core.decide import Action, AskPlanner, Facts, StartJob, decide, question_of
from agent.core.model import Job, Run
from agent.core.policy import Refusal, check_caps
from agent.ports import Agent
from agent.purchase import quoted_job
from agent.start import new_run
from agent.turn import Turn
from wire.control import StartRequest


@dataclass(frozen=True, slots=True)
class Preview:
    """The first decision of `run`; the job it would buy, if any, and why it would not."""

    run: Run
    action: Action
    job: Job | None = None
    refusal: Refusal | None = None


async def preview(agent: Agent, request: StartRequest) -> Preview:
    """
    Decide and quote as the first tick would.

    Raises:
        MoneyError: the budget is no amount of the asset.
    """
    now = await agent.store.now()
    run = new_run(agent, request, now)
    vendors = await agent.store.list_vendors()
    facts = Facts(
        attempts_max=agent.limits.attempts_max,
        refund_wait_s=agent.limits.refund_wait_s,
        vendors=tuple(vendors),
        has_slots=True,
    )
    action = decide(run, facts, now)
    if isinstance(action, AskPlanner):
        facts = replace(facts, standings=tuple(await agent.store.standings()))
        facts = replace(facts, proposal=await agent.planner.propose(question_of(run, facts, now)))
        action = decide(run, facts, now)
    if not isinstance(action, StartJob):
        return Preview(run, action)
    vendor = next(vendor for vendor in vendors if vendor.vendor_id == action.vendor_id)
    job, refusal = await quoted_job(Turn(agent, 0, now, run), vendor, action)
    return Preview(run, action, job, refusal or check_caps(agent.policy, run, job.expected_cost_atomic))
