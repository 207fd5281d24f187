"""
Buying a job: quote, challenge, reserve, sign, send. Every effect is saved before and after.

A crash anywhere leaves a job `quoted` or a payment `pending`, which `recover` takes up again.
"""

from collections.abc import Mapping
from decimal import Decimal

from agent.checkpoints import can_leave_files, described, grant_of, resume_from
from agent.core.apply import find_job, find_payment
from agent.core.cheque import authorization_for, payment_header, payment_id, payment_nonce
from agent.core.decide import StartJob
from agent.core.dialects import Challenge
from agent.core.errors import (
    NoSigner,
    NoVendorSecret,
    VendorDenied,
    VendorError,
    VendorRefused,
    VendorUnpayable,
    VendorUnreachable,
)
from agent.core.events import (
    AttemptFailed,
    JobEnded,
    JobQuoted,
    JobSubmitted,
    PaymentReserved,
    Refused,
    SubmissionUnanswered,
)
from agent.core.model import Job, JobState, Payment, Run, Vendor
from agent.core.policy import (
    Refusal,
    check_caps,
    check_hourly,
    check_quote,
    check_terms,
    choose_challenge,
    holds_for,
    once,
    refusal_of,
)
from agent.core.slots import CHECKPOINT_REFUSED
from agent.ports import Agent, Declined, Submitted, Wallet
from agent.settle import settle
from agent.turn import Turn
from wire.control import callback_url
from wire.decimal_json import plain
from wire.eip712 import typed_data
from wire.money import MoneyError, to_atomic_up
from wire.vendor import Quote, QuoteRequest, SubmitRequest
from wire.x402 import PaymentRequirements

STARTED = "Job started"
PENDING = "Payment pending"
SUBMIT_FAILED = "Submit job failed"
OVER_BUDGET = "Quote exceeds budget"
REUSED = "the vendor names the job of another purchase"


def wallet_of(agent: Agent) -> Wallet:
    """Return the wallet. Raises NoSigner where there is none: never an unpaid call."""
    if agent.wallet is None:
        raise NoSigner("the next step has to pay and no key is configured")
    return agent.wallet


async def quoted_job(turn: Turn, vendor: Vendor, action: StartJob) -> tuple[Job, Refusal | None]:
    """Ask `vendor` for a quote; return the job it would be, and why it is not taken, if so. Stores nothing."""
    run = turn.run
    request = QuoteRequest(
        job_type=run.job.kind,
        gpu_type=action.gpu_type,
        max_hours=action.max_hours,
        job_metadata=job_params(run, action.slot),
        has_files=can_leave_files(turn.agent, run, vendor.vendor_id) or None,
        resume=None if action.resume is None else described(action.resume),
    )
    try:
        quote = await turn.agent.vendors.quote(vendor, request)
        return _priced(turn, vendor, action, quote)
    except VendorError as error:
        return _job(turn, action, "failed"), _refusal_for(error, is_resuming=action.resume is not None)


def _priced(turn: Turn, vendor: Vendor, action: StartJob, quote: Quote) -> tuple[Job, Refusal | None]:
    job = _job(turn, action, "quoted", quote)
    if quote.currency != turn.run.asset.symbol:
        return job, Refusal("unknown_quote_currency", f"the quote is in {quote.currency}")
    try:
        cost_atomic = to_atomic_up(quote.price_estimate, turn.run.asset)
    except MoneyError as error:
        return job, Refusal("bad_quote", str(error))
    if cost_atomic == 0:
        return job, Refusal("bad_quote", "the quote is zero")
    job = _job(turn, action, "quoted", quote, cost_atomic)
    return job, check_quote(turn.run, vendor, job)


async def start_job(turn: Turn, vendor: Vendor, action: StartJob) -> str:
    """Buy the job that was decided on; return the tick's message."""
    job, refusal = await quoted_job(turn, vendor, action)
    if refusal is not None:
        failed = _job(turn, action, "failed", None, job.expected_cost_atomic, str(refusal))
        turn.record(AttemptFailed(at=turn.now, job=failed))
        await turn.save()
        return OVER_BUDGET if refusal.code == "over_budget" else SUBMIT_FAILED
    turn.record(JobQuoted(at=turn.now, job=job))
    await turn.save()
    return await pay(turn, vendor, job)


async def pay(turn: Turn, vendor: Vendor, job: Job) -> str:
    """Challenge, check, reserve, sign and send for a quoted `job`; return the tick's message."""
    agent = turn.agent
    wallet_of(agent)
    number = len(turn.run.payments) + 1
    identifier = payment_id(turn.run.run_id, number)
    base_url = agent.callback_base_url
    submit = SubmitRequest(
        vendor_job_template_id=job.template_id,
        job_params=job.job_params,
        max_hours=job.hours,
        callback_url=None if base_url is None else callback_url(base_url, turn.run.run_id),
        files=grant_of(agent, turn.run, job),
        resume=None if job.checkpoint is None else resume_from(agent, turn.run, job.checkpoint),
    )
    request = submit.to_json().decode()
    try:
        challenges = await agent.vendors.challenge(vendor, request, identifier)
    except VendorError as error:
        return await _give_up(turn, job, _refusal_for(error, is_resuming=job.checkpoint is not None))
    choice = choose_challenge(agent.policy, vendor, job.expected_cost_atomic, challenges)
    if isinstance(choice, Refusal):
        return await _give_up(turn, job, choice)
    challenge, chosen = choice
    amount_atomic = int(chosen.amount)
    if refusal := check_hourly(turn.run, job, amount_atomic) or check_caps(agent.policy, turn.run, amount_atomic):
        return await _give_up(turn, job, refusal)
    payment = await _signed(turn, job, challenge, chosen, request, number)

    reserved = PaymentReserved(at=turn.now, payment=payment, caps=agent.policy)
    holds = holds_for(agent.policy, payment.payer, vendor.vendor_id, amount_atomic, turn.now)
    refused = await turn.save(reserved, holds=holds, durable=True)
    if refused is not None:
        return await _give_up(turn, job, refusal_of(refused, holds))
    return await send(turn, vendor, payment)


async def send(turn: Turn, vendor: Vendor, payment: Payment) -> str:
    """
    Send the payment's stored bytes, the first time or again, and store what came of it.

    A no is not believed and a yes is not either: the chain decides (`settle`).
    """
    answer = await turn.agent.vendors.submit(
        vendor, payment.request, payment.payment_id, payment.header, payment.dialect
    )
    detail = REUSED if isinstance(answer, Submitted) else answer.detail
    if isinstance(answer, Declined) and (changed := check_terms(payment, answer.asks)):
        # Its own code, which no vendor's word begins with, says whose fault it is if the cheque lapses.
        detail = str(changed)
    if not (isinstance(answer, Submitted) and await take_up(turn, payment, answer.reply.vendor_job_id)):
        turn.record(SubmissionUnanswered(at=turn.now, payment_id=payment.payment_id, detail=detail))
        await turn.save(durable=True)

    payment = find_payment(turn.run, payment.payment_id)
    settled = payment.status == "completed" or await settle(turn, payment)
    started = find_job(turn.run, payment.job_id).vendor_job_id is not None
    return STARTED if started and settled else PENDING


async def take_up(turn: Turn, payment: Payment, vendor_job_id: str) -> bool:
    """
    Store that the vendor works on `payment`'s job as `vendor_job_id`; return False where it cannot be.

    One job is sold once: what another purchase of any run bought is not this one's.
    """
    submitted = JobSubmitted(at=turn.now, job_id=payment.job_id, vendor_job_id=vendor_job_id)
    sold = once(f"{payment.vendor_id}:{vendor_job_id}")
    return await turn.save(submitted, holds=[sold], durable=True) is None


async def _signed(
    turn: Turn,
    job: Job,
    challenge: Challenge,
    chosen: PaymentRequirements,
    request: str,
    number: int,
) -> Payment:
    run, wallet = turn.run, wallet_of(turn.agent)
    payer = await wallet.address()
    nonce = payment_nonce(run.run_id, number)
    identifier = payment_id(run.run_id, number)
    head = await turn.agent.chain.head()
    authorization = authorization_for(chosen, payer, nonce, turn.now)
    signature = await wallet.sign(typed_data(authorization, run.asset))
    return Payment(
        payment_id=identifier,
        job_id=job.job_id,
        vendor_id=job.vendor_id,
        amount_atomic=int(chosen.amount),
        asset=run.asset.address,
        network=run.asset.network,
        pay_to=chosen.pay_to,
        payer=payer,
        nonce=nonce,
        valid_before_s=int(authorization.valid_before),
        from_block=head,
        request=request,
        header=payment_header(challenge, chosen, authorization, signature, identifier),
        dialect=challenge.dialect,
        status="pending",
        created_at=turn.now,
        updated_at=turn.now,
    )


async def _give_up(turn: Turn, job: Job, refusal: Refusal) -> str:
    turn.record(
        Refused(at=turn.now, code=refusal.code, detail=refusal.detail, job_id=job.job_id),
        JobEnded(at=turn.now, job_id=job.job_id, status="failed", error_message=str(refusal)),
    )
    await turn.save()
    return OVER_BUDGET if refusal.code == "over_budget" else SUBMIT_FAILED


def _refusal_for(error: VendorError, *, is_resuming: bool) -> Refusal:
    if is_resuming and isinstance(error, VendorRefused) and error.problem == "checkpoint_mismatch":
        return Refusal(CHECKPOINT_REFUSED, str(error))
    return Refusal(next(code for kind, code in _CODES.items() if isinstance(error, kind)), str(error))


# The narrower before the wider.
_CODES: Mapping[type[VendorError], str] = {
    VendorUnreachable: "vendor_unreachable",
    NoVendorSecret: NoVendorSecret.refusal,
    VendorDenied: "vendor_denied",
    VendorRefused: "vendor_refused",
    VendorUnpayable: "unsupported_scheme",
    VendorError: "bad_challenge",
}


def job_params(run: Run, slot: int | None = None) -> dict[str, object]:
    """Return what a vendor is told of the run: its goal, what it wants, which piece of it; absent wishes left out."""
    spec = run.job
    wishes = {
        "gpuType": spec.gpu_type,
        "minVramGb": spec.min_vram_gb,
        "maxHours": None if spec.max_hours is None else plain(spec.max_hours),
        "count": spec.count,
        "index": slot or None,
        "model": spec.model,
        "dataset": spec.dataset,
        "params": spec.params or None,
        "env": spec.env or None,
    }
    return {"goal": run.goal, **{name: value for name, value in wishes.items() if value is not None}}


def _job(
    turn: Turn,
    action: StartJob,
    status: JobState,
    quote: Quote | None = None,
    cost_atomic: int = 0,
    error_message: str | None = None,
) -> Job:
    run = turn.run
    return Job(
        job_id=f"{run.run_id}-job-{len(run.jobs) + 1}",
        vendor_id=action.vendor_id,
        status=status,
        gpu_type=action.gpu_type,
        hours=action.max_hours,
        template_id=quote.vendor_job_template_id if quote else "",
        expected_cost_atomic=cost_atomic,
        expected_duration_minutes=quote.eta_minutes if quote else Decimal(0),
        job_params=job_params(run, action.slot),
        created_at=turn.now,
        updated_at=turn.now,
        error_message=error_message,
        completed_at=turn.now if status == "failed" else None,
        slot=action.slot,
        resumes=None if action.resume is None else action.resume.job_id,
        hedges=action.hedges,
        checkpoint=action.resume,
        moves=quote.moves if quote else None,
    )
