"""A street of real processes on a chain that makes a block each second, and control planes to drive runs through."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from chain.devchain import DevChain, dev_account
from tests.fixtures.mongod import MongoPlace
from tests.fixtures.server import WAIT_S as WAIT_S
from tests.fixtures.server import Server as Server

SECRET = "the-secret-of-every-vendor"
PAYER = dev_account(1)


@dataclass(frozen=True)
class Street:
    """Where everything is that control planes talk to."""

    chain: DevChain
    vendors_url: str
    facilitator_url: str
    folder: Path


@pytest.fixture(scope="package")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    """Vendors of which the first fails at its third epoch, paid through a facilitator, each a process."""
    folder = tmp_path_factory.mktemp("street")
    with ExitStack() as stack:
        chain = stack.enter_context(DevChain.start(block_time_s=1))
        chain.mint(PAYER.address, 1_000_000_000)
        facilitator = Server(
            folder / "facilitator.log", "cli", "facilitator", "--port", "0", LIVERY_FACILITATOR_RPC_URL=chain.url
        )
        stack.callback(facilitator.stop)
        vendors = Server(
            folder / "vendors.log",
            *("cli", "vendor-mock"),
            GPU_VENDOR_SECRET=SECRET,
            FAIL_VENDOR_ID="gpu_vendor_1",
            LIVERY_VENDOR_MOCK_PORT="0",
            LIVERY_VENDOR_MOCK_RPC_URL=chain.url,
            LIVERY_VENDOR_MOCK_FACILITATOR_URL=facilitator.url,
            LIVERY_VENDOR_MOCK_DATABASE=str(folder / "vendors.db"),
        )
        stack.callback(vendors.stop)
        yield Street(chain, vendors.url, facilitator.url, folder)


@pytest.fixture(params=["sqlite", "mongo"])
def environment(request: pytest.FixtureRequest, tmp_path: Path, street: Street) -> dict[str, str]:
    """What a control plane on an empty store of each kind is told."""
    told = {
        "HOME": str(tmp_path),
        "LIVERY_AGENT_PRIVATE_KEY": PAYER.key,
        "LIVERY_AGENT_RPC_URL": street.chain.url,
        "GPU_VENDOR_SECRET": SECRET,
        "PLANNER_MODE": "stub",
    }
    if request.param == "sqlite":
        return {**told, "DATABASE_URL": f"sqlite:///{tmp_path}/livery.db"}
    place: MongoPlace = request.getfixturevalue("mongo_place")
    return {**told, "DATABASE_URL": place.url, "MONGODB_DB_NAME": place.database}


@pytest.fixture
def control_plane(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[[], Server]]:
    """What starts a control plane, `livery serve`, on the test's store; all are stopped with it."""
    started: list[Server] = []

    def start() -> Server:
        server = Server(tmp_path / f"serve-{len(started)}.log", "cli", "serve", "--port", "0", **environment)
        started.append(server)
        return server

    yield start
    for server in started:
        if server.process.poll() is None:
            server.stop()
