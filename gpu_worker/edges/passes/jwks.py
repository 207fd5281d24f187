"""
The public keys of a registry: a JSON Web Key Set at its URL or in a file, or a file with PEM.

The registry is asked for them at the first token, and again when a token is signed by none that is known: not for every
stranger who sends one, but every REFETCH_S at most, and by one call at a time. What is known is asked for again when it
is old, so that a key that was withdrawn does not serve on, and is dropped when nobody could be asked for long.

Source: RFC 7517 (JWK), RFC 7518 section 6.3 (RSA), RFC 8037 section 2 (Ed25519).
"""

import asyncio
import logging
import re
import time
from base64 import urlsafe_b64decode
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicNumbers

from gpu_worker.core.errors import OwnersFault, Unavailable
from gpu_worker.edges.passes.passes_jwt import algorithm_of, load_key
from outbound.http import HttpClient, OutboundError
from wire.loopback import is_loopback

KEYS_MAX = 16
KID_CHARS_MAX = 128
DOCUMENT_BYTES_MAX = 64 * 1024
FETCH_S = 5.0
REFETCH_S = 10.0
REFRESH_S = 600.0
KEEP_S = 86_400.0
# Larger ones cost whoever checks more than whoever sends.
RSA_BITS_MAX = 8_192
RSA_EXPONENT_MAX = 2**32

_PEM = re.compile(rb"-----BEGIN ([A-Z ]{1,40})-----.{1,20000}?-----END \1-----", re.DOTALL)
_LOG = logging.getLogger("livery.gpu_worker.keys")

# Returns the document with the keys. Raises Unavailable.
Load = Callable[[], Awaitable[bytes]]


class PublicKey(NamedTuple):
    """`kid` is None where the document names none; `algorithm`, EdDSA or RS256, is what the key is for."""

    kid: str | None
    key: Any
    algorithm: str


def key_source(place: str, http: HttpClient) -> Load:
    """
    Return what loads the document at `place`, a URL or a file.

    Raises:
        OwnersFault: whoever is on the line to it could put in keys of his own.
    """
    if not is_url(place):
        return lambda: asyncio.to_thread(_read, Path(place).expanduser())
    if place.startswith("http://") and not is_loopback(urlsplit(place).hostname or ""):
        raise OwnersFault("PASS_KEYS of another machine come over https, else anybody on the line could admit himself")

    async def fetched() -> bytes:
        headers = {"accept": "application/jwk-set+json, application/json"}
        try:
            reply = await http.request(
                "GET", place, headers=headers, content=None, timeout_s=FETCH_S, body_bytes_max=DOCUMENT_BYTES_MAX
            )
        except OutboundError as error:
            raise Unavailable(str(error)) from None
        if reply.status != 200:
            raise Unavailable(f"the registry answers {reply.status} instead of its keys")
        return reply.content

    return fetched


def is_url(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(DOCUMENT_BYTES_MAX + 1)
    except OSError as error:
        raise Unavailable(f"the file of PASS_KEYS cannot be read: {error.strerror}") from None


class KeyRing:
    """The keys that `load` brings; `clock` is in seconds and only goes on. It belongs to the loop that uses it."""

    def __init__(self, load: Load, clock: Callable[[], float] = time.monotonic) -> None:
        self._load = load
        self._clock = clock
        self._keys: tuple[PublicKey, ...] = ()
        self._loaded_s = self._asked_s = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    def of(self, kid: str | None) -> tuple[PublicKey, ...]:
        """
        Return the keys that may have signed a token which names `kid`, None: none. Those that are old are renewed.

        Whoever asks does not wait for that.
        """
        age_s = self._clock() - self._loaded_s
        if age_s >= KEEP_S:
            self._keys = ()
        elif age_s >= REFRESH_S:
            self._ask()
        return tuple(key for key in self._keys if kid is None or key.kid is None or key.kid == kid)

    async def renew(self) -> bool:
        """Ask for the keys, unless that was done just now; return whether it was."""
        asking = self._ask()
        if asking is None:
            return False
        await asyncio.shield(asking)
        return True

    async def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    def _ask(self) -> asyncio.Task[None] | None:
        """Return the call that is under way or was begun just now, None where it is too early for another."""
        if self._asking is not None and not self._asking.done():
            return self._asking
        if (now_s := self._clock()) - self._asked_s < REFETCH_S:
            return None
        self._asked_s = now_s
        self._asking = asyncio.create_task(self._asked())
        return self._asking

    async def _asked(self) -> None:
        try:
            self._keys = read_keys(await self._load())
            self._loaded_s = self._clock()
        except (Unavailable, ValueError) as error:
            _LOG.warning("the keys of session passes are not to be had: %s", error)


def read_keys(document: bytes) -> tuple[PublicKey, ...]:
    """
    Return the keys in `document`, a JWK set or PEM; of those that are for something else none. KEYS_MAX at most.

    Raises:
        ValueError: it is neither.
    """
    if len(document) > DOCUMENT_BYTES_MAX:
        raise ValueError(f"a document of keys has at most {DOCUMENT_BYTES_MAX} bytes")
    if blocks := [match[0] for match in _PEM.finditer(document)]:
        return tuple(_of_pem(block) for block in blocks[:KEYS_MAX])
    try:
        told = orjson.loads(document)
    except orjson.JSONDecodeError:
        raise ValueError("this is neither a JWK set nor PEM") from None
    keys = told.get("keys") if isinstance(told, dict) else None
    if not isinstance(keys, list):
        raise ValueError("a JWK set has a list `keys`")
    return tuple(key for each in keys[:KEYS_MAX] if isinstance(each, dict) and (key := _of_jwk(each)) is not None)


def _of_pem(block: bytes) -> PublicKey:
    try:
        key = load_key(block)
        public = key.public_key() if isinstance(key, Ed25519PrivateKey | RSAPrivateKey) else key
        return PublicKey(None, public, algorithm_of(public))
    except OwnersFault as error:
        raise ValueError(str(error)) from None


def _of_jwk(jwk: Mapping[str, Any]) -> PublicKey | None:
    """Return the key, None for one that signs no passes."""
    kid = jwk.get("kid")
    is_named = kid is None or (isinstance(kid, str) and 0 < len(kid) <= KID_CHARS_MAX)
    operations = jwk.get("key_ops", ["verify"])
    if not is_named or jwk.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    try:
        if jwk.get("kty") == "OKP" and jwk.get("crv") == "Ed25519":
            key: Any = Ed25519PublicKey.from_public_bytes(_octets(jwk.get("x")))
        elif jwk.get("kty") == "RSA":
            key = _rsa(_number(jwk.get("n")), _number(jwk.get("e")))
        else:
            return None
        algorithm = algorithm_of(key)
    except (OwnersFault, ValueError):
        return None
    return PublicKey(kid, key, algorithm) if jwk.get("alg", algorithm) == algorithm else None


def _rsa(modulus: int, exponent: int) -> Any:
    if modulus.bit_length() > RSA_BITS_MAX or exponent > RSA_EXPONENT_MAX:
        raise ValueError("this key costs too much to check with")
    return RSAPublicNumbers(exponent, modulus).public_key()


def _octets(text: Any) -> bytes:
    if not isinstance(text, str) or len(text) > RSA_BITS_MAX:
        raise ValueError("this is no number of a key")
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _number(text: Any) -> int:
    return int.from_bytes(_octets(text), "big")
