"""
Session passes as JSON Web Tokens: EdDSA, and RS256 of others. The key says which of the two, never the token.

PyJWT's algorithms check the signature. Its `decode` looks at every character in Python, which costs three times as much
as the check of an RS256 signature; so the three parts are read here, as strictly.

Source: RFC 7515 sections 4.1, 5.2 and 7.1, RFC 8725 sections 3.1 and 3.10.
"""

import re
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any

import orjson
from jwt.algorithms import get_default_algorithms

from gpu_worker.core.inference.callers import CREDENTIAL_CHARS_MAX
from gpu_worker.core.inference.session_passes import SessionPass, must_admit, refused
from gpu_worker.edges.passes.jwks import KID_CHARS_MAX, KeyRing, PublicKey

_TOKEN = re.compile(rb"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")
_ALGORITHMS = {name: get_default_algorithms()[name] for name in ("EdDSA", "RS256")}


class JwtSessionPasses:
    """`inference.text.admission.Passes` for the worker `agent_id`; `clock` is Unix time."""

    def __init__(self, ring: KeyRing, *, issuer: str, agent_id: str, clock: Callable[[], float] = time.time) -> None:
        self._ring = ring
        self._issuer, self._agent_id, self._clock = issuer, agent_id, clock

    async def check(self, token: str) -> SessionPass:
        """Return what `token` admits to. Raises InferenceError unauthenticated."""
        raw = token.encode("utf-8", "replace")
        parts = _TOKEN.fullmatch(raw) if len(raw) <= CREDENTIAL_CHARS_MAX else None
        if parts is None:
            raise refused("is no token")
        header = _object(_octets(parts[1]))
        kid = header.get("kid")
        # What must be understood, and is not, is not to be passed over; nor is RFC 7797, a payload without base64.
        is_plain = "crit" not in header and header.get("b64", True) is True
        if not is_plain or not (kid is None or (isinstance(kid, str) and len(kid) <= KID_CHARS_MAX)):
            raise refused("has a header that is not understood here")
        signed, signature = raw[: parts.start(3) - 1], _octets(parts[3])

        def is_signed() -> bool:
            return any(_has_signed(key, header.get("alg"), signed, signature) for key in self._ring.of(kid))

        # The registry may have another key by now.
        if not is_signed() and not (await self._ring.renew() and is_signed()):
            raise refused("is signed by no key of the registry")
        claims = _object(_octets(parts[2]))
        return must_admit(claims, agent_id=self._agent_id, issuer=self._issuer, now_s=self._clock())

    async def close(self) -> None:
        await self._ring.close()


def _has_signed(key: PublicKey, algorithm: Any, signed: bytes, signature: bytes) -> bool:
    return algorithm == key.algorithm and bool(_ALGORITHMS[key.algorithm].verify(signed, key.key, signature))


def _octets(part: bytes) -> bytes:
    """Return what `part` stands for. Raises InferenceError: it is no base64url, or could be written otherwise."""
    try:
        octets = urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except ValueError:
        raise refused("is no token") from None
    if urlsafe_b64encode(octets).rstrip(b"=") != part:
        raise refused("is no token")
    return octets


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise refused("is no token") from None
    if not isinstance(found, dict):
        raise refused("is no token")
    return found
