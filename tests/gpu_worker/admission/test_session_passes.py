"""Session passes of a whole model: what admits, and every forgery that does not."""

import hmac
import json
import random
import string
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from hashlib import sha256
from time import time
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.session_passes import AUDIENCE, LEEWAY_S, REQUIRED, TTL_MAX_S, must_admit
from gpu_worker.edges.passes.jwks import REFETCH_S, KeyRing, key_source
from gpu_worker.edges.passes.session_passes_jwt import JwtSessionPasses
from outbound.http import HttpClient
from tests.fixtures.key_server import AGENT, ED, ISSUER, MODEL, OTHER_ED, RSA, KeyServer, claims_of, key_server, signed
from tests.gpu_worker.slice.test_passes import public_pem

RANDOM_TOKENS = 10_000


@pytest.fixture
async def registry() -> AsyncIterator[KeyServer]:
    async with key_server() as server:
        yield server


@pytest.fixture
async def passes(registry: KeyServer) -> JwtSessionPasses:
    return JwtSessionPasses(KeyRing(key_source(registry.url, HttpClient())), issuer=ISSUER, agent_id=AGENT)


async def refusal(passes: JwtSessionPasses, token: str) -> str:
    with pytest.raises(InferenceError) as raised:
        await passes.check(token)
    assert raised.value.code == "unauthenticated"
    return str(raised.value)


@pytest.mark.row(72)
@pytest.mark.parametrize(("key", "kid"), [(ED, "k1"), (RSA, "r1"), (ED, None)], ids=["EdDSA", "RS256", "no kid"])
async def test_a_pass_of_the_registry_admits_its_client_to_its_model(
    passes: JwtSessionPasses, key: Any, kid: str | None
) -> None:
    token = signed(key, kid, exp=(exp := int(time()) + 300))
    assert await passes.check(token) == ("client-1", MODEL, "j1", exp)


def part(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def forged(header: Any, signature: bytes = b"", claims: Any = None) -> str:
    return f"{part(header)}.{part(claims_of() if claims is None else claims)}.{part(signature)}"


def hs256(secret: bytes, header: Any = None) -> str:
    """Return a token whose signature is a MAC with what everybody knows: the public key."""
    token = forged(header or {"alg": "HS256", "kid": "k1"}).rpartition(".")[0]
    return f"{token}.{part(hmac.digest(secret, token.encode(), sha256))}"


def by_hand(key: Any, claims: Any, **header: Any) -> str:
    """Return a token that is rightly signed, and that PyJWT would not make."""
    kid, algorithm = ("k1", "EdDSA") if key is ED else ("r1", "RS256")
    start = f"{part({'alg': algorithm, 'kid': kid, **header})}.{part(claims)}"
    return f"{start}.{part(jwt.get_algorithm_by_name(algorithm).sign(start.encode(), key))}"


ED_RAW = ED.public_key().public_bytes_raw()
GOOD = signed()
HEAD, BODY, SIGNATURE = GOOD.split(".")
# 64 bytes leave four bits of the last character over; each of these stands for other ones of them than the next.
LAST = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
FORGERIES = {
    "none": forged({"alg": "none"}),
    "none with a kid": forged({"alg": "none", "kid": "k1"}, b"x"),
    "NONE": forged({"alg": "NONE", "kid": "k1"}, b"x"),
    "no algorithm": forged({"kid": "k1"}, b"x"),
    "an algorithm that is none": forged({"alg": ["EdDSA"], "kid": "k1"}, b"x"),
    "HS256 with the public PEM": hs256(public_pem(ED)),
    "HS256 with the public bytes": hs256(ED_RAW),
    "HS256 called EdDSA": hs256(ED_RAW, {"alg": "EdDSA", "kid": "k1"}),
    "HS256 with the RSA PEM": hs256(public_pem(RSA), {"alg": "HS256", "kid": "r1"}),
    "a foreign key under a known kid": signed(OTHER_ED),
    "a foreign kid": signed(OTHER_ED, "k9"),
    "a foreign key without a kid": signed(OTHER_ED, None),
    "the registry's key under a foreign kid": signed(ED, "k9"),
    "the other key's kid": signed(ED, "r1"),
    "a kid that is none": jwt.encode(claims_of(), ED, algorithm="EdDSA", headers={"kid": "x" * 200}),
    "PS256": jwt.encode(claims_of(), RSA, algorithm="PS256", headers={"kid": "r1"}),
    "RS512": jwt.encode(claims_of(), RSA, algorithm="RS512", headers={"kid": "r1"}),
    "its own key": jwt.encode(claims_of(), OTHER_ED, algorithm="EdDSA", headers={"jwk": {"kty": "OKP"}, "kid": "k1"}),
    "a key at its own address": jwt.encode(claims_of(), OTHER_ED, algorithm="EdDSA", headers={"jku": "http://127.1/"}),
    "an extension": jwt.encode(claims_of(), ED, algorithm="EdDSA", headers={"kid": "k1", "crit": ["b64"], "b64": True}),
    "an extension that it does not name": by_hand(ED, claims_of(), b64=False),
    "other claims": f"{HEAD}.{part(claims_of(client_id='owner'))}.{SIGNATURE}",
    "another header": f"{part({'alg': 'EdDSA', 'kid': 'k1', 'typ': 'at'})}.{BODY}.{SIGNATURE}",
    "no signature": f"{HEAD}.{BODY}.",
    "half a signature": f"{HEAD}.{BODY}.{SIGNATURE[:40]}",
    "a longer signature": f"{HEAD}.{BODY}.{SIGNATURE}AAAA",
    "padding": f"{HEAD}.{BODY}.{SIGNATURE}==",
    "a signature written otherwise": f"{HEAD}.{BODY}.{SIGNATURE[:-1]}{LAST[LAST.index(SIGNATURE[-1]) + 1]}",
    "blanks": f" {GOOD}",
    "a line more": f"{GOOD}\n",
    "a part more": f"{GOOD}.AAAA",
    "a part less": f"{HEAD}.{BODY}",
    "no base64": f"{HEAD}.{BODY}.ä{SIGNATURE}",
    "long": f"{HEAD}.{BODY}.{'A' * 4_096}",
    "a header that is a list": f"{part([1])}.{BODY}.{SIGNATURE}",
    "a deep header": f"{part(b'[' * 2_000)}.{BODY}.{SIGNATURE}",
    "claims that are none": jwt.api_jws.encode(b"[]", ED, algorithm="EdDSA", headers={"kid": "k1"}),
    "claims that are no JSON": jwt.api_jws.encode(b"{'a'", ED, algorithm="EdDSA", headers={"kid": "k1"}),
    "deep claims": jwt.api_jws.encode(b"[" * 2_000, ED, algorithm="EdDSA", headers={"kid": "k1"}),
    "not a number": jwt.api_jws.encode(b'{"exp": NaN}', ED, algorithm="EdDSA", headers={"kid": "k1"}),
}


@pytest.mark.parametrize("token", [pytest.param(token, id=name) for name, token in FORGERIES.items()])
async def test_what_the_registry_has_not_signed_admits_nobody(passes: JwtSessionPasses, token: str) -> None:
    await refusal(passes, token)
    # Nor does it while the keys are known.
    await passes.check(GOOD)
    await refusal(passes, token)


CHANGES: dict[str, dict[str, Any]] = {
    "expired": {"exp": int(time()) - 60},
    "of tomorrow": {"nbf": 2**40},
    "issued tomorrow": {"iat": 2**40},
    "another audience": {"aud": "livery-stage"},
    "several audiences": {"aud": [AUDIENCE]},
    "no audience": {"aud": None},
    "another issuer": {"iss": "a stranger"},
    "another worker": {"agent_id": "worker-2"},
    "no client": {"client_id": ""},
    "a client that is none": {"client_id": 7},
    "a long jti": {"jti": "x" * 400},
    "a jti that is none": {"jti": {"a": 1}},
    "a model that is none": {"model": ["m"]},
    "a password": {"exp": int(time()) + TTL_MAX_S + 3_600},
    "for ever": {"exp": 10**400},
    "a word for a time": {"exp": "99999999999"},
    "a truth for a time": {"exp": True},
    "no time": {"nbf": None},
}


@pytest.mark.row(72)
@pytest.mark.parametrize("key", [ED, RSA], ids=["EdDSA", "RS256"])
@pytest.mark.parametrize("changes", [pytest.param(each, id=name) for name, each in CHANGES.items()])
async def test_a_pass_that_says_something_else_admits_nobody(
    passes: JwtSessionPasses, changes: dict[str, Any], key: Any
) -> None:
    await refusal(passes, by_hand(key, claims_of(**changes)))


@pytest.mark.row(72)
@pytest.mark.parametrize("name", REQUIRED)
async def test_a_pass_without_a_claim_is_none(passes: JwtSessionPasses, name: str) -> None:
    assert name in await refusal(passes, signed(without=name))


def test_a_pass_holds_from_its_beginning_to_its_end() -> None:
    claims = claims_of(iat=1_000, nbf=1_000, exp=1_300)

    def holds(now_s: float) -> bool:
        try:
            return bool(must_admit(claims, agent_id=AGENT, issuer=ISSUER, now_s=now_s))
        except InferenceError:
            return False

    times = [1_000 - LEEWAY_S - 0.1, 1_000 - LEEWAY_S, 1_150, 1_300 + LEEWAY_S - 0.1, 1_300 + LEEWAY_S]
    assert [holds(now_s) for now_s in times] == [False, True, True, True, False]


@pytest.mark.row(74)
async def test_without_the_registrys_key_every_token_is_refused() -> None:
    """The seed took any token of more than ten characters then."""
    async with key_server(answer=b"") as registry:
        passes = JwtSessionPasses(KeyRing(key_source(registry.url, HttpClient())), issuer=ISSUER, agent_id=AGENT)
        for token in (GOOD, "x" * 11, "a.b.c", "eleven chars", forged({"alg": "none"})):
            await refusal(passes, token)
        assert registry.asked == 1
    await refusal(passes, GOOD)


async def test_a_key_that_the_registry_has_since_is_asked_for(registry: KeyServer) -> None:
    """It was restarted, and signs with another key, under another kid, the same one, or none."""
    now_s = [0.0]
    ring = KeyRing(key_source(registry.url, HttpClient()), lambda: now_s[0])
    passes = JwtSessionPasses(ring, issuer=ISSUER, agent_id=AGENT)
    await passes.check(GOOD)
    for kid, shown in (("k2", "k2"), ("k1", "k1"), ("k3", None)):
        now_s[0] += REFETCH_S
        registry.keys = {kid: OTHER_ED}
        await passes.check(signed(OTHER_ED, shown))
        await refusal(passes, GOOD)
        now_s[0] += REFETCH_S
        registry.keys = {"k1": ED}
        await passes.check(GOOD)


@pytest.mark.row(74)
async def test_of_ten_thousand_random_tokens_none_enters(passes: JwtSessionPasses, registry: KeyServer) -> None:
    await passes.check(GOOD)
    chance = random.Random(7)
    entered = []
    for number in range(RANDOM_TOKENS):
        token = invented(chance, number)
        try:
            entered.append((token, await passes.check(token)))
        except InferenceError:
            pass  # as it should be
    assert entered == []
    await passes.check(GOOD)
    assert registry.asked <= 3


def invented(chance: random.Random, number: int) -> str:
    """Return a token that the registry has not signed: noise, noise in three parts, or its own with another byte."""
    if number % 4 == 0:
        return "".join(chr(chance.randrange(1, 0x250)) for _ in range(chance.randrange(1, 200)))
    if number % 4 == 1:
        return ".".join(part(chance.randbytes(chance.randrange(0, 80))) for _ in range(3))
    if number % 4 == 2:
        return f"{HEAD}.{part(claims_of(jti=str(number)))}.{part(chance.randbytes(64))}"
    place = chance.randrange(len(GOOD))
    other = chance.choice([each for each in "ABCxyz019-_." if each != GOOD[place]])
    return GOOD[:place] + other + GOOD[place + 1 :]


TEXTS = st.text(alphabet="abAB01-_=.é ", max_size=12)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "alg": st.sampled_from(["EdDSA", "RS256", "none", "HS256", "", None, 1]),
        "kid": st.sampled_from(["k1", "r1", "k9", "", None, 7]),
        "crit": st.sampled_from([[], ["b64"], "exp", None]),
        "b64": st.booleans(),
        "typ": TEXTS,
    },
)


@given(HEADERS, st.sampled_from([ED, RSA, OTHER_ED]), st.none() | TEXTS)
async def test_what_is_admitted_pyjwt_admits_too(header: dict[str, Any], key: Any, tail: str | None) -> None:
    async with key_server() as registry:
        passes = JwtSessionPasses(KeyRing(key_source(registry.url, HttpClient())), issuer=ISSUER, agent_id=AGENT)
        start = f"{part(header)}.{part(claims_of())}"
        library = jwt.get_algorithm_by_name("RS256" if key is RSA else "EdDSA")
        token = f"{start}.{part(library.sign(start.encode(), key))}{tail or ''}"
        try:
            await passes.check(token)
            ours = True
        except InferenceError:
            ours = False
    if ours:
        public = {"k1": ED, "r1": RSA, None: key, "": key}[header.get("kid")].public_key()
        jwt.decode(token, public, algorithms=[header["alg"]], audience=AUDIENCE, issuer=ISSUER, leeway=LEEWAY_S)
    is_plain = not tail and "crit" not in header and header.get("b64", True)
    named = {"k1": ED, "r1": RSA, None: key}.get(header.get("kid")) is key and key is not OTHER_ED
    if is_plain and named and header.get("alg") == ("RS256" if key is RSA else "EdDSA"):
        assert ours
