"""
x402 version 1: its objects, and the same things said in version 2. The signed EIP-3009 message is one for both.

A 402 of version 1 has its offers in the JSON body; the payment travels in X-PAYMENT, the settlement in
X-PAYMENT-RESPONSE. Networks have names instead of CAIP-2 ids. Source: x402 specification v1, transports-v1/http.md.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from wire.model import Body, Entries, Many
from wire.x402 import (
    Atomic,
    ExactPayload,
    PaymentPayload,
    PaymentRequired,
    PaymentRequirements,
    ResourceInfo,
    SettleResponse,
)

X_PAYMENT = "X-PAYMENT"
X_PAYMENT_RESPONSE = "X-PAYMENT-RESPONSE"

NETWORK_NAMES: Mapping[str, str] = {"eip155:84532": "base-sepolia", "eip155:8453": "base"}
_NETWORKS = {name: network for network, name in NETWORK_NAMES.items()}


class RequirementsV1(Body):
    """One way to pay, as version 1 offers it."""

    scheme: str
    network: str
    max_amount_required: Atomic
    resource: str
    description: str = ""
    mime_type: str = ""
    pay_to: str
    max_timeout_seconds: int = Field(ge=1)
    asset: str
    output_schema: Any = None
    extra: Entries[Any] | None = None


class PaymentRequiredV1(Body):
    """The JSON body of a 402 of version 1."""

    x402_version: Literal[1] = Field(1, alias="x402Version")
    error: str | None = None
    accepts: Many[RequirementsV1]


class PaymentPayloadV1(Body):
    """The body of the X-PAYMENT header."""

    x402_version: Literal[1] = Field(1, alias="x402Version")
    scheme: str
    network: str
    payload: ExactPayload


class SettleResponseV1(Body):
    """The body of the X-PAYMENT-RESPONSE header."""

    success: bool
    error_reason: str | None = None
    transaction: str = ""
    network: str = ""
    payer: str | None = None


def network_id(name: str) -> str:
    """Return the CAIP-2 id of a version 1 network name; what is no known name is returned as it is."""
    return _NETWORKS.get(name, name)


def requirements_v1(asked: PaymentRequirements, resource: ResourceInfo) -> RequirementsV1:
    """Return `asked` as version 1 offers it."""
    return RequirementsV1(
        scheme=asked.scheme,
        network=NETWORK_NAMES.get(asked.network, asked.network),
        max_amount_required=asked.amount,
        resource=resource.url,
        description=resource.description or "",
        mime_type=resource.mime_type or "",
        pay_to=asked.pay_to,
        max_timeout_seconds=asked.max_timeout_seconds,
        asset=asked.asset,
        extra=asked.extra,
    )


def required_v2(required: PaymentRequiredV1) -> PaymentRequired:
    """Return the offers of a version 1 402 in the words of version 2; those on networks unknown here are left out."""
    known = [offer for offer in required.accepts if offer.network in _NETWORKS]
    return PaymentRequired(
        error=required.error,
        resource=ResourceInfo(url=known[0].resource) if known else None,
        accepts=tuple(
            PaymentRequirements(
                scheme=offer.scheme,
                network=network_id(offer.network),
                asset=offer.asset,
                amount=offer.max_amount_required,
                pay_to=offer.pay_to,
                max_timeout_seconds=offer.max_timeout_seconds,
                extra=offer.extra or {},
            )
            for offer in known
        ),
    )


def payment_v1(payment: PaymentPayload) -> PaymentPayloadV1:
    """Return a payment as version 1 sends it: the same authorization and signature."""
    accepted = payment.accepted
    return PaymentPayloadV1(
        scheme=accepted.scheme,
        network=NETWORK_NAMES.get(accepted.network, accepted.network),
        payload=payment.payload,
    )


def settlement_v1(settled: SettleResponse) -> SettleResponseV1:
    """Return a settlement as version 1 tells it."""
    return SettleResponseV1(
        success=settled.success,
        error_reason=settled.error_reason,
        transaction=settled.transaction,
        network=NETWORK_NAMES.get(settled.network, settled.network),
        payer=settled.payer,
    )
