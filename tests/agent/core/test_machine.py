"""Whatever can happen to a run, in whatever order: the books balance, states move by the tables, the log folds back."""

from dataclasses import replace
from decimal import Decimal

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.core import events, ledger
from agent.core.decide import active_jobs
from agent.core.events import Event
from agent.core.log import broken_at, record
from agent.core.model import Entry, Job, Payment, Run
from agent.core.replay import replay
from agent.core.states import JOB_ENDS, JOB_MOVES, OPEN_PAYMENTS, PAYMENT_MOVES, RUN_ENDS, RUN_MOVES
from tests.agent.core.values import MODEL, REFUND, SETTLEMENT, a_job, a_payment, a_run, at


class RunMachine(RuleBasedStateMachine):
    """Legal events happen in random order; `pick` chooses which job or payment they happen to."""

    @initialize(total_atomic=st.integers(1, 10**7))
    def start(self, total_atomic: int) -> None:
        self.run: Run = a_run(budget=ledger.opened(total_atomic))
        self.entries: list[Entry] = []
        self.clock = 0
        self.happen(events.RunStarted(at=at(0), run=self.run))

    def happen(self, event: Event) -> None:
        before = self.run
        self.run, entries = record(before, [event])
        self.entries.extend(entries)
        self.clock += 1
        self.check_moves(before)

    def check_moves(self, before: Run) -> None:
        assert self.run.status == before.status or self.run.status in RUN_MOVES[before.status]
        for old, new in zip(before.jobs, self.run.jobs, strict=False):
            assert new.status == old.status or new.status in JOB_MOVES[old.status]
            assert old.job_id == new.job_id
        for was, now in zip(before.payments, self.run.payments, strict=False):
            assert now.status == was.status or now.status in PAYMENT_MOVES[was.status]
            fixed = ("payment_id", "nonce", "header", "request", "amount_atomic", "pay_to", "valid_before_s")
            assert all(getattr(was, name) == getattr(now, name) for name in fixed)

    def now(self) -> object:
        return at(self.clock)

    def jobs(self, *states: str) -> list[Job]:
        return [job for job in self.run.jobs if job.status in states]

    def payments(self, *states: str) -> list[Payment]:
        return [payment for payment in self.run.payments if payment.status in states]

    @precondition(lambda self: self.run.status not in RUN_ENDS)
    @rule(failed=st.booleans())
    def choose_a_vendor(self, failed: bool) -> None:
        job = a_job(len(self.run.jobs) + 1, status="failed" if failed else "quoted")
        kind = events.AttemptFailed if failed else events.JobQuoted
        self.happen(kind(at=self.now(), job=job))

    @precondition(lambda self: self.jobs("quoted") and self.run.budget.available_atomic > 0)
    @rule(pick=st.randoms(use_true_random=False), part=st.floats(0, 1))
    def reserve(self, pick: object, part: float) -> None:
        amount = max(1, int(self.run.budget.available_atomic * part))
        number = len(self.run.payments) + 1
        job_id = pick.choice(self.jobs("quoted")).job_id
        self.happen(
            events.PaymentReserved(at=self.now(), payment=a_payment(number, job_id=job_id, amount_atomic=amount))
        )

    @precondition(lambda self: self.jobs(*JOB_ENDS))
    @rule(pick=st.randoms(use_true_random=False), kept=st.booleans(), closed=st.booleans())
    def fetch_files(self, pick: object, kept: bool, closed: bool) -> None:
        job_id = pick.choice(self.jobs(*JOB_ENDS)).job_id
        if kept:
            self.happen(events.ArtifactsKept(at=self.now(), job_id=job_id, artifacts=(MODEL,), closed=closed))
        else:
            self.happen(events.ArtifactsMissed(at=self.now(), job_id=job_id, detail="nobody there", closed=closed))

    @precondition(lambda self: self.run.payments)
    @rule(pick=st.randoms(use_true_random=False))
    def hear_nothing(self, pick: object) -> None:
        payment = pick.choice(self.run.payments)
        self.happen(events.SubmissionUnanswered(at=self.now(), payment_id=payment.payment_id, detail="202"))

    @precondition(lambda self: self.payments(*OPEN_PAYMENTS))
    @rule(pick=st.randoms(use_true_random=False), paid=st.booleans())
    def learn_the_outcome(self, pick: object, paid: bool) -> None:
        one = pick.choice(self.payments(*OPEN_PAYMENTS)).payment_id
        self.happen(
            events.PaymentSettled(at=self.now(), payment_id=one, transaction=SETTLEMENT)
            if paid
            else events.PaymentVoided(at=self.now(), payment_id=one, detail="lapsed")
        )

    @precondition(lambda self: self.payments("completed"))
    @rule(pick=st.randoms(use_true_random=False), part=st.floats(0, 1), settled=st.booleans())
    def give_back(self, pick: object, part: float, settled: bool) -> None:
        payment = pick.choice(self.payments("completed"))
        kind = events.RefundSettled if settled else events.RefundAnnounced
        amount = int(payment.amount_atomic * part)
        self.happen(kind(at=self.now(), payment_id=payment.payment_id, amount_atomic=amount, transaction=REFUND))

    @precondition(lambda self: active_jobs(self.run))
    @rule(pick=st.randoms(use_true_random=False), progress=st.integers(0, 10), end=st.sampled_from(sorted(JOB_ENDS)))
    def go_on(self, pick: object, progress: int, end: str) -> None:
        job = pick.choice(active_jobs(self.run))
        steps: dict[str, list[Event]] = {
            "quoted": [events.JobSubmitted(at=self.now(), job_id=job.job_id, vendor_job_id=f"v-{job.job_id}")],
            "submitted": [self.observed(job, "submitted", progress), self.observed(job, "running", progress)],
            "running": [self.observed(job, "running", progress)],
        }
        state = end if job.status != "quoted" or end != "completed" else "cancelled"
        steps[job.status] += [
            events.JobMissed(at=self.now(), job_id=job.job_id, detail="no answer"),
            events.JobLogged(at=self.now(), job_id=job.job_id, line="a line"),
            events.JobEnded(at=self.now(), job_id=job.job_id, status=state),
        ]
        self.happen(pick.choice(steps[job.status]))

    def observed(self, job: Job, status: str, progress: int) -> Event:
        part = Decimal(progress) / 10
        return events.JobObserved(at=self.now(), job_id=job.job_id, status=status, progress=part, cursor="1")

    @rule()
    def refuse(self) -> None:
        self.happen(events.Refused(at=self.now(), code="bad_refund", detail="not a hash"))

    @precondition(lambda self: self.run.status not in RUN_ENDS and not self.payments(*OPEN_PAYMENTS))
    @rule(status=st.sampled_from(sorted(RUN_ENDS)))
    def end(self, status: str) -> None:
        self.happen(events.RunEnded(at=self.now(), status=status, reason="cancelled"))

    @invariant()
    def the_books_balance(self) -> None:
        budget, payments = self.run.budget, self.run.payments
        assert budget == ledger.checked(budget)
        assert budget.reserved_atomic == sum(one.amount_atomic for one in self.payments(*OPEN_PAYMENTS))
        paid = [one for one in payments if one.status in ("completed", "refunded")]
        assert budget.spent_atomic == sum(one.amount_atomic - one.refunded_atomic for one in paid)

    def teardown(self) -> None:
        """The log folds back to the run."""
        folded = replay(self.entries)
        assert broken_at(self.entries) is folded.broken_at is None
        assert folded.run == self.run

    @invariant()
    def the_log_is_counted(self) -> None:
        assert self.run.log.seq == len(self.entries) == self.entries[-1].seq
        assert replace(self.run.log, hash=self.entries[-1].hash) == self.run.log


RunMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
test_no_order_of_events_breaks_a_run = RunMachine.TestCase
