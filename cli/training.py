"""
A training that outlives its worker: a world of two workers as real processes, and what happens in it.

The one that has the job is killed in the middle; the other goes on from the checkpoint that was pushed.
"""

import asyncio
import json
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import SecretStr

from agent.config import AgentSettings
from chain.devchain import DevChain, dev_account
from cli import own_worker, processes
from cli.books import WALLET, Books, balances, books_of, register
from cli.driving import TooLong, drive, start
from cli.local import with_agent
from inbound.serve import bound_socket
from livery.client import Client
from wire.control import JobRequest, StatusReply
from wire.money import BASE_SEPOLIA_USDC

if TYPE_CHECKING:
    from agent.ports import Agent
    from gpu_worker.config import WorkerSettings

GOAL = "Fine-tune tiny-llm"
BUDGET = Decimal(5)
STEPS = 160
# The worker is killed once it has left a checkpoint of this step or a later one.
KILLED_FROM_STEP = 60
JOB = JobRequest(model=own_worker.MODEL, params={"steps": STEPS, "learningRate": 0.003, "checkpointSteps": 20})
FUNDS_USDC = 100
# A dead worker is given up sooner than anybody should who is not watching: after as many polls, and seconds.
LOST_POLLS, LOST_AFTER_S = 3, 6
LIMIT_S = 300
REFUNDS_S = 60
# Between two ticks; and between two looks for what comes back, which a block has to carry.
INTERVAL_S = 1.0
# Between two looks for the checkpoint: where a step is a millisecond, it is soon too late.
LOOK_S = 0.1
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What was measured after `step` steps, and where."""

    step: int
    loss: float | None
    held_out_loss: float | None
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """Which worker was killed, at which step of the job, and the checkpoint that was there by then."""

    worker: str
    at_step: int
    checkpoint_step: int


@dataclass(slots=True, kw_only=True)
class Played:
    """What happened. `books` are at the end of the run, `books_after` when the killed worker had come back."""

    seen: StatusReply
    killed: Killed
    resumed_step: int
    curve: tuple[Point, ...]
    books: list[Books]
    files: tuple[str, ...]
    seconds: float
    books_after: list[Books] = field(default_factory=list)
    seen_after: StatusReply | None = None

    @property
    def held_out(self) -> tuple[float, float]:
        """The loss on the text that was held out, at the start and at the end."""
        told = [point.held_out_loss for point in self.curve if point.held_out_loss is not None]
        return told[0], told[-1]

    @property
    def is_well(self) -> bool:
        """Whether the run completed, the loss fell, and books and chain agree."""
        start, end = self.held_out
        agree = all(book.agree for book in (*self.books, *self.books_after))
        return self.seen.run.status == "completed" and end < start and agree


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Where everything is. `workers` are settings by vendor id, in order; `urls` where they answer."""

    folder: Path
    chain: DevChain
    children: processes.Processes
    settings: AgentSettings
    plane: str
    paid_at: str
    payer: str
    workers: dict[str, "WorkerSettings"]
    urls: dict[str, str]

    @property
    def holders(self) -> dict[str, str]:
        payees = (dev_account(number).address for number in own_worker.ACCOUNTS)
        return {WALLET: self.payer} | dict(zip(self.workers, payees, strict=True))

    def agent(self, use: Callable[["Agent"], Awaitable[T]]) -> Awaitable[T]:
        return with_agent(use, self.settings)


@contextmanager
def open_world(folder: Path, chain: DevChain, tiny: Path | None = None) -> Iterator[World]:
    """
    Yield a world whose workers sell and are registered; it ends with the context.

    Args:
        tiny: the folder of a tiny model that was made before; None makes one.

    Raises:
        NotReady: something of it did not come up.
    """
    from api.config import ApiSettings

    payer, secret = dev_account(1), secrets.token_urlsafe(16)
    chain.mint(payer.address, FUNDS_USDC * 10**6)
    server = bound_socket("127.0.0.1", 3000, chosen=False)
    settings = AgentSettings(
        database_url=SecretStr(f"sqlite:///{folder / 'livery.db'}"),
        private_key=SecretStr(payer.key),
        rpc_url=chain.url,
        vendor_secrets=SecretStr(secret),
        network="base-sepolia",
        planner_mode="stub",
        artifact_url=SecretStr(str(folder / "artifacts")),
        callback_url=processes.url_of(server),
        lost_polls=LOST_POLLS,
        lost_after_s=LOST_AFTER_S,
    )
    with processes.Processes(folder) as children:
        network = BASE_SEPOLIA_USDC.network
        paid_at = children.start(processes.facilitator, "facilitator", 4021, chain.url, dev_account(9).key, network)
        api = ApiSettings.model_construct()
        plane = children.start(processes.control_plane, "control-plane", server, settings, api)
        if tiny is None:
            tiny = folder / "tiny"
            own_worker.make_tiny(tiny)
        sells = partial(own_worker.settings_of, tiny=tiny, secret=secret, chain_url=chain.url, paid_at=paid_at)
        workers = [sells(folder / name, number=number) for number, name in enumerate(own_worker.NAMES)]
        urls: dict[str, str] = {}
        for worker in workers:
            if urls and (workers[0].folder / "devices").is_dir():
                # One machine: what it does was measured by the first.
                shutil.copytree(workers[0].folder / "devices", worker.folder / "devices")
            urls[worker.vendor_id] = own_worker.start(children, worker, 0)
            children.wait_until_online(urls[worker.vendor_id])
        children.wait_until_ready(paid_at, plane)
        world = World(
            folder=folder,
            chain=chain,
            children=children,
            settings=settings,
            plane=plane,
            paid_at=paid_at,
            payer=payer.address,
            workers={worker.vendor_id: worker for worker in workers},
            urls=urls,
        )
        asyncio.run(register(settings, {name: (urls[name], world.holders[name]) for name in urls}))
        yield world


async def play(world: World, *, says: bool = True, restart: bool = False) -> Played:
    """
    Rent a training, kill the worker that has it, see it end at the other; return what happened.

    Args:
        says: print the run's lines as they come.
        restart: start the killed worker again after the end, and wait until it has paid back what it did not use.

    Raises:
        TooLong: the run, or the refunds, did not come to an end.
    """
    before, began_s = balances(world.chain, world.holders), time.monotonic()
    run_id = await start(world.plane, GOAL, BUDGET, JOB)
    striking = asyncio.create_task(strike(world, run_id))
    try:
        seen = await drive(world.plane, run_id, limit_s=LIMIT_S, interval_s=INTERVAL_S, says=says)
    finally:
        striking.cancel()
        (killed,) = await asyncio.gather(striking, return_exceptions=True)
    if not isinstance(killed, Killed) or seen.run.status != "completed":
        told = f"{seen.run.status} ({seen.run.reason}), its worker killed: {killed}"
        raise processes.NotReady(f"the run was to outlive its worker, and is {told}")
    last = seen.jobs[0]
    seen = await refunded(world, seen.run.id, {last.vendor_id})
    resumed_step = next((cost.step or 0 for cost in seen.run.costs if cost.job_id == last.id), 0)
    played = Played(
        seen=seen,
        killed=killed,
        resumed_step=resumed_step,
        curve=await _curve(world, seen, resumed_step, killed.worker),
        books=books_of(seen, world.holders, before, balances(world.chain, world.holders)),
        files=tuple(artifact.name for artifact in seen.jobs[0].artifacts),
        seconds=time.monotonic() - began_s,
    )
    if restart:
        start_again(world, killed.worker)
        await world.agent(_forget_lost_jobs)
        played.seen_after = await refunded(world, seen.run.id, set(world.workers))
        after = balances(world.chain, world.holders)
        played.books_after = books_of(played.seen_after, world.holders, before, after)
    return played


async def strike(world: World, run_id: str) -> Killed:
    """Kill the worker that has the run's job as soon as enough of it has been brought to the run's store."""
    from agent.checkpoints import read_checkpoints

    async def watch(agent: "Agent") -> Killed:
        while True:
            for job in (run := await agent.store.read_run(run_id)).jobs:
                for found in await read_checkpoints(agent, run, [job]):
                    if found.step >= KILLED_FROM_STEP:
                        # What a worker tells of its program is a moment old.
                        at_step = max(found.step, await step_at(world.urls[job.vendor_id]))
                        world.children.kill(job.vendor_id)
                        return Killed(worker=job.vendor_id, at_step=at_step, checkpoint_step=found.step)
            await asyncio.sleep(LOOK_S)

    return await world.agent(watch)


async def step_at(url: str) -> int:
    """Return the step of the job that a worker is at, 0 where it has none."""
    import httpx

    async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
        jobs = (await client.get(f"{url}/api/v1/status")).json()["jobs"]
    return int(jobs[0]["step"]) if jobs else 0


async def refunded(world: World, run_id: str, vendors: set[str]) -> StatusReply:
    """Return how an ended run stands once what `vendors` owe of it is counted. Raises TooLong."""
    from agent.tick import watch_refunds

    until_s = time.monotonic() + REFUNDS_S
    async with Client(world.plane) as client:
        while time.monotonic() < until_s:
            seen = await client.status(run_id)
            if all(paid.status == "refunded" for paid in seen.payments if paid.vendor_id in vendors):
                return seen
            await world.agent(partial(watch_refunds, run_id=run_id))
            await asyncio.sleep(INTERVAL_S)
    raise TooLong(f"what was not used did not come back in {REFUNDS_S} s")


def start_again(world: World, vendor_id: str) -> None:
    """Start a worker that was killed, at the address that it had. Raises NotReady."""
    port = int(world.urls[vendor_id].rpartition(":")[2])
    server = bound_socket("127.0.0.1", port, chosen=True)
    world.children.wait_until_online(own_worker.start(world.children, world.workers[vendor_id], server))


async def _forget_lost_jobs(agent: "Agent") -> None:
    """Cancel what a worker goes on with that came back, as each sweep does, without the minute's grace."""
    from dataclasses import replace

    from agent.orphans import cancel_orphans

    await cancel_orphans(replace(agent, limits=replace(agent.limits, orphan_grace_s=0)))


async def _curve(world: World, seen: StatusReply, resumed_step: int, first: str) -> tuple[Point, ...]:
    """Return the whole curve, as the report of the job that ended it has it."""
    last = seen.jobs[0]
    report = next(artifact for artifact in last.artifacts if artifact.name == "report.json")
    to = world.folder / "report.json"
    async with Client(world.plane) as client:
        await client.download(seen.run.id, last.id, report, to)
    history: list[dict[str, Any]] = json.loads(to.read_text())["history"]
    return tuple(
        Point(
            step=point["step"],
            loss=point["values"].get("loss"),
            held_out_loss=point["values"].get("eval_loss"),
            worker=first if point["step"] <= resumed_step else last.vendor_id,
        )
        for point in history
    )
