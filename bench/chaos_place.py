"""Where the chaos is: a replica set, a chain, a facilitator and vendors, each a process or several of its own."""

import asyncio
import json
import shutil
import socket
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.config import AgentSettings
from agent.ports import Agent
from agent.vendors import register
from agent.wiring import open_agent
from bench.replica_set import ReplicaSet
from chain.devchain import DevChain, dev_account
from tests.fixtures.server import Server

FAIL_RATE = 0.08
PAID_IN = 100_000_000_000
DATABASE = "chaos"
WEBHOOK_SECRET = "whsec_" + "c2VjcmV0" * 4  # signs what nobody hears
SECRET = "the-secret-of-every-vendor"  # noqa: S105 - of vendors that live as long as this program
VENDORS = {"gpu_vendor_1": 1.4, "gpu_vendor_2": 1.6, "gpu_vendor_3": 1.8}
PAYER = dev_account(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the runs live and what they cost money of; `settings` are of any process that serves them."""

    folder: Path
    servers: ReplicaSet
    chain: DevChain
    settings: dict[str, Any]


def open_place(stack: ExitStack) -> Place:
    """Return a replica set, a chain, a facilitator and vendors, all started; `stack` ends them."""
    folder = Path(tempfile.mkdtemp(prefix="livery-chaos-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    servers = stack.enter_context(ReplicaSet.started())
    chain = stack.enter_context(DevChain.start(block_time_s=1))
    chain.mint(PAYER.address, PAID_IN - chain.balance(PAYER.address))
    facilitator = _serve(stack, folder, "facilitator", "--port", "0", LIVERY_FACILITATOR_RPC_URL=chain.url)
    plans = [
        {"vendorId": name, "name": name, "pricePerHour": price, "gpus": [{"gpuType": "A10", "count": 10_000}]}
        for name, price in VENDORS.items()
    ]
    (folder / "plans.json").write_text(json.dumps(plans))
    vendors = _serve(
        stack,
        folder,
        "vendor-mock",
        GPU_VENDOR_SECRET=SECRET,
        FAIL_RATE=str(FAIL_RATE),
        LIVERY_VENDOR_MOCK_PORT="0",
        LIVERY_VENDOR_MOCK_RPC_URL=chain.url,
        LIVERY_VENDOR_MOCK_FACILITATOR_URL=facilitator,
        LIVERY_VENDOR_MOCK_DATABASE=str(folder / "vendors.db"),
        LIVERY_VENDOR_MOCK_VENDORS_FILE=str(folder / "plans.json"),
    )
    settings = {
        "database_url": servers.url,
        "database_name": DATABASE,
        "artifact_url": servers.url,
        "private_key": PAYER.key,
        "rpc_url": chain.url,
        "vendor_secrets": SECRET,
        "planner_mode": "stub",
        "vendor_day_max": 100_000,
        "wallet_day_max": 100_000,
        "webhook_url": _closed_address(stack),
        "webhook_secret": WEBHOOK_SECRET,
        "lease_s": 30,
        "poll_interval_s": 2,
    }
    place = Place(folder=folder, servers=servers, chain=chain, settings=settings)
    asyncio.run(_register(place, vendors))
    return place


def _serve(stack: ExitStack, folder: Path, *command: str, **environment: str) -> str:
    """Start `livery COMMAND` as a process that `stack` ends; return the address that it listens at."""
    server = Server(folder / f"{command[0]}.log", "cli", *command, **environment)
    stack.callback(server.stop)
    return server.url


def _closed_address(stack: ExitStack) -> str:
    """Return an address that nobody listens at for as long as `stack` is there: what is told there stays untold."""
    taken = stack.enter_context(socket.socket())
    taken.bind(("127.0.0.1", 0))
    return f"http://127.0.0.1:{taken.getsockname()[1]}"


async def _register(place: Place, vendors_url: str) -> None:
    agent = agent_of(place)
    await agent.store.migrate()
    for vendor_id in VENDORS:
        await register(agent, vendor_id, vendors_url)
    await agent.store.close()


def agent_of(place: Place) -> Agent:
    return open_agent(AgentSettings.model_validate(place.settings))
