"""
What happened to a run, in the past tense. `core.apply` folds events into the run; `core.log` keeps them.

Every event says `at`, so that folding the log again gives the same run, to the bit.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from agent.core.model import Artifact, Job, JobState, Payment, Phase, Run, RunStatus
from agent.core.planning import Proposal, WishedHours
from agent.core.policy import SpendingPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    at: datetime
    run: Run
    kind: Literal["run_started"] = "run_started"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A planner was asked and `decide` took or refused its wish; the whole reasoning, for people."""

    at: datetime
    action: str
    reason: str
    phase: Phase
    vendor_id: str | None = None
    max_hours: WishedHours | None = None
    mode: str
    prompt: str = ""
    raw: str = ""
    fallback: bool = False
    other: Proposal | None = None
    kind: Literal["decided"] = "decided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Something was not done; `code` is a refusal of `wire.problems`."""

    at: datetime
    code: str
    detail: str
    job_id: str | None = None
    kind: Literal["refused"] = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuoted:
    at: datetime
    job: Job
    kind: Literal["job_quoted"] = "job_quoted"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed:
    """A vendor was chosen and gave no usable quote: `job` is kept as failed, so that the planner sees it."""

    at: datetime
    job: Job
    kind: Literal["attempt_failed"] = "attempt_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentReserved:
    """The budget is reserved and the cheque signed, not yet sent. `caps` is what it was held against."""

    at: datetime
    payment: Payment
    caps: SpendingPolicy | None = None
    kind: Literal["payment_reserved"] = "payment_reserved"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmissionUnanswered:
    """
    The paid request was sent and no final word came, or not `sent` for nobody could say whether it is served already.

    The money stays reserved.
    """

    at: datetime
    payment_id: str
    detail: str
    sent: bool = True
    kind: Literal["submission_unanswered"] = "submission_unanswered"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChequeRevoked:
    """The wallet asked the chain, in `transaction`, to cancel the cheque. Nothing is known before the chain says."""

    at: datetime
    payment_id: str
    transaction: str
    kind: Literal["cheque_revoked"] = "cheque_revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentSettled:
    """The chain shows the cheque cashed, in `transaction`."""

    at: datetime
    payment_id: str
    transaction: str
    kind: Literal["payment_settled"] = "payment_settled"


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentVoided:
    """The chain shows, finally, that the cheque lapsed unused or was cancelled: it was never paid, nor can be."""

    at: datetime
    payment_id: str
    detail: str
    kind: Literal["payment_voided"] = "payment_voided"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSubmitted:
    at: datetime
    job_id: str
    vendor_job_id: str
    kind: Literal["job_submitted"] = "job_submitted"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobLogged:
    """One line of the vendor's log, kept once."""

    at: datetime
    job_id: str
    line: str
    kind: Literal["job_logged"] = "job_logged"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobObserved:
    """A poll was answered: where the job is, the cursor its log was read to, the last step and its measurements."""

    at: datetime
    job_id: str
    status: Literal["submitted", "running"]
    progress: Decimal
    cursor: str | None
    step: int | None = None
    metrics: dict[str, Decimal] | None = None
    kind: Literal["job_observed"] = "job_observed"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobMissed:
    """A poll was not answered. Not failed: not known; with `gone`, the vendor said that it has no such job."""

    at: datetime
    job_id: str
    detail: str
    gone: bool = False
    kind: Literal["job_missed"] = "job_missed"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded:
    at: datetime
    job_id: str
    status: JobState
    progress: Decimal | None = None
    cost_atomic: int | None = None
    final_metrics: dict[str, Decimal] | None = None
    artifact_url: str | None = None
    error_message: str | None = None
    step: int | None = None
    metrics: dict[str, Decimal] | None = None
    kind: Literal["job_ended"] = "job_ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactsKept:
    """These files of an ended job were fetched, are what they were said to be, and are kept; `closed`: no more come."""

    at: datetime
    job_id: str
    artifacts: tuple[Artifact, ...]
    closed: bool
    kind: Literal["artifacts_kept"] = "artifacts_kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactsMissed:
    """Files of an ended job could not be had; `closed`: they are not asked for again."""

    at: datetime
    job_id: str
    detail: str
    closed: bool
    kind: Literal["artifacts_missed"] = "artifacts_missed"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundAnnounced:
    """The vendor says it sent money back. Nothing is counted before the chain shows it."""

    at: datetime
    payment_id: str
    amount_atomic: int
    transaction: str
    kind: Literal["refund_announced"] = "refund_announced"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundSettled:
    at: datetime
    payment_id: str
    amount_atomic: int
    transaction: str
    kind: Literal["refund_settled"] = "refund_settled"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    at: datetime
    status: RunStatus
    reason: str | None = None
    detail: str = ""
    kind: Literal["run_ended"] = "run_ended"


Event = (
    RunStarted
    | Decided
    | Refused
    | JobQuoted
    | AttemptFailed
    | PaymentReserved
    | SubmissionUnanswered
    | ChequeRevoked
    | PaymentSettled
    | PaymentVoided
    | JobSubmitted
    | JobLogged
    | JobObserved
    | JobMissed
    | JobEnded
    | ArtifactsKept
    | ArtifactsMissed
    | RefundAnnounced
    | RefundSettled
    | RunEnded
)


@cache
def _codec() -> TypeAdapter[Event]:
    # Built when it is first needed: it takes longer than importing all the rest of this room.
    return TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def event_document(event: Event) -> dict[str, Any]:
    """Return `event` as JSON values: decimals and times as text."""
    document: dict[str, Any] = _codec().dump_python(event, mode="json")
    return document


def event_from(document: dict[str, Any]) -> Event:
    """Return the event that `event_document` wrote."""
    return _codec().validate_python(document, strict=False)
