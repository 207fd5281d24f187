"""What a mock pushes to its buyer's store and goes on from: a checkpoint whose weights are a few bytes."""

import hashlib
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from outbound.http import HttpClient, OutboundError
from vendor_mock.simulation import EPOCHS, Job
from wire import decimal_json
from wire.checkpoint import MANIFEST_BYTES_MAX, MANIFEST_NAME, CheckpointFile, Manifest, Part
from wire.vendor import CheckpointSeen, FilesGrant, ResumeFrom

TIMEOUT_S = 30.0
CONTENT_HASH_HEADER = "x-content-sha256"
_LOG = logging.getLogger("livery.vendor_mock")


def hashes(job_params: Mapping[str, Any]) -> tuple[str, str]:
    """Return the hash of the model and of the work that `job_params` ask for, the same at every mock."""
    work = {name: job_params.get(name) for name in ("params", "dataset", "index")}
    model = str(job_params.get("model")).encode()
    return hashlib.sha256(model).hexdigest(), hashlib.sha256(decimal_json.dumps(work, sort_keys=True)).hexdigest()


async def push(http: HttpClient, job: Job, epoch: int, now_s: float) -> CheckpointSeen | None:
    """Return what the buyer's store now has of `epoch`, None where it does not take it."""
    assert job.files is not None
    content = f"{job.job_id} epoch {epoch}".encode()
    seen_at = datetime.fromtimestamp(int(now_s), UTC)
    part = Part(name=f"{epoch}-model.safetensors.0", bytes=len(content), sha256=_sha256(content))
    file = CheckpointFile(name="model.safetensors", bytes=part.bytes, sha256=part.sha256, parts=(part,))
    manifest = Manifest(
        job_id=job.job_id,
        step=epoch,
        steps=EPOCHS,
        model_hash=job.model_hash,
        spec_hash=job.spec_hash,
        created_at=seen_at,
        files=(file,),
    )
    for name, body in ((part.name, content), (MANIFEST_NAME, manifest.to_json())):
        if not await _put(http, job.files, name, body):
            return None
    return CheckpointSeen(**manifest.description().model_dump(), at=seen_at)


async def is_there(http: HttpClient, files: FilesGrant, resume: ResumeFrom) -> bool:
    """Return whether the buyer's store has the manifest that `resume` names."""
    try:
        reply = await http.request(
            "GET",
            f"{resume.url}/{MANIFEST_NAME}",
            headers={"authorization": f"Bearer {files.token}"},
            content=None,
            timeout_s=TIMEOUT_S,
            body_bytes_max=MANIFEST_BYTES_MAX,
        )
    except OutboundError as error:
        _LOG.warning("no checkpoint to go on from: %s", error)
        return False
    return reply.status == 200 and _sha256(reply.content) == resume.manifest_sha256


async def _put(http: HttpClient, files: FilesGrant, name: str, body: bytes) -> bool:
    headers = {
        "authorization": f"Bearer {files.token}",
        "content-type": "application/octet-stream",
        CONTENT_HASH_HEADER: _sha256(body),
    }
    try:
        reply = await http.request(
            "PUT",
            f"{files.url}/{name}",
            headers=headers,
            content=body,
            timeout_s=TIMEOUT_S,
            body_bytes_max=MANIFEST_BYTES_MAX,
        )
    except OutboundError as error:
        _LOG.warning("no checkpoint was pushed: %s", error)
        return False
    if not 200 <= reply.status < 300:
        _LOG.warning("no checkpoint was pushed: %s answered %s", name, reply.status)
    return 200 <= reply.status < 300


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
