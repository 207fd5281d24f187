"""
What is held against the world: the invariants at every save, at every settlement and at every job's start, and, when
all has come to rest, the books against the chain and the vendors'.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from agent.core.costs import costs
from agent.core.invariants import Broken, Settlement, of_run, of_step, of_world
from agent.core.limits import Limits
from agent.core.model import Entry, LogHead, Payment, Run, Vendor
from agent.core.policy import CHEQUE_S_MAX, OVERPRICE_PERCENT_MAX, SpendingPolicy, once
from agent.core.slots import lost_race
from agent.core.states import JOB_ENDS, OPEN_PAYMENTS, RUN_ENDS
from bench.books import Moved, unlike_holds, unlike_log, wanted_holds
from bench.sim.books import Job, Seller
from bench.sim.chain import MemoryChain, Transfer
from bench.sim.store import MemoryStore, Row
from bench.sim.vendors import Vendors

KEPT_MAX = 20
ONCE = once("").scope
# A wallet's day is `eip155:CHAIN:ASSET:PAYER:DAY`; a vendor's share of it has the vendor's name after that.
DAY_COLONS = 4
# An orphan's grace, and the time between two searches, with some room.
ORPHAN_S = 200


@dataclass
class Checks:
    """Looks on and keeps what is broken, the first KEPT_MAX of it."""

    store: MemoryStore
    chain: MemoryChain
    vendors: Vendors
    policy: SpendingPolicy
    limits: Limits
    payer: str
    broken: list[Broken] = field(default_factory=list)
    payments: dict[str, tuple[str, Payment]] = field(default_factory=dict)
    by_nonce: dict[str, Payment] = field(default_factory=dict)
    missed_s: dict[str, list[float]] = field(default_factory=dict)

    def found(self, broken: Sequence[Broken]) -> None:
        self.broken.extend(broken[: KEPT_MAX - len(self.broken)])

    def missed(self, vendor: Vendor, vendor_job_id: str) -> None:
        """A poll of this job brought nothing."""
        self.missed_s.setdefault(vendor_job_id, []).append(self.chain.clock_s())

    def saved(self, before: Run, row: Row, token_before: int, entries: Sequence[Entry]) -> None:
        """The store holds a new state of a run."""
        after = row.run
        self.found(of_run(after))
        self.found(of_step(before, after, token_before, row.wrote))
        head = before.log
        for entry in entries:
            if (entry.seq, entry.previous) != (head.seq + 1, head.hash):
                self.found([Broken("I4", after.run_id, f"entry {entry.seq} does not follow {head.seq}")])
            head = LogHead(seq=entry.seq, hash=entry.hash)
        if head != after.log:
            self.found([Broken("I4", after.run_id, f"the log ends at {head.seq}, the run says {after.log.seq}")])
        for paid in after.payments[len(before.payments) :]:
            self.found([Broken("I6", after.run_id, detail) for detail in self._unagreed(after, paid)])
        for paid in after.payments:
            self.payments[paid.payment_id] = after.run_id, paid
            self.by_nonce[paid.nonce.lower()] = paid
        for entry in entries:
            if entry.data.get("kind") == "job_ended":
                self.found([Broken("I5", after.run_id, detail) for detail in self._hasty(after, entry)])
            elif entry.data.get("kind") == "job_observed":
                self.missed_s.pop(_vendor_job(after, entry), None)
        self._count(after, entries)
        if after.status in RUN_ENDS and before.status not in RUN_ENDS:
            self.found([Broken("I3", after.run_id, detail) for detail in self._left_working(after)])
        if self.store.holds:
            self.found([Broken("I1", after.run_id, detail) for detail in self._over_cap()])

    def _count(self, run: Run, entries: Sequence[Entry]) -> None:
        """Count what a run did about lost and late work."""
        count, jobs = self.vendors.faults.count, {job.job_id: job for job in run.jobs}
        for entry in entries:
            kind, job = entry.data.get("kind"), jobs.get(entry.job_id or "")
            if kind == "job_submitted" and job is not None:
                for effect, other in (("job_resumed", job.resumes), ("job_hedged", job.hedges)):
                    if other is not None:
                        count(effect)
            elif kind == "job_ended" and job is not None and lost_race(run, job):
                count("hedge_lost")
            elif kind == "refund_settled":
                paid = next(paid for paid in run.payments if paid.payment_id == entry.data["payment_id"])
                if jobs[paid.job_id].status == "completed":
                    count("job_by_use")

    def settled(self, transfer: Transfer) -> None:
        """The chain moved money by a cheque."""
        paid = self.by_nonce.get(transfer.nonce or "")
        if paid is None or paid.status not in OPEN_PAYMENTS:
            state = "no payment" if paid is None else f"a {paid.status} payment"
            self.found([Broken("I6", "", f"{transfer.value_atomic} was settled for {state} in the store")])

    def job_began(self, seller: Seller, job: Job) -> None:
        """A vendor began to work."""
        if job.payment_id not in self.payments:
            self.found([Broken("I6", "", f"{seller.vendor_id} began {job.vendor_job_id} for no stored payment")])

    def at_rest(self) -> None:
        """Nothing is on its way any more: everything agrees with everything."""
        rows, settlements = list(self.store.rows.values()), self.chain.settlements()
        runs = [row.run for row in rows]
        now_s = self.chain.clock_s()
        jobs = [one for seller in self.vendors.sellers.values() for one in seller.listing(now_s)]
        self.found(of_world(runs, settlements, jobs))
        for run in runs:
            if run.status not in RUN_ENDS:
                self.found([Broken("I5", run.run_id, f"the run never ended: {run.status}, {run.phase}")])
            if sum(cost.spent_atomic for cost in costs(run)) != run.budget.spent_atomic:
                self.found([Broken("I1", run.run_id, "what its jobs cost is not what it spent")])
            if run.budget.reserved_atomic:
                self.found([Broken("I1", run.run_id, f"{run.budget.reserved_atomic} is reserved at rest")])
        self.found([Broken("I1", "", detail) for detail in self._unlike_chain(runs, settlements)])
        self.found([Broken("I1", "", detail) for detail in self._unlike_holds(runs)])
        for row in rows:
            self.found([Broken("I4", row.run.run_id, detail) for detail in unlike_log(row.run, row.log)])

    def without_orphans(self) -> None:
        """Nothing goes wrong any more, and orphans were looked for often enough: no vendor works unasked."""
        now, now_s = self.store.now(), self.vendors.clock_s()
        for run in (row.run for row in self.store.rows.values()):
            ended = {job.job_id: job.completed_at for job in run.jobs if job.status in JOB_ENDS}
            for paid in run.payments:
                work = self._work(paid)
                since = ended.get(paid.job_id)
                if work is None or since is None or work.stubborn or not work.is_live(now_s):
                    continue
                if min(now_s - work.began_s, (now - since).total_seconds()) > ORPHAN_S:
                    self.found([Broken("I3", run.run_id, f"{work.vendor_job_id} goes on for nobody")])

    def _work(self, paid: Payment) -> Job | None:
        """Return what the vendor does for a payment."""
        order = self.vendors.sellers[paid.vendor_id].orders.get(paid.payment_id)
        return None if order is None else order.job

    def _unagreed(self, run: Run, paid: Payment) -> Iterator[str]:
        """Yield what a new payment promises that nobody agreed to."""
        seller = self.vendors.sellers[paid.vendor_id]
        job = next((job for job in run.jobs if job.job_id == paid.job_id), None)
        if paid.pay_to.lower() != seller.pay_to.lower():
            yield f"{paid.payment_id} goes to {paid.pay_to}, {paid.vendor_id} is at {seller.pay_to}"
        if job is None or paid.amount_atomic * 100 > job.expected_cost_atomic * (100 + OVERPRICE_PERCENT_MAX):
            yield f"{paid.payment_id} is of {paid.amount_atomic}, quoted {job and job.expected_cost_atomic}"
        if paid.valid_before_s - int(paid.created_at.timestamp()) > CHEQUE_S_MAX:
            yield f"{paid.payment_id} may be cashed until {paid.valid_before_s}"
        jobs = {one.job_id: one for one in run.jobs}
        for other in run.payments:
            if other.status not in OPEN_PAYMENTS or other.payment_id == paid.payment_id:
                continue
            # The pieces of work of one run are paid for beside each other, none twice.
            doing = jobs[other.job_id]
            if doing.status in JOB_ENDS or job is None or doing.slot == job.slot:
                yield f"{paid.payment_id} was promised while another payment was not known"

    def _hasty(self, run: Run, entry: Entry) -> Iterator[str]:
        """Yield where a job was called lost against the evidence."""
        if not str(entry.data.get("error_message") or "").startswith("job_lost"):
            return
        misses = self.missed_s.get(_vendor_job(run, entry), [])
        if len(misses) < 2:
            yield f"{entry.job_id} was called lost after {len(misses)} polls that failed"

    def _left_working(self, run: Run) -> Iterator[str]:
        """Yield the jobs that the end of their run leaves working, unasked to stop."""
        jobs = {job.job_id: job for job in run.jobs}
        for paid in run.payments:
            work = self._work(paid)
            is_known = jobs[paid.job_id].vendor_job_id is not None
            if work is None or not is_known or not work.is_live(self.vendors.clock_s()) or work.cancels_asked:
                continue
            if not (jobs[paid.job_id].error_message or "").startswith("job_lost"):
                yield f"{paid.vendor_id} works on {work.vendor_job_id} and was never asked to stop"

    def _over_cap(self) -> Iterator[str]:
        for scope, atomic in self.store.holds.items():
            if atomic > self._cap(scope):
                yield f"{atomic} is held under {scope}, the cap is {self._cap(scope)}"

    def _cap(self, scope: str) -> int:
        if scope.startswith(ONCE):
            return 1
        is_vendors = scope.count(":") > DAY_COLONS
        return self.policy.vendor_day_atomic_max if is_vendors else self.policy.wallet_day_atomic_max

    def _unlike_chain(self, runs: Sequence[Run], settlements: Sequence[Settlement]) -> Iterator[str]:
        """Yield where the books differ from the chain: payments, refunds, the sum."""
        moved = {settled.nonce for settled in settlements}
        counted: Counter[str] = Counter()
        for paid in (paid for run in runs for paid in run.payments):
            if (paid.nonce.lower() in moved) != (paid.status in ("completed", "refunded")):
                yield f"{paid.payment_id} is {paid.status}, the chain says {paid.nonce.lower() in moved}"
            if paid.status == "refunded" and paid.refund is not None:
                counted[paid.refund.transaction] += 1
                sent = self.chain.transfers.get(paid.refund.transaction)
                if sent is None or sent.value_atomic != paid.refunded_atomic:
                    yield f"a refund of {paid.refunded_atomic} to {paid.payment_id} is not on the chain"
        yield from (f"the refund {name} was counted {count} times" for name, count in counted.items() if count > 1)
        back = [one for one in self.chain.transfers.values() if one.nonce is None and one.receiver == self.payer]
        missing = [one for one in back if one.transaction not in counted]
        yield from (f"the refund {one.transaction} was never counted" for one in missing if one.known)
        spent = sum(run.budget.spent_atomic for run in runs) - sum(one.value_atomic for one in missing)
        if self.chain.balance(self.payer) != -spent:
            yield f"the runs spent {spent}, the chain says {-self.chain.balance(self.payer)}"

    def _unlike_holds(self, runs: Sequence[Run]) -> Iterator[str]:
        sent = [
            Moved(
                sender=one.sender,
                receiver=one.receiver,
                amount_atomic=one.value_atomic,
                transaction=one.transaction,
                # A simulated transaction has one transfer.
                index=0,
            )
            for one in self.chain.transfers.values()
            if one.nonce is None
        ]
        yield from unlike_holds(self.store.holds, wanted_holds(runs, sent))
        sold = Counter((job.vendor_id, job.vendor_job_id) for run in runs for job in run.jobs if job.vendor_job_id)
        yield from (
            f"{count} jobs of ours are {name} of {seller}" for (seller, name), count in sold.items() if count > 1
        )


def _vendor_job(run: Run, entry: Entry) -> str:
    return next((job.vendor_job_id or "" for job in run.jobs if job.job_id == entry.job_id), "")
