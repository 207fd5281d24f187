"""
Signed calls, both ends: headers for a body that is sent, and whether a body that came was signed with a known secret.

A secret `whsec_...` is base64 of the key, as the standard has it; any other text is the key itself, so that what two
sides share already signs too. Source: Standard Webhooks 1.0 (standardwebhooks.com).
"""

import base64
import binascii
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

PREFIX = "whsec_"
KEY_BYTES_MIN, KEY_BYTES_MAX = 24, 64


def split_secrets(secrets: str) -> tuple[str, ...]:
    """Return the secrets of a list with commas; more than one is a rotation."""
    return tuple(secret.strip() for secret in secrets.split(",") if secret.strip())


def are_keys(secrets: str) -> bool:
    """Return whether `secrets` is one or several `whsec_` secrets of the lengths that the standard asks for."""
    given = split_secrets(secrets)
    return bool(given) and all(_is_key(secret) for secret in given)


def signed_headers(secrets: Iterable[str], message_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """
    Return the headers of a call with `body`, signed with every secret.

    Args:
        message_id: the same at every attempt.
        at_s: the time of this attempt, Unix seconds.
    """
    from standardwebhooks import Webhook

    at = datetime.fromtimestamp(at_s, UTC)
    signatures = [Webhook(_key(secret)).sign(message_id, at, body.decode()) for secret in secrets]
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(at_s),
        "webhook-signature": " ".join(signatures),
    }


def is_signed(secrets: Iterable[str], headers: Mapping[str, str], body: bytes) -> bool:
    """Return whether one of `secrets` signed `body`, less than five minutes from now. Header names are lower case."""
    from standardwebhooks import Webhook, WebhookVerificationError

    for secret in secrets:
        try:
            if key := _key(secret):
                Webhook(key).verify(body, dict(headers), json_parse=False)
                return True
        except (WebhookVerificationError, ValueError):
            # ValueError: a signature without a comma or of no base64, a body that is no text.
            continue
    return False


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(PREFIX) + "==") if secret.startswith(PREFIX) else secret.encode()


def _is_key(secret: str) -> bool:
    try:
        return secret.startswith(PREFIX) and KEY_BYTES_MIN <= len(_key(secret)) <= KEY_BYTES_MAX
    except (binascii.Error, ValueError):
        return False
