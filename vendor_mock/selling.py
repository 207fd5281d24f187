"""What the mock vendors do with a job: nothing but move it, by an epoch per poll or by time, and lie where told."""

import hashlib
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from decimal import Decimal

from cashier.core.model import Sale
from outbound.http import HttpClient
from storefront import model
from storefront.errors import VendorApiError
from storefront.model import TERMINAL, KeptFile, StatusView, Template, Terms
from storefront.ports import Book, Clock
from vendor_mock import checkpoints, simulation
from vendor_mock.catalogue import Gpu, Vendor
from vendor_mock.config import VendorMockSettings
from vendor_mock.faults import FaultBoard
from vendor_mock.simulation import Job
from wire.checkpoint import misfit
from wire.money import price_atomic, to_decimal
from wire.vendor import CheckpointSeen, Offer, QuoteRequest, SubmitRequest

CANNOT_MOVE = "cannot move: no store for its files was named"


class MockSeller:
    """Implements `storefront.ports.Seller`."""

    def __init__(
        self,
        settings: VendorMockSettings,
        vendors: Mapping[str, Vendor],
        faults: FaultBoard,
        book: Book[Job],
        clock: Clock,
        http: HttpClient,
    ) -> None:
        self.vendors = vendors
        self.faults = faults
        self._book = book
        self._settings = settings
        self._clock = clock
        self._http = http

    async def offers(self, vendor: model.Vendor) -> tuple[Offer, ...]:
        own = self.vendors[vendor.vendor_id]
        return tuple([await self._offer(own, gpu) for gpu in own.gpus])

    async def _offer(self, vendor: Vendor, gpu: Gpu) -> Offer:
        active = await self._book.count_active(vendor.vendor_id, gpu.gpu_type, int(self._clock()))
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

    async def terms(self, vendor: model.Vendor, request: QuoteRequest) -> Terms:
        own = self.vendors[vendor.vendor_id]
        if own.gpu(request.gpu_type) is None:
            raise VendorApiError("unsupported_gpu", f"{vendor.name} has no {request.gpu_type[:80]}")
        moves = None if own.checkpoints_every is None else bool(request.has_files)
        return Terms(
            price_atomic=price_atomic(own.per_hour_atomic, request.max_hours),
            eta_minutes=request.max_hours * 60,
            moves=moves,
            notes=() if moves is not False else (CANNOT_MOVE,),
        )

    def check(self, vendor: model.Vendor, template: Template, submit: SubmitRequest) -> None:
        if submit.resume is None:
            return
        model_hash, spec_hash = checkpoints.hashes(submit.job_params)
        if why := misfit(submit.resume, model_hash=model_hash, spec_hash=spec_hash):
            raise VendorApiError("checkpoint_mismatch", why)
        if submit.files is None or submit.resume.step >= simulation.EPOCHS:
            raise VendorApiError("checkpoint_mismatch", "there is nothing to go on from, or nothing left to do")

    async def has_room(self, vendor: model.Vendor, template: Template, reserved: int) -> bool:
        gpu = self.vendors[vendor.vendor_id].gpu(template.gpu_type)
        active = await self._book.count_active(vendor.vendor_id, template.gpu_type, int(self._clock()))
        return gpu is not None and active + reserved < gpu.count

    def admits(self, vendor: model.Vendor, payer: str) -> str | None:
        refused = {address.lower() for address in self.faults.of(vendor.vendor_id).refuses}
        return "nothing is sold to this payer here" if payer.lower() in refused else None

    def make(self, vendor: model.Vendor, template: Template, submit: SubmitRequest, sale: Sale, number: int) -> Job:
        now_s = int(self._clock())
        model_hash, spec_hash = checkpoints.hashes(submit.job_params)
        first_epoch = 0 if submit.resume is None else submit.resume.step
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
            epoch=first_epoch,
            first_epoch=first_epoch,
            progress=simulation.progress_at(first_epoch),
            logs=() if first_epoch == 0 else (f"Goes on from epoch {first_epoch}/{simulation.EPOCHS}",),
            model_hash=model_hash,
            spec_hash=spec_hash,
            files=submit.files,
            resume=submit.resume,
        )

    def _fate(self, vendor_id: str, number: int) -> int | None:
        scripted = self.faults.of(vendor_id).fail_at_epoch
        return scripted or simulation.fate(vendor_id, number, self.vendors[vendor_id].fail_rate, self._settings.seed)

    async def started(self, job: Job) -> None:
        """See that the checkpoint is there that the job goes on from; a poll or time moves it."""
        if job.resume is None or job.files is None or job.status in TERMINAL:
            return
        if not await checkpoints.is_there(self._http, job.files, job.resume):
            now_s = int(self._clock())
            await self._book.update_job(job.job_id, lambda stored: simulation.interrupt(stored, now_s))

    async def look(self, job: Job, *, is_poll: bool) -> Callable[[Job], Job] | None:
        now_s, epoch_seconds = self._clock(), self._settings.epoch_seconds
        is_moved = is_poll or epoch_seconds is not None or simulation.is_over(job, now_s)
        if job.status in TERMINAL or not is_moved:
            return None
        due = simulation.polled(job, now_s, epoch_seconds)
        vanishes_at = self.faults.of(job.vendor_id).vanish_at_epoch
        if vanishes_at is not None and due.epoch >= vanishes_at:
            self.faults.vanished.add(job.vendor_id)
        if job.vendor_id in self.faults.vanished:
            return None
        pushed = await self._push(job, due.epoch, now_s)
        if due == job and pushed is None:
            return None
        return lambda stored: replace(simulation.polled(stored, now_s, epoch_seconds), pushed=pushed or stored.pushed)

    async def _push(self, job: Job, epoch: int, now_s: float) -> CheckpointSeen | None:
        """Return the checkpoint that was pushed for the newest epoch that has one, None where there is none new."""
        every = self.vendors[job.vendor_id].checkpoints_every
        if every is None or job.files is None:
            return None
        newest = epoch - epoch % every
        if newest <= max(job.first_epoch, 0 if job.pushed is None else job.pushed.step):
            return None
        return await checkpoints.push(self._http, job, newest, now_s)

    async def cancel(self, job: Job) -> Callable[[Job], Job]:
        return simulation.cancel

    def knows(self, since: str) -> bool:
        number = since.removeprefix("line-")
        return number != since and number.isascii() and number.isdigit() and len(number) <= 9

    async def status(self, vendor: model.Vendor, job: Job, since: str | None) -> StatusView:
        start = 0 if since is None else int(since.removeprefix("line-"))
        faults = self.faults.of(vendor.vendor_id)
        lies = faults.lie_about_progress and job.status not in TERMINAL
        is_completed = job.status == "completed"
        words = faults.words
        metrics = {**simulation.FINAL_METRICS, **{name[:200]: Decimal("1e6") for name in words[:20]}}
        return StatusView(
            # The lie: nearly done at first, and ever less as the work goes on.
            progress=Decimal("0.99") - job.progress if lies else job.progress,
            logs=words if words and job.logs and start == 0 else job.logs[start:],
            checkpoint=job.pushed,
            cursor=f"line-{len(job.logs)}",
            remaining_minutes=simulation.remaining_minutes(job),
            cost_atomic=simulation.cost_atomic(job),
            final_metrics=metrics if is_completed else None,
            artifact="model.json" if is_completed and not faults.no_artifacts else None,
            error_message=(*words[-1:], simulation.failure(job))[0] if job.status == "failed" else None,
        )

    async def files(self, job: Job) -> tuple[KeptFile, ...]:
        if self.faults.of(job.vendor_id).no_artifacts:
            return ()
        return tuple(
            KeptFile(name=name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in simulation.artifacts(job).items()
        )

    async def read(self, job: Job, name: str) -> AsyncGenerator[bytes, None]:
        content = simulation.artifacts(job).get(name)
        if content is None:
            raise VendorApiError("not_found", "no such file")
        yield content
