"""
Problem details: the one table of every error code an HTTP door of ours can answer, and the body it comes in.

`docs/errors.md` is generated from PROBLEMS and REFUSALS (`make docs`). Source: RFC 9457.
"""

from dataclasses import dataclass

from wire.model import Body


class ProblemDocument(Body):
    """The body of every HTTP error; `hint` says what to do next. `retry_after` is seconds."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    status: int
    title: str
    hint: str


PROBLEMS: dict[str, Problem] = {
    # asking
    "malformed_json": Problem(422, "The body is not JSON", "Send one JSON object; numbers are plain, never NaN."),
    "invalid_field": Problem(422, "A field is missing or wrong", "Mend the field that `detail` names and send again."),
    "amount_not_positive": Problem(422, "The amount is not above zero", "Send an amount above zero."),
    "too_many_decimals": Problem(
        422, "The amount is finer than the asset", "Use at most as many decimals as the asset has."
    ),
    "amount_too_large": Problem(422, "The amount is too large", "Send a smaller amount."),
    "not_json_content": Problem(
        415, "The body is not called JSON", "Send it with the header `Content-Type: application/json`."
    ),
    "body_too_large": Problem(413, "The body is too large", "Send a smaller body."),
    "too_large_for_host": Problem(
        413, "The answer is larger than this host can give", "Ask for it in parts, with the header `Range`."
    ),
    "range_not_satisfiable": Problem(
        416, "The file has no such part", "Ask for bytes that `Content-Range` says it has."
    ),
    "header_too_large": Problem(431, "A header is too large", "Send a smaller header."),
    "method_not_allowed": Problem(405, "This path has another method", "See the `Allow` header."),
    "unknown_host": Problem(421, "This server has another name", "Call it by 127.0.0.1 or localhost."),
    "foreign_origin": Problem(403, "A web page of another site sent this", "Send it from a program instead."),
    "unauthorized": Problem(401, "This server asks for its secret", "Send it as `Authorization: Bearer <secret>`."),
    "forbidden": Problem(403, "The secret is wrong", "Send the secret that the server was started with."),
    "no_api_secret": Problem(
        503, "The server has no secret to ask for", "Set LIVERY_API_SECRET where it runs, and send it as a bearer."
    ),
    "not_found": Problem(404, "There is nothing here", "Check the path against the API's documentation."),
    "internal": Problem(500, "This is our fault", "Report it with the time; nothing you sent was lost."),
    # runs
    "run_not_found": Problem(404, "There is no such run", "List runs with GET /api/agent-runs."),
    "run_finished": Problem(
        409, "The run has ended", "Read it with GET /api/agent-status; start another run to go on."
    ),
    "run_busy": Problem(409, "Another tick holds the run", "Wait `retryAfter` seconds and tick again."),
    "bad_signature": Problem(
        401, "The call is not signed by a vendor of the run", "Sign each attempt anew; see docs/vendor-api.md."
    ),
    "idempotency_conflict": Problem(409, "This Idempotency-Key began another run", "Use a new key for a new run."),
    "cannot_revoke": Problem(
        409,
        "The cheque cannot be cancelled on the chain",
        "Wait: unused, it is free once a final block is later than its end.",
    ),
    "no_signer": Problem(
        503, "There is no key to pay with", "Make a wallet with `livery wallet new`, then tick again."
    ),
    "store_unavailable": Problem(503, "The store does not answer", "Check DATABASE_URL and the database; try again."),
    "artifact_not_found": Problem(404, "There is no such file", "See `artifacts` in GET /api/agent-status."),
    "artifacts_unavailable": Problem(503, "The kept files cannot be read", "Check ARTIFACT_URL; try again."),
    "chain_unavailable": Problem(503, "The chain does not answer", "Check the RPC address; try again."),
    # vendors
    "bad_vendor_secret": Problem(
        401, "The bearer secret is wrong", "Send `Authorization: Bearer <the vendor's secret>`."
    ),
    "unknown_vendor": Problem(404, "There is no such vendor", "Name a vendor served here in the x-vendor-id header."),
    "job_not_found": Problem(404, "There is no such job", "Look jobs up with GET /jobs?key=<payment id>."),
    "template_not_found": Problem(404, "There is no such quote", "Ask for a quote with POST /quote first."),
    "unsupported_gpu": Problem(400, "The vendor has no such GPU", "See GET /offers."),
    "no_capacity": Problem(503, "The vendor is full", "Nothing was charged. Try again later or elsewhere."),
    "kind_off": Problem(409, "The vendor does no such jobs", "See `jobTypes` in GET /offers. Nothing was charged."),
    "model_unknown": Problem(
        404, "The vendor has no such model", "Nothing was charged. Ask for another, or elsewhere."
    ),
    "model_too_large": Problem(
        409, "The model does not fit", "Nothing was charged. `detail` says how many bytes are missing."
    ),
    "dataset_unavailable": Problem(409, "The dataset cannot be fetched or used", "Mend what `detail` names."),
    "dataset_too_large": Problem(413, "The dataset is larger than the vendor takes", "Send a smaller one."),
    "checkpoint_mismatch": Problem(
        409, "The checkpoint is not of this job", "Begin anew, or send the checkpoint that the job made."
    ),
    "not_selling": Problem(503, "The vendor sells nothing now", "Nothing was charged. Try elsewhere."),
    "requester_refused": Problem(403, "The vendor does not sell to this payer", "Nothing was charged. Try elsewhere."),
    "draining": Problem(503, "The vendor is shutting down", "Nothing was charged. Try elsewhere."),
    "job_ended": Problem(409, "The job has ended", "Files are taken for a minute after its end, none after its run's."),
    "upload_incomplete": Problem(422, "The upload is not whole", "Nothing of it was kept. Send all of it again."),
    "upload_refused": Problem(403, "This token may not write here", "Use the grant of the job that the file is of."),
    "vendor_fault": Problem(500, "The vendor failed on purpose", "This fault was scripted; see docs/vendor-api.md."),
    # inference
    "context_length_exceeded": Problem(
        400, "The prompt and the answer are longer than the model's context", "Send less, or ask for fewer tokens."
    ),
    "invalid_argument": Problem(400, "The model cannot do what is asked", "Mend what `detail` names and send again."),
    "rate_limited": Problem(
        429, "The free requests of this hour are used up", "Send a key, or ask again after `Retry-After` seconds."
    ),
    "not_head": Problem(
        409, "This worker serves a later part of the model", "Ask its head, whose address `Location` has."
    ),
    "not_ready": Problem(503, "The model is being loaded", "Ask again in a moment; /readyz says when it is there."),
    "no_route": Problem(503, "No workers have all of the model's layers now", "Ask again in a moment."),
    "lost_stage": Problem(502, "A worker of the pipeline was lost and nobody took its place", "Ask again."),
    "deadline": Problem(504, "The answer took longer than it may", "Ask again, or for fewer tokens."),
    # proofs of a machine
    "cannot_attest": Problem(
        503,
        "This worker can prove nothing of itself now",
        "It needs a key, the extra [worker] and room: see `detail`.",
    ),
    "challenge_busy": Problem(503, "Another challenge is open", "Ask again in a minute."),
    "challenge_unknown": Problem(404, "There is no such challenge", "Begin one with POST /gpu-check/challenges."),
    # the paid door
    "payment_required": Problem(
        402,
        "This must be paid for",
        "Sign what PAYMENT-REQUIRED, `accepts` or WWW-Authenticate asks and send it again.",
    ),
    "payment_invalid": Problem(402, "The payment was refused", "Nothing was charged. `detail` says why."),
    "payment_malformed": Problem(
        400, "The payment header cannot be read", "Send one payment, in one header, as docs/vendor-api.md has it."
    ),
    "payment_identifier_required": Problem(
        400, "A payment identifier is required", "Add the payment-identifier extension."
    ),
    "payment_conflict": Problem(
        409, "This payment already bought another request", "Sign a new payment for a new request."
    ),
    "settlement_pending": Problem(
        202, "The settlement is not yet known", "Send the same request with the same payment again."
    ),
    "facilitator_unavailable": Problem(
        503, "The facilitator does not answer", "Send the same payment again, never a new one."
    ),
    "refund_too_large": Problem(
        409, "More than was paid cannot be refunded", "Refund at most what is left of the payment."
    ),
    "answer_gone": Problem(
        410, "What this payment bought is not here any more", "What it did not cost is credit. Sign a new payment."
    ),
    "credit_too_small": Problem(
        409, "The credit is smaller than that", "See how much is available with GET /v1/credits, and withdraw that."
    ),
}

# Why a run did not do a thing: values in its log, never HTTP errors.
REFUSALS: dict[str, str] = {
    "price_mismatch": "The 402 asked for more than 1 % above the quote.",
    "wrong_asset": "The 402 asked for another asset than the run pays in.",
    "wrong_network": "The 402 asked for another network than the run pays on.",
    "wrong_pay_to": "The 402 named another payee than the vendor registered.",
    "wrong_domain": "The 402 named another EIP-712 domain than the asset has.",
    "unsupported_scheme": "The 402 offered no `exact` EIP-3009 payment.",
    "unknown_quote_currency": "The quote was in another currency than the run's.",
    "bad_timeout": "The 402 asked for a cheque that stays valid for too long.",
    "over_payment_cap": "The price is above what one payment may cost.",
    "over_run_cap": "The run has paid as much as one run may.",
    "over_vendor_cap": "The vendor was paid today as much as one vendor may be.",
    "over_day_cap": "The wallet has paid as much as it may in one day.",
    "over_hourly_price": "The vendor's price per hour is above the run's maximum.",
    "over_budget": "The quote is above what is left of the budget.",
    "over_listed_price": "The quote is above the vendor's registered price; register it again to accept a new one.",
    "bad_quote": "The vendor's quote cannot be read or is not above zero.",
    "bad_challenge": "The vendor's answer to an unpaid submission was not a readable 402.",
    "vendor_unreachable": "The vendor did not answer.",
    "vendor_refused": "The vendor refused the request.",
    "vendor_denied": "The vendor did not accept our secret.",
    "no_vendor_secret": "No bearer secret is configured for the vendor.",
    "vendor_not_registered": "The vendor was removed from the register before it had the job.",
    "vendor_other_asset": "The vendor is registered with another asset or network than the run pays in.",
    "payment_refused": "The cheque was refused or never sent; the chain proves that nothing was paid.",
    "terms_changed": "The vendor was sent the payment that its 402 asked for, and asked for another one.",
    "paid_not_served": "The payment settled, the vendor never started the job.",
    "job_lost": "The vendor could not be reached for too long.",
    "overdue": "The job ran longer than was paid for.",
    "no_vendor_left": "No vendor is left for the run: none has what it asks for, or all have failed in it.",
    "attempts_exhausted": "As many jobs failed or were cancelled as the run may try.",
    "deadline_passed": "The run's deadline has passed.",
    "insufficient_budget": "What is left of the budget buys no hundredth of an hour.",
    "bad_refund": "The vendor announced a refund that cannot be one.",
    "hedge_lost": "Another job of the same piece of work was done first.",
    "interrupted": "The vendor was lost; the work goes on at another one.",
    "checkpoint_refused": "The checkpoint does not fit the job that was to go on from it.",
    "planner_aborted": "The planner gave up.",
    "cancelled": "The run was cancelled.",
}


def problem_document(code: str, detail: str, retry_after: int | None = None) -> ProblemDocument:
    """Return the body of the error `code` (a key of PROBLEMS)."""
    problem = PROBLEMS[code]
    return ProblemDocument(
        type=f"urn:livery:problem:{code}",
        title=problem.title,
        status=problem.status,
        code=code,
        detail=detail,
        hint=problem.hint,
        retry_after=retry_after,
    )
