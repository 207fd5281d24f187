"""
MPP, the HTTP scheme `Payment` with method `evm` and intent `charge`, through pympp's codec and nothing else of it.

A challenge is not stored: its id is an HMAC of what it asks (price, payee, the request's method, path and body, until
when), and the EIP-3009 nonce that the payer signs is a hash of that id. So a credential is good for one request, and
what became of its cheque is for the till to know, as with every dialect. The credential travels in
Payment-Authorization, which leaves Authorization to the seller's own secret. Importing this module imports pympp, which
need not be installed. Source: draft-ietf-httpauth-payment; pympp 0.16.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import mpp
from mpp._parsing import ParseError
from pydantic import ValidationError

from cashier.core.dialects import Ask, Challenge, Dialect, Reading
from cashier.core.model import PaidRequest
from wire.eip712 import checksum_address, keccak256
from wire.model import Body, first_error
from wire.money import Asset
from wire.x402 import HEADER_BYTES_MAX, ExactPayload, HeaderError, PaymentPayload, SettleResponse

PAYMENT_AUTHORIZATION = "Payment-Authorization"
WWW_AUTHENTICATE = "WWW-Authenticate"
PAYMENT_RECEIPT = "Payment-Receipt"
METHOD, INTENT = "evm", "charge"
CREDENTIAL_TYPE = "authorization"


class Opaque(Body):
    """What a challenge carries for us alone: which request it is for, and the salt that makes two equal ones two."""

    target: str
    salt: str


def open_mpp(asset: Asset, key: str) -> Dialect:
    """
    Return the dialect.

    Args:
        key: the secret that signs challenges; every process behind one address has the same one.
    """
    return Dialect(
        name="mpp",
        header=PAYMENT_AUTHORIZATION.lower(),
        read=partial(_read, asset, key),
        challenge=partial(_challenge, asset, key),
        settlement=_receipt,
    )


def _challenge(asset: Asset, key: str, ask: Ask, error: str) -> Challenge:
    if ask.asked.network != asset.network:
        return Challenge()
    realm = urlsplit(ask.request.url).hostname or asset.network
    until = datetime.fromtimestamp(ask.now_s, UTC) + timedelta(seconds=ask.asked.max_timeout_seconds)
    expires = until.isoformat().replace("+00:00", "Z")
    made = _mint(asset, key, ask, realm=realm, expires=expires, salt=ask.salt)
    return Challenge(headers={WWW_AUTHENTICATE.lower(): made.to_www_authenticate(realm)})


def _mint(asset: Asset, key: str, ask: Ask, *, realm: str, expires: str | None, salt: str) -> mpp.Challenge:
    """Return the challenge that asks what `ask` asks."""
    asked = ask.asked
    return mpp.Challenge.create(
        secret_key=key,
        realm=realm,
        method=METHOD,
        intent=INTENT,
        request={
            "amount": asked.amount,
            "currency": checksum_address(asked.asset),
            "recipient": checksum_address(asked.pay_to),
            "methodDetails": {
                "chainId": asset.chain_id,
                "credentialTypes": [CREDENTIAL_TYPE],
                "decimals": asset.decimals,
            },
        },
        expires=expires,
        digest=_digest(ask.request.body),
        meta=Opaque(target=_target(ask.request), salt=salt).document(),
        header=PAYMENT_AUTHORIZATION,
    )


def _target(request: PaidRequest) -> str:
    parts = urlsplit(request.url)
    return f"{request.method.upper()} {parts.path}?{parts.query}"


def _digest(body: bytes) -> str:
    return "sha-256=" + base64.b64encode(hashlib.sha256(body).digest()).decode("ascii")


def _read(asset: Asset, key: str, text: str, ask: Ask) -> Reading:
    credential = _credential(text)
    signed: Any = credential.payload
    if not isinstance(signed, dict) or signed.get("type") != CREDENTIAL_TYPE:
        raise HeaderError(f"payload.type: only {CREDENTIAL_TYPE} is taken here")
    try:
        payload = ExactPayload.model_validate({"signature": signed.get("signature"), "authorization": signed})
    except ValidationError as error:
        raise HeaderError(first_error(error, "the payload")) from None
    return Reading(
        accepted=ask.asked,
        authorization=payload.authorization,
        payload=PaymentPayload(accepted=ask.asked, payload=payload).document(),
        wrong=_wrong(asset, key, ask, credential.challenge, payload.authorization.nonce),
    )


def _credential(text: str) -> mpp.Credential:
    """Return the credential in a header's text. Raises HeaderError."""
    if len(text) > HEADER_BYTES_MAX:
        raise HeaderError(f"the header is larger than {HEADER_BYTES_MAX} bytes")
    try:
        return mpp.Credential.from_authorization(text)
    except (ParseError, RecursionError) as error:
        raise HeaderError(f"the credential cannot be read: {str(error)[:200]}") from None


def _wrong(asset: Asset, key: str, ask: Ask, echo: mpp.ChallengeEcho, nonce: str) -> str | None:
    """
    Return why the credential is no answer to a challenge of ours for this request, None where it is.

    Our own terms are minted again with the moment, realm and salt that came back: only what we minted has their id.
    """
    ours = _mint(asset, key, ask, realm=echo.realm, expires=echo.expires, salt=_salt(echo.opaque))
    if not hmac.compare_digest(ours.id.encode(), echo.id.encode()):
        return "the challenge is not one of this seller's for this request at this price"
    if nonce.lower() != _nonce(echo):
        return "authorization.nonce is not the challenge's"
    if datetime.fromisoformat(str(echo.expires)).timestamp() <= ask.now_s:
        return "the challenge has expired"
    return None


def _salt(opaque: str | None) -> str:
    """Return the salt that came back, empty where none can be read: then the id will not be ours."""
    text = opaque or ""
    try:
        return Opaque.from_json(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))).salt
    except ValueError:
        return ""


def _nonce(echo: mpp.ChallengeEcho) -> str:
    """Return the nonce that answers a challenge: the hash of its id and realm as a JSON list."""
    written = json.dumps([echo.id, echo.realm], separators=(",", ":"), ensure_ascii=False)
    return "0x" + keccak256(written.encode()).hex()


def _receipt(settled: SettleResponse, now_s: int) -> Mapping[str, str]:
    """Return the receipt of a settlement; MPP has no receipts for refusals."""
    if not settled.success:
        return {}
    receipt = mpp.Receipt.success(settled.transaction, datetime.fromtimestamp(now_s, UTC), method=METHOD)
    return {PAYMENT_RECEIPT.lower(): receipt.to_payment_receipt()}
