"""TLS and mTLS between stages: real certificates, real connections, and who is not let in."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gpu_worker.core.errors import OwnersFault, Unavailable
from gpu_worker.core.inference.sampling import Sampling
from gpu_worker.edges.grpc.grpc_door import DoorOptions, GrpcDoor
from gpu_worker.edges.grpc.links_grpc import GrpcLinks
from gpu_worker.edges.grpc.tls import Tls, is_loopback, read_tls
from tests.fixtures.authority import Authority
from tests.fixtures.grpc_servers import open_door
from tests.fixtures.toy_pipeline import whole
from tests.gpu_worker.slice.doors import Known, Stage, ToyHead, stages

PROMPT = (3, 1, 4)
ANSWER_S = 10.0
GREEDY = Sampling(temperature=0.0)
OURS, ANOTHER = Authority("ours"), Authority("another")


@asynccontextmanager
async def linked(stage: Stage, tls: Tls | None) -> AsyncIterator[GrpcLinks]:
    links = GrpcLinks(tls, connect_s=ANSWER_S)
    async with stages(stage):
        try:
            yield links
        finally:
            await links.close()


@pytest.mark.parametrize("has_steps", [True, False], ids=["steps", "four older RPCs"])
async def test_a_pipeline_works_with_certificates_on_both_sides(has_steps: bool) -> None:
    stage = Stage(2, 4, tls=OURS.tls(), has_steps=has_steps)
    async with linked(stage, OURS.tls()) as links:
        assert (await links.describe(stage.endpoint, ANSWER_S)).is_ready
        head = ToyHead(await links.connect(stage.endpoint), stage.endpoint)
        assert await head.generate("s", PROMPT, 3) == whole(PROMPT, 3, sampling=GREEDY)


@pytest.mark.parametrize(
    "client",
    [
        pytest.param(None, id="without TLS"),
        pytest.param(Tls(None, None, OURS.pem), id="without a certificate"),
        pytest.param(Tls(*ANOTHER.issue(), OURS.pem), id="with a certificate of somebody else"),
    ],
)
async def test_mtls_lets_no_stranger_in(client: Tls | None) -> None:
    async with linked(stage := Stage(2, 4, tls=OURS.tls()), client) as links:
        with pytest.raises(Unavailable):
            await links.describe(stage.endpoint, ANSWER_S)
        with pytest.raises(Unavailable):
            await links.connect(stage.endpoint)
        assert stage.engine.steps == []


async def test_a_server_that_is_somebody_else_is_not_spoken_to() -> None:
    async with linked(stage := Stage(2, 4, tls=Tls(*ANOTHER.issue(), OURS.pem)), OURS.tls()) as links:
        with pytest.raises(Unavailable):
            await links.connect(stage.endpoint)
    async with linked(stage := Stage(2, 4, tls=Tls(*OURS.issue("192.0.2.1"), OURS.pem)), OURS.tls()) as links:
        with pytest.raises(Unavailable):
            await links.connect(stage.endpoint)


async def test_without_an_authority_clients_need_no_certificate() -> None:
    stage = Stage(2, 4, tls=Tls(*OURS.issue(), None))
    async with linked(stage, Tls(None, None, OURS.pem)) as links:
        head = ToyHead(await links.connect(stage.endpoint), stage.endpoint)
        assert await head.generate("s", PROMPT, 2) == whole(PROMPT, 2, sampling=GREEDY)


async def test_a_stage_that_chains_uses_its_certificate_too() -> None:
    known = Known()
    first, last = (Stage(*layers, known=known, tls=OURS.tls()) for layers in ((0, 2), (2, 4)))
    async with stages(first, last):
        from gpu_worker.inference.stage.forward import Forward

        answer = await first.forward.forward(
            Forward(session="r", position=0, rows=PROMPT, sampling=GREEDY, next=last.endpoint)
        )
        assert [answer.token] == whole(PROMPT, 1, sampling=GREEDY)


def written(tmp_path: Path, mode: int = 0o600) -> tuple[Path, Path, Path]:
    paths = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    for path, data in zip(paths, (*OURS.issue(), OURS.pem), strict=True):
        path.write_bytes(data)
        path.chmod(mode)
    return paths


def test_files_become_credentials_and_a_key_that_others_read_is_warned_of(tmp_path: Path) -> None:
    tls, warnings = read_tls(*written(tmp_path))
    assert tls is not None
    assert tls.ca == OURS.pem
    assert warnings == ()
    assert b"PRIVATE" not in repr(tls).encode()
    _, warnings = read_tls(*written(tmp_path, 0o644))
    assert "chmod 600" in warnings[0]
    assert read_tls(None, None, None) == (None, ())


def test_files_that_cannot_be_used_are_the_owners_fault(tmp_path: Path) -> None:
    cert, key, ca = written(tmp_path)
    empty = tmp_path / "empty.pem"
    empty.touch()
    for arguments in ((cert, None, ca), (None, key, None), (cert, tmp_path / "none.pem", None), (cert, empty, None)):
        with pytest.raises(OwnersFault):
            read_tls(*arguments)


async def test_a_key_of_another_certificate_does_not_start_a_server() -> None:
    (cert, _), (_, key) = OURS.issue(), OURS.issue()
    stage = Stage(2, 4)
    stage.door = door = GrpcDoor(DoorOptions(tls=Tls(cert, key, None)), [])
    with pytest.raises(OwnersFault):
        async with open_door(door):
            pass


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "stage.example"])  # noqa: S104
async def test_without_tls_nothing_is_said_to_other_machines_unless_it_is_allowed(host: str) -> None:
    with pytest.raises(OwnersFault, match="no TLS"):
        GrpcDoor(DoorOptions(host=host), [])
    GrpcDoor(DoorOptions(host=host, insecure=True), [])
    GrpcDoor(DoorOptions(host=host, tls=OURS.tls()), [])
    endpoint = f"[{host}]:1" if ":" in host else f"{host}:1"
    with pytest.raises(Unavailable, match="no TLS"):
        await GrpcLinks().connect(endpoint)


def test_what_is_this_machine() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "localhost.example", "")] == [False] * 4  # noqa: S104


async def test_a_door_with_tls_does_not_answer_plain_words() -> None:
    async with stages(stage := Stage(2, 4, tls=OURS.tls())):
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.door.port)
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert b"grpc" not in await reader.read()
        writer.close()
