"""
Fifteen bugs that have been made elsewhere, each built into the agent or its store on demand: what the checks are worth.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import agent.core.decide
import agent.core.hedging
import agent.core.slots
import agent.observe
import agent.purchase
import agent.recover
import agent.refunds
import agent.settle
import agent.stop
import agent.tick
from agent.core.apply import find_job, find_payment
from agent.core.decide import CancelJobs
from agent.core.events import Event, JobEnded, PaymentReserved, PaymentVoided, RefundSettled
from agent.core.model import Checkpoint, Job, Payment, Run, Vendor
from agent.core.policy import Hold, SpendingPolicy, holds_for
from agent.turn import Turn
from bench.sim.store import MemoryStore

_SEND = agent.purchase.send
_SAVE = Turn.save
_ACTIVE = agent.core.decide.active_jobs
_WITHOUT_LOSERS = tuple(rule for rule in agent.core.decide._RULES if rule is not agent.core.decide._stop_losers)
_WITHOUT_OPEN = tuple(rule for rule in agent.core.decide._RULES if rule is not agent.core.decide._resolve_payments)


async def _sign_again(turn: Turn, vendor: Vendor, payment: Payment) -> str:
    return await agent.purchase.pay(turn, vendor, find_job(turn.run, payment.job_id))


async def _release(turn: Turn, payment: Payment) -> bool:
    if await turn.agent.chain.is_nonce_used(payment.payer, payment.nonce):
        return await _SETTLE(turn, payment)
    turn.record(PaymentVoided(at=turn.now, payment_id=payment.payment_id, detail="no answer"))
    await turn.save(holds=agent.settle._given_back(turn, payment))
    return True


_SETTLE = agent.settle.settle


async def _send_unstored(self: Turn, *events: Event, **named: Any) -> Hold | None:
    if any(isinstance(event, PaymentReserved) for event in events):
        # The intent is written with what came of it.
        self.record(*events)
        return None
    return await _SAVE(self, *events, **named)


def _over_and_over(key: str) -> Hold:
    return Hold(scope=f"once:{key}", amount_atomic=1, cap_atomic=10**15)


async def _believe(turn: Turn) -> bool:
    claimed = [paid for paid in turn.run.payments if paid.refund is not None and paid.status == "completed"]
    for paid in claimed:
        assert paid.refund is not None
        said = paid.refund
        turn.record(
            RefundSettled(
                at=turn.now,
                payment_id=paid.payment_id,
                amount_atomic=said.amount_atomic,
                transaction=said.transaction,
            )
        )
        await turn.save()
    return bool(claimed)


def _uncapped(policy: SpendingPolicy, *args: Any) -> tuple[Hold, Hold]:
    wallet, vendor = holds_for(policy, *args)
    return replace(wallet, cap_atomic=10**15), replace(vendor, cap_atomic=10**15)


async def _fail_unanswered(turn: Turn, vendor: Vendor, payment: Payment) -> str:
    message = await _SEND(turn, vendor, payment)
    job, paid = find_job(turn.run, payment.job_id), find_payment(turn.run, payment.payment_id)
    if job.vendor_job_id is None and paid.status in ("pending", "unknown"):
        turn.record(JobEnded(at=turn.now, job_id=job.job_id, status="failed", error_message="no answer"))
        await turn.save()
    return message


def _fail_missed(turn: Turn, job: Job, detail: str, *args: Any, **named: Any) -> list[Any]:
    return [JobEnded(at=turn.now, job_id=job.job_id, status="failed", error_message=f"job_lost: {detail}")]


async def _cancel_in_books(turn: Turn, vendors: dict[str, Vendor], action: CancelJobs) -> str:
    for job_id in action.job_ids:
        turn.record(JobEnded(at=turn.now, job_id=job_id, status="cancelled", error_message=action.reason))
    await turn.save()
    return "Job cancelled"


def _first_offer(policy: SpendingPolicy, vendor: Vendor, quote_atomic: int, challenges: Sequence[Any]) -> Any:
    return challenges[0], challenges[0].required.accepts[0]


def _active_of_open(run: Run) -> tuple[Job, ...]:
    return tuple(job for job in _ACTIVE(run) if not agent.core.slots.lost_race(run, job))


def _newest_of_all(run: Run, slot: int, checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    return max(checkpoints, key=lambda one: (one.step, one.job_id), default=None)


def _done_jobs(run: Run) -> int:
    return sum(job.status == "completed" for job in run.jobs)


def _drop_entries(self: MemoryStore, token: int, run: Any, entries: Sequence[Any] = (), **named: Any) -> Any:
    return _STORED(self, token, run, entries[1:] if len(entries) > 2 else entries, **named)


_STORED = MemoryStore.save

Patch = tuple[Any, str, Any]

# Number → name, and what is put in place of what.
PLANTS: Mapping[int, tuple[str, tuple[Patch, ...]]] = {
    1: ("an unanswered payment is signed again, under a new nonce", ((agent.recover, "send", _sign_again),)),
    2: (
        "a payment without an answer is released as failed",
        ((agent.purchase, "settle", _release), (agent.recover, "settle", _release)),
    ),
    3: (
        "a save is not held against the fencing token",
        ((MemoryStore, "is_fresh", lambda self, row, token: True),),
    ),
    4: ("the intent to pay is not stored before the cheque is sent", ((Turn, "save", _send_unstored),)),
    5: (
        "a refund is not remembered, and counted for another payment",
        ((agent.refunds, "once", _over_and_over),),
    ),
    6: ("a refund counts when it is announced", ((agent.refunds, "_settle", _believe),)),
    7: (
        "the caps of the day are not held",
        ((agent.purchase, "holds_for", _uncapped),),
    ),
    8: (
        "a payment without an answer is followed by another vendor's quote",
        (
            (agent.purchase, "send", _fail_unanswered),
            (agent.recover, "send", _fail_unanswered),
            (agent.core.decide, "_RULES", _WITHOUT_OPEN),
        ),
    ),
    9: ("the log loses an entry of a long save", ((MemoryStore, "save", _drop_entries),)),
    10: ("one poll without an answer fails the job", ((agent.observe, "_missed", _fail_missed),)),
    11: ("a job is cancelled in the books, and its vendor not told", ((agent.tick, "cancel_jobs", _cancel_in_books),)),
    12: ("a 402 is paid whatever it asks, to whomever", ((agent.purchase, "choose_challenge", _first_offer),)),
    13: (
        "a job that lost its race is not stopped",
        ((agent.core.decide, "_RULES", _WITHOUT_LOSERS), (agent.core.decide, "active_jobs", _active_of_open)),
    ),
    14: (
        "a job goes on from the checkpoint of another piece of work",
        ((agent.core.slots, "newest", _newest_of_all), (agent.core.hedging, "newest", _newest_of_all)),
    ),
    15: (
        "a piece of work that two jobs did counts twice",
        ((agent.core.slots, "done_count", _done_jobs),),
    ),
}


@contextmanager
def planted(number: int | None) -> Iterator[None]:
    """Build bug `number` in for as long as this lasts; None is none."""
    patches = () if number is None else PLANTS[number][1]
    before = [(where, name, getattr(where, name)) for where, name, _ in patches]
    try:
        for where, name, bug in patches:
            setattr(where, name, bug)
        yield
    finally:
        for where, name, whole in before:
            setattr(where, name, whole)
