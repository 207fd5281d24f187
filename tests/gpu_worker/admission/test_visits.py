"""What a request shows at each door, and what an owner who sets admission wrongly is told."""

from pathlib import Path
from typing import Any

import pytest

from gpu_worker.config import WorkerSettings
from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.inference.callers import Visit
from gpu_worker.edges.http.admission import grpc_visit, http_visit
from gpu_worker.wiring.admission import open_admission
from tests.fixtures.key_server import ED
from tests.gpu_worker.slice.test_passes import private_pem, public_pem


def scope_of(*headers: tuple[bytes, bytes], client: Any = ("127.0.0.1", 5), server: Any = ("127.0.0.1", 80)) -> Any:
    return {"type": "http", "headers": list(headers), "client": client, "server": server}


@pytest.mark.parametrize(
    ("headers", "credential", "pays"),
    [
        ((), "", False),
        (((b"authorization", b"Bearer a key"),), "a key", False),
        (((b"authorization", b"bearer  key "),), "key", False),
        (((b"authorization", "Bearer schlüssel".encode()),), "schlüssel", False),
        (((b"authorization", b"Bearer "),), "", False),
        (((b"authorization", b"Bearer"),), "", False),
        (((b"authorization", b"Basic a2V5"),), "", False),
        (((b"authorization", b"Bearer one"), (b"authorization", b"Bearer two")), "", False),
        (((b"payment-signature", b"x"),), "", True),
        (((b"x-payment", b"x"), (b"authorization", b"Bearer key")), "key", True),
        (((b"payment-authorization", b"Payment x"),), "", True),
    ],
)
def test_a_request_shows_one_bearer_and_whether_it_pays(headers: Any, credential: str, pays: bool) -> None:
    assert http_visit(scope_of(*headers)) == Visit(credential, "127.0.0.1", True, pays)


@pytest.mark.parametrize(
    ("scope", "client", "is_near"),
    [
        (scope_of(client=("::1", 5), server=("::1", 80)), "::1", True),
        (scope_of(client=("203.0.113.9", 5), server=("203.0.113.1", 80)), "203.0.113.9", False),
        (scope_of(client=None), "", True),
        (scope_of(client=None, server=("203.0.113.1", 80)), "", False),
        (scope_of((b"x-forwarded-for", b"127.0.0.1")), "127.0.0.1", False),
        (scope_of((b"forwarded", b"for=127.0.0.1")), "127.0.0.1", False),
    ],
)
def test_who_is_of_this_machine(scope: Any, client: str, is_near: bool) -> None:
    assert http_visit(scope)[1:3] == (client, is_near)


@pytest.mark.parametrize(
    ("peer", "client", "is_near"),
    [
        ("ipv4:127.0.0.1:40000", "127.0.0.1", True),
        ("ipv4:203.0.113.9:40000", "203.0.113.9", False),
        ("ipv6:[::1]:40000", "::1", True),
        ("ipv6:%5B::1%5D:40000", "::1", True),
        ("ipv6:%5B2001:db8::9%5D:40000", "2001:db8::9", False),
        ("ipv6:%5B::ffff:127.0.0.1%5D:40000", "::ffff:127.0.0.1", True),
        ("unix:/run/livery.sock", "", True),
        ("unknown", "", False),
        ("", "", False),
    ],
)
def test_grpcs_callers_have_addresses_too(peer: str, client: str, is_near: bool) -> None:
    assert grpc_visit((), peer)[1:3] == (client, is_near)


@pytest.mark.parametrize("name", ["x-forwarded-for", "forwarded", "x-real-ip"])
def test_a_call_that_a_proxy_beside_us_passes_on_is_a_strangers(name: str) -> None:
    assert not grpc_visit(((name, "203.0.113.9"),), "ipv4:127.0.0.1:40000").is_near


def test_a_call_shows_its_token_or_a_bearer() -> None:
    metadata = (("authorization", "Bearer of the metadata"), ("other", b"\xff"))
    assert grpc_visit(metadata, "").credential == "of the metadata"
    assert grpc_visit(metadata, "", "of the message").credential == "of the message"
    assert grpc_visit((*metadata, *metadata), "").credential == ""
    assert grpc_visit((("authorization", "Basic x"),), "").credential == ""


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("none.pem", "cannot be read"),
        ("words.txt", "neither a JWK set nor PEM"),
        ("empty.json", "has no Ed25519 key"),
        ("http://registry.example/keys", "https"),
    ],
)
def test_keys_that_cannot_be_had_are_told_to_the_owner_at_once(tmp_path: Path, place: str, why: str) -> None:
    (tmp_path / "words.txt").write_text("no keys")
    (tmp_path / "empty.json").write_text('{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}')
    named = place if "://" in place else str(tmp_path / place)
    with pytest.raises(OwnersFault, match=why):
        open_admission(WorkerSettings(data=tmp_path, pass_keys=named))


@pytest.mark.parametrize("pem", [public_pem(ED), private_pem(ED)], ids=["public", "private"])
async def test_a_file_of_keys_is_enough(tmp_path: Path, pem: bytes) -> None:
    (tmp_path / "registry.pem").write_bytes(pem)
    admission = open_admission(WorkerSettings(data=tmp_path, pass_keys=str(tmp_path / "registry.pem")))
    assert admission.rules.has_passes
    await admission.close()
