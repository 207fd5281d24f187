"""
The vendors of a world: they quote, ask, settle, work, refund, and now and then lie.

Every verb is one step in virtual time. What travels to them and back, and gets lost there, is in `ports`.
"""

import base64
from collections.abc import Callable
from decimal import Decimal
from hashlib import sha256

import orjson

from agent.core.dialects import Challenge
from agent.core.errors import VendorGarbled, VendorRefused
from agent.core.model import Dialect, Vendor
from agent.ports import Declined, Submitted, Unsettled
from bench.sim.books import CHECKPOINT_STEPS, START_S, STEPS, WORK_S_MAX, Job, Looker, Order, Seller
from bench.sim.chain import BLOCK_S, MemoryChain
from bench.sim.faults import Faults
from bench.sim.refunds import refund_of
from bench.sim.training import Files, index_of, manifest_of
from wire.money import Asset, price_atomic, to_decimal
from wire.vendor import (
    Artifact,
    ArtifactsReply,
    FilesGrant,
    JobFound,
    JobStatus,
    MetricPoint,
    OffersReply,
    Quote,
    QuoteRequest,
    SubmitReply,
    SubmitRequest,
)
from wire.x402 import Authorization, PaymentRequired, PaymentRequirements, declare_payment_identifier

FILE = b"a whole model, in a sense\n"
FILE_SHA256 = sha256(FILE).hexdigest()
THIEF = "0x" + "66" * 20

PLANS = (
    "settled_late",
    "settled_in_the_last_second",
    "never_settled",
    "declined_then_settled",
    "served_before_settled",
    "settled_not_served",
    "served_long_after",
    "wrong_transaction",
    "job_sold_twice",
)
# Of these an order's first answer is the act; the others act when money moves, or does not any more.
SAID = ("never_settled", "wrong_transaction", "job_sold_twice")


class Vendors:
    """
    Every vendor of a world.

    Args:
        later: calls a function so many virtual seconds from now.
    """

    def __init__(
        self,
        sellers: list[Seller],
        chain: MemoryChain,
        asset: Asset,
        faults: Faults,
        files: Files,
        clock_s: Callable[[], float],
        later: Callable[[float, Callable[[], None]], object],
    ) -> None:
        self.sellers = {seller.vendor_id: seller for seller in sellers}
        self.looker: Looker | None = None
        self._chain = chain
        self._asset = asset
        self.faults = faults
        self._files = files
        self.clock_s = clock_s
        self._later = later

    def offers(self, vendor: Vendor) -> OffersReply:
        return OffersReply(vendor_id=vendor.vendor_id, name=vendor.name, offers=())

    def quote(self, vendor: Vendor, request: QuoteRequest) -> Quote:
        if request.resume is not None and self.faults.hit("checkpoint_refused"):
            raise VendorRefused(409, "409 it is of another model", "checkpoint_mismatch")
        cost = price_atomic(self.sellers[vendor.vendor_id].per_hour_atomic, request.max_hours)
        if self.faults.hit("quote_raised"):
            cost = cost * self.faults.chance.choice((1005, 1500)) // 1000
        return Quote(
            vendor_job_template_id=f"{cost}",
            price_estimate=to_decimal(cost, self._asset),
            currency=self._asset.symbol,
            eta_minutes=Decimal(1),
        )

    def challenge(self, vendor: Vendor, request: str, payment_id: str) -> tuple[Challenge, ...]:
        seller, chance = self.sellers[vendor.vendor_id], self.faults.chance
        quoted = orjson.loads(request)["vendorJobTemplateId"]
        terms = {
            "scheme": "exact",
            "network": self._asset.network,
            "asset": self._asset.address,
            "amount": quoted,
            "payTo": seller.pay_to,
            "maxTimeoutSeconds": chance.choice((30, 60, 120)),
            "extra": {"name": self._asset.name, "version": self._asset.version},
        }
        lie = self.faults.one_of(("price_raised", "payee_changed", "asset_changed", "cheque_too_long"))
        lies: dict[str, dict[str, object]] = {
            "price_raised": {"amount": str(int(quoted) * chance.choice((1008, 1200, 9000)) // 1000)},
            "payee_changed": {"payTo": THIEF},
            "asset_changed": {"asset": THIEF},
            "cheque_too_long": {"maxTimeoutSeconds": 86_400},
        }
        if lie is not None:
            self.faults.count(lie)
            terms |= lies[lie]
        seller.asked.setdefault(payment_id, set()).add(int(str(terms["amount"])))
        required = PaymentRequired(
            accepts=(PaymentRequirements.model_validate(terms),), extensions=declare_payment_identifier()
        )
        said = terms if seller.dialect == "x402-v2" else terms | {"network": "base-sepolia"}
        return (Challenge(required=required, dialect=seller.dialect, said=(said,)),)

    def submit(
        self, vendor: Vendor, request: str, payment_id: str, header: str, dialect: Dialect
    ) -> Submitted | Unsettled | Declined:
        seller = self.sellers[vendor.vendor_id]
        order = seller.orders.get(payment_id)
        if order is not None and header != order.header:
            return Declined(409, "the payment id came with another cheque")
        if order is not None:
            self.faults.count("cheque_repeated")
            return self._answer(order)
        document = orjson.loads(base64.b64decode(header))
        cheque = Authorization.model_validate(document["payload"]["authorization"])
        if int(cheque.value) not in seller.asked.get(payment_id, ()):
            return Declined(402, "not what was asked")
        left_s = int(cheque.valid_before) - self._chain.clock_s()
        if left_s < 3 * BLOCK_S:
            return Declined(402, "the cheque is about to lapse")
        order = Order(payment_id, request, header, cheque, self.faults.one_of(PLANS))
        if order.plan == "job_sold_twice":
            order.sold = self.faults.chance.choice([*seller.jobs.values(), None])
            order.plan = None if order.sold is None else order.plan
        seller.orders[payment_id] = order
        self._carry_out(seller, order, left_s)
        return self._answer(order)

    def find(self, vendor: Vendor, payment_id: str) -> JobFound | None:
        order = self.sellers[vendor.vendor_id].orders.get(payment_id)
        job = None if order is None else order.sold or order.job
        return None if job is None else job.found(payment_id, self.clock_s())

    def live_jobs(self, vendor: Vendor) -> tuple[JobFound, ...]:
        now_s = self.clock_s()
        jobs = self.sellers[vendor.vendor_id].jobs.values()
        return tuple(job.found(job.payment_id, now_s) for job in jobs if job.is_live(now_s))

    def job_status(self, vendor: Vendor, vendor_job_id: str, cursor: str | None) -> JobStatus:
        job = self._job(vendor, vendor_job_id)
        lie = self.faults.one_of(("status_garbled", "status_of_another_job", "status_backwards", "job_not_known"))
        if lie in ("status_garbled", "job_not_known"):
            self.faults.count(lie)
            raise VendorGarbled("not JSON") if lie == "status_garbled" else VendorRefused(404, "404 no such job")
        told = said = self._told(vendor, job, cursor)
        if lie == "status_of_another_job":
            said = told.model_copy(update={"vendor_job_id": "another"})
        elif lie == "status_backwards" and job.is_live(self.clock_s()):
            said = told.model_copy(update={"status": "submitted", "progress": Decimal(0)})
        if lie is not None and said != told:
            self.faults.count(lie)
        return said

    def cancel(self, vendor: Vendor, vendor_job_id: str, cursor: str | None) -> JobStatus:
        job, now_s = self._job(vendor, vendor_job_id), self.clock_s()
        if job.is_live(now_s) and not job.stubborn:
            fault = self.faults.one_of(("cancel_ignored", "cancel_too_late"))
            job.stop(fault, now_s)
            if fault is not None:
                self.faults.count(fault)
        return self._told(vendor, job, cursor)

    def artifacts(self, vendor: Vendor, vendor_job_id: str) -> ArtifactsReply:
        self._job(vendor, vendor_job_id)
        if sum(vendor_job_id.encode()) % 3:
            return ArtifactsReply(artifacts=())
        file = Artifact(name="model.bin", bytes=len(FILE), sha256=FILE_SHA256, url=f"{vendor.endpoint}/model.bin")
        return ArtifactsReply(artifacts=(file,))

    def _job(self, vendor: Vendor, vendor_job_id: str) -> Job:
        job = self.sellers[vendor.vendor_id].jobs.get(vendor_job_id)
        if job is None:
            raise VendorRefused(404, "404 no such job")
        return job

    def _carry_out(self, seller: Seller, order: Order, left_s: float) -> None:
        """Do what the order's plan says, now and later."""
        chance, plan = self.faults.chance, order.plan
        late_s = chance.uniform(BLOCK_S, max(BLOCK_S, left_s - 2 * BLOCK_S))
        if plan in (None, "wrong_transaction", "settled_not_served", "served_long_after", "job_sold_twice"):
            self._settle(order)
        elif plan == "settled_in_the_last_second":
            self._later(left_s - BLOCK_S - chance.random(), lambda: self._settle_and_serve(seller, order))
        elif plan in ("settled_late", "declined_then_settled"):
            self._later(late_s, lambda: self._settle_and_serve(seller, order))
        elif plan == "served_before_settled":
            self._later(late_s, lambda: self._settle(order))
        if plan == "served_long_after":
            # It was given up by then: the buyer has to find the job in the vendor's list.
            self._later(chance.uniform(150, 400), lambda: self._serve_late(seller, order))
        if plan in (None, "wrong_transaction", "served_before_settled"):
            self._serve(seller, order)

    def _settle_and_serve(self, seller: Seller, order: Order) -> None:
        self._settle(order)
        if order.transfer is not None:
            self._serve(seller, order)

    def _settle(self, order: Order) -> None:
        order.transfer = self._chain.settle(order.cheque)
        if order.transfer is None:
            return
        if order.plan not in (*SAID, "served_long_after"):
            self._act(order)
        if self.faults.draw("chain_reorganised") and self._chain.reorganise(order.transfer):
            self.faults.count("chain_reorganised")
        if self.looker is not None:
            self.looker.settled(order.transfer)

    def _act(self, order: Order) -> None:
        """Count the order's plan: it showed."""
        if order.plan is not None and not order.has_acted:
            order.has_acted = True
            self.faults.count(order.plan)

    def _serve_late(self, seller: Seller, order: Order) -> None:
        self._serve(seller, order)
        self._act(order)

    def _serve(self, seller: Seller, order: Order) -> None:
        chance, now_s = self.faults.chance, self.clock_s()
        fault = self.faults.one_of(("job_failed", "job_cancelled_by_vendor", "job_without_end", "job_slow"))
        if fault is None and seller.is_slow:
            fault = "job_slow"
        request, amount_atomic = SubmitRequest.from_json(order.request), int(order.cheque.value)
        begun = 0
        if request.resume is not None:
            # What is no longer there is a checkpoint that does not fit.
            fault, begun = (fault, request.resume.step) if self._files.holds(request.resume) else ("job_failed", 0)
        whole_s = {"job_without_end": 3_600.0, "job_slow": chance.uniform(3, 9) * WORK_S_MAX}
        work_s = whole_s.get(fault or "", chance.uniform(3, WORK_S_MAX)) * (1 - begun / STEPS)
        order.job = Job(
            vendor_job_id=f"{seller.vendor_id}-{len(seller.jobs) + 1}",
            payment_id=order.payment_id,
            amount_atomic=amount_atomic,
            began_s=now_s,
            ends_s=now_s + max(work_s, START_S),
            fault=fault,
            begun=begun,
            cost_atomic=amount_atomic * chance.choice((60, 100)) // 100 if seller.by_use else amount_atomic,
        )
        seller.jobs[order.job.vendor_job_id] = order.job
        if self.looker is not None:
            self.looker.job_began(seller, order.job)
        if request.files is not None:
            self._push(order.job, request.files, request)

    def _push(self, job: Job, grant: FilesGrant, request: SubmitRequest) -> None:
        """Leave a checkpoint every few steps, as long as the job is at work; then look again."""
        step, now_s = job.step(self.clock_s()), self.clock_s()
        if not job.is_live(now_s):
            return
        kept = step - step % CHECKPOINT_STEPS
        if kept > job.begun:
            self._files.push(grant, manifest_of(job, kept, index_of(request)))
        self._later(max(1.0, (job.ends_s - job.began_s) / STEPS), lambda: self._push(job, grant, request))

    def _answer(self, order: Order) -> Submitted | Unsettled | Declined:
        if order.plan in SAID:
            self._act(order)
        if order.plan == "declined_then_settled" and order.transfer is None:
            return Declined(402, "402 insufficient_funds")
        job = order.sold or order.job
        if job is None:
            return Unsettled("202 the settlement is on its way")
        said = order.transfer.transaction if order.transfer is not None else None
        if order.plan == "wrong_transaction":
            said = "0x" + "ab" * 32
        reply = SubmitReply(vendor_job_id=job.vendor_job_id, status=job.status(self.clock_s()))
        return Submitted(reply, said)

    def _told(self, vendor: Vendor, job: Job, cursor: str | None) -> JobStatus:
        now_s = self.clock_s()
        status, lines = job.status(now_s), job.lines(now_s)
        if job.fault is not None and job.shows_fault(now_s):
            self.faults.count(job.fault)
        since = int(cursor) if cursor is not None else 0
        seller, step = self.sellers[vendor.vendor_id], job.step(now_s)
        order = seller.orders[job.payment_id]
        is_over = status in ("completed", "failed", "cancelled")
        return JobStatus(
            vendor_job_id=job.vendor_job_id,
            status=status,
            progress=Decimal(1) if status == "completed" else Decimal(step) / STEPS,
            logs=tuple(f"step {number}" for number in range(since, lines)),
            metrics=(MetricPoint(step=step, values={"loss": Decimal(STEPS - step)}),),
            cursor=str(lines),
            cost_so_far=to_decimal(job.cost_atomic if status == "completed" else job.amount_atomic, self._asset),
            error_message="out of memory" if status == "failed" else None,
            refund=refund_of(self._chain, self.faults, self._asset, seller, job, order) if is_over else None,
        )
