"""The keys of a registry: which are taken, when they are asked for, and what a registry that fails does."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from jwt.algorithms import ECAlgorithm

from gpu_worker.core.errors import OwnersFault, Unavailable
from gpu_worker.edges.passes.jwks import KEEP_S, KEYS_MAX, REFETCH_S, REFRESH_S, KeyRing, key_source, read_keys
from outbound.http import HttpClient
from tests.fixtures.key_server import ED, OTHER_ED, RSA, KeyServer, jwk_of, key_server, replied
from tests.gpu_worker.slice.test_passes import private_pem, public_pem


class Clock:
    now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def ring_of(registry: KeyServer, clock: Callable[[], float]) -> KeyRing:
    return KeyRing(key_source(registry.url, HttpClient()), clock)


def of_set(*jwks: Any) -> bytes:
    return json.dumps({"keys": jwks}).encode()


async def test_the_registry_is_asked_once_at_the_first_token_and_for_a_new_key() -> None:
    clock = Clock()
    async with key_server(keys={"k1": ED}) as registry:
        ring = ring_of(registry, clock)
        assert (ring.of("k1"), registry.asked) == ((), 0)
        assert await ring.renew()
        assert [(key.kid, key.algorithm) for key in ring.of("k1")] == [("k1", "EdDSA")]
        registry.keys = {"k2": OTHER_ED}
        assert ring.of("k2") == ()
        clock.now_s += REFETCH_S
        assert await ring.renew()
        assert ([key.kid for key in ring.of("k2")], ring.of("k1"), registry.asked) == (["k2"], (), 2)


async def test_strangers_do_not_make_the_registry_busy() -> None:
    clock = Clock()
    async with key_server() as registry:
        ring = ring_of(registry, clock)
        assert await ring.renew()
        for number in range(1_000):
            assert not ring.of(f"invented {number}")
            assert not await ring.renew()
        clock.now_s += REFETCH_S
        # All of these at once are one call.
        assert all(await asyncio.gather(*(ring.renew() for _ in range(100))))
        assert registry.asked == 2


async def test_a_key_that_was_withdrawn_is_forgotten_and_old_ones_serve_while_the_registry_is_away() -> None:
    clock = Clock()
    async with key_server() as registry:
        ring = ring_of(registry, clock)
        await ring.renew()
        registry.keys.pop("r1")
        registry.met.clear()
        clock.now_s += REFRESH_S
        # Who asks does not wait for it.
        assert ring.of("r1")
        await registry.met.wait()
        await ring.renew()
        assert not ring.of("r1")
    clock.now_s += KEEP_S - 1
    assert ring.of("k1")
    await ring.renew()
    clock.now_s += 1
    assert not ring.of("k1")
    await ring.close()


@pytest.mark.parametrize(
    "answer",
    [
        replied(b"<html>it works</html>"),
        replied(b"", "500 Oh"),
        replied(b"", "302 Found", "location: http://127.0.0.1:1/"),
        replied(b"[" * 60_000),
        replied(b'{"keys": 1}'),
        replied(b"[]"),
        replied(b"x" * 70_000),
        replied(of_set())[:-3],
        b"no http at all\r\n\r\n",
        b"",
    ],
    ids=["html", "500", "redirect", "deep", "number", "list", "large", "cut", "no http", "nothing"],
)
async def test_what_is_no_answer_leaves_the_keys_that_were_known(answer: bytes) -> None:
    clock = Clock()
    async with key_server() as registry:
        ring = ring_of(registry, clock)
        await ring.renew()
        registry.answer = answer
        clock.now_s += REFETCH_S
        assert await ring.renew()
        assert (registry.asked, [key.kid for key in ring.of("k1")]) == (2, ["k1"])


async def test_a_registry_that_hangs_is_left_with_the_worker() -> None:
    async with key_server(pause=asyncio.Event()) as registry:
        ring = ring_of(registry, Clock())
        waits = asyncio.create_task(ring.renew())
        await registry.met.wait()
        await ring.close()
        with pytest.raises(asyncio.CancelledError):
            await waits
    assert not ring.of("k1")


async def test_keys_in_a_file_are_a_set_or_pem_private_ones_stand_for_their_public_halves(tmp_path: Path) -> None:
    for text in (public_pem(ED) + public_pem(RSA), private_pem(ED) + b"\n" + private_pem(RSA)):
        (tmp_path / "keys").write_bytes(text)
        load = key_source(str(tmp_path / "keys"), HttpClient())
        found = read_keys(await load())
        assert [(key.kid, key.algorithm) for key in found] == [(None, "EdDSA"), (None, "RS256")]
        assert [key.key for key in found] == [ED.public_key(), RSA.public_key()]
    with pytest.raises(Unavailable, match="cannot be read"):
        await key_source(str(tmp_path / "none"), HttpClient())()


def test_what_another_library_writes_is_read() -> None:
    found = read_keys(of_set(jwk_of(ED, kid="a"), jwk_of(RSA), jwk_of(OTHER_ED, alg="EdDSA", key_ops=["verify"])))
    assert [(key.kid, key.key) for key in found] == [
        ("a", ED.public_key()),
        (None, RSA.public_key()),
        (None, OTHER_ED.public_key()),
    ]


SHORT_RSA = generate_private_key(65537, 1024)  # noqa: S505 - what is refused
LONG_NUMBER = "_" * 1_400
CURVE = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)


@pytest.mark.parametrize(
    "jwk",
    [
        {"kty": "oct", "k": "c2VjcmV0"},
        CURVE,
        jwk_of(ED, use="enc"),
        jwk_of(ED, key_ops=["encrypt"]),
        jwk_of(ED, key_ops="verify"),
        jwk_of(ED, alg="HS256"),
        jwk_of(RSA, alg="PS256"),
        jwk_of(ED, crv="X25519"),
        jwk_of(ED, x="AAAA"),
        jwk_of(ED, x=7),
        jwk_of(ED, x="é"),
        jwk_of(ED, kid=""),
        jwk_of(ED, kid="x" * 129),
        jwk_of(ED, kid=["k1"]),
        jwk_of(SHORT_RSA),
        jwk_of(RSA, n=LONG_NUMBER),
        jwk_of(RSA, e=LONG_NUMBER[:344]),
        jwk_of(RSA, e="Ag"),
        jwk_of(RSA, e="AgAAAAE"),
        jwk_of(RSA, n=""),
        {},
        "a key",
    ],
)
def test_keys_that_sign_no_passes_are_passed_over(jwk: Any) -> None:
    assert [key.kid for key in read_keys(of_set(jwk, jwk_of(ED, kid="good")))] == ["good"]


def test_more_keys_than_a_registry_has_are_left() -> None:
    jwks = [jwk_of(ED, kid=str(number)) for number in range(100)]
    assert len(read_keys(of_set(*jwks))) == KEYS_MAX


def test_keys_of_another_machine_come_over_https() -> None:
    for place in ("http://registry.example/keys", "http://10.0.0.1/keys"):
        with pytest.raises(OwnersFault, match="https"):
            key_source(place, HttpClient())
    for place in ("https://registry.example/keys", "http://127.0.0.1:3000/keys", "http://localhost/keys"):
        key_source(place, HttpClient())
