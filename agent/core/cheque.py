"""
The cheque of one payment: its ids, its EIP-3009 authorization and the header it travels in.

Everything here follows from the run and the payment's number: made again, it is the same cheque.
"""

from datetime import datetime

from agent.core.dialects import Challenge, write_payment
from wire.eip712 import checksum_address, keccak256
from wire.x402 import Authorization, ExactPayload, PaymentPayload, PaymentRequirements, with_payment_identifier

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
    challenge: Challenge,
    chosen: PaymentRequirements,
    authorization: Authorization,
    signature: str,
    identifier: str,
) -> str:
    """
    Return the payment's header in the challenge's dialect: the seller's own words back, the cheque, our payment's id.

    Version 1 has no place for the id; it goes in the Idempotency-Key alone.
    """
    required = challenge.required
    payment = PaymentPayload(
        resource=required.resource,
        accepted=chosen,
        payload=ExactPayload(signature=signature, authorization=authorization),
        extensions=with_payment_identifier(required.extensions, identifier),
    )
    return write_payment(challenge, payment)
