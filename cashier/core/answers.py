"""
Every answer of the paid door. A payment whose fate is open is never answered with a fresh 402.

Source: x402 specification v2, transports-v2/http.md; RFC 9457.
"""

from collections.abc import Mapping
from typing import Any

from cashier.core.model import Answer, Taking
from wire import decimal_json
from wire.problems import problem_document
from wire.x402 import (
    PAYMENT_REQUIRED,
    PAYMENT_RESPONSE,
    PaymentRequired,
    PaymentRequirements,
    ResourceInfo,
    SettleResponse,
    declare_payment_identifier,
    encode_header,
)

RETRY_AFTER_S = 1
# What a payer is told; what happened inside is for the log.
LAPSED = "the payment lapsed and was never settled"
NO_ROOM = "not charged: there is no room for one more"
UNKNOWN = {
    "facilitator_unavailable": "the facilitator gave no usable answer; the same payment may be sent again",
    "chain_unavailable": "the chain gave no usable answer; the same payment may be sent again",
}

_PROBLEM = {"content-type": "application/problem+json", "cache-control": "no-store"}


def problem(code: str, detail: str, *, retry_after_s: int | None = None) -> Answer:
    """Return the problem document of `code` as an answer."""
    document = problem_document(code, detail, retry_after_s)
    retry = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    return Answer(status=document.status, headers={**_PROBLEM, **retry}, body=document.to_json())


def payment_required(asked: PaymentRequirements, url: str, description: str) -> Answer:
    """Return the 402 that says what to sign."""
    answer = problem("payment_required", f"{description} costs {asked.amount} atomic units of {asked.asset}")
    return _with_challenge(answer, asked, url, description, "payment_required")


def payment_invalid(asked: PaymentRequirements, url: str, description: str, reason: str) -> Answer:
    """Return the 402 to a payment that was refused for good: nothing was charged."""
    answer = _with_challenge(problem("payment_invalid", reason), asked, url, description, reason)
    refused = SettleResponse(success=False, error_reason=reason, network=asked.network)
    return Answer(
        status=answer.status,
        headers={**answer.headers, PAYMENT_RESPONSE.lower(): encode_header(refused)},
        body=answer.body,
    )


def _with_challenge(answer: Answer, asked: PaymentRequirements, url: str, description: str, error: str) -> Answer:
    challenge = PaymentRequired(
        error=error,
        resource=ResourceInfo(url=url, description=description, mime_type="application/json"),
        accepts=(asked,),
        extensions=declare_payment_identifier(),
    )
    return Answer(
        status=answer.status,
        headers={**answer.headers, PAYMENT_REQUIRED.lower(): encode_header(challenge)},
        body=answer.body,
    )


def pending(taking: Taking) -> Answer:
    """Return the 202 to a payment that somebody is settling; the same request again learns the end."""
    detail = f"the settlement {taking.transaction} is not mined yet" if taking.transaction else "it is being settled"
    return problem("settlement_pending", detail, retry_after_s=RETRY_AFTER_S)


def unknown(silent: str) -> Answer:
    """Return the 503 to a payment whose fate cannot be learnt now: `silent`, a key of UNKNOWN, did not answer."""
    return problem("facilitator_unavailable", UNKNOWN[silent], retry_after_s=RETRY_AFTER_S)


def served(taking: Taking, document: Mapping[str, Any]) -> Answer:
    """Return the 200 with what was started and the settlement that paid it."""
    settlement = SettleResponse(
        success=True,
        payer=taking.payer,
        transaction=taking.transaction or "",
        network=taking.amount.network,
        amount=str(taking.amount.atomic),
    )
    return Answer(
        status=200,
        headers={
            "content-type": "application/json",
            "cache-control": "no-store",
            PAYMENT_RESPONSE.lower(): encode_header(settlement),
        },
        body=decimal_json.dumps(dict(document)),
    )
