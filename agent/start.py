"""Starting a run: check what was asked, open its budget, store it once."""

import hashlib
import uuid
from datetime import datetime

from agent.core import ledger, log
from agent.core.events import RunStarted
from agent.core.model import JobSpec, LogHead, Run
from agent.ports import Agent
from wire.control import JobRequest, StartRequest
from wire.money import to_atomic


async def start(agent: Agent, request: StartRequest, key: str | None = None, *, run_id: str | None = None) -> Run:
    """
    Store and return a new run; with a `key` used before for the same request, the run it began.

    Args:
        run_id: the new run's; drawn where it is not given.

    Raises:
        MoneyError: the budget or the hourly maximum is no amount of the asset.
        KeyConflict: `key` began a run with another request.
    """
    run = new_run(agent, request, await agent.store.now(), run_id)
    started, entries = log.record(run, [RunStarted(at=run.created_at, run=run)])
    fingerprint = hashlib.sha256(request.to_json()).hexdigest()
    return await agent.store.insert_run(started, entries, key, fingerprint)


def new_run(agent: Agent, request: StartRequest, now: datetime, run_id: str | None = None) -> Run:
    """Return the run that `request` asks for, not stored. Raises MoneyError."""
    asset = agent.policy.asset
    cap = request.max_price_per_hour
    return Run(
        run_id=run_id or f"run_{uuid.uuid4().hex}",
        user_id=request.user_id,
        goal=request.goal,
        asset=asset,
        budget=ledger.opened(to_atomic(request.budget_total, asset)),
        job=job_spec(request.job),
        status="running",
        phase="planning",
        created_at=now,
        updated_at=now,
        deadline=request.deadline,
        price_per_hour_atomic_max=None if cap is None else to_atomic(cap, asset),
        log=LogHead(),
        next_tick_at=now,
    )


def job_spec(job: JobRequest) -> JobSpec:
    return JobSpec(
        kind=job.kind,
        gpu_type=job.gpu_type,
        min_vram_gb=job.min_vram_gb,
        max_hours=job.max_hours,
        count=job.count,
        model=job.model,
        dataset=job.dataset,
        params=job.params,
        env=job.env,
    )
