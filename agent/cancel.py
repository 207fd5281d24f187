"""Cancelling: the wish is recorded at once; ticks carry it out and end the run when no payment is open."""

from agent.core.errors import RunFinished
from agent.core.model import Run
from agent.core.states import RUN_ENDS
from agent.ports import Agent


async def cancel(agent: Agent, run_id: str) -> Run:
    """
    Record that `run_id` is to end and make it due.

    Raises:
        UnknownRun: there is no such run.
        RunFinished: it has ended already.
    """
    run = await agent.store.request_cancel(run_id)
    if run.status in RUN_ENDS:
        raise RunFinished(f"Run already {run.status}")
    return run
