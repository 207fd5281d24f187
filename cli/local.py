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
    from agent.status import is_same, replayed

    named = run_id or await _newest()
    stored, again = await with_agent(lambda agent: replayed(agent, named))
    differences = [
        {"seq": one.seq, "recorded": str(one.recorded), "decided": str(one.decided)} for one in again.differences
    ]
    same = is_same(stored, again.run)
    return {
        "runId": named,
        "entries": again.run.log.seq,
        "brokenAt": again.broken_at,
        "differences": differences,
        "sameRun": same,
        "repeats": same and again.broken_at is None and not again.differences,
    }


async def explain(run_id: str | None) -> dict[str, Any]:
    """Return the story of a run (None: the newest), paragraph by paragraph. Raises UnknownRun."""
    from agent.status import explained

    named = run_id or await _newest()
    told = await with_agent(lambda agent: explained(agent, named))
    return {
        "runId": named,
        "paragraphs": [{"at": one.at.isoformat(), "title": one.title, "sentences": one.sentences} for one in told],
    }


async def release(run_id: str) -> list[dict[str, Any]]:
    """Cancel the open cheques of a run on the chain; return what is known of each. Raises UnknownRun."""
    from agent.release import release as released

    async def ask(agent: Agent) -> list[dict[str, Any]]:
        asset = (await agent.store.read_run(run_id)).asset
        return [
            {
                "paymentId": one.payment.payment_id,
                "vendorId": one.payment.vendor_id,
                "amount": to_decimal(one.payment.amount_atomic, asset),
                "currency": asset.symbol,
                "outcome": one.outcome,
                "why": one.why or None,
                "transaction": one.payment.transaction or one.payment.revoked_in,
            }
            for one in await released(agent, run_id)
        ]

    return await with_agent(ask)


async def audit(run_id: str | None) -> dict[str, Any]:
    """Return how the books (one run's, or all) differ from the chain and the vendors. Raises UnknownRun."""
    from agent.audit import audit as audited

    async def read(agent: Agent) -> dict[str, Any]:
        report, asset = await audited(agent, run_id), agent.policy.asset
        return {
            "runs": report.runs,
            "payments": report.payments,
            "spent": to_decimal(report.spent_atomic, asset),
            "currency": asset.symbol,
            "agrees": not report.differences and not report.unchecked,
            "differences": [
                {
                    "code": one.code,
                    "runId": one.run_id or None,
                    "subject": one.subject,
                    "books": one.books,
                    "world": one.world,
                    "by": None if one.by_atomic is None else to_decimal(one.by_atomic, asset),
                }
                for one in report.differences
            ],
            "unchecked": [
                {"runId": one.run_id or None, "subject": one.subject, "why": one.why} for one in report.unchecked
            ],
        }

    return await with_agent(read)


async def _newest() -> str:
    from agent.core.errors import UnknownRun
    from agent.status import runs

    page = await with_agent(runs)
    if not page.runs:
        raise UnknownRun("there is no run yet")
    return page.runs[0].run_id
