"""A run as the control plane shows it: wire documents of core values."""

from collections.abc import Sequence
from decimal import Decimal
from urllib.parse import urlencode

from agent.core.costs import Cost, costs
from agent.core.decide import Action, EndRun, StartJob
from agent.core.model import Artifact, Entry, Job, JobSpec, Payment, Run
from wire.control import (
    ActionDocument,
    ArtifactDocument,
    CostDocument,
    JobDocument,
    JobRequest,
    ObservationDocument,
    PaymentDocument,
    RunDocument,
    StatusReply,
)
from wire.money import to_decimal


def run_document(run: Run) -> RunDocument:
    budget, asset = run.budget, run.asset
    cap = run.price_per_hour_atomic_max
    return RunDocument(
        id=run.run_id,
        user_id=run.user_id,
        goal=run.goal,
        budget_total=to_decimal(budget.total_atomic, asset),
        budget_remaining=to_decimal(budget.available_atomic, asset),
        budget_reserved=to_decimal(budget.reserved_atomic, asset),
        budget_spent=to_decimal(budget.spent_atomic, asset),
        currency=asset.symbol,
        asset=asset.address,
        network=asset.network,
        status=run.status,
        phase=run.phase,
        reason=run.reason,
        job=_job_request(run.job),
        deadline=run.deadline,
        max_price_per_hour=None if cap is None else to_decimal(cap, asset),
        cancel_requested_at=run.cancel_requested_at,
        next_tick_at=run.next_tick_at,
        created_at=run.created_at,
        updated_at=run.updated_at,
        completed_at=run.completed_at,
        costs=tuple(_cost_document(run, cost) for cost in costs(run)),
    )


def _cost_document(run: Run, cost: Cost) -> CostDocument:
    return CostDocument(
        slot=cost.job.slot,
        job_id=cost.job.job_id,
        vendor_id=cost.job.vendor_id,
        paid=to_decimal(cost.payment.amount_atomic, run.asset),
        refunded=to_decimal(cost.payment.refunded_atomic, run.asset) if cost.payment.refunded_atomic else Decimal(0),
        step=cost.step,
        to_step=cost.to_step,
    )


def status_reply(run: Run, observations: Sequence[Entry]) -> StatusReply:
    """Return the whole of GET /api/agent-status; `observations` come oldest first."""
    return StatusReply(
        run=run_document(run),
        jobs=tuple(_job_document(run, job) for job in reversed(run.jobs)),
        payments=tuple(_payment_document(run, payment) for payment in reversed(run.payments)),
        observations=tuple(observation_document(entry) for entry in reversed(observations)),
    )


def action_document(action: Action | None) -> ActionDocument | None:
    """Return what a planner's wish became, None where none was asked for."""
    if action is None:
        return None
    if isinstance(action, StartJob):
        return ActionDocument(
            action="start_job", vendor_id=action.vendor_id, max_hours=action.max_hours, reason=action.reason
        )
    if isinstance(action, EndRun):
        return ActionDocument(action="abort", reason=action.detail or str(action.reason))
    return ActionDocument(action="wait", reason=getattr(action, "reason", ""))


def _job_request(spec: JobSpec) -> JobRequest:
    return JobRequest(
        kind=spec.kind,
        gpu_type=spec.gpu_type,
        min_vram_gb=spec.min_vram_gb,
        max_hours=spec.max_hours,
        count=spec.count,
        model=spec.model,
        dataset=spec.dataset,
        params=spec.params,
        env=dict.fromkeys(spec.env, "***"),
    )


def _job_document(run: Run, job: Job) -> JobDocument:
    cost = job.actual_cost_atomic
    return JobDocument(
        id=job.job_id,
        run_id=run.run_id,
        vendor_id=job.vendor_id,
        vendor_job_id=job.vendor_job_id,
        status=job.status,
        gpu_type=job.gpu_type,
        hours=job.hours,
        progress=job.progress,
        expected_cost=to_decimal(job.expected_cost_atomic, run.asset),
        expected_duration_minutes=job.expected_duration_minutes,
        actual_cost=None if cost is None else to_decimal(cost, run.asset),
        slot=job.slot,
        resumes=job.resumes,
        hedges=job.hedges,
        latest_metrics=job.latest_metrics,
        final_metrics=job.final_metrics,
        artifact_url=job.artifact_url,
        artifacts=tuple(_artifact_document(run, job, artifact) for artifact in job.artifacts),
        error_message=job.error_message,
        job_params={name: value for name, value in job.job_params.items() if name != "env"},
        created_at=job.created_at,
        updated_at=job.updated_at,
        completed_at=job.completed_at,
    )


def _artifact_document(run: Run, job: Job, artifact: Artifact) -> ArtifactDocument:
    query = urlencode({"runId": run.run_id, "jobId": job.job_id, "name": artifact.name})
    return ArtifactDocument(
        name=artifact.name,
        bytes=artifact.bytes,
        sha256=artifact.sha256,
        url=f"/api/agent-artifact?{query}",
    )


def _payment_document(run: Run, payment: Payment) -> PaymentDocument:
    return PaymentDocument(
        id=payment.payment_id,
        run_id=run.run_id,
        job_id=payment.job_id,
        vendor_id=payment.vendor_id,
        amount=to_decimal(payment.amount_atomic, run.asset),
        currency=run.asset.symbol,
        asset=payment.asset,
        network=payment.network,
        payer=payment.payer,
        pay_to=payment.pay_to,
        dialect=payment.dialect,
        status=payment.status,
        x402_tx_id=payment.transaction,
        refunded=to_decimal(payment.refunded_atomic, run.asset) if payment.refunded_atomic else Decimal(0),
        refund_tx_id=payment.refund.transaction if payment.refund else None,
        error_message=payment.error_message,
        created_at=payment.created_at,
        updated_at=payment.updated_at,
    )


def end_of(entry: Entry) -> str | None:
    """Return the state that the run ended in, where `entry` says so."""
    return str(entry.data["status"]) if entry.data.get("kind") == "run_ended" else None


def observation_document(entry: Entry) -> ObservationDocument:
    return ObservationDocument(
        run_id=entry.run_id,
        seq=entry.seq,
        job_id=entry.job_id,
        type=entry.type,
        content=entry.content,
        timestamp=entry.timestamp,
    )
