"""
Every answer of the paid door. A payment whose fate is open is never answered with a fresh 402.

Source: RFC 9457; what each dialect adds stands in `core.dialects`.
"""

from collections.abc import Mapping
from typing import Any

from cashier.core.dialects import Ask, Dialects
from cashier.core.model import Answer, DialectName, Taking
from wire import decimal_json
from wire.problems import problem_document
from wire.x402 import SettleResponse

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


def payment_required(ask: Ask, dialects: Dialects) -> Answer:
    """Return the 402 that says what to sign."""
    detail = f"{ask.description} costs {ask.asked.amount} atomic units of {ask.asked.asset}"
    return _challenge("payment_required", detail, ask, dialects, "payment_required")


def payment_invalid(ask: Ask, dialects: Dialects, spoken: DialectName, reason: str) -> Answer:
    """Return the 402 to a payment in the dialect `spoken` that was refused for good: nothing was charged."""
    answer = _challenge("payment_invalid", reason, ask, dialects, reason)
    refused = SettleResponse(success=False, error_reason=reason, network=ask.asked.network)
    told = dialects[spoken].settlement(refused, ask.now_s)
    return Answer(status=answer.status, headers={**answer.headers, **told}, body=answer.body)


def _challenge(code: str, detail: str, ask: Ask, dialects: Dialects, error: str) -> Answer:
    """Return the problem `code` with what every dialect adds to it."""
    document = problem_document(code, detail)
    headers: dict[str, str] = dict(_PROBLEM)
    members = document.document()
    for dialect in dialects.values():
        challenge = dialect.challenge(ask, error)
        headers |= challenge.headers
        members |= challenge.members
    return Answer(status=document.status, headers=headers, body=decimal_json.dumps(members))


def pending(taking: Taking) -> Answer:
    """Return the 202 to a payment that somebody is settling; the same request again learns the end."""
    detail = f"the settlement {taking.transaction} is not mined yet" if taking.transaction else "it is being settled"
    return problem("settlement_pending", detail, retry_after_s=RETRY_AFTER_S)


def unknown(silent: str) -> Answer:
    """Return the 503 to a payment whose fate cannot be learnt now: `silent`, a key of UNKNOWN, did not answer."""
    return problem("facilitator_unavailable", UNKNOWN[silent], retry_after_s=RETRY_AFTER_S)


def served(taking: Taking, document: Mapping[str, Any], dialects: Dialects, now_s: int) -> Answer:
    """Return the 200 with what was started and the settlement that paid it, told in the payer's dialect."""
    dialect = dialects.get(taking.dialect)
    settlement = SettleResponse(
        success=True,
        payer=taking.payer,
        transaction=taking.transaction or "",
        network=taking.amount.network,
        amount=str(taking.amount.atomic),
    )
    # A row may be older than this process, and speak what is not installed any more.
    told = {} if dialect is None else dialect.settlement(settlement, now_s)
    return Answer(
        status=200,
        headers={"content-type": "application/json", "cache-control": "no-store", **told},
        body=decimal_json.dumps(dict(document)),
    )
