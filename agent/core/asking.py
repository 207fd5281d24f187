"""
What a language model is asked about vendors, and how its answer is read.

It sees labels minted for one question and numbers, and it answers with one of the labels. No text of anybody is in the
prompt (no goal, name, id, address, log line or error), so nobody can speak to the model through it, and whatever it
answers, it can name neither a price nor an address: those stay in the records that the label stands for.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from pydantic import ValidationError

from agent.core.bandit import Candidate
from agent.core.model import Run
from agent.core.planning import Question
from wire import decimal_json
from wire.decimal_json import DecimalNumber
from wire.model import Body, first_error
from wire.money import HOURS_STEP, to_decimal

CANDIDATES_MAX = 16
PAST_JOBS_MAX = 20
ANSWER_CHARS_MAX = 8_000
REASON_CHARS_MAX = 300
NOBODY = "none"

SYSTEM = (
    "You are a careful planner. You rent GPUs from vendors within a budget, one job at a time. "
    "Each vendor is known to you by a label and by numbers only. "
    "Choose the vendor from whom a finished job can be expected to cost least, all in all."
)
_THOUSANDTH = Decimal("0.001")
_FENCE = re.compile(r"\A[^`]*```(?:json|JSON)?\s*\n(?P<inside>[^`]*)```[^`]*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question as it is put: `labels` says what each label of it stands for."""

    user: str
    labels: Mapping[str, Candidate]
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A readable answer. `candidate` is None where the model would wait or abort; `reason` is for people alone."""

    action: Literal["start_job", "wait", "abort"]
    candidate: Candidate | None
    reason: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why an answer is refused. `formed`: it kept to the form, only what it says cannot be."""

    problem: str
    formed: bool = False


class _Said(Body):
    action: Literal["start_job", "wait", "abort"]
    vendor_id: str | None = None
    max_hours: DecimalNumber | None = None
    reason: str = ""


def put(question: Question, candidates: Sequence[Candidate]) -> Asked:
    """Return what to ask about the first CANDIDATES_MAX of `candidates`; the same question is put the same way."""
    run = question.run
    salt = f"{run.run_id}|{question.now.isoformat()}"
    # Neither the order of the vendors nor anything else about them shows in their labels.
    mixed = sorted(candidates[:CANDIDATES_MAX], key=lambda candidate: _shuffled(salt, candidate))
    labels = {f"v{number}": candidate for number, candidate in enumerate(mixed, start=1)}
    facts = {
        "remainingBudget": to_decimal(run.budget.available_atomic, run.asset),
        "vendors": [_vendor(run, label, candidate) for label, candidate in labels.items()],
        "pastJobs": _past_jobs(run, labels),
        "payments": len(run.payments),
    }
    user = f"{decimal_json.dumps(facts).decode()}\n{_constraints(labels)}"
    return Asked(user=user, labels=labels, schema=_schema(labels))


def _shuffled(salt: str, candidate: Candidate) -> bytes:
    return hashlib.sha256(f"{salt}|{candidate.vendor_id}|{candidate.gpu_type}".encode()).digest()


def _vendor(run: Run, label: str, candidate: Candidate) -> dict[str, Any]:
    return {
        "id": label,
        "pricePerHour": to_decimal(candidate.price_per_hour_atomic, run.asset),
        "maxHours": candidate.hours,
        "reliability": {
            "mean": _rounded(candidate.mean),
            "low": _rounded(candidate.low),
            "high": _rounded(candidate.high),
        },
        "jobsCompleted": _rounded(candidate.completed),
        "jobsFailed": _rounded(candidate.failed),
        "expectedCostPerFinishedJob": to_decimal(candidate.cost_atomic, run.asset),
    }


def _past_jobs(run: Run, labels: Mapping[str, Candidate]) -> list[dict[str, Any]]:
    by_vendor = {candidate.vendor_id: label for label, candidate in labels.items()}
    return [
        {
            "vendor": by_vendor.get(job.vendor_id, "other"),
            "status": job.status,
            "expected": to_decimal(job.expected_cost_atomic, run.asset),
            "actual": None if job.actual_cost_atomic is None else to_decimal(job.actual_cost_atomic, run.asset),
        }
        for job in run.jobs[-PAST_JOBS_MAX:]
    ]


def _constraints(labels: Mapping[str, Candidate]) -> str:
    return (
        "Constraints: stay within remainingBudget; vendorId is a listed id, 0 < maxHours <= its maxHours; "
        f'to wait or to abort, vendorId is "{NOBODY}" and maxHours 0. Answer with strict JSON and nothing else: '
        '{"action": "start_job" | "wait" | "abort", "vendorId": '
        + " | ".join(f'"{label}"' for label in (*labels, NOBODY))
        + ', "maxHours": number, "reason": string}'
    )


def _schema(labels: Mapping[str, Candidate]) -> dict[str, Any]:
    """Return the JSON Schema of an answer, in the words that every server of strict schemas knows."""
    fields = {
        "action": {"type": "string", "enum": ["start_job", "wait", "abort"]},
        "vendorId": {"type": "string", "enum": [*labels, NOBODY]},
        "maxHours": {"type": "number"},
        "reason": {"type": "string"},
    }
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _rounded(number: Decimal | float) -> Decimal:
    return Decimal(str(number)).quantize(_THOUSANDTH)


def read_answer(text: str, asked: Asked) -> Answer | Unreadable:
    """Return what a model's `text` (JSON, a code fence around it allowed) says to `asked`. Never raises."""
    if len(text) > ANSWER_CHARS_MAX:
        return Unreadable(f"it has more than {ANSWER_CHARS_MAX} characters")
    fenced = _FENCE.match(text)
    try:
        document = _document(fenced["inside"] if fenced else text)
    except ValueError:
        return Unreadable("it is not one JSON object")
    try:
        said = _Said.model_validate(document)
    except ValidationError as error:
        return Unreadable(first_error(error))
    reason = readable(said.reason)
    if said.action != "start_job":
        return Answer(action=said.action, candidate=None, reason=reason)
    candidate = asked.labels.get(said.vendor_id or "")
    if candidate is None:
        return Unreadable("vendorId: it is none of the listed ids")
    if said.max_hours is None or not HOURS_STEP <= said.max_hours <= candidate.hours:
        return Unreadable(f"maxHours: it is not above 0 and at most {candidate.hours}", formed=True)
    return Answer(action="start_job", candidate=candidate, reason=reason)


def _document(text: str) -> dict[str, Any]:
    """Return the JSON object in `text`. Raises ValueError for anything else, one that says a thing twice included."""
    document = decimal_json.loads(text)
    if not isinstance(document, dict):
        raise ValueError("not an object")
    json.loads(text, object_pairs_hook=_once, parse_int=str, parse_float=str)
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def readable(text: str, chars_max: int = REASON_CHARS_MAX) -> str:
    """Return `text` on one line for people: no control or invisible characters, at most `chars_max`."""
    shown = "".join(char if char.isprintable() else " " for char in text[: 4 * chars_max])
    return " ".join(shown.split())[:chars_max]
