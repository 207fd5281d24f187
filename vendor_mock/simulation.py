"""
A job that trains nothing: three epochs, a loss that falls, an end that was settled when it began.

Pure: values in, values out. Only `advance` moves a job.
"""

import hashlib
import random
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal

from storefront.model import TERMINAL as TERMINAL
from storefront.model import Sold
from wire import decimal_json
from wire.decimal_json import plain
from wire.vendor import CheckpointSeen, FilesGrant, ResumeFrom

EPOCHS = 3
PROGRESS_PER_EPOCH = Decimal("0.35")
FINAL_METRICS = {"loss": Decimal("0.78"), "val_accuracy": Decimal("0.87")}
FAILURE = "simulated failure"
NO_CHECKPOINT = "the checkpoint to go on from is not there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Sold):
    """
    A sold job of a mock: how far it is, and the epoch at which it fails, settled when it began.

    `first_epoch` are done already: it goes on from a checkpoint of another vendor. `pushed` is its newest own one.
    """

    fails_at_epoch: int | None = None
    first_epoch: int = 0
    model_hash: str = ""
    spec_hash: str = ""
    files: FilesGrant | None = None
    resume: ResumeFrom | None = None
    pushed: CheckpointSeen | None = None
    epoch: int = 0
    progress: Decimal = Decimal(0)
    logs: tuple[str, ...] = ()


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
    return job.first_epoch + int(Decimal(now_s - job.started_at_s) / epoch_seconds)


def advance(job: Job, due: int) -> Job:
    """Return the job after its epochs up to `due`; a terminal job stays as it is."""
    if job.status in TERMINAL:
        return job
    job = replace(job, status="running")
    while job.epoch < min(due, EPOCHS) and job.status == "running":
        job = _epoch(job, job.epoch + 1)
    return job


def progress_at(epoch: int) -> Decimal:
    """Return how far a job is that has done `epoch`."""
    return min(Decimal(1), PROGRESS_PER_EPOCH * epoch)


def interrupt(job: Job, now_s: int) -> Job:
    """Return a job that has no checkpoint to go on from: it failed before it began, and all of it is owed back."""
    if job.status in TERMINAL:
        return job
    logs = (*job.logs, NO_CHECKPOINT)
    return replace(job, status="failed", logs=logs, refund_atomic=job.price_atomic, ended_at_s=now_s)


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
        progress=progress_at(number),
        logs=(*job.logs, f"Epoch {number}/{EPOCHS} loss={loss}"),
    )


def failure(job: Job) -> str:
    """Return why a failed job failed."""
    return NO_CHECKPOINT if NO_CHECKPOINT in job.logs[-1:] else FAILURE


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
    """Return what the epochs cost that were done here."""
    before = progress_at(job.first_epoch)
    return int((job.price_atomic * (job.progress - before) / (1 - before)).to_integral_value(ROUND_CEILING))


def remaining_minutes(job: Job) -> Decimal:
    """Return how long the job still takes, by its hours and its progress."""
    if job.status in TERMINAL:
        return Decimal(0)
    return (job.hours * 60 * (1 - job.progress) / (1 - progress_at(job.first_epoch))).quantize(Decimal("0.01"))


def artifacts(job: Job) -> dict[str, bytes]:
    """Return the files of an ended job by name: its log, and the model where it completed."""
    if job.status not in TERMINAL:
        return {}
    files = {"training.log": "".join(f"{line}\n" for line in job.logs).encode()}
    if job.status == "completed":
        model = {"job": job.job_id, "weights": hashlib.sha256(job.job_id.encode()).hexdigest(), **FINAL_METRICS}
        files = {"model.json": decimal_json.dumps(model), **files}
    return files
