"""
From a request's headers to a cheque, and whether the cheque is the one that was asked for.

Source: x402 specification v2, schemes/exact/scheme_exact_evm.md, payment-identifier.
"""

import hashlib
import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from cashier.core.dialects import Ask, Dialect, Reading
from cashier.core.model import Cheque, PaidRequest, Price, Taking
from wire.money import Amount, Asset
from wire.x402 import HeaderError, PaymentRequirements

# How long a cheque may stay valid: time to verify and settle, and to send it again after a failure.
CHEQUE_TIMEOUT_S = 300
IDEMPOTENCY_KEY = "idempotency-key"
SECONDS_MAX = 2**62

_PAYMENT_ID = re.compile(r"[A-Za-z0-9_-]{16,128}")


def requirements_for(amount: Amount, pay_to: str, asset: Asset) -> PaymentRequirements:
    """Return the one way to pay that is offered: `exact`, by EIP-3009, settled before any work."""
    return PaymentRequirements(
        scheme="exact",
        network=amount.network,
        asset=amount.asset,
        amount=str(amount.atomic),
        pay_to=pay_to,
        max_timeout_seconds=CHEQUE_TIMEOUT_S,
        extra={"name": asset.name, "version": asset.version, "paymentFlow": "upfront"},
    )


def read_cheque(ask: Ask, dialects: Iterable[Dialect]) -> Cheque | None:
    """
    Return the cheque in the header of one of `dialects`, None where there is no such header.

    Raises:
        HeaderError: it is too large, cannot be read, names two payment ids, or is not the only one.
    """
    headers = ask.request.headers
    spoken = [dialect for dialect in dialects if dialect.header in headers]
    if not spoken:
        return None
    if len(spoken) > 1:
        raise HeaderError(f"{' and '.join(dialect.header for dialect in spoken)}: one request has one payment")
    dialect = spoken[0]
    text = headers[dialect.header]
    reading = dialect.read(text, ask)
    if int(reading.authorization.valid_before) > SECONDS_MAX:
        raise HeaderError("validBefore lies beyond all time")
    return Cheque(
        dialect=dialect.name,
        accepted=reading.accepted,
        authorization=reading.authorization,
        payload=reading.payload,
        payment_id=_payment_id(ask.request, reading),
        fingerprint=_fingerprint(ask.request, text, *_key_beside(ask.request, dialect)),
        wrong=reading.wrong,
    )


def _payment_id(request: PaidRequest, reading: Reading) -> str:
    """Return the payer's own id (extension, else Idempotency-Key), else one derived from the authorization."""
    identifier = reading.identifier
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is not None and not _PAYMENT_ID.fullmatch(key):
        raise HeaderError("Idempotency-Key: a payment id is 16-128 of [A-Za-z0-9_-]")
    if identifier is not None and key is not None and identifier != key:
        raise HeaderError("Idempotency-Key and payment-identifier name two payments")
    authorization = reading.authorization
    derived = hashlib.sha256(f"{authorization.from_}:{authorization.nonce}".lower().encode()).hexdigest()
    return identifier or key or f"auth_{derived[:40]}"


def _key_beside(request: PaidRequest, dialect: Dialect) -> tuple[str, ...]:
    """Return what names the payment beside the header, where the dialect's header cannot."""
    return () if dialect.identifies else (request.headers.get(IDEMPOTENCY_KEY, ""),)


def _fingerprint(request: PaidRequest, *said: str) -> str:
    """
    Return the SHA-256 of everything that must be the same for the answer to be the same.

    All that is `said` counts, the header whole and the key beside it: once settled, signature and nonce are public
    calldata, the payer's own id is not.
    """
    parts = urlsplit(request.url)
    digest = hashlib.sha256()
    for part in (request.method.upper(), parts.path, parts.query, *said):
        written = part.encode()
        digest.update(len(written).to_bytes(4, "big") + written)
    digest.update(request.body)
    return digest.hexdigest()


def mismatch(cheque: Cheque, asked: PaymentRequirements) -> str | None:
    """Return why the cheque is not for what was asked, None where it is."""
    accepted, authorization = cheque.accepted, cheque.authorization
    pairs = (
        ("accepted.scheme", accepted.scheme, asked.scheme),
        ("accepted.network", accepted.network, asked.network),
        ("accepted.asset", accepted.asset.lower(), asked.asset.lower()),
        ("accepted.amount", accepted.amount, asked.amount),
        ("accepted.payTo", accepted.pay_to.lower(), asked.pay_to.lower()),
        ("authorization.to", authorization.to.lower(), asked.pay_to.lower()),
        ("authorization.value", authorization.value, asked.amount),
    )
    for name, got, wanted in pairs:
        if got != wanted:
            return f"{name} is {got[:80]}, asked was {wanted}"
    return cheque.wrong


def taking_for(cheque: Cheque, price: Price, request: PaidRequest) -> Taking:
    """Return the row of a payment that nobody has seen yet."""
    return Taking(
        payer=cheque.payer,
        nonce=cheque.nonce,
        payment_id=cheque.payment_id,
        fingerprint=cheque.fingerprint,
        pay_to=price.pay_to,
        amount=price.amount,
        valid_before_s=int(cheque.authorization.valid_before),
        payload=cheque.payload,
        url=request.url,
        body=request.body if request.keeps_body else b"",
        dialect=cheque.dialect,
    )
