"""What a job needs before its program can start: its model, its input, the checkpoint that it goes on from."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from gpu_worker.config import listed
from gpu_worker.core import owner
from gpu_worker.core.bounds import Bounds
from gpu_worker.core.errors import BadInput, OwnersFault
from gpu_worker.core.folder import CHECKPOINTS, INPUT, Spec
from gpu_worker.core.hardware import Device
from gpu_worker.core.inference.room import beside
from gpu_worker.core.model import Job, LocalModel
from gpu_worker.ports import Worker
from wire import jobs as wire_jobs
from wire.checkpoint import misfit
from wire.jobs import Container, FineTune, Generate, Params

# What a job may take of the machine's memory where its owner set no limit, so that the machine lives.
MEMORY_SHARE = 0.9
# No bytes are known of a job without a model; its manifest names these.
NO_MODEL = "0" * 64
TOO_LARGE = "the checkpoint is larger than the disk that a job has here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A job that can start: `spec` is in its folder, `bounds` is what its processes may take."""

    spec: Spec
    bounds: Bounds
    visible: str | None


async def prepare(worker: Worker, job: Job) -> Work:
    """
    Return the job ready to start; what an earlier worker had ready is taken as it is.

    Raises:
        BadInput: what the buyer gave cannot be used.
        OwnersFault: this machine cannot do it after all.
        Unavailable: something cannot be had now.
    """
    device, machine = worker.now.device, worker.now.machine
    if device is None or machine is None:
        raise OwnersFault("this machine has no device to work on")
    spec = await worker.folders.spec(job.job_id)
    if spec is None:
        spec = await _spec(worker, job, device.name, worker.settings.threads_of(machine.cpu_count))
        await worker.folders.make(job.job_id, spec)
        await worker.book.update_job(
            job.job_id, lambda stored: replace(stored, model_hash=spec.model_hash, spec_hash=spec.spec_hash)
        )
    elif spec.served is not None:
        now_served = None if worker.answers is None else worker.answers.find(spec.served)
        if now_served is None or now_served.model_hash != spec.model_hash:
            raise OwnersFault(f"the model {spec.served}, with which the job began, is not served here any more")
    # The owner may have changed it since the spec was written.
    held = spec.model_copy(update={"vram_bytes_max": worker.limits.vram_max_bytes})
    return Work(spec=held, bounds=bounds_of(worker, job), visible=device.visible)


async def _spec(worker: Worker, job: Job, device: str, threads: int) -> Spec:
    params = params_of(job)
    model = await model_of(worker, params)
    folder = await worker.folders.path(job.job_id)
    found = await worker.inputs.fetch(params, job.files, folder / INPUT)
    spec_hash = wire_jobs.spec_hash(job.kind, params, None if found is None else found.sha256, job.index)
    model_hash = NO_MODEL if model is None else model.model_hash
    if job.resume is not None:
        if (wrong := misfit(job.resume, model_hash=model_hash, spec_hash=spec_hash)) is not None:
            raise BadInput("checkpoint_mismatch", wrong)
        await _pull(worker, job, folder)
    every = params.checkpoint_steps if isinstance(params, FineTune) else None
    return Spec(
        job_id=job.job_id,
        kind=job.kind,
        params=params.document(),
        index=job.index,
        device=device,
        threads=threads,
        checkpoint_steps=every or worker.settings.checkpoint_steps,
        model_folder=None if model is None or model.served else model.folder,
        model_hash=model_hash,
        served=None if model is None else model.served,
        spec_hash=spec_hash,
        input=found,
        resume_step=None if job.resume is None else job.resume.step,
        file_bytes_max=worker.settings.disk_max_bytes,
        container=worker.now.container if job.kind == "container" else None,
    )


async def _pull(worker: Worker, job: Job, folder: Path) -> None:
    assert job.resume is not None
    if job.files is None:
        raise BadInput("checkpoint_mismatch", "a checkpoint is fetched with the token of `files`, and there is none")
    if job.resume.bytes > worker.settings.disk_max_bytes:
        raise BadInput("checkpoint_mismatch", TOO_LARGE)
    await worker.checkpoints.pull(job.files, job.resume, folder / CHECKPOINTS / str(job.resume.step))


def params_of(job: Job) -> Params:
    """Return what the job is asked to do. Raises BadInput."""
    try:
        return wire_jobs.params_of(job.kind, job.job_params)
    except ValueError as error:
        raise BadInput("invalid_field", str(error)) from None


async def model_of(worker: Worker, params: Params) -> LocalModel | None:
    """
    Return the model that a job of `params` works with, None for a container; one that generates has one that is served
    where there is one.

    Raises:
        BadInput: it is not here, or is an image that the owner has not named.
    """
    if isinstance(params, Container):
        images = listed(worker.settings.container_images)
        if params.image not in images:
            # Whatever else lies on the machine, with what is in it, is its owner's.
            named = ", ".join(images) or "none"
            raise BadInput("model_unknown", f"the image {params.image} is not run here, of those that are: {named}")
        return None
    name = params.model or worker.settings.default_model
    if name is None:
        raise BadInput("model_unknown", "the job names no model, and this worker has none of its own to take instead")
    answers = worker.answers if isinstance(params, Generate) else None
    if answers is not None and (served := answers.find(name)) is not None:
        return served
    model = await worker.models.find(name)
    if model is None and worker.answers is not None and worker.answers.find(name) is not None:
        raise BadInput("model_unknown", f"the model {name} is served here as it is: jobs can generate with it, no more")
    if model is None:
        raise BadInput("model_unknown", f"there is no model {name} on this machine")
    if answers is not None:
        # Served under another name: it is in memory already.
        return answers.find(name, model.model_hash) or model
    return model


def bounds_of(worker: Worker, job: Job) -> Bounds:
    """Return what the job's processes may take; the memory that is bounded is the machine's, not a GPU's."""
    return Bounds(
        memory_bytes=ram_bytes(worker) or 2**63,
        disk_bytes=worker.settings.disk_max_bytes,
        ends_by_s=job.ends_by_s,
        # What a container does inside is not seen from here.
        stall_s=math.inf if job.kind == "container" else worker.settings.stall_s,
    )


def memory_of(worker: Worker, device: Device) -> int:
    """Return the memory of `device` that a new job may count on."""
    machine = worker.now.machine
    if machine is None:
        return ram_bytes(worker)
    return owner.memory_bytes(*beside(worker.now.model_room, machine, device), worker.limits)


def ram_bytes(worker: Worker) -> int:
    """Return the machine's memory beyond which a job is ended, 0 where that is not known."""
    now, most = worker.now, worker.limits.memory_max_bytes
    if most is not None:
        return most
    is_device = now.device is not None and now.device.kind != "cuda"
    total = now.device.memory_bytes if is_device and now.device is not None else 0
    if not is_device and now.machine is not None:
        total = now.machine.ram_total_bytes
    elif now.model_room is not None:
        # What is served on the machine's own memory has it for itself.
        total = max(0, total - now.model_room.weights - now.model_room.cache)
    return int(total * MEMORY_SHARE)
