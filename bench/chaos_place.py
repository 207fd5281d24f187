"""Where the chaos is: a replica set, a chain, a facilitator and vendors, each a process or several of its own."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
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

FAIL_RATE = 0.08
SERVER_S_MAX = 60.0
PAID_IN = 100_000_000_000
DATABASE = "chaos"
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
        "lease_s": 30,
        "poll_interval_s": 2,
    }
    place = Place(folder=folder, servers=servers, chain=chain, settings=settings)
    asyncio.run(_register(place, vendors))
    return place


def _serve(stack: ExitStack, folder: Path, *command: str, **environment: str) -> str:
    """Start `livery COMMAND` as a process; return the address that it says it listens at."""
    log = folder / f"{command[0]}.log"
    with log.open("w") as stream:
        # Told by `env`, on top of what this program was told.
        told = [f"{name}={value}" for name, value in {"PYTHONUNBUFFERED": "1", **environment}.items()]
        process = subprocess.Popen(
            ["/usr/bin/env", *told, sys.executable, "-m", "cli", *command],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
        )
    stack.callback(process.wait)
    stack.callback(process.kill)
    until_s = time.monotonic() + SERVER_S_MAX
    while (found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())) is None:
        if process.poll() is not None or time.monotonic() > until_s:
            raise RuntimeError(f"{command[0]} did not start: {log.read_text()[-2_000:]}")
        time.sleep(0.05)
    return found[0]


async def _register(place: Place, vendors_url: str) -> None:
    agent = agent_of(place)
    await agent.store.migrate()
    for vendor_id in VENDORS:
        await register(agent, vendor_id, vendors_url)
    await agent.store.close()


def agent_of(place: Place) -> Agent:
    return open_agent(AgentSettings.model_validate(place.settings))
