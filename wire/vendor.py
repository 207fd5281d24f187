"""
The vendor API: every body between somebody who rents GPUs and somebody who sells them.

`docs/vendor-api.md` describes it for a vendor who wants to join.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from wire.decimal_json import DecimalNumber
from wire.model import Body, Entries, Instant, Many, Metrics

VENDOR_ID_HEADER = "x-vendor-id"
IDEMPOTENCY_KEY_HEADER = "idempotency-key"

STEPS_MAX = 10_000_000
BYTES_MAX = 2**53 - 1  # what every JSON reader holds exactly

Text = Annotated[str, StringConstraints(max_length=4_096)]
Id = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
VendorJobStatus = Literal["submitted", "running", "completed", "failed", "cancelled"]
WorkerState = Literal["probing", "registering", "loading", "measuring", "online", "draining", "gone"]


class CheckpointDescription(Body):
    """
    A checkpoint, by what it fits: `model_hash` of the model that is trained, `spec_hash` of the work (`wire.jobs`).

    `step` of `steps` are done; the whole has `bytes`.
    """

    model_hash: Sha256
    spec_hash: Sha256
    step: int = Field(ge=0, le=STEPS_MAX)
    steps: int = Field(ge=1, le=STEPS_MAX)
    bytes: int = Field(ge=0, le=BYTES_MAX)


class CheckpointSeen(CheckpointDescription):
    """The newest checkpoint that the buyer's store has whole, since `at`."""

    at: Instant


class ResumeFrom(CheckpointDescription):
    """Where the job goes on: `url` is the folder of the files, whose manifest has the hash `manifest_sha256`."""

    url: Text
    manifest_sha256: Sha256


class FilesGrant(Body):
    """
    Where the job's files are put and fetched: `PUT` and `GET {url}/{name}` with `Authorization: Bearer {token}`.

    One body has at most `part_bytes_max`. What a job goes on from, and its input, are read with the same token.
    """

    url: Text
    token: Annotated[str, StringConstraints(min_length=16, max_length=256)] = Field(repr=False)
    part_bytes_max: int = Field(ge=1, le=BYTES_MAX)


class MetricPoint(Body):
    """What was measured at a step of the work, by name: `loss`, `eval_loss`, `learning_rate`, `tokens_per_second`."""

    step: int = Field(ge=0, le=STEPS_MAX)
    values: Metrics


class Offer(Body):
    """
    One GPU type in a vendor's catalogue; `price_per_hour` in `currency`, `asset` and `pay_to` on `network`.

    `job_types` are those that it is rented for, none named: ask. `benchmark_tok_per_sec` was measured on it.
    """

    gpu_type: Id
    price_per_hour: DecimalNumber
    currency: Id
    asset: Id
    network: Id
    pay_to: Id
    vram_gb: int | None = None
    available: int = Field(ge=0)
    job_types: Many[Id] = ()
    benchmark_tok_per_sec: DecimalNumber | None = Field(None, ge=0)


class OffersReply(Body):
    vendor_id: Id
    name: Text
    offers: Many[Offer]


class QuoteRequest(Body):
    """`has_files`: the submission will say where the job's files go. `resume` is what it would go on from."""

    job_type: Id
    gpu_type: Id
    max_hours: DecimalNumber = Field(gt=0, le=10_000)
    job_metadata: Entries[Any] | None = None
    has_files: bool | None = None
    resume: CheckpointDescription | None = None


class Quote(Body):
    """`moves`: after the loss of this vendor the job can go on at another one. `notes` are for people."""

    vendor_job_template_id: Id
    price_estimate: DecimalNumber
    currency: Id
    eta_minutes: DecimalNumber
    moves: bool | None = None
    notes: Many[Text] = ()


class SubmitRequest(Body):
    """`max_hours` is the longest that the job may live: the vendor ends it then, whether anybody asks or not."""

    vendor_job_template_id: Id
    job_params: Entries[Any] = Field(default_factory=dict)
    max_hours: DecimalNumber | None = Field(None, gt=0, le=10_000)
    callback_url: Text | None = None
    files: FilesGrant | None = None
    resume: ResumeFrom | None = None


class SubmitReply(Body):
    vendor_job_id: Id
    status: VendorJobStatus
    payment_tx_id: Text | None = None


class Refund(Body):
    """A token transfer from the vendor's payTo to the payer; `transaction` is its hash."""

    amount: DecimalNumber
    asset: Id
    network: Id
    transaction: Id


class JobStatus(Body):
    """`logs` are the lines and `metrics` the points since the cursor that was sent; `cursor` is what to send next."""

    vendor_job_id: Id
    status: VendorJobStatus
    progress: DecimalNumber = Field(ge=0, le=1)
    logs: Many[Text] = ()
    metrics: Many[MetricPoint] = ()
    checkpoint: CheckpointSeen | None = None
    cursor: Id
    estimated_remaining_minutes: DecimalNumber | None = None
    cost_so_far: DecimalNumber = Field(ge=0)
    final_metrics: Metrics | None = None
    artifact_url: Text | None = None
    error_message: Text | None = None
    ended_at: Instant | None = None
    refund: Refund | None = None


class CancelRequest(Body):
    """`since` is the `cursor` of an earlier status: only later lines are answered."""

    vendor_job_id: Id
    since: Id | None = None


class JobFound(Body):
    """`payment_id` is the key that the job was bought under."""

    vendor_job_id: Id
    status: VendorJobStatus
    payment_id: Id | None = None
    started_at: Instant | None = None


class JobsReply(Body):
    """`cursor` is what to send as `after` for more, absent on the last page."""

    jobs: Many[JobFound]
    cursor: Id | None = None


class Artifact(Body):
    name: Id
    bytes: int = Field(ge=0)
    sha256: Sha256
    url: Text


class ArtifactsReply(Body):
    artifacts: Many[Artifact]


class VendorHealth(Body):
    status: Literal["ok"] = "ok"
    vendors: Many[Id] = ()


class ServedLayers(Body):
    """Layers `start` to `end` of the `total` of a model, `end` not included."""

    start: int
    end: int
    total: int


class WorkerHealth(VendorHealth):
    """
    The health of a worker that sells its own machine, a draining one's too; `uptime` is seconds.

    `mode` is jobs, or with layers of a model single (all of them) or pipeline; `status` is loading until they are
    there.
    """

    status: Literal["ok", "loading"] = "ok"  # type: ignore[assignment]
    state: WorkerState
    mode: Id
    layers: ServedLayers | None = None
    uptime: DecimalNumber = Field(ge=0)
    model: Text | None = None
    address: Id | None = None
    benchmark_tok_per_sec: DecimalNumber | None = Field(None, ge=0)


def secret_for(vendor_id: str, secrets: str) -> str | None:
    """Return the bearer secret of `vendor_id`, None where `secrets` has none for it; of several the last."""
    return (None, *secrets_for(vendor_id, secrets))[-1]


def secrets_for(vendor_id: str, secrets: str) -> tuple[str, ...]:
    """
    Return every secret of `vendor_id`: while one replaces another, both sign.

    `secrets` is either one secret for every vendor, or pairs `vendor=secret,vendor=secret`.
    An `=` at the end is the padding of a base64 secret, not a pair.
    """
    if "=" not in secrets.rstrip("="):
        return (secrets,) if secrets else ()
    pairs = [pair.strip().split("=", 1) for pair in secrets.split(",") if "=" in pair]
    return tuple(secret for name, secret in pairs if name == vendor_id and secret)
