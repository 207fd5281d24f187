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

Text = Annotated[str, StringConstraints(max_length=4_096)]
Id = Annotated[str, StringConstraints(min_length=1, max_length=256)]
VendorJobStatus = Literal["submitted", "running", "completed", "failed", "cancelled"]


class Offer(Body):
    """One GPU type in a vendor's catalogue; `price_per_hour` in `currency`, `asset` and `pay_to` on `network`."""

    gpu_type: Id
    price_per_hour: DecimalNumber
    currency: Id
    asset: Id
    network: Id
    pay_to: Id
    vram_gb: int | None = None
    available: int = Field(ge=0)


class OffersReply(Body):
    vendor_id: Id
    name: Text
    offers: Many[Offer]


class QuoteRequest(Body):
    job_type: Id
    gpu_type: Id
    max_hours: DecimalNumber = Field(gt=0, le=10_000)
    job_metadata: Entries[Any] | None = None


class Quote(Body):
    vendor_job_template_id: Id
    price_estimate: DecimalNumber
    currency: Id
    eta_minutes: DecimalNumber


class SubmitRequest(Body):
    """`max_hours` is the longest that the job may live: the vendor ends it then, whether anybody asks or not."""

    vendor_job_template_id: Id
    job_params: Entries[Any] = Field(default_factory=dict)
    max_hours: DecimalNumber | None = Field(None, gt=0, le=10_000)
    callback_url: Text | None = None


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
    """`logs` are the lines since the cursor that was sent; `cursor` is what to send next."""

    vendor_job_id: Id
    status: VendorJobStatus
    progress: DecimalNumber = Field(ge=0, le=1)
    logs: Many[Text] = ()
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
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    url: Text


class ArtifactsReply(Body):
    artifacts: Many[Artifact]


class VendorHealth(Body):
    status: Literal["ok"] = "ok"
    vendors: Many[Id] = ()


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
