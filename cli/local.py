"""What `livery` does to this environment's own store, without a control plane: dry runs, due ticks, replays."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from agent.config import AgentSettings
from agent.core.views import action_document
from agent.ports import Agent
from agent.wiring import open_agent
from wire.control import StartRequest
from wire.money import to_decimal

T = TypeVar("T")


async def with_agent(use: Callable[[Agent], Awaitable[T]], settings: AgentSettings | None = None) -> T:
    """Return what `use` makes of an agent (this environment's), and close its store."""
    agent = open_agent(settings or AgentSettings())
    try:
        return await use(agent)
    finally:
        await agent.artifacts.close()
        await agent.store.close()


async def first_step(request: StartRequest) -> dict[str, Any]:
    """Return what a run would do first and what that would cost; nothing is stored, signed or paid."""
    from agent.preview import preview

    seen = await with_agent(lambda agent: preview(agent, request))
    action, asset = action_document(seen.action), seen.run.asset
    return {
        "action": action.action if action else "wait",
        "vendorId": action.vendor_id if action else None,
        "maxHours": action.max_hours if action else None,
        "reason": action.reason if action else "",
        "price": to_decimal(seen.job.expected_cost_atomic, asset) if seen.job and seen.job.template_id else None,
        "currency": asset.symbol,
        "refusal": str(seen.refusal) if seen.refusal else None,
    }


async def tick_due() -> list[dict[str, str]]:
    """Tick every run that is due; return what became of each."""
    from agent.sweep import sweep

    return [{"runId": one.run_id, "message": one.message} for one in (await with_agent(sweep)).swept]


async def replay(run_id: str | None) -> dict[str, Any]:
    """Fold the log of a run (None: the newest) again and hold it against the stored run. Raises UnknownRun."""
    from agent.status import replayed

    named = run_id or await _newest()
    stored, again = await with_agent(lambda agent: replayed(agent, named))
    same = (stored.status, stored.budget, stored.jobs, stored.payments) == (
        again.run.status,
        again.run.budget,
        again.run.jobs,
        again.run.payments,
    )
    return {
        "runId": named,
        "entries": again.run.log.seq,
        "brokenAt": again.broken_at,
        "differences": [difference.seq for difference in again.differences],
        "repeats": same and again.broken_at is None and not again.differences,
    }


async def _newest() -> str:
    from agent.core.errors import UnknownRun
    from agent.status import runs

    page = await with_agent(runs)
    if not page.runs:
        raise UnknownRun("there is no run yet")
    return page.runs[0].run_id
