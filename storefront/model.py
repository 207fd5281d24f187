"""
What every seller has in common: who sells, what was quoted, what was sold, and how it stands.

Amounts are atomic units of the vendor's asset, times Unix seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from pydantic import SecretStr

from wire.money import Asset
from wire.vendor import CheckpointSeen, MetricPoint, VendorJobStatus

TERMINAL: tuple[VendorJobStatus, ...] = ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """Who sells: `secret` is the buyers' bearer, `pay_to` the address that is paid and that pays refunds."""

    vendor_id: str
    name: str
    secret: SecretStr
    pay_to: str
    asset: Asset


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """
    What a job would cost here and take, before it is quoted.

    `moves`: it can go on at another vendor after this one was lost; None: nothing is known of that here.
    `terms_json` is the seller's own: what it must remember of the request until the job is paid.
    """

    price_atomic: int
    eta_minutes: Decimal
    moves: bool | None = None
    notes: tuple[str, ...] = ()
    terms_json: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A quote that was given, and what it binds the vendor to."""

    template_id: str
    vendor_id: str
    gpu_type: str
    hours: Decimal
    price_atomic: int
    job_type: str = ""
    terms_json: str = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sold:
    """
    A paid job, as far as the shop knows it; a seller's own job has more.

    `refund_atomic` is owed to the payer from the moment the job ends; `refund_transaction` pays it.
    `callback_url` is where the buyer wants to be called at the end; done is what was accepted or given up.
    `ends_by_s` is when the job is ended by itself: its hours are used up. It never moves.
    """

    job_id: str
    vendor_id: str
    payment_id: str
    gpu_type: str
    hours: Decimal
    price_atomic: int
    started_at_s: int
    ends_by_s: int | None = None
    status: VendorJobStatus = "submitted"
    ended_at_s: int | None = None
    refund_atomic: int = 0
    refund_transaction: str | None = None
    callback_url: str | None = None
    is_callback_done: bool = False


def is_owed(job: Sold) -> bool:
    """Return whether an ended job's refund is still to be paid."""
    return job.status in TERMINAL and job.refund_atomic > 0 and job.refund_transaction is None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusView:
    """
    What a status says besides what `Sold` has: `logs` and `metrics` since the cursor that was asked from.

    `cursor` is what to ask from next. `artifact` names the file that is the job's result, None while there is none.
    `cost_atomic` plus the refund is the price, once the job has ended.
    """

    progress: Decimal
    cursor: str
    cost_atomic: int
    logs: tuple[str, ...] = ()
    metrics: tuple[MetricPoint, ...] = ()
    checkpoint: CheckpointSeen | None = None
    remaining_minutes: Decimal | None = None
    final_metrics: Mapping[str, Decimal] | None = None
    artifact: str | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """A file of an ended job. `sha256` is lower-case hex."""

    name: str
    bytes: int
    sha256: str
