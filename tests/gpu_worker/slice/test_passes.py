"""Session passes: what opens a session, and every way in which one does not."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from time import time

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.core.inference.passes import REQUIRED, Admission, UsedUp, claims_of
from gpu_worker.edges.passes.passes_jwt import JwtPasses, PassSigner

ISSUER = "the registry"
MODEL_HASH = "ab" * 32
HOP = Hop(endpoint="127.0.0.1:1", start=2, end=4)
ADMISSION = Admission(
    session="s1",
    head="127.0.0.1:2",
    model="m",
    model_hash=MODEL_HASH,
    layers=((0, 2), (2, 4)),
    agent_id="a",
    client_id="c",
)


def private_pem(key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(key) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


KEY, OTHER_KEY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
RSA_KEY = generate_private_key(65537, 2048)


def passes(*keys) -> JwtPasses:
    return JwtPasses([public_pem(key) for key in keys or (KEY,)], issuer=ISSUER, model_hash=MODEL_HASH)


def signed(key=KEY, algorithm: str = "EdDSA", without: str = "", **changes) -> str:
    claims = claims_of(ADMISSION, issuer=ISSUER, jti="j1", now_s=int(time())) | changes
    claims.pop(without, None)
    return jwt.encode(claims, key, algorithm=algorithm)


def refusal(checker: JwtPasses, token: str, session: str = "s1", hop: Hop = HOP) -> str:
    with pytest.raises(InferenceError) as raised:
        checker.check(token, session, hop)
    assert raised.value.code == "unauthenticated"
    return str(raised.value)


@pytest.mark.row(72)
def test_a_pass_has_the_claims_of_the_row_and_opens_its_session() -> None:
    token = PassSigner(private_pem(KEY), ISSUER).sign(ADMISSION)
    claims = jwt.decode(token, options={"verify_signature": False})
    assert set(claims) == {*REQUIRED, "model_hash"}
    assert claims["exp"] - claims["iat"] == 300
    assert jwt.get_unverified_header(token)["alg"] == "EdDSA"
    passes().check(token, "s1", HOP)


def test_every_pass_has_a_jti_of_its_own() -> None:
    signer = PassSigner(private_pem(KEY), ISSUER)
    first, second = (jwt.decode(signer.sign(ADMISSION), options={"verify_signature": False})["jti"] for _ in range(2))
    assert first != second


def test_rs256_of_another_registry_is_taken() -> None:
    token = PassSigner(private_pem(RSA_KEY), ISSUER).sign(ADMISSION)
    assert jwt.get_unverified_header(token)["alg"] == "RS256"
    passes(KEY, RSA_KEY).check(token, "s1", HOP)


def test_the_same_session_may_come_again_with_its_pass() -> None:
    checker, token = passes(), signed()
    for _ in range(3):
        checker.check(token, "s1", HOP)


@pytest.mark.row(72)
def test_a_pass_that_is_played_again_for_another_session_is_unauthenticated() -> None:
    checker, token = passes(), signed()
    # Whether its own session is open here already or not.
    assert "for another session" in refusal(checker, token, session="s2")
    checker.check(token, "s1", HOP)
    assert "for another session" in refusal(checker, token, session="s2")
    # The same jti under a new signature is used up as well.
    assert "another session" in refusal(checker, signed(session="s2"), session="s2")


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_a_pass_without_a_claim_is_none(name: str) -> None:
    refusal(passes(), signed(without=name))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"exp": 1}, id="expired"),
        pytest.param({"nbf": 2**40}, id="of tomorrow"),
        pytest.param({"iat": 2**40}, id="issued tomorrow"),
        pytest.param({"aud": "elsewhere"}, id="another audience"),
        pytest.param({"aud": ["livery-stage", "elsewhere"]}, id="several audiences"),
        pytest.param({"iss": "a stranger"}, id="another issuer"),
        pytest.param({"model_hash": "cd" * 32}, id="another model"),
        pytest.param({"layers": [[0, 2]]}, id="other layers"),
        pytest.param({"layers": [[2, 3], [3, 4]]}, id="layers in pieces"),
        pytest.param({"layers": "2:4"}, id="layers that are none"),
        pytest.param({"layers": [["2", "4"]]}, id="layers of words"),
        pytest.param({"jti": "x" * 400}, id="a long jti"),
    ],
)
def test_a_pass_that_says_something_else_does_not_hold(changes: dict) -> None:
    refusal(passes(), signed(**changes))


def test_the_key_says_the_algorithm_not_the_token() -> None:
    unsigned = jwt.encode(claims_of(ADMISSION, issuer=ISSUER, jti="j", now_s=int(time())), None, algorithm="none")
    head, body, _ = unsigned.split(".")
    by_hand = urlsafe_b64encode(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()).rstrip(b"=").decode()
    for token in (
        unsigned,
        f"{by_hand}.{body}.AAAA",
        signed(OTHER_KEY),
        signed(RSA_KEY, "RS256"),
        signed(RSA_KEY, "PS256"),
    ):
        refusal(passes(), token)
    assert json.loads(urlsafe_b64decode(head + "=="))["alg"] == "none"
    refusal(passes(KEY, RSA_KEY), signed(RSA_KEY, "PS256"))


@pytest.mark.parametrize(
    "token",
    ["", "x", "a.b.c", "é" * 10, signed()[:-2], signed() + "A"],
    ids=["empty", "word", "dots", "letters", "cut", "longer"],
)
def test_what_is_no_pass_is_unauthenticated(token: str) -> None:
    refusal(passes(), token)


def test_keys_that_are_too_weak_or_none_are_the_owners_fault() -> None:
    for keys in ([], [b"no key"], [public_pem(ec.generate_private_key(ec.SECP256R1()))]):
        with pytest.raises(OwnersFault):
            JwtPasses(keys, issuer=ISSUER, model_hash=MODEL_HASH)
    with pytest.raises(OwnersFault):
        PassSigner(public_pem(KEY), ISSUER)


def test_a_private_key_stands_for_its_public_half() -> None:
    JwtPasses([private_pem(KEY)], issuer=ISSUER, model_hash=MODEL_HASH).check(signed(), "s1", HOP)


def test_used_up_passes_are_forgotten_when_they_expire() -> None:
    used = UsedUp()
    for number in range(65_536):
        used.take(f"j{number}", "s", 10.0, 0.0)
    with pytest.raises(InferenceError, match="in use"):
        used.take("one more", "s", 10.0, 0.0)
    used.take("later", "s", 100.0, 60.0)
    used.take("j1", "another", 100.0, 60.0)
