"""A log told in sentences: why this vendor, this price, this payment, this end."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from agent.core import events
from agent.core.bandit import advise
from agent.core.decide import CancelJobs, TickRecord, decide, tick_document
from agent.core.events import Event
from agent.core.explain import Paragraph, explain
from agent.core.log import record, record_tick
from agent.core.model import Entry, Standing, Vendor
from agent.core.planning import Proposal, Question, first_vendor
from agent.core.wording import lasted
from tests.agent.core.values import (
    EVENTS,
    PAY_TO,
    REFUND,
    SETTLEMENT,
    STARTED,
    T0,
    a_job,
    a_payment,
    a_run,
    a_vendor,
    at,
    facts,
    policy,
)

CHEAP = a_vendor(1, name="FastGPU", base_price_per_hour_atomic=1_400_000)
DEAR = a_vendor(2, name="ReliableGPU", base_price_per_hour_atomic=1_800_000, reliability_score=Decimal("0.95"))
NO_A100 = a_vendor(3, name="OldGPU", supported_gpu_types=("T4",))
LAPSES_S = int(T0.timestamp()) + 303


class Logged:
    """A run and its log, made event by event and tick by tick."""

    def __init__(self, **changes: Any) -> None:
        self.run, entries = record(a_run(**changes), [events.RunStarted(at=at(0), run=a_run(**changes))])
        self.log: list[Entry] = list(entries)

    def happen(self, *happened: Event) -> "Logged":
        self.run, entries = record(self.run, happened)
        self.log += entries
        return self

    def decide(self, seconds: float, **known: Any) -> "Logged":
        asked = facts(**{"vendors": (CHEAP, DEAR)} | known)
        tick = TickRecord(now=at(seconds), facts=asked, action=decide(self.run, asked, at(seconds)))
        self.run, entry = record_tick(self.run, at(seconds), tick_document(tick))
        self.log.append(entry)
        return self

    def advised(self, seconds: float, standings: Sequence[Standing] = (), vendors: Sequence[Vendor] = ()) -> Proposal:
        vendors = tuple(vendors) or (CHEAP, DEAR)
        question = Question(run=self.run, vendors=vendors, standings=tuple(standings), now=at(seconds))
        return advise(question).proposal

    def told(self) -> dict[str, str]:
        """Return the story, sentence after sentence, by title."""
        return {one.title: " ".join(one.sentences) for one in explain(self.log)}


def paid(number: int = 1, **changes: Any) -> Any:
    return a_payment(number, **{"valid_before_s": LAPSES_S, "created_at": at(3), "updated_at": at(3)} | changes)


def test_every_kind_of_event_has_its_place_in_the_story() -> None:
    _, entries = record(STARTED, EVENTS)
    told = explain(entries)
    assert all(isinstance(one, Paragraph) and one.sentences for one in told)
    story = {one.title: " ".join(one.sentences) for one in told}
    assert [*story] == [
        "The wish",
        "Choosing a vendor, attempt 1",
        "Paying for job 1 at gpu_vendor_1",
        "Job 1 at gpu_vendor_1",
        "Choosing a vendor, attempt 2",
        "Choosing a vendor, attempt 3",
        "Paying for job 3 at gpu_vendor_1",
        "Job 3 at gpu_vendor_1",
        "Choosing a vendor, attempt 4",
        "Paying for job 4 at gpu_vendor_1",
        "Job 4 at gpu_vendor_1",
        "The end",
    ]
    failed = story["Job 1 at gpu_vendor_1"]
    assert "took the job as vjob-1" in failed
    assert "It was asked twice how it goes; 1 of these went unanswered." in failed
    assert "It failed after 4 s, at 50%. Why: “CUDA out of memory”." in failed
    assert f"announced a refund of 0.7 USDC, in {REFUND}" in failed
    assert "0.7 USDC came back, so the job cost 0.7 USDC in the end." in failed
    assert (
        "cannot be read or is not above zero (the quote is zero). Nothing was signed"
        in (story["Choosing a vendor, attempt 2"])
    )
    lapsed = story["Paying for job 3 at gpu_vendor_1"]
    assert f"the chain was asked to cancel it in 0x{'ba' * 32}" in lapsed
    assert "show that the cheque lapsed unused (“the cheque lapsed unused”). 1.4 USDC is free again." in lapsed
    assert story["The end"] == (
        "The run completed: 1 of 1 wanted jobs are done. It spent 2.1 USDC of 5 USDC, in 4 attempts."
    )


def test_a_run_that_fails_over_tells_whom_it_could_choose_each_time_and_what_it_knew() -> None:
    log = Logged()
    log.decide(1, proposal=first_vendor(log.run, (CHEAP, DEAR)), vendors=(CHEAP, DEAR, NO_A100))
    log.happen(
        events.JobQuoted(at=at(2), job=a_job(1)),
        events.PaymentReserved(at=at(3), payment=paid(), caps=policy()),
        events.PaymentSettled(at=at(5), payment_id="run_1-payment-1", transaction=SETTLEMENT),
        events.JobSubmitted(at=at(5), job_id="run_1-job-1", vendor_job_id="vjob-1"),
        events.JobEnded(at=at(605), job_id="run_1-job-1", status="failed", error_message="out of memory"),
    )
    after = (CHEAP, DEAR)
    log.decide(606, proposal=first_vendor(log.run, after))
    story = log.told()
    first = story["Choosing a vendor, attempt 1"]
    assert "3 vendors could have been chosen:" in first
    assert "gpu_vendor_1 (FastGPU): A10 at 1.4 USDC an hour, a finished job reckoned at " in first
    assert "gpu_vendor_3 (OldGPU): T4 at 1.4 USDC an hour" in first
    assert "The stub planner, which takes vendors in the order of the register, chose gpu_vendor_1" in first
    assert "So gpu_vendor_1 was asked for 1 h of A10." in first
    assert "gpu_vendor_1 quoted 1.4 USDC for 1.00 h of A10, about 60 minutes of work." in first
    payment = story["Paying for job 1 at gpu_vendor_1"]
    assert f"Its 402 asked 1.4 USDC, just what it had quoted, to {PAY_TO}," in payment
    assert (
        "the wallet's caps (2 USDC a payment, 4 USDC a run, 10 USDC a vendor's day, 20 USDC a day)"
        " and the 5 USDC that was left of the budget, and passed." in payment
    )
    assert "it could be cashed until 09:35:03 UTC, 5 min long." in payment
    assert f"cashed in {SETTLEMENT}: 1.4 USDC was paid, and this was known 2 s after signing." in payment
    second = story["Choosing a vendor, attempt 2"]
    assert "it had failed once in this run" in second
    assert "chose gpu_vendor_2" in second
    assert "The run is running" in story["So far"]


def test_a_vendor_that_lacks_the_gpu_or_costs_too_much_is_named_as_left_out() -> None:
    wish = a_run().job
    log = Logged(job=replace(wish, gpu_type="A100"), price_per_hour_atomic_max=1_500_000)
    log.decide(1, proposal=first_vendor(log.run, (CHEAP, DEAR, NO_A100)), vendors=(CHEAP, DEAR, NO_A100))
    story = log.told()
    assert "One vendor could have been chosen:" in story["Choosing a vendor, attempt 1"]
    assert "for the price: gpu_vendor_2, gpu_vendor_3." in story["Choosing a vendor, attempt 1"]
    assert "An hour may cost 1.5 USDC." in story["The wish"]


def test_a_refusal_by_a_cap_is_told_once_in_money_and_says_that_nothing_was_signed() -> None:
    detail = "1400000 is above 1000000"
    log = Logged().happen(
        events.JobQuoted(at=at(2), job=a_job(1)),
        events.Refused(at=at(3), code="over_payment_cap", detail=detail, job_id="run_1-job-1"),
        events.JobEnded(at=at(3), job_id="run_1-job-1", status="failed", error_message=f"over_payment_cap: {detail}"),
        events.RunEnded(at=at(4), status="failed", reason="attempts_exhausted"),
    )
    story = log.told()
    assert story["Paying for job 1 at gpu_vendor_1"] == (
        "It was refused before anything was signed: The price is above what one payment may cost"
        " (1.4 USDC is above 1 USDC). Nothing was paid."
    )
    assert "Job 1 at gpu_vendor_1" not in story
    assert story["The end"].startswith("The run failed. As many jobs failed or were cancelled as the run may try.")


def test_a_402_above_the_quote_says_by_how_much() -> None:
    log = Logged().happen(
        events.JobQuoted(at=at(2), job=a_job(1)),
        events.PaymentReserved(at=at(3), payment=paid(amount_atomic=1_414_000)),
    )
    story = log.told()["Paying for job 1 at gpu_vendor_1"]
    assert "asked 1.414 USDC, 0.014 USDC more than it had quoted (1 % more is the most that is paid)" in story
    # A log from before the caps were kept.
    assert "against the wallet's caps and the 5 USDC" in story


def test_an_unknown_payment_tells_how_often_it_was_sent_and_how_it_became_known() -> None:
    log = Logged().happen(
        events.JobQuoted(at=at(2), job=a_job(1)),
        events.PaymentReserved(at=at(3), payment=paid(), caps=policy()),
        events.SubmissionUnanswered(at=at(33), payment_id="run_1-payment-1", detail="no answer in 30 s"),
        events.SubmissionUnanswered(at=at(60), payment_id="run_1-payment-1", detail="jobs: 500", sent=False),
        events.SubmissionUnanswered(at=at(70), payment_id="run_1-payment-1", detail="502 Bad Gateway"),
    )
    open_yet = log.told()
    assert "What became of 1.4 USDC for gpu_vendor_1 is not known yet; it stays set aside" in open_yet["So far"]
    log.happen(events.PaymentSettled(at=at(100), payment_id="run_1-payment-1", transaction=SETTLEMENT))
    story = log.told()["Paying for job 1 at gpu_vendor_1"]
    assert "It was sent, and no final word came back: “no answer in 30 s”. The money stayed set aside" in story
    assert "It was not sent again, for nobody could say whether its job is there already: “jobs: 500”." in story
    assert "The same cheque was sent again (time 2), and no final word came back: “502 Bad Gateway”." in story
    assert "this was known 97 s after signing" in story


def test_a_wait_tells_what_for_and_until_when_and_once() -> None:
    lately = tuple(
        Standing(
            vendor_id=vendor.vendor_id,
            gpu_type="A10",
            completed=Decimal(2),
            failed=Decimal(1),
            updated_at=at(0),
            last_failed_at=at(0),
            failed_in_a_row=1,
        )
        for vendor in (CHEAP, DEAR)
    )
    log = Logged()
    for seconds in (1, 2, 3):
        log.decide(seconds, standings=lately, proposal=log.advised(seconds, lately))
    story = log.told()["Choosing a vendor, attempt 1"]
    assert story.count("wished to wait: every able vendor failed lately: gpu_vendor_1 until 09:31:00 UTC") == 1
    assert "So nothing was started yet. It was to be thought over at 09:31:00 UTC." in story


def test_what_a_model_said_and_what_another_planner_would_have_done_is_told() -> None:
    log = Logged()
    bandit = log.advised(1)
    assert bandit.vendor_id is not None
    model = replace(bandit, mode="llm", reason="it is *cheap* [bold]and[/bold] near", other=bandit)
    told = log.decide(1, proposal=model).told()["Choosing a vendor, attempt 1"]
    assert "The language model, asked to choose among the bandit's best, chose" in told
    assert "it is *cheap* [bold]and[/bold] near" in told
    assert "A second planner (bandit) was asked as well and would have done the same; who acts is drawn." in told
    other = replace(bandit, mode="stub", vendor_id="gpu_vendor_9")
    told = Logged().decide(1, proposal=replace(bandit, other=other)).told()["Choosing a vendor, attempt 1"]
    assert "The bandit, which looks for the vendor where a finished job costs least, chose" in told
    assert "would have chosen gpu_vendor_9" in told
    fell = replace(bandit, mode="llm", fallback=True, reason=f"fallback: not JSON; {bandit.reason}")
    told = Logged().decide(1, proposal=fell).told()["Choosing a vendor, attempt 1"]
    assert "The language model gave no answer that could be used, and the bandit chose" in told


def test_a_standing_shows_as_jobs_done_and_a_wish_that_cannot_be_followed_says_so() -> None:
    known = Standing(
        vendor_id="gpu_vendor_1", gpu_type="A10", completed=Decimal(3), failed=Decimal(1), updated_at=at(1)
    )
    log = Logged()
    told = log.decide(1, standings=(known,), proposal=log.advised(1, (known,))).told()
    assert "of 4 jobs there, fading with age, 3 were finished" in told["Choosing a vendor, attempt 1"]
    odd = Proposal(action="start_job", reason="why not", vendor_id="nobody", max_hours=Decimal(1))
    told = Logged().decide(1, proposal=odd).told()
    assert (
        "That wish was not followed (unknown vendor: the planner named nobody)."
        in (told["Choosing a vendor, attempt 1"])
    )


def test_a_cancelled_run_tells_who_was_asked_to_stop_and_why() -> None:
    log = Logged().happen(
        events.JobQuoted(at=at(2), job=a_job(1)),
        events.PaymentReserved(at=at(3), payment=paid(), caps=policy()),
        events.PaymentSettled(at=at(5), payment_id="run_1-payment-1", transaction=SETTLEMENT),
        events.JobSubmitted(at=at(5), job_id="run_1-job-1", vendor_job_id="vjob-1"),
    )
    log.decide(9, cancel_requested_at=at(8))
    assert isinstance(decide(log.run, facts(cancel_requested_at=at(8)), at(9)), CancelJobs)
    log.happen(
        events.JobEnded(at=at(9), job_id="run_1-job-1", status="cancelled", cost_atomic=0),
        events.RunEnded(at=at(10), status="cancelled", reason="cancelled"),
    )
    story = log.told()
    assert "gpu_vendor_1 was asked to stop, for you cancelled the run." in story["Job 1 at gpu_vendor_1"]
    assert "It was cancelled after 4 s, at 0%." in story["Job 1 at gpu_vendor_1"]
    assert story["The end"].startswith("The run was cancelled, as you asked.")


def test_a_log_without_its_beginning_has_no_story() -> None:
    _, entries = record(STARTED, EVENTS)
    for none in ((), entries[1:]):
        with pytest.raises(ValueError, match="begins with the run's start"):
            explain(none)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-3, "less than 1 s"),
        (0.2, "less than 1 s"),
        (119, "119 s"),
        (299.2, "5 min"),
        (7_199, "2 h 0 min"),
        (7_260, "2 h 1 min"),
    ],
)
def test_how_long_something_was_is_told_as_exactly_as_people_care(seconds: float, words: str) -> None:
    assert lasted(timedelta(seconds=seconds)) == words


def test_a_run_that_goes_on_says_where_it_is_and_what_is_open() -> None:
    _, entries = record(STARTED, EVENTS[:5])
    last = explain(entries)[-1]
    assert last.title == "So far"
    assert last.sentences[0] == "The run is running, in its phase “executing”."
    assert last.sentences[1].startswith("What became of 1.4 USDC for gpu_vendor_1 is not known yet")
