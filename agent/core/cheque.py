"""
The cheque of one payment: its ids, its EIP-3009 authorization and the header it travels in.

Everything here follows from the run and the payment's number: made again, it is the same cheque.
"""

from datetime import datetime

from wire.eip712 import checksum_address, keccak256
from wire.x402 import (
    Authorization,
    ExactPayload,
    PaymentPayload,
    PaymentRequired,
    PaymentRequirements,
    encode_header,
    with_payment_identifier,
)

_NONCE_DOMAIN = b"livery/payment/1"


def payment_id(run_id: str, number: int) -> str:
    """Return the id of the run's payment `number`, counted from 1; it fits x402's payment-identifier."""
    return f"{run_id}-payment-{number}"


def payment_nonce(run_id: str, number: int) -> str:
    """
    Return the 32-byte EIP-3009 nonce of one payment of one run, 0x-hex.

    Deterministic on purpose: a tick that dies after signing and starts again signs the same
    authorization, and the token contract settles a nonce once.

    Source: EIP-3009 `authorizationState`.
    """
    return "0x" + keccak256(b"\0".join((_NONCE_DOMAIN, run_id.encode(), str(number).encode()))).hex()


def authorization_for(chosen: PaymentRequirements, payer: str, nonce: str, now: datetime) -> Authorization:
    """Return the message to sign: exactly what `chosen` asks, valid from always until its timeout after `now`."""
    return Authorization(
        from_=payer,
        to=checksum_address(chosen.pay_to),
        value=chosen.amount,
        valid_after="0",
        valid_before=str(int(now.timestamp()) + chosen.max_timeout_seconds),
        nonce=nonce,
    )


def payment_header(
    required: PaymentRequired,
    chosen: PaymentRequirements,
    authorization: Authorization,
    signature: str,
    identifier: str,
) -> str:
    """Return the PAYMENT-SIGNATURE header: the seller's own words back, the cheque, and our payment's id."""
    return encode_header(
        PaymentPayload(
            resource=required.resource,
            accepted=chosen,
            payload=ExactPayload(signature=signature, authorization=authorization),
            extensions=with_payment_identifier(required.extensions, identifier),
        )
    )
