"""The sweep: tick every run that is due, and count late refunds of runs that have ended."""

from dataclasses import dataclass

from agent.core.errors import AgentError, RunBusy, RunFinished
from agent.ports import Agent
from agent.tick import tick, watch_refunds

RUNS_PER_SWEEP_MAX = 100


@dataclass(frozen=True, slots=True)
class Swept:
    """One due run, and what became of it: a tick's message, or why there was none."""

    run_id: str
    message: str


async def sweep(agent: Agent) -> list[Swept]:
    """Serve the runs that are due now, the longest due first; one run's trouble does not stop the others."""
    swept: list[Swept] = []
    for run_id in await agent.store.due_runs(await agent.store.now(), RUNS_PER_SWEEP_MAX):
        try:
            message = await _serve(agent, run_id)
        except RunBusy:
            message = "Busy"
        except AgentError as error:
            message = f"{error.code}: {error}"
        swept.append(Swept(run_id, message))
    return swept


async def _serve(agent: Agent, run_id: str) -> str:
    try:
        return (await tick(agent, run_id)).message
    except RunFinished:
        return "Refund received" if await watch_refunds(agent, run_id) else "Waiting for a refund"
