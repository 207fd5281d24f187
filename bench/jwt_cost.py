"""
What checking a session pass costs beside the bare check of its signature, both in this process, turn by turn.

The goal is less than three times: reading the token, finding its key and holding its claims may cost as much as two
signatures.
"""

import asyncio
import statistics
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from gpu_worker.core.inference.session_passes import AUDIENCE
from gpu_worker.edges.passes.jwks import KeyRing
from gpu_worker.edges.passes.session_passes_jwt import JwtSessionPasses

RATIO_MAX = 3.0
TURNS = 2_000
_WARM = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Medians in microseconds; `ratio` is the whole check over the bare one."""

    algorithm: str
    bare_us: float
    check_us: float

    @property
    def ratio(self) -> float:
        return self.check_us / self.bare_us


def costs(turns: int = TURNS) -> tuple[Cost, ...]:
    """Return what a pass of each algorithm costs."""
    return tuple(
        asyncio.run(_cost(key, algorithm, turns))
        for key, algorithm in ((Ed25519PrivateKey.generate(), "EdDSA"), (generate_private_key(65537, 2048), "RS256"))
    )


async def _cost(key: Any, algorithm: str, turns: int) -> Cost:
    token, public = _token(key, algorithm), key.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    async def load() -> bytes:
        return bytes(pem)

    passes, bare = JwtSessionPasses(KeyRing(load), issuer="bench", agent_id="worker"), _bare(token, public, algorithm)
    bare_s, check_s = [], []
    for _ in range(_WARM + turns):
        began_s = time.perf_counter()
        bare()
        between_s = time.perf_counter()
        await passes.check(token)
        ended_s = time.perf_counter()
        bare_s.append(between_s - began_s)
        check_s.append(ended_s - between_s)
    medians = [statistics.median(times[_WARM:]) * 1e6 for times in (bare_s, check_s)]
    return Cost(algorithm=algorithm, bare_us=medians[0], check_us=medians[1])


def _token(key: Any, algorithm: str) -> str:
    now_s = int(time.time())
    claims = {
        "iss": "bench",
        "aud": AUDIENCE,
        "agent_id": "worker",
        "client_id": "0f8fad5b-d9cb-469f-a165-70867728950e",
        "model": "llama3.1:8b-instruct-q4_k_m",
        "jti": "7c9e6679-7425-40de-944b-e07fc1f90ae7",
        "iat": now_s,
        "nbf": now_s,
        "exp": now_s + 300,
    }
    return str(jwt.encode(claims, key, algorithm=algorithm, headers={"kid": "2026-11"}))


def _bare(token: str, public: Any, algorithm: str) -> Callable[[], None]:
    """Return the check of the signature alone, as `cryptography` has it."""
    signed, _, part = token.rpartition(".")
    text, signature = signed.encode(), urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if algorithm == "EdDSA":
        return lambda: public.verify(signature, text)
    return lambda: public.verify(signature, text, PKCS1v15(), hashes.SHA256())
