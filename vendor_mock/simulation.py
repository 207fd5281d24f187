"""
A job that trains nothing: three epochs, a loss that falls, an end that was settled when it began.

Pure: values in, values out. Only `advance` moves a job, and only the status route calls it.
"""

import hashlib
import random
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal

from wire import decimal_json
from wire.decimal_json import plain
from wire.vendor import VendorJobStatus

EPOCHS = 3
PROGRESS_PER_EPOCH = Decimal("0.35")
FINAL_METRICS = {"loss": Decimal("0.78"), "val_accuracy": Decimal("0.87")}
FAILURE = "simulated failure"
TERMINAL: tuple[VendorJobStatus, ...] = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A quote that was given, and what it binds the vendor to."""

    template_id: str
    vendor_id: str
    gpu_type: str
    hours: Decimal
    price_atomic: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """
    A paid job. `refund_atomic` is owed to the payer from the moment the job ends; `refund_transaction` pays it.

    `callback_url` is where the buyer wants to be called at the end; done is what was accepted or given up.
    `ends_by_s` is when the job is ended by itself: its hours are used up.
    """

    job_id: str
    vendor_id: str
    payment_id: str
    gpu_type: str
    hours: Decimal
    price_atomic: int
    started_at_s: int
    fails_at_epoch: int | None = None
    status: VendorJobStatus = "submitted"
    epoch: int = 0
    progress: Decimal = Decimal(0)
    logs: tuple[str, ...] = ()
    refund_atomic: int = 0
    refund_transaction: str | None = None
    callback_url: str | None = None
    is_callback_done: bool = False
    ends_by_s: int | None = None
    ended_at_s: int | None = None


def fate(vendor_id: str, number: int, fail_rate: Decimal, seed: int | None) -> int | None:
    """Return the epoch at which the vendor's `number`-th job fails by `fail_rate`, None for most."""
    chance = random.Random(None if seed is None else f"{seed}:{vendor_id}:{number}")  # noqa: S311 - a simulation
    return EPOCHS if chance.random() < fail_rate else None


def ends_by_s(started_at_s: int, hours: Decimal, max_hours: Decimal | None) -> int:
    """Return when a job of `hours` that may live `max_hours` is over."""
    return started_at_s + int((min(hours, max_hours or hours) * 3_600).to_integral_value(ROUND_CEILING))


def is_over(job: Job, now_s: float) -> bool:
    """Return whether the job's time has come and it has not ended."""
    return job.status not in TERMINAL and job.ends_by_s is not None and now_s >= job.ends_by_s


def polled(job: Job, now_s: float, epoch_seconds: Decimal | None) -> Job:
    """Return the job as a poll finds it: an epoch further, or where time has brought it, and never beyond its end."""
    if is_over(job, now_s):
        moved = job if epoch_seconds is None else advance(job, epochs_due(job, job.ends_by_s or now_s, epoch_seconds))
        return expire(moved, now_s)
    return advance(job, epochs_due(job, now_s, epoch_seconds))


def dated(job: Job, now_s: int) -> Job:
    """Return the job with the time of its end, where it has ended and none is written down."""
    ended = job.status in TERMINAL and job.ended_at_s is None
    return replace(job, ended_at_s=now_s) if ended else job


def expire(job: Job, now_s: float) -> Job:
    """Return the job ended where its time has come: its hours are used up, and nothing is owed."""
    if not is_over(job, now_s):
        return job
    hours = (Decimal((job.ends_by_s or job.started_at_s) - job.started_at_s) / 3_600).quantize(Decimal("0.01"))
    logs = (*job.logs, f"Ended after {plain(hours)} h at most, as bought")
    return replace(job, status="cancelled", logs=logs, ended_at_s=job.ends_by_s)


def epochs_due(job: Job, now_s: float, epoch_seconds: Decimal | None) -> int:
    """Return the epoch that a poll finds the job at: one further, or by time."""
    if epoch_seconds is None:
        return job.epoch + 1
    return int(Decimal(now_s - job.started_at_s) / epoch_seconds)


def advance(job: Job, due: int) -> Job:
    """Return the job after its epochs up to `due`; a terminal job stays as it is."""
    if job.status in TERMINAL:
        return job
    job = replace(job, status="running")
    while job.epoch < min(due, EPOCHS) and job.status == "running":
        job = _epoch(job, job.epoch + 1)
    return job


def _epoch(job: Job, number: int) -> Job:
    if job.fails_at_epoch == number:
        return replace(
            job,
            epoch=number,
            status="failed",
            logs=(*job.logs, f"Epoch {number}/{EPOCHS} failed: {FAILURE}"),
            # Half was used; the odd atomic unit stays with the buyer's cost, so that both add up to the price.
            refund_atomic=job.price_atomic // 2,
        )
    loss = (Decimal("1.5") / number).normalize()
    return replace(
        job,
        epoch=number,
        status="completed" if number == EPOCHS else "running",
        progress=min(Decimal(1), PROGRESS_PER_EPOCH * number),
        logs=(*job.logs, f"Epoch {number}/{EPOCHS} loss={loss}"),
    )


def cancel(job: Job) -> Job:
    """Return the job cancelled, the unused part of its price owed back; a terminal job stays as it is."""
    if job.status in TERMINAL:
        return job
    return replace(
        job,
        status="cancelled",
        logs=(*job.logs, "Cancelled by the buyer"),
        refund_atomic=job.price_atomic - _used_atomic(job),
    )


def cost_atomic(job: Job) -> int:
    """Return what the job has cost so far; for an ended one the price less the refund."""
    if job.status in TERMINAL:
        return job.price_atomic - job.refund_atomic
    return _used_atomic(job)


def _used_atomic(job: Job) -> int:
    return int((job.price_atomic * job.progress).to_integral_value(ROUND_CEILING))


def remaining_minutes(job: Job) -> Decimal:
    """Return how long the job still takes, by its hours and its progress."""
    if job.status in TERMINAL:
        return Decimal(0)
    return (job.hours * 60 * (1 - job.progress)).quantize(Decimal("0.01"))


def artifacts(job: Job) -> dict[str, bytes]:
    """Return the files of an ended job by name: its log, and the model where it completed."""
    if job.status not in TERMINAL:
        return {}
    files = {"training.log": "".join(f"{line}\n" for line in job.logs).encode()}
    if job.status == "completed":
        model = {"job": job.job_id, "weights": hashlib.sha256(job.job_id.encode()).hexdigest(), **FINAL_METRICS}
        files = {"model.json": decimal_json.dumps(model), **files}
    return files
