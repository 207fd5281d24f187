"""
A fork server with a world of its own: chain, facilitator, vendors' address, a store of each kind. It has imported all.

`python -m bench.kill.lane` reads one trial a line from its input, {"point", "store", "seed", "plant"}, and answers each
with one line. Trials follow one another; lanes run beside each other.
"""

import argparse
import asyncio
import gc
import importlib
import json
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fastapi import FastAPI

from agent.config import AgentSettings
from agent.core.events import RunEnded, event_document
from agent.ports import Agent
from agent.wiring import open_agent
from bench.kill import buyer, seller
from bench.kill.children import Child, Phone, fork, hear
from bench.kill.seller import SECRETS, Street
from chain.devchain import DevAccount, DevChain, dev_account
from outbound.http import HttpClient
from vendor_mock.app import create_app
from vendor_mock.facilitator import create_facilitator
from wire.money import BASE_SEPOLIA_USDC

PAYER, FACILITATOR = 1, 9
PAYER_USDC = 10**12
READY_S = 30.0
# What a trial leaves in a store, and does not find there.
LEFT = (
    "runs",
    "jobs",
    "payments",
    "observations",
    "wallets",
    "standings",
    "outbox",
    "fs.files",
    "fs.chunks",
)


# What the children would each import for themselves: the drivers, and what HTTP loads when it is first used.
HEAVY = (
    *("agent.edges.store_sqlite", "agent.edges.store_mongo", "agent.edges.artifacts_gridfs"),
    *("anyio._backends._asyncio", "h11", "httpcore", "tenacity.asyncio", "eth_account"),
    *("uvicorn.lifespan.on", "uvicorn.protocols.http.auto", "uvicorn.protocols.websockets.auto"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one kind of store is: `folder` a file's, `url` a server's. `agent` is opened and not yet used."""

    settings: AgentSettings
    agent: Agent
    folder: Path | None = None
    url: str | None = None


@dataclass(kw_only=True)
class Lane:
    """What the trials of one process share: all that a trial does not start for itself."""

    chain: DevChain
    snapshot: str
    facilitator: Child
    serve_facilitator: Callable[[Phone], None]
    payer: DevAccount
    door: socket.socket
    street: Street
    shop: FastAPI
    places: dict[str, Place]
    vendors: dict[str, str]

    def forget(self, store: str) -> None:
        """Make the store what it was before the first trial. In a child: drivers start threads."""
        place = self.places[store]
        if place.folder is not None:
            shutil.rmtree(place.folder / "now", ignore_errors=True)
            shutil.copytree(place.folder / "first", place.folder / "now")
        if place.url is not None:
            from pymongo import MongoClient

            with MongoClient[dict[str, object]](place.url) as client:
                database = client[place.settings.database_name]
                for name in LEFT:
                    database[name].delete_many({})

    def rewind(self) -> None:
        """Undo all that was done to the chain, its clock too; a facilitator counts its transactions, so it is new."""
        self.facilitator.kill()
        self.chain.revert(self.snapshot)
        self.snapshot = self.chain.snapshot()
        self.chain.set_clock()
        self.facilitator = fork(self.serve_facilitator)

    def forget_vendors(self) -> None:
        """Take the vendors' books away: the next trial's vendors have no job."""
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.street.database}{suffix}").unlink(missing_ok=True)


@contextmanager
def opened(mongo_url: str | None) -> Iterator[Lane]:
    """Yield a lane with its chain and facilitator running and its stores ready."""
    memory = Path("/dev/shm")  # noqa: S108 - a file system in memory, a private folder in it
    places: dict[str, Place] = {}
    folder = Path(tempfile.mkdtemp(prefix="livery-kill-", dir=memory if memory.is_dir() else None))
    payer = dev_account(PAYER)
    facilitator_door, door = _door(), _door()
    try:
        with DevChain.start(block_time_s=None) as chain:
            chain.mint(payer.address, PAYER_USDC)
            chain.mine(3)
            app = create_facilitator(chain.url, dev_account(FACILITATOR).key, BASE_SEPOLIA_USDC.network)
            street = Street(
                rpc_url=chain.url,
                facilitator_url=_url(facilitator_door),
                vendors_url=_url(door),
                database=folder / "vendors.db",
            )
            places |= _places(folder, street, payer, mongo_url)
            shop = create_app(street.settings())

            def facilitate(_: Phone) -> None:
                seller.serve(app, facilitator_door)

            lane = Lane(
                chain=chain,
                snapshot=chain.snapshot(),
                payer=payer,
                door=door,
                street=street,
                shop=shop,
                places=places,
                vendors={},
                facilitator=fork(facilitate),
                serve_facilitator=facilitate,
            )
            try:
                for place in places.values():
                    lane.vendors |= _prepared(place, street)
                _rehearse(street)
                yield lane
            finally:
                lane.facilitator.kill()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for place in places.values():
            if place.url is not None:
                _drop(place.url, place.settings.database_name)


def _drop(url: str, database: str) -> None:
    from pymongo import MongoClient

    with MongoClient[dict[str, object]](url) as client:
        client.drop_database(database)


def _places(folder: Path, street: Street, payer: DevAccount, mongo_url: str | None) -> Iterator[tuple[str, Place]]:
    common = {"rpc_url": street.rpc_url, "key": payer.key, "secrets": SECRETS}
    now = folder / "sqlite" / "now"
    now.mkdir(parents=True)
    settings = buyer.settings_of(f"sqlite:///{now}/agent.db", "", str(now / "artifacts"), **common)
    yield "sqlite", Place(settings=settings, agent=open_agent(settings), folder=now.parent)
    if mongo_url is not None:
        settings = buyer.settings_of(mongo_url, f"livery_kill_{os.getpid()}", mongo_url, **common)
        yield "mongo", Place(settings=settings, agent=open_agent(settings), url=mongo_url)


def _rehearse(street: Street) -> None:
    """Load what is loaded at first use, once and for all children; no thread may be left by it."""
    for name in HEAVY:
        importlib.import_module(name)
    event_document(RunEnded(at=datetime.now(UTC), status="completed"))
    asyncio.run(
        HttpClient().request(
            "GET", f"{street.facilitator_url}/health", headers={}, content=None, timeout_s=READY_S, body_bytes_max=1000
        )
    )
    assert threading.active_count() == 1


def _prepared(place: Place, street: Street) -> dict[str, str]:
    """Make the store of `place`, keep a copy of a file's, and return the vendors' addresses by id."""

    def prepare(phone: Phone) -> None:
        vendors = asyncio.run(buyer.prepare(place.agent, street.vendors_url))
        phone.tell(result={vendor.vendor_id: vendor.pay_to for vendor in vendors})

    heard = hear("result", {"prepare": (child := fork(prepare))}, READY_S)
    child.kill()
    if heard is None or heard[1] is None:
        raise RuntimeError(f"the store did not get ready: {child.said}")
    if place.folder is not None:
        shutil.copytree(place.folder / "now", place.folder / "first")
    vendors: dict[str, str] = heard[1]
    return vendors


def _door() -> socket.socket:
    door = socket.socket()
    door.bind(("127.0.0.1", 0))
    door.listen(128)
    return door


def _url(door: socket.socket) -> str:
    return f"http://127.0.0.1:{door.getsockname()[1]}"


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--mongo", default=None, help="URL of a replica set")
    from bench.kill.trial import trial

    with opened(reader.parse_args().mongo) as lane:
        gc.collect()
        gc.freeze()
        print(json.dumps({"ready": sorted(lane.places)}), flush=True)
        for line in sys.stdin:
            print(json.dumps(trial(lane, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
