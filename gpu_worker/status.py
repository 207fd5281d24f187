"""What the owner is told of the worker, as one document."""

from collections import Counter
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from gpu_worker.config import listed
from gpu_worker.core import pricing
from gpu_worker.core.model import Job
from gpu_worker.model_port import Serving
from gpu_worker.ports import Worker
from storefront.model import TERMINAL
from wire.money import to_decimal
from wire.vendor import WorkerHealth

DAY_S = 86_400
_PLACES = Decimal("0.001")


def health(worker: Worker) -> WorkerHealth:
    """Return what everybody is told: that it lives, and in which state."""
    now = worker.now
    return WorkerHealth(
        vendors=(worker.vendor.vendor_id,),
        state=now.state,
        mode="jobs",
        uptime=uptime_s(worker),
        model=worker.settings.default_model,
        address=worker.vendor.pay_to if worker.has_key else None,
        benchmark_tok_per_sec=None if now.speed is None else now.speed.tokens_per_s,
    )


def uptime_s(worker: Worker) -> Decimal:
    return Decimal(repr(max(0.0, worker.clock() - worker.now.since_s))).quantize(_PLACES)


async def status(worker: Worker) -> dict[str, Any]:
    """Return the document; amounts are in the asset, times Unix seconds."""
    now, settings = worker.now, worker.settings
    sold = await worker.book.jobs()
    ended = [job for job in sold if job.status in TERMINAL]
    since = worker.clock() - DAY_S
    device, speed = now.device, now.speed
    return {
        "state": now.state,
        "name": settings.name,
        "vendorId": worker.vendor.vendor_id,
        "address": worker.vendor.pay_to if worker.has_key else None,
        "url": worker.door.url,
        "capabilityUrl": worker.door.capability_url,
        "secretIn": "LIVERY_WORKER_SECRET" if settings.secret else str(settings.secret_file),
        "uptime": uptime_s(worker),
        "kinds": list(listed(settings.kinds)),
        "device": device
        and {
            "kind": device.kind,
            "name": device.name,
            "gpuType": device.gpu_type,
            "memoryBytes": device.memory_bytes,
        },
        "speed": speed
        and {
            "memoryBytesPerS": speed.memory_bytes_per_s,
            "flops": speed.flops,
            "tokensPerS": speed.tokens_per_s,
        },
        "jobs": [_job(worker, job) for job in sold if job.status not in TERMINAL],
        "jobsMax": settings.jobs_max,
        **_served(now.served),
        "yielded": now.yielded and asdict(now.yielded),
        "problem": now.problem,
        "refunds": now.refunds,
        "offers": now.offers,
        "quotes": now.quotes,
        "sold": len(sold),
        "refusals": dict(Counter(code for at_s, code in now.refusals if at_s >= since)),
        "limits": {
            "requesters": sorted(worker.limits.requesters),
            "hours": settings.hours,
            "temperatureMaxC": worker.limits.temperature_max_c,
            "powerMaxW": worker.limits.power_max_w,
            "yieldOn": sorted(worker.limits.yield_on),
            "pricePerHour": settings.price_per_hour,
            "priceMin": settings.price_min,
        },
        "earned": to_decimal(earned_atomic(ended), worker.vendor.asset),
        "notes": list(now.notes),
    }


def _served(served: Serving | None) -> dict[str, Any]:
    """Return what is served, layers or whole models."""
    return {"slice": None, "model": None} | ({} if served is None else {served.key: served.document()})


def earned_atomic(ended: list[Job]) -> int:
    """Return what ended jobs brought, their refunds taken off."""
    return sum(job.price_atomic - job.refund_atomic for job in ended)


def _job(worker: Worker, job: Job) -> dict[str, Any]:
    live = worker.now.jobs.get(job.job_id)
    return {
        "jobId": job.job_id,
        "kind": job.kind,
        "status": job.status,
        "phase": "waiting" if live is None else live.phase,
        "step": job.step if live is None else live.step,
        "steps": job.steps if live is None else live.steps,
        "usedS": job.used_s if live is None else live.used_s,
        "cost": to_decimal(pricing.used_atomic(job), worker.vendor.asset),
        "payer": job.payer,
    }
