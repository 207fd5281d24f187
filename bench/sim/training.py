"""
The work of a simulated job: steps, checkpoints in the run's files, and where it goes on from.

A vendor pushes by itself, as time goes by; what it pushes is a manifest alone, which is all that the agent reads.
"""

from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from urllib.parse import unquote

from agent.checkpoints import folder_of
from bench.sim.books import STEPS, Job
from wire.checkpoint import MANIFEST_NAME, CheckpointFile, Manifest, Part
from wire.vendor import FilesGrant, ResumeFrom, SubmitRequest

MODEL_HASH = "aa" * 32
EMPTY_HASH = "bb" * 32


@dataclass
class Files:
    """The files of every run, by run, folder and name."""

    kept: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    _ever: set[str] = field(default_factory=set)

    def push(self, grant: FilesGrant, manifest: Manifest) -> None:
        run_id, job_id = (unquote(part) for part in grant.url.rsplit("/", 2)[1:])
        content = manifest.to_json()
        self.kept[run_id, folder_of(job_id), MANIFEST_NAME] = content
        self._ever.add(sha256(content).hexdigest())

    def holds(self, resume: ResumeFrom) -> bool:
        """Return whether the checkpoint was ever pushed: the door keeps it for who goes on from it."""
        return resume.manifest_sha256 in self._ever


def manifest_of(job: Job, step: int, index: int) -> Manifest:
    """Return the manifest of `job` after `step`: its work is known by its place among those of the run."""
    part = Part(name=f"part-{step}", bytes=1, sha256=EMPTY_HASH)
    return Manifest(
        job_id=job.vendor_job_id,
        step=step,
        steps=STEPS,
        model_hash=MODEL_HASH,
        spec_hash=f"{index:064x}",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        files=(CheckpointFile(name="model.safetensors", bytes=1, sha256=EMPTY_HASH, parts=(part,)),),
    )


def index_of(request: SubmitRequest) -> int:
    return int(request.job_params.get("index", 0))
