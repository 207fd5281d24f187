"""What this machine sells, to whom and for how much; the shop does the rest of selling."""

import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from cashier.core.model import Sale
from gpu_worker import jobs
from gpu_worker.core import estimate, owner, pricing, progress
from gpu_worker.core.errors import WorkerError
from gpu_worker.core.hardware import Device
from gpu_worker.core.model import Job, LocalModel
from gpu_worker.ports import Worker
from gpu_worker.preparing import NO_MODEL, TOO_LARGE, memory_of, model_of
from storefront.errors import VendorApiError
from storefront.model import TERMINAL, KeptFile, StatusView, Template, Terms, Vendor
from wire import decimal_json
from wire import jobs as wire_jobs
from wire.checkpoint import misfit
from wire.jobs import KINDS, JobKind, Params
from wire.money import to_atomic, to_decimal
from wire.vendor import CheckpointDescription, Offer, QuoteRequest, SubmitRequest

_CANNOT_MOVE = "cannot move: no place was given that this worker could bring the job's checkpoints to"
# An estimate is right within this factor: what needs longer than so many times its hours is not sold to die of them.
ESTIMATE_FACTOR = 2
_GIB = 1024**3


class WorkerSeller:
    """Implements `storefront.ports.Seller` for the one vendor that a worker is."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._kept: dict[str, tuple[KeptFile, ...]] = {}

    @property
    def vendors(self) -> Mapping[str, Vendor]:
        return {self._worker.vendor.vendor_id: self._worker.vendor}

    async def offers(self, vendor: Vendor) -> tuple[Offer, ...]:
        now, settings = self._worker.now, self._worker.settings
        now.offers += 1
        if now.device is None:
            return ()
        return (
            Offer(
                gpu_type=now.device.gpu_type,
                price_per_hour=to_decimal(self._per_hour(vendor), vendor.asset),
                currency=vendor.asset.symbol,
                asset=vendor.asset.address,
                network=vendor.asset.network,
                pay_to=vendor.pay_to,
                vram_gb=now.device.memory_bytes // _GIB,
                available=0
                if self._refusal() is not None
                else max(0, settings.jobs_max - await self._active(now.device)),
                job_types=self._kinds(),
                benchmark_tok_per_sec=None if now.speed is None else now.speed.tokens_per_s,
            ),
        )

    async def terms(self, vendor: Vendor, request: QuoteRequest) -> Terms:
        try:
            terms = await self._terms(vendor, request)
        except WorkerError as error:
            self._count(error.code)
            raise VendorApiError(error.code, str(error)) from error
        except VendorApiError as error:
            self._count(error.code)
            raise
        self._worker.now.quotes += 1
        return terms

    def check(self, vendor: Vendor, template: Template, submit: SubmitRequest) -> None:
        asked = _params(template.job_type, submit.job_params)
        terms = decimal_json.loads(template.terms_json)
        quoted = terms["jobParams"]
        if quoted is not None and _params(template.job_type, quoted) != asked:
            raise VendorApiError("invalid_field", "jobParams: this is other work than was quoted")
        if submit.resume is None:
            return
        if submit.files is None:
            raise VendorApiError("invalid_field", "files: a checkpoint is fetched with its token")
        _must_fit(submit.resume, template.job_type, submit.job_params, terms["modelHash"], terms["datasetSha256"])

    async def has_room(self, vendor: Vendor, template: Template, reserved: int) -> bool:
        refusal = self._refusal() or self._unsold(vendor, template.gpu_type, template.job_type)
        if refusal is None and template.price_atomic < self._price(vendor, template.hours):
            refusal = VendorApiError("template_not_found", "the price has risen since this quote: ask for another")
        if refusal is not None:
            raise refusal
        device = self._worker.now.device
        return device is not None and await self._active(device) + reserved < self._worker.settings.jobs_max

    def admits(self, vendor: Vendor, payer: str) -> str | None:
        refused = owner.admits(payer, self._worker.limits)
        if refused is not None:
            self._count("requester_refused")
        return refused

    def make(self, vendor: Vendor, template: Template, submit: SubmitRequest, sale: Sale, number: int) -> Job:
        now_s = int(self._worker.clock())
        return Job(
            job_id=f"job_{secrets.token_hex(8)}",
            vendor_id=vendor.vendor_id,
            payment_id=sale.payment_id,
            gpu_type=template.gpu_type,
            hours=template.hours,
            price_atomic=sale.amount.atomic,
            started_at_s=now_s,
            ends_by_s=pricing.ends_by_s(now_s, template.hours, submit.max_hours),
            callback_url=submit.callback_url,
            kind=_kind(template.job_type),
            job_params=submit.job_params,
            index=wire_jobs.index_of(submit.job_params),
            payer=sale.payer,
            moves=submit.files is not None and template.job_type != "container",
            files=submit.files,
            resume=submit.resume,
            step=0 if submit.resume is None else submit.resume.step,
            steps=0 if submit.resume is None else submit.resume.steps,
        )

    async def started(self, job: Job) -> None:
        if job.status not in TERMINAL:
            self._worker.now.wanted.put_nowait(job.job_id)

    async def look(self, job: Job, *, is_poll: bool) -> Callable[[Job], Job] | None:
        # Its supervisor writes the row.
        return None

    async def cancel(self, job: Job) -> Callable[[Job], Job]:
        return await jobs.cancel(self._worker, job)

    def knows(self, since: str) -> bool:
        return progress.offset_of(since) is not None

    async def status(self, vendor: Vendor, job: Job, since: str | None) -> StatusView:
        offset = progress.offset_of(since) or 0
        lines, behind = await self._worker.folders.lines(job.job_id, offset)
        live = self._worker.now.jobs.get(job.job_id)
        if live is not None and job.status not in TERMINAL:
            job = replace(job, step=live.step, steps=live.steps, used_s=live.used_s)
        told = progress.told(lines)
        state = await self._worker.folders.state(job.job_id) if job.status in TERMINAL else None
        is_done = job.status == "completed"
        return StatusView(
            progress=Decimal(1) if is_done else _share(job),
            cursor=progress.cursor_of(behind),
            cost_atomic=pricing.cost_atomic(job),
            logs=told.logs,
            metrics=told.metrics,
            checkpoint=job.pushed,
            remaining_minutes=_remaining_minutes(job),
            final_metrics=state.final_metrics if is_done and state is not None else None,
            artifact=state.artifact if is_done and state is not None else None,
            error_message=job.error_message,
        )

    async def files(self, job: Job) -> tuple[KeptFile, ...]:
        if job.status not in TERMINAL:
            return ()
        if job.job_id not in self._kept:
            # Nothing in it changes any more, and its hashes take reading all of it.
            self._kept[job.job_id] = await self._worker.folders.files(job.job_id)
        return self._kept[job.job_id]

    async def read(self, job: Job, name: str) -> AsyncGenerator[bytes, None]:
        if name not in {file.name for file in await self.files(job)}:
            raise VendorApiError("not_found", "no such file")
        try:
            async for chunk in self._worker.folders.read(job.job_id, name):
                yield chunk
        except KeyError:
            # Its week is over.
            raise VendorApiError("not_found", "no such file") from None

    def _refusal(self) -> VendorApiError | None:
        """Return why nothing at all is sold now."""
        now = self._worker.now
        if now.state == "draining" or now.leaving.is_set():
            return VendorApiError("draining", "this worker is shutting down")
        if now.state != "online":
            return VendorApiError("not_selling", f"this worker is {now.state}, not online yet")
        if now.problem is not None:
            return VendorApiError("not_selling", now.problem)
        if now.yielded is not None:
            return VendorApiError("not_selling", now.yielded.reason)
        return None

    def _unsold(self, vendor: Vendor, gpu_type: str, kind: str) -> VendorApiError | None:
        """Return why no job of `kind` on a `gpu_type` is sold; a quote may be older than what the owner sells now."""
        device = self._worker.now.device
        if device is None or gpu_type != device.gpu_type:
            return VendorApiError("unsupported_gpu", f"{vendor.name} has no {gpu_type[:80]}")
        if kind not in self._kinds():
            return VendorApiError("kind_off", f"{vendor.name} sells no jobs of the kind {kind[:80]}")
        return None

    def _price(self, vendor: Vendor, hours: Decimal) -> int:
        return pricing.price_of(self._per_hour(vendor), self._worker.limits.price_min_atomic, hours)

    def _kinds(self) -> tuple[JobKind, ...]:
        settings, container = self._worker.settings, self._worker.now.container
        sold = (kind for kind in KINDS if settings.is_sold(kind) and (kind != "container" or container is not None))
        return tuple(_kind(kind) for kind in sold)

    def _per_hour(self, vendor: Vendor) -> int:
        return to_atomic(self._worker.settings.price_per_hour, vendor.asset)

    async def _active(self, device: Device) -> int:
        vendor_id = self._worker.vendor.vendor_id
        return await self._worker.book.count_active(vendor_id, device.gpu_type, int(self._worker.clock()))

    def _count(self, code: str) -> None:
        self._worker.now.refusals.append((self._worker.clock(), code))

    async def _terms(self, vendor: Vendor, request: QuoteRequest) -> Terms:
        worker, now = self._worker, self._worker.now
        if (refusal := self._refusal() or self._unsold(vendor, request.gpu_type, request.job_type)) is not None:
            raise refusal
        device = now.device
        assert device is not None
        params = _params(request.job_type, request.job_metadata or {})
        model = await model_of(worker, params)
        model_hash = NO_MODEL if model is None else model.model_hash
        sha256 = await worker.inputs.look(params)
        if request.resume is not None:
            if request.resume.bytes > worker.settings.disk_max_bytes:
                raise VendorApiError("checkpoint_mismatch", TOO_LARGE)
            _must_fit(request.resume, request.job_type, request.job_metadata or {}, model_hash, sha256)
        memory_bytes, eta_s = self._estimate(request, params, device, model)
        price = self._price(vendor, request.max_hours)
        asked = owner.Asked(memory_bytes=memory_bytes, disk_bytes=0, eta_s=eta_s or Decimal(0), price_atomic=price)
        if now.machine is not None:
            no = owner.may_take(asked, now.machine, device, worker.limits, worker.local_minute())
            if no is not None:
                raise VendorApiError(no.code, no.reason)
        notes = _notes(request, eta_s)
        return Terms(
            price_atomic=price,
            eta_minutes=request.max_hours * 60 if eta_s is None else (eta_s / 60).quantize(Decimal("0.01")),
            moves=bool(request.has_files) and request.job_type != "container",
            notes=notes,
            terms_json=decimal_json.dumps(
                {"jobParams": request.job_metadata, "modelHash": model_hash, "datasetSha256": sha256}
            ).decode(),
        )

    def _estimate(
        self, request: QuoteRequest, params: Params, device: Device, model: LocalModel | None
    ) -> tuple[int, Decimal | None]:
        """Return the memory that the job needs and how long it takes, None where nobody knows. Raises WorkerError."""
        if model is None or model.served is not None:
            # What is served is in memory already; how long it takes depends on who else asks it.
            return 0, None
        memory_bytes, speed = memory_of(self._worker, device), self._worker.now.speed
        fits = estimate.look(model.config, params, device.kind, memory_bytes, speed)
        if isinstance(fits, estimate.TooLarge):
            detail = f"{model.name} needs {fits.memory_bytes} bytes of memory here, {fits.missing_bytes} are missing"
            raise VendorApiError("model_too_large", detail)
        eta_s = fits.eta_s
        if eta_s is not None and request.resume is not None:
            eta_s *= 1 - Decimal(request.resume.step) / request.resume.steps
        if eta_s is not None and eta_s > request.max_hours * 3_600 * ESTIMATE_FACTOR:
            needed = (eta_s / 3_600).quantize(Decimal("0.01"))
            raise VendorApiError("invalid_field", f"maxHours: the job needs about {needed} h here")
        return fits.memory_bytes, eta_s


def _must_fit(
    found: CheckpointDescription, kind: str, job_params: Mapping[str, Any], model_hash: str, sha256: str | None
) -> None:
    """Raises VendorApiError for a checkpoint of other work; what the dataset decides is seen once that is known."""
    if found.step > found.steps:
        raise VendorApiError("checkpoint_mismatch", "the checkpoint has more steps than there are")
    params, index = _params(kind, job_params), wire_jobs.index_of(job_params)
    wanted = found.spec_hash if sha256 is None else wire_jobs.spec_hash(kind, params, sha256, index)
    if (wrong := misfit(found, model_hash=model_hash, spec_hash=wanted)) is not None:
        raise VendorApiError("checkpoint_mismatch", wrong)


def _kind(name: str) -> JobKind:
    assert name in KINDS
    return name  # type: ignore[return-value]


def _params(kind: str, job_params: Mapping[str, Any]) -> Params:
    try:
        wire_jobs.index_of(job_params)
        return wire_jobs.params_of(kind, job_params)
    except ValueError as error:
        raise VendorApiError("invalid_field", f"jobParams: {error}") from None


def _notes(request: QuoteRequest, eta_s: Decimal | None) -> tuple[str, ...]:
    notes = []
    if not request.has_files:
        notes.append(_CANNOT_MOVE)
    if eta_s is not None and eta_s > request.max_hours * 3_600:
        notes.append(f"may need {(eta_s / 3_600).quantize(Decimal('0.01'))} h")
    return tuple(notes)


def _share(job: Job) -> Decimal:
    return Decimal(0) if job.steps == 0 else min(Decimal(1), Decimal(job.step) / job.steps)


def _remaining_minutes(job: Job) -> Decimal | None:
    """Return how long the job still takes, by the steps that it has done here; None where it has done none."""
    if job.status in TERMINAL:
        return Decimal(0)
    done = job.step - pricing.first_step(job)
    if done <= 0:
        return None
    return (job.used_s / done * (job.steps - job.step) / 60).quantize(Decimal("0.01"))
