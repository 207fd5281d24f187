"""What has to be true when a run whose worker, program or control plane was killed is over."""

import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.checkpoints import folder_of
from agent.core.invariants import VendorJob
from agent.core.model import Job as RunJob
from agent.core.model import Run
from bench import books
from bench.kill.books import WRONGS, Seen, wrongs
from bench.worker_kill.place import PAYER, Place, WorkerPart
from bench.worker_kill.sight import strays
from chain.abi import quantity
from gpu_worker.core.folder import CHECKPOINTS, INPUT, MODEL_FILE
from gpu_worker.core.model import Job
from livery.client import Client, Damaged, ProblemError, Unreachable
from storefront.model import TERMINAL
from wire.checkpoint import MANIFEST_NAME, Manifest
from wire.file_name import to_file_name

# What is counted, each a number of things that must not be.
COUNTED = ("jobs_lost", *WRONGS, "orphan_processes", "orphan_files")
# Ends of names of what is being written; a name that begins with a dot is a draft as well.
DRAFTS = (".new", ".tmp", ".part", ".partial", ".pulled", ".draft")

Wrong = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Since:
    """How chain and counters stood before a run began."""

    block: int
    balances: dict[str, int]
    holds: dict[str, int]


def stands(place: Place) -> Since:
    holders = (PAYER.address, *(worker.address for worker in place.workers))
    return Since(
        block=quantity(place.chain.rpc("eth_blockNumber")),
        balances={holder: place.chain.balance(holder) for holder in holders},
        holds=books.read_holds(f"sqlite:///{place.folder / 'livery.db'}"),
    )


async def check(place: Place, run_id: str, since: Since, model_sha256: str | None) -> list[Wrong]:
    """
    Return one of COUNTED and a sentence for each thing that is wrong; nothing but the run has happened `since`.

    Args:
        model_sha256: what the same work made where nobody was killed, None where that is not known yet.
    """
    store = place.agent.store
    run, log = await store.read_run(run_id), await store.read_log(run_id)
    settlements, transfers = books.read_chain(place.chain, since.block, PAYER.address)
    now = stands(place)
    jobs = [(worker, job) for worker in place.workers for job in await worker.jobs()]
    seen = Seen(
        run=run,
        payer=PAYER.address,
        settlements=settlements,
        transfers=transfers,
        jobs=tuple(_vendor_job(job) for _, job in jobs if job.payment_id.startswith(f"{run_id}-")),
        holds=_moved(since.holds, now.holds),
        balances={holder: now.balances[holder] - before for holder, before in since.balances.items()},
        replay=books.unlike_log(run, log),
        results="; ".join([line async for line in _unlike_results(place, run, model_sha256)]),
    )
    found = wrongs(seen)
    if run.status != "completed" and (run.status != "failed" or run.budget.spent_atomic):
        found.append(("jobs_lost", f"the run is {run.status}: {run.reason}, {run.budget.spent_atomic} spent"))
    found += [("orphan_processes", f"{one.pid} lives: {' '.join(one.cmdline())}") for one in strays(place)]
    for worker in place.workers:
        own = [job for other, job in jobs if other is worker]
        found += [("orphan_files", line) for line in worker_files(worker, own)]
    found += [("orphan_files", line) for line in run_files(place.folder / "artifacts", run)]
    return found


def _vendor_job(job: Job) -> VendorJob:
    return VendorJob(vendor_id=job.vendor_id, vendor_job_id=job.job_id, payment_id=job.payment_id, status=job.status)


def _moved(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Return by how much each counter of the store grew."""
    moved = {scope: value - before.get(scope, 0) for scope, value in after.items()}
    return {scope: value for scope, value in moved.items() if value}


async def _unlike_results(place: Place, run: Run, model_sha256: str | None) -> AsyncIterator[str]:
    """Yield what is wrong with the files of the job that counts, as its owner downloads them."""
    done = [job for job in run.jobs if job.status == "completed"]
    if run.status == "completed" and not done:
        yield "no job of the completed run has completed"
    for job in done[:1] if run.status == "completed" else []:
        files = {file.name: file.sha256 for file in job.artifacts}
        if MODEL_FILE not in files:
            yield f"{job.job_id} has the files {sorted(files)}"
        elif model_sha256 is not None and files[MODEL_FILE] != model_sha256:
            yield f"{job.job_id} made another model than the same work made undisturbed"
        async for line in _undownloadable(place, run, job):
            yield line


async def _undownloadable(place: Place, run: Run, job: RunJob) -> AsyncIterator[str]:
    with tempfile.TemporaryDirectory() as into:
        async with Client(place.plane.url) as client:
            told = next(one for one in (await client.status(run.run_id)).jobs if one.id == job.job_id)
            for file in told.artifacts:
                try:
                    await client.download(run.run_id, job.job_id, file, Path(into) / "file")
                except (Damaged, ProblemError, Unreachable) as error:
                    yield f"{file.name} of {job.job_id}: {error}"


def model_of(run: Run) -> str | None:
    """Return the hash of the model that the run made, None where it made none."""
    files = (file for job in run.jobs if job.status == "completed" for file in job.artifacts)
    return next((file.sha256 for file in files if file.name == MODEL_FILE), None)


def worker_files(worker: WorkerPart, jobs: Iterable[Job]) -> Iterator[str]:
    """Yield what lies in a worker's folder and belongs to nobody, or was begun and never finished."""
    rows = {job.job_id: job for job in jobs}
    for folder in sorted((worker.data / "jobs").glob("*")):
        job = rows.get(folder.name)
        if job is None:
            yield f"{worker.name}: no row knows the folder {folder.name}"
        elif job.status in TERMINAL:
            # What only the work needed goes when it is done.
            for name in (INPUT, CHECKPOINTS):
                yield from (f"{worker.name}: {job.job_id} has ended and keeps {path}" for path in _below(folder / name))
    yield from (f"{worker.name}: {path} was never finished" for path in _below(worker.data) if _is_draft(path))


def run_files(store: Path, run: Run) -> Iterator[str]:
    """Yield what lies in the folder of kept files for a run that has ended, and is of use to nobody."""
    kept = store / to_file_name(run.run_id)
    useful: set[Path] = set()
    for job in run.jobs:
        useful |= {kept / to_file_name(job.job_id) / to_file_name(file.name) for file in job.artifacts}
        folder = kept / to_file_name(folder_of(job.job_id))
        manifest = folder / to_file_name(MANIFEST_NAME)
        if "completed" not in (run.status, job.status) and manifest.exists():
            parts = Manifest.from_json(manifest.read_bytes()).parts()
            useful |= {manifest, *(folder / to_file_name(part.name) for part in parts)}
    for path in _below(kept):
        if _is_draft(path):
            yield f"store: {path.relative_to(store)} was never finished"
        elif path not in useful:
            yield f"store: {path.relative_to(store)} is of no use to anybody"


def _below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _is_draft(path: Path) -> bool:
    return any(name.startswith(".") or name.endswith(DRAFTS) for name in (path.name, path.parent.name))
