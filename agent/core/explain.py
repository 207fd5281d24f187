"""
Why a run did what it did, in sentences: every vendor, price, payment and the end, told from its log alone.

What vendors and models wrote is quoted as their words; it is shown, never obeyed.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from agent.core import events
from agent.core.apply import apply, find_job, find_payment
from agent.core.choice import chosen
from agent.core.costs import began, shares
from agent.core.decide import CancelJobs, TickRecord, tick_from
from agent.core.events import Event, RunStarted, event_from
from agent.core.model import Entry, Run
from agent.core.slots import done_count
from agent.core.states import OPEN_PAYMENTS, RUN_ENDS
from agent.core.wording import STOPPED, clock, counted, lasted, money, reason, times


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """What belongs together: a choice, a payment, a job, the end. `at` is when its first sentence became true."""

    at: datetime
    title: str
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Story:
    """
    `run` is as it was after the last event. `polls` are (job, whether it was silent), `refusals` are those told.
    """

    run: Run
    paragraphs: tuple[Paragraph, ...] = ()
    polls: tuple[tuple[str, bool], ...] = ()
    refusals: frozenset[str] = frozenset()

    def tell(self, at: datetime, title: str, sentences: Iterable[str]) -> "_Story":
        """Return the story with what is new added to the paragraph of this title, begun where there is none."""
        told = tuple(sentences)
        if not told:
            return self
        if all(one.title != title for one in self.paragraphs):
            return replace(self, paragraphs=(*self.paragraphs, Paragraph(at=at, title=title, sentences=told)))
        grown = tuple(_grown(one, told) if one.title == title else one for one in self.paragraphs)
        return replace(self, paragraphs=grown)


def _grown(paragraph: Paragraph, told: tuple[str, ...]) -> Paragraph:
    new = tuple(one for one in told if one not in paragraph.sentences)
    return replace(paragraph, sentences=paragraph.sentences + new)


def explain(entries: Sequence[Entry]) -> tuple[Paragraph, ...]:
    """
    Return the story of a whole log, oldest first.

    Raises:
        ValueError: the log does not begin with the run's start.
    """
    first = event_from(entries[0].data) if entries else None
    if not isinstance(first, RunStarted):
        raise ValueError("a log begins with the run's start")
    story = _Story(run=first.run).tell(first.at, "The wish", _wish(first.run))
    for entry in entries[1:]:
        if entry.type == "tick":
            story = _tick(story, tick_from(entry.data))
            continue
        event = event_from(entry.data)
        story = replace(story, run=apply(story.run, event))
        if (teller := _TELLERS.get(type(event))) is not None:
            story = teller(story, event)
    if story.run.status not in RUN_ENDS:
        story = story.tell(story.run.updated_at, "So far", _so_far(story.run))
    return story.paragraphs


def _wish(run: Run) -> Iterator[str]:
    spec = run.job
    count = "one job" if spec.count == 1 else f"{spec.count} jobs"
    gpu = f" on a {spec.gpu_type}" if spec.gpu_type else ""
    hours = f", for at most {spec.max_hours} h each" if spec.max_hours is not None else ""
    yield f"You asked: “{run.goal}”. That is {count} of the kind {spec.kind}{gpu}{hours}."
    yield f"It may cost {money(run, run.budget.total_atomic)} in all."
    if run.price_per_hour_atomic_max is not None:
        yield f"An hour may cost {money(run, run.price_per_hour_atomic_max)}."
    if run.deadline is not None:
        yield f"It is to be given up at {run.deadline:%Y-%m-%d} {clock(run.deadline)}."


def _tick(story: _Story, record: TickRecord) -> _Story:
    attempt = len(story.run.jobs) + 1
    story = story.tell(record.now, f"Choosing a vendor, attempt {attempt}", chosen(story.run, record))
    if isinstance(record.action, CancelJobs):
        said = STOPPED.get(record.action.reason, "it ran longer than was paid for")
        for job_id in record.action.job_ids:
            vendor_id = find_job(story.run, job_id).vendor_id
            story = story.tell(
                record.now, _job_title(story.run, job_id), [f"{vendor_id} was asked to stop, for {said}."]
            )
    return story


def _job_title(run: Run, job_id: str) -> str:
    return f"Job {_place(run, job_id)}"


def _pay_title(run: Run, job_id: str) -> str:
    return f"Paying for job {_place(run, job_id)}"


def _place(run: Run, job_id: str) -> str:
    number = next(number for number, job in enumerate(run.jobs, start=1) if job.job_id == job_id)
    return f"{number} at {run.jobs[number - 1].vendor_id}"


def _quoted(story: _Story, event: events.JobQuoted) -> _Story:
    job, run = event.job, story.run
    minutes = (
        f", about {job.expected_duration_minutes.normalize():f} minutes of work"
        if job.expected_duration_minutes
        else ""
    )
    said = (
        f"{job.vendor_id} quoted {money(run, job.expected_cost_atomic)} for {job.hours} h of {job.gpu_type}{minutes}."
    )
    return story.tell(event.at, f"Choosing a vendor, attempt {len(run.jobs)}", [said, *began(run, job)])


def _attempt_failed(story: _Story, event: events.AttemptFailed) -> _Story:
    why = reason(story.run, event.job.error_message)
    said = f"It came to nothing: {why} Nothing was signed or paid."
    return story.tell(event.at, f"Choosing a vendor, attempt {len(story.run.jobs)}", [said])


def _refused(story: _Story, event: events.Refused) -> _Story:
    why = reason(story.run, f"{event.code}: {event.detail}")
    story = replace(story, refusals=story.refusals | {f"{event.code}: {event.detail}"})
    if event.job_id is None:
        return story.tell(event.at, "Refused", [why])
    if event.code == "bad_refund":
        return story.tell(
            event.at, _job_title(story.run, event.job_id), [f"A refund was announced and not believed: {why}"]
        )
    said = f"It was refused before anything was signed: {why} Nothing was paid."
    return story.tell(event.at, _pay_title(story.run, event.job_id), [said])


def _reserved(story: _Story, event: events.PaymentReserved) -> _Story:
    run, payment = story.run, event.payment
    quote = find_job(run, payment.job_id).expected_cost_atomic
    lives = timedelta(seconds=payment.valid_before_s) - (event.at - datetime.fromtimestamp(0, event.at.tzinfo))
    until = clock(datetime.fromtimestamp(payment.valid_before_s, event.at.tzinfo))
    left = run.budget.available_atomic + payment.amount_atomic
    return story.tell(
        event.at,
        _pay_title(run, payment.job_id),
        [
            f"Its 402 asked {money(run, payment.amount_atomic)}, {_against(run, payment.amount_atomic, quote)},"
            f" to {payment.pay_to}, the address it is registered with.",
            f"That was held against {_caps(run, event)}the {money(run, left)} that was left of the budget, and passed.",
            f"The money was set aside and one cheque signed at {clock(event.at)} ({payment.dialect},"
            f" nonce {payment.nonce}); it could be cashed until {until}, {lasted(lives)} long.",
        ],
    )


def _against(run: Run, asked: int, quote: int) -> str:
    if asked == quote:
        return "just what it had quoted"
    more = "more" if asked > quote else "less"
    return f"{money(run, abs(asked - quote))} {more} than it had quoted (1 % more is the most that is paid)"


def _caps(run: Run, event: events.PaymentReserved) -> str:
    caps = event.caps
    if caps is None:
        return "the wallet's caps and "
    run_max, day_max = money(run, caps.run_atomic_max), money(run, caps.wallet_day_atomic_max)
    one, vendor_max = money(run, caps.payment_atomic_max), money(run, caps.vendor_day_atomic_max)
    return f"the wallet's caps ({one} a payment, {run_max} a run, {vendor_max} a vendor's day, {day_max} a day) and "


def _unanswered(story: _Story, event: events.SubmissionUnanswered) -> _Story:
    payment = find_payment(story.run, event.payment_id)
    again = "It was sent" if payment.sends == 1 else f"The same cheque was sent again (time {payment.sends})"
    kept = " The money stayed set aside, neither spent nor free." if payment.status == "unknown" else ""
    said = f"{again}, and no final word came back: “{event.detail}”.{kept}"
    if not event.sent:
        said = f"It was not sent again, for nobody could say whether its job is there already: “{event.detail}”.{kept}"
    return story.tell(event.at, _pay_title(story.run, payment.job_id), [said])


def _revoked(story: _Story, event: events.ChequeRevoked) -> _Story:
    payment = find_payment(story.run, event.payment_id)
    said = f"You took the cheque back: the chain was asked to cancel it in {event.transaction}, if nobody was faster."
    return story.tell(event.at, _pay_title(story.run, payment.job_id), [said])


def _settled(story: _Story, event: events.PaymentSettled) -> _Story:
    payment = find_payment(story.run, event.payment_id)
    said = (
        f"The chain shows it cashed in {event.transaction}: {money(story.run, payment.amount_atomic)} was paid,"
        f" and this was known {lasted(event.at - payment.created_at)} after signing."
    )
    return story.tell(event.at, _pay_title(story.run, payment.job_id), [said])


def _voided(story: _Story, event: events.PaymentVoided) -> _Story:
    payment, run = find_payment(story.run, event.payment_id), story.run
    how = "was cancelled" if payment.revoked_in and "cancelled" in event.detail else "lapsed unused"
    said = (
        f"Nothing was paid: final blocks of the chain show that the cheque {how} (“{event.detail}”)."
        f" {money(run, payment.amount_atomic)} is free again."
    )
    return story.tell(event.at, _pay_title(run, payment.job_id), [said])


def _submitted(story: _Story, event: events.JobSubmitted) -> _Story:
    job = find_job(story.run, event.job_id)
    said = f"{job.vendor_id} took the job as {event.vendor_job_id}."
    return story.tell(event.at, _job_title(story.run, event.job_id), [said])


def _polled(story: _Story, event: events.JobObserved | events.JobMissed) -> _Story:
    return replace(story, polls=(*story.polls, (event.job_id, isinstance(event, events.JobMissed))))


def _job_ended(story: _Story, event: events.JobEnded) -> _Story:
    run, job = story.run, find_job(story.run, event.job_id)
    if event.error_message in story.refusals:
        return story
    asked = [is_silent for job_id, is_silent in story.polls if job_id == job.job_id]
    told: list[str] = []
    if any(asked):
        told.append(f"It was asked {times(len(asked))} how it goes; {sum(asked)} of these went unanswered.")
    how = "was cancelled" if event.status == "cancelled" else event.status
    took = lasted(event.at - (job.submitted_at or job.created_at))
    where = "" if event.status == "completed" else f", at {job.progress:.0%}"
    told.append(f"It {how} after {took}{where}." if job.vendor_job_id else f"It {how} before it began.")
    if event.status != "completed" and event.error_message:
        told.append(f"Why: {reason(run, event.error_message)}")
    if event.final_metrics:
        measured = ", ".join(f"{name} {value}" for name, value in sorted(event.final_metrics.items()))
        told.append(f"It measured {measured}.")
    if event.cost_atomic is not None:
        told.append(f"By the vendor's account it cost {money(run, event.cost_atomic)}.")
    return story.tell(event.at, _job_title(run, job.job_id), told)


def _files(story: _Story, event: events.ArtifactsKept | events.ArtifactsMissed) -> _Story:
    said = ""
    if isinstance(event, events.ArtifactsKept) and event.artifacts:
        said = f"Kept of it: {', '.join(artifact.name for artifact in event.artifacts)}."
    elif isinstance(event, events.ArtifactsMissed) and event.closed:
        said = f"Its files were given up: {event.detail}."
    return story.tell(event.at, _job_title(story.run, event.job_id), [said] if said else [])


def _refund(story: _Story, event: events.RefundAnnounced | events.RefundSettled) -> _Story:
    run, payment = story.run, find_payment(story.run, event.payment_id)
    back = money(run, event.amount_atomic)
    if isinstance(event, events.RefundAnnounced):
        said = f"{payment.vendor_id} announced a refund of {back}, in {event.transaction}."
    else:
        cost = money(run, payment.amount_atomic - event.amount_atomic)
        said = f"The chain shows that refund: {back} came back, so the job cost {cost} in the end."
    return story.tell(event.at, _job_title(run, payment.job_id), [said])


def _run_ended(story: _Story, event: events.RunEnded) -> _Story:
    run = story.run
    done, budget = done_count(run), run.budget
    why = f" {reason(run, f'{event.reason}: {event.detail}' if event.detail else event.reason)}" if event.reason else ""
    head = {
        "completed": f"The run completed: {done} of {run.job.count} wanted jobs are done.",
        "cancelled": "The run was cancelled, as you asked.",
    }.get(event.status, f"The run {event.status}.{why}")
    spent = f"It spent {money(run, budget.spent_atomic)} of {money(run, budget.total_atomic)}"
    return story.tell(event.at, "The end", [head, f"{spent}, in {counted(len(run.jobs), 'attempt')}.", *shares(run)])


def _so_far(run: Run) -> Iterator[str]:
    budget = run.budget
    yield f"The run is {run.status}, in its phase “{run.phase}”."
    for payment in run.payments:
        if payment.status in OPEN_PAYMENTS:
            amount = money(run, payment.amount_atomic)
            yield f"What became of {amount} for {payment.vendor_id} is not known yet; it stays set aside until it is."
    yield f"{money(run, budget.spent_atomic)} is spent and {money(run, budget.available_atomic)} free."


_TELLERS: Mapping[type[Event], Callable[[_Story, Any], _Story]] = {
    events.JobQuoted: _quoted,
    events.AttemptFailed: _attempt_failed,
    events.Refused: _refused,
    events.PaymentReserved: _reserved,
    events.SubmissionUnanswered: _unanswered,
    events.ChequeRevoked: _revoked,
    events.PaymentSettled: _settled,
    events.PaymentVoided: _voided,
    events.JobSubmitted: _submitted,
    events.JobObserved: _polled,
    events.JobMissed: _polled,
    events.JobEnded: _job_ended,
    events.ArtifactsKept: _files,
    events.ArtifactsMissed: _files,
    events.RefundAnnounced: _refund,
    events.RefundSettled: _refund,
    events.RunEnded: _run_ended,
}
