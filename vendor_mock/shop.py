"""
The vendors at work: quotes, paid jobs, polls, refunds. No HTTP here but the answers of the paid door.

A job that ends with money owed is stored as ended first; the refund, named by the job, follows and may be
asked for any number of times.
"""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from cashier.core.model import Answer, PaidRequest, Price, Sale
from cashier.wiring import Cashier, open_cashier
from outbound.http import HttpClient
from vendor_mock import simulation
from vendor_mock.catalogue import Gpu, Vendor, VendorPlan, open_catalogue
from vendor_mock.config import VendorMockSettings
from vendor_mock.errors import VendorApiError
from vendor_mock.faults import FaultBoard
from vendor_mock.simulation import Job, Template
from vendor_mock.store import ShopStore
from wire.money import BASE_SEPOLIA_USDC, Amount, price_atomic, to_decimal
from wire.vendor import (
    JobFound,
    JobsReply,
    Offer,
    OffersReply,
    Quote,
    QuoteRequest,
    SubmitReply,
    SubmitRequest,
)

Clock = Callable[[], float]
JOBS_PER_PAGE = 100


class Shop:
    """All vendors of one process over one database and one cashier."""

    def __init__(
        self,
        settings: VendorMockSettings,
        vendors: dict[str, Vendor],
        cashier: Cashier,
        store: ShopStore,
        clock: Clock,
    ) -> None:
        self.vendors = vendors
        self.faults = FaultBoard({vendor.vendor_id: vendor.faults for vendor in vendors.values()})
        self.cashier = cashier
        self.store = store
        self._settings = settings
        self._clock = clock
        self._opening = asyncio.Lock()
        self._open = False

    async def open(self) -> None:
        """End what a crash left unfinished, once; before this no request is served."""
        async with self._opening:
            if not self._open:
                await self.cashier.recover(self._start)
                self._open = True

    async def close(self) -> None:
        await self.cashier.close()
        await self.store.close()

    async def offers(self, vendor: Vendor) -> OffersReply:
        offers = [await self._offer(vendor, gpu) for gpu in vendor.gpus]
        return OffersReply(vendor_id=vendor.vendor_id, name=vendor.name, offers=tuple(offers))

    async def _offer(self, vendor: Vendor, gpu: Gpu) -> Offer:
        active = await self.store.count_active(vendor.vendor_id, gpu.gpu_type, int(self._clock()))
        return Offer(
            gpu_type=gpu.gpu_type,
            price_per_hour=to_decimal(vendor.per_hour_atomic, vendor.asset),
            currency=vendor.asset.symbol,
            asset=vendor.asset.address,
            network=vendor.asset.network,
            pay_to=vendor.pay_to,
            vram_gb=gpu.vram_gb,
            available=max(0, gpu.count - active),
        )

    async def quote(self, vendor: Vendor, request: QuoteRequest) -> Quote:
        """Return the price of `request`, which a submission is then held to. Raises VendorApiError."""
        if vendor.gpu(request.gpu_type) is None:
            raise VendorApiError("unsupported_gpu", f"{vendor.name} has no {request.gpu_type[:80]}")
        template = Template(
            template_id=f"tmpl_{request.gpu_type}_{secrets.token_hex(8)}"[-256:],
            vendor_id=vendor.vendor_id,
            gpu_type=request.gpu_type,
            hours=request.max_hours,
            price_atomic=price_atomic(vendor.per_hour_atomic, request.max_hours),
        )
        await self.store.add_template(template)
        return Quote(
            vendor_job_template_id=template.template_id,
            price_estimate=to_decimal(template.price_atomic, vendor.asset),
            currency=vendor.asset.symbol,
            eta_minutes=request.max_hours * 60,
        )

    async def submit(self, vendor: Vendor, submit: SubmitRequest, request: PaidRequest) -> Answer:
        """Return the paid door's answer to a submission. Raises VendorApiError: nothing was charged."""
        template = await self.store.find_template(submit.vendor_job_template_id)
        if template is None or template.vendor_id != vendor.vendor_id:
            raise VendorApiError("template_not_found", f"{vendor.name} quoted no {submit.vendor_job_template_id[:80]}")
        gpu = vendor.gpu(template.gpu_type)
        price = Price(
            amount=Amount(template.price_atomic, vendor.asset.address, vendor.asset.network),
            pay_to=vendor.pay_to,
            description=f"{template.gpu_type[:40]} for {template.hours:f} h",
        )

        async def has_capacity(reserved: int) -> bool:
            active = await self.store.count_active(vendor.vendor_id, template.gpu_type, int(self._clock()))
            return gpu is not None and active + reserved < gpu.count

        before = self.faults.asked_before(vendor.vendor_id, template.template_id)
        asked = self.faults.of(vendor.vendor_id).falsify(price, before)
        return await self.cashier.charge(request, asked, has_capacity, self._start)

    async def _start(self, sale: Sale) -> dict[str, Any]:
        """Start the job of a sale, or find it: what the request asked for is in the sale."""
        submit = SubmitRequest.from_json(sale.body)
        template = await self.store.find_template(submit.vendor_job_template_id)
        if template is None:
            raise RuntimeError(f"the template of payment {sale.payment_id} is gone")

        if (reused := await self._reused(template.vendor_id)) is not None:
            return SubmitReply(
                vendor_job_id=reused.job_id, status=reused.status, payment_tx_id=sale.transaction
            ).document()

        def make(number: int) -> Job:
            now_s = int(self._clock())
            return Job(
                job_id=f"vgpu_{secrets.token_hex(8)}",
                vendor_id=template.vendor_id,
                payment_id=sale.payment_id,
                gpu_type=template.gpu_type,
                hours=template.hours,
                price_atomic=sale.amount.atomic,
                started_at_s=now_s,
                ends_by_s=simulation.ends_by_s(now_s, template.hours, submit.max_hours),
                fails_at_epoch=self._fate(template.vendor_id, number),
                callback_url=submit.callback_url,
            )

        job = await self.store.start_job(sale.payment_id, template.vendor_id, make)
        reply = SubmitReply(vendor_job_id=job.job_id, status="submitted", payment_tx_id=sale.transaction)
        return reply.document()

    async def _reused(self, vendor_id: str) -> Job | None:
        """Return the vendor's first job where it sells that one again and again."""
        if not self.faults.of(vendor_id).reuse_job_ids:
            return None
        return next((job for job in await self.store.jobs() if job.vendor_id == vendor_id), None)

    def _fate(self, vendor_id: str, number: int) -> int | None:
        scripted = self.faults.of(vendor_id).fail_at_epoch
        return scripted or simulation.fate(vendor_id, number, self.vendors[vendor_id].fail_rate, self._settings.seed)

    async def find(self, vendor: Vendor, payment_id: str) -> JobsReply:
        job = await self.store.find_paid(payment_id) or await self._reused(vendor.vendor_id)
        if job is None or job.vendor_id != vendor.vendor_id:
            return JobsReply(jobs=())
        return JobsReply(jobs=(found(await self.watch(vendor, job.job_id)),))

    async def active_jobs(self, vendor: Vendor, after: str | None) -> JobsReply:
        """Return a page of the jobs that the vendor works on, bought by whoever has its secret."""
        listed = await self.store.list_active(vendor.vendor_id, after or "", JOBS_PER_PAGE + 1)
        jobs = [await self.watch(vendor, job.job_id) for job in listed[:JOBS_PER_PAGE]]
        return JobsReply(
            jobs=tuple(found(job) for job in jobs if job.status not in simulation.TERMINAL),
            cursor=jobs[-1].job_id if len(listed) > JOBS_PER_PAGE else None,
        )

    async def job(self, vendor: Vendor, job_id: str) -> Job:
        """Return the vendor's job as it stands; nothing moves. Raises VendorApiError."""
        job = await self.store.find_job(job_id)
        if job is None or job.vendor_id != vendor.vendor_id:
            raise VendorApiError("job_not_found", f"{vendor.name} runs no job {job_id[:80]}")
        return job

    async def poll(self, vendor: Vendor, job_id: str) -> Job:
        """Move the job by one epoch, or to where time has brought it, and pay back what its end left over."""
        epoch_seconds = self._settings.epoch_seconds
        return await self._change(vendor, job_id, lambda job: simulation.polled(job, self._clock(), epoch_seconds))

    async def watch(self, vendor: Vendor, job_id: str) -> Job:
        """Move the job to where time has brought it; one that polls move waits for them, until its hours are over."""
        job = await self.job(vendor, job_id)
        is_moved = self._settings.epoch_seconds is not None or simulation.is_over(job, self._clock())
        return await self.poll(vendor, job_id) if is_moved else job

    async def cancel(self, vendor: Vendor, job_id: str) -> Job:
        """End the job and pay back the unused part of its price; an ended job stays as it is."""
        return await self._change(vendor, job_id, simulation.cancel)

    async def _change(self, vendor: Vendor, job_id: str, change: Callable[[Job], Job]) -> Job:
        await self.job(vendor, job_id)
        now_s = int(self._clock())
        job = await self.store.update_job(job_id, lambda stored: simulation.dated(change(stored), now_s))
        if job is None:
            raise VendorApiError("job_not_found", f"{vendor.name} runs no job {job_id[:80]}")
        if job.refund_atomic == 0 or job.refund_transaction is not None:
            return job
        if self.faults.of(vendor.vendor_id).false_refunds:
            # The hash of no transaction: announced as any other, and never sent.
            transaction = f"0x{hashlib.sha256(job.job_id.encode()).hexdigest()}"
        else:
            transaction = await self.cashier.refund(job.payment_id, job.refund_atomic, f"refund_{job.job_id}")
        paid = await self.store.update_job(job_id, lambda stored: replace(stored, refund_transaction=transaction))
        return paid or job


def found(job: Job) -> JobFound:
    return JobFound(
        vendor_job_id=job.job_id,
        status=job.status,
        payment_id=job.payment_id,
        started_at=datetime.fromtimestamp(job.started_at_s, UTC),
    )


def money(atomic: int) -> Decimal:
    """Return `atomic` units of the vendors' asset as a decimal."""
    return to_decimal(atomic, BASE_SEPOLIA_USDC)


def open_shop(
    settings: VendorMockSettings,
    plans: tuple[VendorPlan, ...] | None,
    facilitator_http: HttpClient | None,
    clock: Clock = time.time,
) -> Shop:
    """Return the shop of `settings`; making it does no I/O but reading the vendors file. Raises SetupError."""
    vendors = open_catalogue(settings, plans)
    database = settings.database_path()
    cashier = open_cashier(
        asset=BASE_SEPOLIA_USDC,
        database=database,
        facilitator_url=settings.facilitator_url,
        rpc_url=settings.rpc_url,
        keys=[vendor.key.get_secret_value() for vendor in vendors.values()],
        facilitator_http=facilitator_http,
        now_s=lambda: int(clock()),
    )
    return Shop(settings, vendors, cashier, ShopStore(database), clock)
