"""
The dialects of the paid door: how each asks for a payment, hands it over and confirms it.

Every 402 speaks all of them; the header of a payment says which one the payer speaks. Whatever is read
becomes words of x402 version 2, so that behind this module there is one cheque and one facilitator.
Source: x402 specification v2, transports-v2/http.md; v1, transports-v1/http.md.
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cashier.core.model import DialectName, PaidRequest
from wire import decimal_json
from wire.x402 import (
    PAYMENT_REQUIRED,
    PAYMENT_RESPONSE,
    PAYMENT_SIGNATURE,
    Authorization,
    PaymentPayload,
    PaymentRequired,
    PaymentRequirements,
    ResourceInfo,
    SettleResponse,
    declare_payment_identifier,
    decode_header,
    encode_header,
    payment_identifier,
)
from wire.x402_v1 import (
    NETWORK_NAMES,
    X_PAYMENT,
    X_PAYMENT_RESPONSE,
    PaymentPayloadV1,
    PaymentRequiredV1,
    network_id,
    requirements_v1,
    settlement_v1,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What a request is asked to pay and for what. `salt` is chance: no two challenges need be the same."""

    request: PaidRequest
    asked: PaymentRequirements
    description: str
    now_s: int
    salt: str

    @property
    def resource(self) -> ResourceInfo:
        return ResourceInfo(url=self.request.url, description=self.description, mime_type="application/json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """
    A payment header in the words of x402 version 2; nothing in it is trusted yet.

    `payload` is the JSON that a facilitator is shown, `identifier` the payer's own id for the payment,
    `wrong` why the dialect itself refuses it.
    """

    accepted: PaymentRequirements
    authorization: Authorization
    payload: Mapping[str, Any]
    identifier: str | None = None
    wrong: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A dialect's part of a 402: its headers, and its members of the problem document (RFC 9457, section 3.2)."""

    headers: Mapping[str, str] = field(default_factory=dict)
    members: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """
    One codec. `header` is the lower-case name of the header that carries a payment, and where `identifies` the
    payer's own id too.

    `read` raises HeaderError; `challenge` is given the ask and the error it comes with; `settlement` returns
    the headers that tell of a settlement or a refusal, at the given Unix second.
    """

    name: DialectName
    header: str
    identifies: bool = False
    read: Callable[[str, Ask], Reading]
    challenge: Callable[[Ask, str], Challenge]
    settlement: Callable[[SettleResponse, int], Mapping[str, str]]


Dialects = Mapping[DialectName, Dialect]


def _read_v2(text: str, ask: Ask) -> Reading:
    payment = decode_header(PaymentPayload, text)
    return Reading(
        accepted=payment.accepted,
        authorization=payment.payload.authorization,
        payload=decimal_json.loads(base64.b64decode(text)),
        identifier=payment_identifier(payment.extensions),
    )


def _challenge_v2(ask: Ask, error: str) -> Challenge:
    required = PaymentRequired(
        error=error,
        resource=ask.resource,
        accepts=(ask.asked,),
        extensions=declare_payment_identifier(),
    )
    return Challenge(headers={PAYMENT_REQUIRED.lower(): encode_header(required)})


def _settlement_v2(settled: SettleResponse, now_s: int) -> Mapping[str, str]:
    return {PAYMENT_RESPONSE.lower(): encode_header(settled)}


def _read_v1(text: str, ask: Ask) -> Reading:
    payment = decode_header(PaymentPayloadV1, text)
    # Version 1 repeats neither price nor payee: the signed authorization alone says them.
    accepted = {"scheme": payment.scheme, "network": network_id(payment.network)}
    return Reading(
        accepted=ask.asked.model_copy(update=accepted),
        authorization=payment.payload.authorization,
        payload=PaymentPayload(accepted=ask.asked, payload=payment.payload).document(),
    )


def _challenge_v1(ask: Ask, error: str) -> Challenge:
    if ask.asked.network not in NETWORK_NAMES:
        return Challenge()
    offer = requirements_v1(ask.asked, ask.resource)
    return Challenge(members=PaymentRequiredV1(error=error, accepts=(offer,)).document())


def _settlement_v1(settled: SettleResponse, now_s: int) -> Mapping[str, str]:
    return {X_PAYMENT_RESPONSE.lower(): encode_header(settlement_v1(settled))}


X402_V2 = Dialect(
    name="x402-v2",
    header=PAYMENT_SIGNATURE.lower(),
    identifies=True,
    read=_read_v2,
    challenge=_challenge_v2,
    settlement=_settlement_v2,
)
X402_V1 = Dialect(
    name="x402-v1",
    header=X_PAYMENT.lower(),
    read=_read_v1,
    challenge=_challenge_v1,
    settlement=_settlement_v1,
)

# What every door speaks, with nothing installed beside.
X402: Dialects = {dialect.name: dialect for dialect in (X402_V2, X402_V1)}
