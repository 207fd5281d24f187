"""
The control plane's API: bodies of start, tick, status, runs and cancel. Money is decimal JSON numbers.
"""

from datetime import datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from pydantic import FailFast, Field, StringConstraints

from wire.decimal_json import DecimalNumber
from wire.model import Body, Entries, Instant, JsonObject, Many, Metrics
from wire.money import HOURS_STEP

# Several times the jobs that the largest run may complete and fail.
JOBS_MAX = 10_000

Label = Annotated[str, StringConstraints(min_length=1, max_length=200)]

# A URL, or `input:` and the SHA-256 of what was uploaded with PUT /api/agent-input.
Source = Annotated[str, StringConstraints(min_length=1, max_length=2_048)]
Goal = Annotated[str, StringConstraints(min_length=1, max_length=4_000)]


class JobRequest(Body):
    """What to rent. `kind` is the vendor API's jobType; the rest reaches the vendor as metadata and parameters."""

    kind: Label = "fine_tune"
    gpu_type: Label | None = None
    min_vram_gb: int | None = Field(None, ge=1, le=10_000)
    max_hours: DecimalNumber | None = Field(None, ge=HOURS_STEP, le=10_000)
    count: int = Field(1, ge=1, le=100)
    model: Label | None = None
    dataset: Source | None = None
    params: JsonObject = Field(default_factory=dict)
    env: Entries[str] = Field(default_factory=dict)


class StartRequest(Body):
    """POST /api/agent-start. Amounts are in the wallet's asset (USDC)."""

    goal: Goal
    budget_total: DecimalNumber
    user_id: Label = "local"
    job: JobRequest = JobRequest()
    deadline: Instant | None = None
    max_price_per_hour: DecimalNumber | None = None


class TickRequest(Body):
    """POST /api/agent-tick; a run that is not named here is named in the query."""

    run_id: str | None = None


class RunIdRequest(Body):
    """POST /api/agent-cancel. What cannot be an id is an unknown id."""

    run_id: str


class CostDocument(Body):
    """
    What one job cost: piece `slot` of the run's work, from `step` to `to_step`, where the vendor counts steps.

    `paid` less `refunded`, over all jobs, is what the run has spent.
    """

    slot: int | None = None
    job_id: str
    vendor_id: str
    paid: DecimalNumber
    refunded: DecimalNumber
    step: int | None = None
    to_step: int | None = None


class RunDocument(Body):
    """`costs` are of the jobs that were paid for, in the order of their payments."""

    id: str = Field(alias="_id")
    user_id: str
    goal: str
    budget_total: DecimalNumber
    budget_remaining: DecimalNumber
    budget_reserved: DecimalNumber
    budget_spent: DecimalNumber
    currency: str
    asset: str
    network: str
    status: str
    phase: str
    reason: str | None = None
    job: JobRequest
    deadline: datetime | None = None
    max_price_per_hour: DecimalNumber | None = None
    cancel_requested_at: datetime | None = None
    next_tick_at: datetime | None = None
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None = None
    costs: Annotated[tuple[CostDocument, ...], FailFast(), Field(max_length=JOBS_MAX)] = ()


class ArtifactDocument(Body):
    """A file of an ended job that is kept; `url` is where this control plane serves it."""

    name: str
    bytes: int
    sha256: str
    url: str


class JobDocument(Body):
    """
    `artifact_url` is what the vendor said; `artifacts` are the files that were fetched, checked and kept.

    `slot` is which of the run's `count` pieces of work it does. `resumes` is the job whose checkpoint it went on from,
    `hedges` the one that it was to overtake.
    """

    id: str = Field(alias="_id")
    run_id: str
    vendor_id: str
    vendor_job_id: str | None = None
    status: str
    gpu_type: str
    hours: DecimalNumber
    progress: DecimalNumber
    expected_cost: DecimalNumber
    expected_duration_minutes: DecimalNumber
    actual_cost: DecimalNumber | None = None
    slot: int | None = None
    resumes: str | None = None
    hedges: str | None = None
    latest_metrics: Metrics | None = None
    final_metrics: Metrics | None = None
    artifact_url: str | None = None
    artifacts: Many[ArtifactDocument] = ()
    error_message: str | None = None
    job_params: Entries[Any]
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None = None


class PaymentDocument(Body):
    """
    `x402_tx_id` is the settlement's transaction, there only once the chain shows it; `dialect` is how it was asked for.
    """

    id: str = Field(alias="_id")
    run_id: str
    job_id: str
    vendor_id: str
    amount: DecimalNumber
    currency: str
    asset: str
    network: str
    payer: str
    pay_to: str
    dialect: str
    status: str
    x402_tx_id: str | None = Field(None, alias="x402TxId")
    refunded: DecimalNumber
    refund_tx_id: str | None = None
    error_message: str | None = None
    created_at: datetime
    updated_at: datetime


class ObservationDocument(Body):
    run_id: str
    seq: int
    job_id: str | None = None
    type: str
    content: str
    timestamp: datetime


class StatusReply(Body):
    """GET /api/agent-status: jobs and payments newest first, the 50 newest observations newest first."""

    run: RunDocument
    jobs: Annotated[tuple[JobDocument, ...], FailFast(), Field(max_length=JOBS_MAX)]
    payments: Annotated[tuple[PaymentDocument, ...], FailFast(), Field(max_length=JOBS_MAX)]
    observations: Many[ObservationDocument]


class ActionDocument(Body):
    action: Literal["start_job", "wait", "abort"]
    vendor_id: str | None = None
    max_hours: DecimalNumber | None = None
    reason: str


class TickReply(Body):
    """POST /api/agent-tick; `action` is null when nothing was decided."""

    message: str
    action: ActionDocument | None = None
    next_tick_at: datetime | None = None

    def document(self) -> dict[str, Any]:
        return {"action": None, **super().document()}


class CallbackReply(Body):
    """POST /api/vendor-callback, whatever the body said."""

    status: Literal["ok"] = "ok"


def callback_url(base_url: str, run_id: str) -> str:
    """Return where vendors call for a run of the control plane that they reach at `base_url`."""
    return f"{base_url}/api/vendor-callback?{urlencode({'runId': run_id})}"


def files_url(base_url: str, run_id: str, job_id: str) -> str:
    """Return where a job of a run leaves its files, at the control plane that is reached at `base_url`."""
    return f"{base_url}/api/agent-files/{quote(run_id, safe='')}/{quote(job_id, safe='')}"


class FileReply(Body):
    """PUT /api/agent-files: what is kept by now."""

    name: str
    bytes: int
    sha256: str


class InputReply(Body):
    """PUT /api/agent-input: `is_whole` once every part is there; a run may then name it as its dataset."""

    sha256: str
    bytes: int
    is_whole: bool


class SweptDocument(Body):
    """`message` is a tick's, or says why there was none."""

    run_id: str
    message: str


class OrphansDocument(Body):
    """
    Jobs that vendors worked on and no run wanted: `cancelled` now, after `minutes` in all, or `left` for next time.

    `unknown` are jobs that were bought with our secret for runs that this store does not know; they are left alone.
    """

    cancelled: int
    minutes: DecimalNumber
    left: int
    unknown: int


class SweepReply(Body):
    """
    GET and POST /api/agent-sweep; `more`: due runs were left for the next sweep.

    `orphans` is absent where there were none, or where vendors were asked for them a moment ago.
    """

    swept: Many[SweptDocument]
    more: bool
    orphans: OrphansDocument | None = None


class RunsReply(Body):
    runs: Many[RunDocument]
    cursor: str | None = None


class HealthReply(Body):
    """`payments` is "on" where a wallet is configured, else "off"; `planner` is the planner's mode."""

    status: Literal["ok"] = "ok"
    version: str
    store: str
    payments: Literal["on", "off"]
    planner: str
