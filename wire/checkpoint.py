"""
A checkpoint as it lies in a folder and as it is pushed: the manifest comes last, so what is visible is whole.

In the job's own folder a file has no parts. Pushed, each file is cut into parts, which are the names that the buyer's
store keeps; joined in their order they are the file. A part's name never comes again with other bytes.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import FailFast, Field, StringConstraints

from wire.model import Body, Instant
from wire.vendor import BYTES_MAX, STEPS_MAX, CheckpointDescription, Id, Sha256

# The name of the manifest of the newest checkpoint that was pushed.
MANIFEST_NAME = "checkpoint.json"
MANIFEST_BYTES_MAX = 1024 * 1024
PART_BYTES_MAX = 4 * 1024 * 1024  # below what Lambda and Vercel take in one body
FILES_MAX = 64
PARTS_MAX = 2_000

# Names of files and parts are ours: plain, so that no store and no disk reads them as anything else.
PlainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,119}$")]


class Part(Body):
    name: PlainName
    bytes: int = Field(ge=1, le=PART_BYTES_MAX)
    sha256: Sha256


class CheckpointFile(Body):
    """One file of a checkpoint; `sha256` is of the whole."""

    name: PlainName
    bytes: int = Field(ge=0, le=BYTES_MAX)
    sha256: Sha256
    parts: Annotated[tuple[Part, ...], FailFast(), Field(max_length=PARTS_MAX)] = ()


class Manifest(Body):
    """What a checkpoint is: of which job, model and work (`wire.jobs.spec_hash`), how far, in which files."""

    format: Literal[1] = 1
    job_id: Id
    step: int = Field(ge=0, le=STEPS_MAX)
    steps: int = Field(ge=1, le=STEPS_MAX)
    model_hash: Sha256
    spec_hash: Sha256
    created_at: Instant
    files: Annotated[tuple[CheckpointFile, ...], FailFast(), Field(max_length=FILES_MAX)]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    def parts(self) -> Iterator[Part]:
        """Yield every part of every file."""
        return (part for file in self.files for part in file.parts)

    def description(self) -> CheckpointDescription:
        return CheckpointDescription(
            model_hash=self.model_hash, spec_hash=self.spec_hash, step=self.step, steps=self.steps, bytes=self.bytes
        )


def wrong_manifest(manifest: Manifest, *, pushed: bool) -> str | None:
    """Return what is wrong with `manifest`, None for one whose sums are right. A `pushed` one has its parts."""
    if not manifest.files:
        return "it has no files"
    names = [file.name for file in manifest.files] + [part.name for part in manifest.parts()]
    if len(set(names)) != len(names) or MANIFEST_NAME in names:
        return "a name stands twice"
    if manifest.step > manifest.steps:
        return "it has more steps than there are"
    if len([*manifest.parts()]) > PARTS_MAX:
        return f"it has more than {PARTS_MAX} parts"
    for file in manifest.files:
        if (pushed or file.parts) and sum(part.bytes for part in file.parts) != file.bytes:
            return f"the parts of {file.name} are not as long as it is"
    return None


def misfit(found: CheckpointDescription, *, model_hash: str, spec_hash: str) -> str | None:
    """Return why work of these hashes cannot go on from `found`, None where it can."""
    if found.model_hash != model_hash:
        return f"the checkpoint is of the model {found.model_hash[:12]}, this job trains {model_hash[:12]}"
    if found.spec_hash != spec_hash:
        return f"the checkpoint is of the work {found.spec_hash[:12]}, this job is {spec_hash[:12]}"
    return None
