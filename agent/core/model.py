"""
What a run is: frozen values, amounts in atomic units of the run's one asset, times aware and UTC.

A run owns its jobs and payments; a store may keep them in collections of their own.
"""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from wire.money import Asset

RunStatus = Literal["pending", "running", "awaiting_approval", "completed", "failed", "cancelled"]
Phase = Literal["planning", "executing", "waiting", "done"]
JobState = Literal["quoted", "submitted", "running", "completed", "failed", "cancelled"]
PaymentState = Literal["pending", "unknown", "completed", "failed", "refunded"]
# How a payment is written on its way to the seller: x402 version 2, version 1, or a vendor's own spelling of one.
Dialect = Literal["x402-v2", "x402-v1"]
EntryType = Literal["agent_reasoning", "job_log", "error", "metric", "payment_event", "event", "tick"]

# The lines a person reads; "event" and "tick" are kept for replay and proof.
OBSERVATION_TYPES = ("agent_reasoning", "job_log", "error", "metric", "payment_event")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """spent + reserved + available == total, always; `core.ledger` makes every move."""

    total_atomic: int
    available_atomic: int
    reserved_atomic: int = 0
    spent_atomic: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What the owner of the run wants done. `kind` is the vendor API's jobType."""

    kind: str = "fine_tune"
    gpu_type: str | None = None
    min_vram_gb: int | None = None
    max_hours: Decimal | None = None
    count: int = 1
    model: str | None = None
    dataset: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPrice:
    """What an hour of `gpu_type` costs."""

    gpu_type: str
    per_hour_atomic: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """
    A registered seller. `pay_to` is the only address it is ever paid at.

    `prices` are those of its GPU types, and `base_price_per_hour_atomic` is the lowest; a record may be without them.
    """

    vendor_id: str
    name: str
    endpoint: str
    pay_to: str
    asset: str
    network: str
    base_price_per_hour_atomic: int
    reliability_score: Decimal
    supported_gpu_types: tuple[str, ...]
    created_at: datetime
    updated_at: datetime
    prices: tuple[GpuPrice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one paid or refused job of a vendor ended: `succeeded`, or failed by the vendor's fault."""

    vendor_id: str
    gpu_type: str
    succeeded: bool
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """
    How the jobs of one vendor on one GPU type have ended, over every run.

    `completed` and `failed` are counts with three decimals that fade with age (`core.standing`), as of `updated_at`.
    """

    vendor_id: str
    gpu_type: str
    completed: Decimal
    failed: Decimal
    updated_at: datetime
    last_failed_at: datetime | None = None
    failed_in_a_row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """
    One thing that happened to a run, to be told outside at least once (an outbox row).

    `notice_id` is the same at every attempt; `payload` is the JSON body to send.
    """

    notice_id: str
    run_id: str
    kind: str
    payload: str
    created_at: datetime
    attempts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One file of a job, as it was fetched, hash-checked and kept."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """
    The newest whole checkpoint of `job_id` that the run's files hold: `step` of `steps` are done.

    `model_hash` and `spec_hash` say what it fits (`wire.checkpoint`), `sha256` is of its manifest.
    """

    job_id: str
    step: int
    steps: int
    bytes: int
    model_hash: str
    spec_hash: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """
    One rented execution. `cursor` is where its log was last read, `log_lines` how many lines of it are kept.

    `polls` has a mark for each of the last ones (`core.evidence`), `missed_since` is the first that failed in a row.
    `slot` is which of the run's `count` pieces of work it does, None in runs of before there were slots. It went on
    from `checkpoint`, which the job `resumes` left; `hedges` is the job that it is to overtake. `step` is the last one
    that its vendor told of, `moves` whether the vendor said that the work can go on elsewhere.
    """

    job_id: str
    vendor_id: str
    status: JobState
    gpu_type: str
    hours: Decimal
    template_id: str
    expected_cost_atomic: int
    expected_duration_minutes: Decimal
    job_params: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    vendor_job_id: str | None = None
    submitted_at: datetime | None = None
    progress: Decimal = Decimal(0)
    cursor: str | None = None
    log_lines: int = 0
    actual_cost_atomic: int | None = None
    final_metrics: dict[str, Decimal] | None = None
    artifact_url: str | None = None
    error_message: str | None = None
    polls: str = ""
    missed_since: datetime | None = None
    completed_at: datetime | None = None
    artifacts: tuple[Artifact, ...] = ()
    artifact_misses: int = 0
    artifacts_closed_at: datetime | None = None
    slot: int | None = None
    resumes: str | None = None
    hedges: str | None = None
    checkpoint: Checkpoint | None = None
    moves: bool | None = None
    step: int | None = None
    latest_metrics: dict[str, Decimal] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundClaim:
    """A refund the vendor announced; counted only when the chain shows it."""

    amount_atomic: int
    transaction: str
    announced_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """
    One signed cheque: the exact bytes to send, and what became of them.

    `request` and `header` are the body and the payment header of POST /submit-job, sent again unchanged
    until the outcome is known; `dialect` says which header it is. `from_block` is the chain's head when it was signed.
    `revoked_in` is the transaction that asks the chain to cancel the cheque; the seller may be faster.
    """

    payment_id: str
    job_id: str
    vendor_id: str
    amount_atomic: int
    asset: str
    network: str
    pay_to: str
    payer: str
    nonce: str
    valid_before_s: int
    from_block: int
    request: str
    header: str
    status: PaymentState
    created_at: datetime
    updated_at: datetime
    dialect: Dialect = "x402-v2"
    sends: int = 0
    transaction: str | None = None
    refund: RefundClaim | None = None
    refunded_atomic: int = 0
    error_message: str | None = None
    revoked_in: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogHead:
    """The end of the run's log: how many entries, and the hash that chains them."""

    seq: int = 0
    hash: str = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of a run's append-only log; `hash` covers `previous` and everything else."""

    run_id: str
    seq: int
    type: EntryType
    content: str
    data: dict[str, Any]
    timestamp: datetime
    previous: str
    hash: str
    job_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One goal, one budget. `reason` says why it ended, a code of `wire.problems.REFUSALS` or None."""

    run_id: str
    user_id: str
    goal: str
    asset: Asset
    budget: Budget
    job: JobSpec
    status: RunStatus
    phase: Phase
    created_at: datetime
    updated_at: datetime
    deadline: datetime | None = None
    price_per_hour_atomic_max: int | None = None
    reason: str | None = None
    jobs: tuple[Job, ...] = ()
    payments: tuple[Payment, ...] = ()
    log: LogHead = LogHead()
    completed_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    next_tick_at: datetime | None = None
