"""AgentService and the pipeline of one worker on one server, with TLS: a client without a certificate is refused."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gpu_worker.core.errors import OwnersFault
from gpu_worker.edges.grpc.agent_service import AGENT_SERVICE, AgentRpcs
from gpu_worker.edges.grpc.grpc_channel import SERVICE
from gpu_worker.edges.grpc.grpc_door import DoorOptions, GrpcDoor
from gpu_worker.edges.grpc.grpc_pipeline import PipelineRpcs
from tests.fixtures.agents import AGENT, STATUS, STREAM, reflected, two_gpus
from tests.fixtures.authority import Authority
from tests.fixtures.grpc_servers import open_door
from tests.fixtures.talker import GREETING, Talker, service_of
from tests.gpu_worker.slice.doors import Stage, stages

OURS, ANOTHER = Authority("ours"), Authority("another")


@asynccontextmanager
async def both() -> AsyncIterator[str]:
    """Yield the endpoint of a worker that has layers and a whole model."""
    async with stages(stage := Stage(2, 4)):
        services = [PipelineRpcs(stage.seen, None), AgentRpcs(service_of(Talker()), AGENT, two_gpus)]
        async with open_door(GrpcDoor(DoorOptions(tls=OURS.tls()), services)) as door:
            yield f"127.0.0.1:{door.port}"


def files_of(authority: Authority, folder: Path) -> dict[str, Path]:
    cert, key = authority.issue()
    for name, data in (("ca", OURS.pem), ("cert", cert), ("key", key)):
        (folder / name).write_bytes(data)
    return {name: folder / name for name in ("ca", "cert", "key")}


@pytest.mark.row(77)
async def test_with_mtls_a_client_without_our_certificate_is_refused_and_one_with_it_served(tmp_path: Path) -> None:
    async with both() as endpoint:
        files = files_of(OURS, tmp_path)
        assert set((await reflected(endpoint, "list", **files))[0]) >= {SERVICE, AGENT_SERVICE}
        assert (await reflected(endpoint, STATUS, **files))[0]["agent_id"] == AGENT
        assert (await reflected(endpoint, f"{SERVICE}/Ping", **files))[0]["layer_start"] == 2
        (whole, _) = await reflected(endpoint, STREAM, {"prompt": "Hello"}, **files)
        assert whole["content"] == GREETING
        (tmp_path / "another").mkdir()
        for strange in ({}, {"ca": files["ca"]}, files_of(ANOTHER, tmp_path / "another")):
            (end,) = await reflected(endpoint, STREAM, {"prompt": "Hello"}, **strange)
            assert end["code"] == "UNAVAILABLE"


@pytest.mark.row(77)
async def test_without_tls_it_does_not_listen_to_other_machines_unless_that_is_allowed() -> None:
    services = [AgentRpcs(service_of(Talker()), AGENT, two_gpus)]
    with pytest.raises(OwnersFault, match="no TLS"):
        GrpcDoor(DoorOptions(host="0.0.0.0"), services)  # noqa: S104
