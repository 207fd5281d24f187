"""Session passes as JSON Web Tokens: EdDSA, and RS256 of others. The key says which of the two, never the token."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.passes import AUDIENCE, LEEWAY_S, TTL_S, Admission, Shown, UsedUp, claims_of, must_admit

KEYS_MAX = 8
RSA_BITS_MIN = 2048
_REQUIRED = ["exp", "nbf", "iat", "iss", "aud", "jti"]


class PassSigner:
    """Signs passes with a private key in PEM, Ed25519 or RSA. Raises OwnersFault: it is no such key."""

    def __init__(self, private_pem: bytes, issuer: str, ttl_s: int = TTL_S) -> None:
        self._key = load_key(private_pem)
        if not isinstance(self._key, Ed25519PrivateKey | RSAPrivateKey):
            raise OwnersFault("passes are signed with a private key, this one is public")
        self._algorithm = algorithm_of(self._key.public_key())
        self._issuer, self._ttl_s = issuer, ttl_s

    def sign(self, admission: Admission) -> str:
        """Return a new pass, with a `jti` of its own."""
        claims = claims_of(
            admission, issuer=self._issuer, jti=secrets.token_hex(16), now_s=int(time.time()), ttl_s=self._ttl_s
        )
        return str(jwt.encode(claims, self._key, algorithm=self._algorithm))


class JwtPasses:
    """
    `inference.sessions.Passes`: holds passes against the keys of the registries that `issuer` names.

    A private key among `keys_pem` stands for its public half. Raises OwnersFault: one of them is no key.
    """

    def __init__(self, keys_pem: Sequence[bytes], *, issuer: str, model_hash: str) -> None:
        keys = [load_key(pem) for pem in keys_pem[:KEYS_MAX]]
        public = [key.public_key() if isinstance(key, Ed25519PrivateKey | RSAPrivateKey) else key for key in keys]
        if not public:
            raise OwnersFault("session passes are asked for, and there is no key to hold them against")
        self._keys = [(key, algorithm_of(key)) for key in public]
        self._issuer, self._model_hash = issuer, model_hash
        self._used = UsedUp()

    def check(self, session_pass: str, session: str, hop: Hop) -> str:
        """Return the head of the pass. Raises InferenceError unauthenticated: it does not admit `session` to `hop`."""
        claims = self._verified(session_pass)
        shown = must_admit(claims, session, hop, self._model_hash)
        self._used.take(claims["jti"], session, claims["exp"], time.time())
        return shown.head

    def check_stream(self, session_pass: str, hop: Hop) -> Shown:
        """Return what a stream with that pass may carry to `hop`; its `jti` is not used up. Raises InferenceError."""
        shown = must_admit(self._verified(session_pass), None, hop, self._model_hash)
        return shown._replace(session_pass=session_pass)

    def _verified(self, session_pass: str) -> dict[str, Any]:
        if not session_pass:
            raise InferenceError("unauthenticated", "this stage asks for a session pass")
        why = ""
        for key, algorithm in self._keys:
            try:
                claims: dict[str, Any] = jwt.decode(
                    session_pass,
                    key,
                    algorithms=[algorithm],
                    audience=AUDIENCE,
                    issuer=self._issuer,
                    leeway=LEEWAY_S,
                    options={"require": _REQUIRED, "strict_aud": True},
                )
                return claims
            except jwt.InvalidTokenError as error:
                why = str(error)
        raise InferenceError("unauthenticated", f"the session pass does not hold: {why[:200]}")


def load_key(pem: bytes) -> Any:
    try:
        return load_pem_private_key(pem, None) if b"PRIVATE KEY" in pem else load_pem_public_key(pem)
    except (ValueError, TypeError):
        raise OwnersFault("a key of session passes is no PEM without a password") from None


def algorithm_of(key: Any) -> str:
    if isinstance(key, Ed25519PublicKey):
        return "EdDSA"
    if isinstance(key, RSAPublicKey) and key.key_size >= RSA_BITS_MIN:
        return "RS256"
    raise OwnersFault(f"a key of session passes is Ed25519, or RSA of {RSA_BITS_MIN} bits at least")
