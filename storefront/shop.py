"""
The shop of every seller: quotes, paid submissions, polls, refunds. No HTTP here but the answers of the paid door.

A job that ends with money owed is stored as ended first; the refund, named by the job, follows and may be
asked for any number of times.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Generic

from cashier.core import answers
from cashier.core.model import Answer, PaidRequest, Price, Sale
from cashier.wiring import Cashier
from storefront.errors import VendorApiError
from storefront.model import TERMINAL, Template, Vendor, is_owed
from storefront.ports import Book, Clock, JobT, Seller
from wire.money import Amount, to_decimal
from wire.vendor import JobFound, JobsReply, OffersReply, Quote, QuoteRequest, SubmitReply, SubmitRequest

JOBS_PER_PAGE = 100


class Shop(Generic[JobT]):
    """All vendors of one process over one book and one cashier; `seller` does the work."""

    def __init__(self, seller: Seller[JobT], cashier: Cashier, book: Book[JobT], clock: Clock = time.time) -> None:
        self.seller = seller
        self.cashier = cashier
        self.store = book
        self._clock = clock
        self._opening = asyncio.Lock()
        self._open = False

    @property
    def vendors(self) -> Mapping[str, Vendor]:
        return self.seller.vendors

    async def open(self) -> None:
        """End what a crash left unfinished, once; before this no request is served."""
        async with self._opening:
            if not self._open:
                await self.cashier.recover(self._start)
                self._open = True

    async def recover(self) -> int:
        """End what was left in the middle of being paid; return how many payments are open still."""
        return (await self.cashier.recover(self._start)).open

    async def close(self) -> None:
        await self.cashier.close()
        await self.store.close()

    async def offers(self, vendor: Vendor) -> OffersReply:
        return OffersReply(vendor_id=vendor.vendor_id, name=vendor.name, offers=await self.seller.offers(vendor))

    async def quote(self, vendor: Vendor, request: QuoteRequest) -> Quote:
        """Return the price of `request`, which a submission is then held to. Raises VendorApiError."""
        terms = await self.seller.terms(vendor, request)
        template = Template(
            template_id=f"tmpl_{request.gpu_type}_{secrets.token_hex(8)}"[-256:],
            vendor_id=vendor.vendor_id,
            gpu_type=request.gpu_type,
            hours=request.max_hours,
            price_atomic=terms.price_atomic,
            job_type=request.job_type,
            terms_json=terms.terms_json,
        )
        # Who has paid is served what was quoted, however long the settlement takes.
        await self.store.add_template(template, [_template_id(body) for body in await self.cashier.open_bodies()])
        return Quote(
            vendor_job_template_id=template.template_id,
            price_estimate=to_decimal(template.price_atomic, vendor.asset),
            currency=vendor.asset.symbol,
            eta_minutes=terms.eta_minutes,
            moves=terms.moves,
            notes=terms.notes,
        )

    async def submit(self, vendor: Vendor, submit: SubmitRequest, request: PaidRequest) -> Answer:
        """Return the paid door's answer to a submission. Raises VendorApiError: nothing was charged."""
        template = await self.store.find_template(submit.vendor_job_template_id)
        if template is None or template.vendor_id != vendor.vendor_id:
            raise VendorApiError("template_not_found", _gone(vendor, submit.vendor_job_template_id))
        self.seller.check(vendor, template, submit)
        price = Price(
            amount=Amount(template.price_atomic, vendor.asset.address, vendor.asset.network),
            pay_to=vendor.pay_to,
            description=f"{template.gpu_type[:40]} for {template.hours:f} h",
        )

        async def has_capacity(reserved: int) -> bool | Answer:
            # The payment has its row by now. A quote that fell out before that is gone, and nothing is charged.
            if not await self.store.renew_template(template.template_id):
                return answers.problem("template_not_found", _gone(vendor, template.template_id))
            try:
                return await self.seller.has_room(vendor, template, reserved)
            except VendorApiError as error:
                return answers.problem(error.code, str(error))

        def admit(payer: str) -> str | None:
            return self.seller.admits(vendor, payer)

        asked = self._asked(vendor, template, price)
        return await self.cashier.charge(request, asked, has_capacity, self._start, admit)

    async def _start(self, sale: Sale) -> dict[str, Any]:
        """Start the job of a sale, or find it: what the request asked for is in the sale."""
        submit = SubmitRequest.from_json(sale.body)
        template = await self.store.find_template(submit.vendor_job_template_id)
        if template is None:
            raise RuntimeError(f"the template of payment {sale.payment_id} is gone")
        vendor = self.vendors.get(template.vendor_id)
        if vendor is None:
            raise RuntimeError(f"{template.vendor_id}, whom payment {sale.payment_id} was for, is gone")
        # The same payment may come again, at any time, and is held against its quote then.
        await self.store.keep_template(template.template_id)
        job = await self._instead(vendor)
        if job is None:

            def make(number: int) -> JobT:
                return self.seller.make(vendor, template, submit, sale, number)

            job = await self.store.start_job(sale.payment_id, template.vendor_id, make)
            await self.seller.started(job)
        reply = SubmitReply(vendor_job_id=job.job_id, status=job.status, payment_tx_id=sale.transaction)
        return reply.document()

    async def find(self, vendor: Vendor, payment_id: str) -> JobsReply:
        """Return the job that a payment bought, as a list that is empty where it bought none."""
        job = await self.store.find_paid(payment_id) or await self._instead(vendor)
        if job is None or job.vendor_id != vendor.vendor_id:
            return JobsReply(jobs=())
        return JobsReply(jobs=(_found(await self.watch(vendor, job.job_id)),))

    async def active_jobs(self, vendor: Vendor, after: str | None) -> JobsReply:
        """Return a page of the jobs that the vendor works on, bought by whoever has its secret."""
        listed = await self.store.list_active(vendor.vendor_id, after or "", JOBS_PER_PAGE + 1)
        jobs = [await self.watch(vendor, job.job_id) for job in listed[:JOBS_PER_PAGE]]
        return JobsReply(
            jobs=tuple(_found(job) for job in jobs if job.status not in TERMINAL),
            cursor=jobs[-1].job_id if len(listed) > JOBS_PER_PAGE else None,
        )

    async def job(self, vendor: Vendor, job_id: str) -> JobT:
        """Return the vendor's job as it stands; nothing moves. Raises VendorApiError."""
        job = await self.store.find_job(job_id)
        if job is None or job.vendor_id != vendor.vendor_id:
            raise VendorApiError("job_not_found", f"{vendor.name} runs no job {job_id[:80]}")
        return job

    async def poll(self, vendor: Vendor, job_id: str) -> JobT:
        """Return the job as its buyer's question finds it, what its end left over paid back. Raises CashierError."""
        job = await self.job(vendor, job_id)
        change = await self.seller.look(job, is_poll=True)
        return await self.settle_refund(job if change is None else await self._change(job, change))

    async def watch(self, vendor: Vendor, job_id: str) -> JobT:
        """Return the job as it is now, for somebody who only wants to know. Raises CashierError as `poll` does."""
        job = await self.job(vendor, job_id)
        change = await self.seller.look(job, is_poll=False)
        return job if change is None else await self.settle_refund(await self._change(job, change))

    async def cancel(self, vendor: Vendor, job_id: str) -> JobT:
        """End the job and pay back the unused part of its price; an ended job stays as it is. Raises CashierError."""
        job = await self.job(vendor, job_id)
        return await self.settle_refund(await self._change(job, await self.seller.cancel(job)))

    async def settle_refund(self, job: JobT) -> JobT:
        """Pay back what an ended job owes, and return it with the transaction. Idempotent. Raises CashierError."""
        if not is_owed(job):
            return job
        transaction = await self._pay_back(job)
        paid = await self.store.update_job(job.job_id, lambda stored: replace(stored, refund_transaction=transaction))
        return paid or job

    async def _change(self, job: JobT, change: Callable[[JobT], JobT]) -> JobT:
        now_s = int(self._clock())
        changed = await self.store.update_job(job.job_id, lambda stored: _dated(change(stored), now_s))
        if changed is None:
            raise VendorApiError("job_not_found", f"there is no job {job.job_id[:80]} any more")
        return changed

    def _asked(self, vendor: Vendor, template: Template, price: Price) -> Price:
        """Return what a submission is asked to pay: the price of its template."""
        return price

    async def _instead(self, vendor: Vendor) -> JobT | None:
        """Return the job that is sold in place of a new one: none, where the seller is honest."""
        return None

    async def _pay_back(self, job: JobT) -> str:
        """Return the transaction that paid back what the job owes."""
        return await self.cashier.refund(job.payment_id, job.refund_atomic, f"refund_{job.job_id}")


def _gone(vendor: Vendor, template_id: str) -> str:
    return f"{vendor.name} quoted no {template_id[:80]}"


def _template_id(body: bytes) -> str:
    return SubmitRequest.from_json(body).vendor_job_template_id


def _dated(job: JobT, now_s: int) -> JobT:
    """Return the job with the time of its end, where it has ended and none is written down."""
    ended = job.status in TERMINAL and job.ended_at_s is None
    return replace(job, ended_at_s=now_s) if ended else job


def _found(job: JobT) -> JobFound:
    return JobFound(
        vendor_job_id=job.job_id,
        status=job.status,
        payment_id=job.payment_id,
        started_at=datetime.fromtimestamp(job.started_at_s, UTC),
    )
