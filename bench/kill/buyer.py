"""The process that buys: it starts a run, or goes on with one, and sweeps until nothing is left to do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from pydantic import SecretStr

from agent.config import AgentSettings
from agent.core.invariants import Broken, of_run, of_step
from agent.core.model import Entry, Run, Vendor
from agent.core.states import OPEN_PAYMENTS, RUN_ENDS
from agent.ports import Agent, Hold, Limits, Store
from agent.start import start
from agent.sweep import sweep
from bench.kill.plants import Plant
from bench.kill.points import Draw
from bench.kill.traps import Hasty, Trap, trapped_agent
from chain.devchain import DevNode
from seeds.vendors import seed_vendors
from wire.control import StartRequest

BUDGET = Decimal(5)
# After so many sweeps what is still open waits for a cheque to lapse, and time is moved; after twice more it is stuck.
PATIENCE = 15
SWEEPS_MAX = 3 * PATIENCE
# Longer than a cheque lives, and blocks enough for that to be final.
LAPSE_S, FINAL_BLOCKS = 400, 3
# Nothing waits for time: what is not over is due.
LIMITS = Limits(poll_interval_s=0, refund_wait_s=0)


@dataclass
class Watching:
    """A store that asks of every saved state what must be true of it."""

    inner: Store
    broken: list[Broken] = field(default_factory=list)
    last: tuple[Run, int] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def save(self, token: int, run: Run, entries: Sequence[Entry] = (), **more: Any) -> Hold | None:
        refused = await self.inner.save(token, run, entries, **more)
        if refused is None:
            self.broken += of_run(run)
            if self.last is not None:
                self.broken += of_step(self.last[0], run, self.last[1], token)
            self.last = (run, token)
        return refused


@dataclass(frozen=True, slots=True)
class Ended:
    """How it went: the run's status, how many sweeps it took, how far time was moved, what was broken on the way."""

    status: str
    sweeps: int
    ahead: timedelta
    broken: tuple[Broken, ...]


def settings_of(
    database_url: str, database: str, artifact_url: str, rpc_url: str, key: str, secrets: str
) -> AgentSettings:
    """Return the settings of the agent of one lane; its caps are out of the way."""
    return AgentSettings.model_validate(
        {
            "database_url": SecretStr(database_url),
            "database_name": database,
            "artifact_url": SecretStr(artifact_url),
            "private_key": SecretStr(key),
            "rpc_url": rpc_url,
            "vendor_secrets": SecretStr(secrets),
            "planner_mode": "stub",
            "vendor_day_max": Decimal(100_000),
            "wallet_day_max": Decimal(100_000),
        }
    )


def impatient(agent: Agent) -> tuple[Agent, Hasty, Watching]:
    """Return `agent` with nothing to wait for, its clock, and the store that watches it."""
    watching = Watching(agent.store)
    watched: Any = watching
    hasty: Any = Hasty(watched)
    return replace(agent, store=hasty, limits=LIMITS), hasty, watching


async def buy(
    agent: Agent,
    chain: DevNode,
    draw: Draw,
    trap: Trap | None,
    plant: Plant,
    tell: Callable[[str], None],
    run_id: str | None = None,
) -> Ended:
    """Start a run, tell its id, and sweep until it is over; or take up `run_id`, which another process began."""
    agent, clock, watching = impatient(agent)
    agent = plant.spoil_agent(agent)
    begun = run_id is None
    if run_id is None:
        document = {"goal": "Fine-tune tiny-llm", "budgetTotal": BUDGET}
        run_id = (await start(agent, StartRequest.model_validate(document))).run_id
        tell(run_id)
    if trap is not None and trap.point.at == "buyer":
        agent = trapped_agent(agent, trap)
    run = await agent.store.read_run(run_id)
    watching.broken += of_run(run)
    sweeps = 0
    while not _is_over(run) and sweeps < SWEEPS_MAX:
        if draw.scene == "cancels" and (not begun or sweeps >= draw.cancel_at) and run.cancel_requested_at is None:
            await agent.store.request_cancel(run_id)
        await sweep(agent)
        sweeps += 1
        run = await agent.store.read_run(run_id)
        if sweeps % PATIENCE == 0 and any(paid.status in OPEN_PAYMENTS for paid in run.payments):
            clock.ahead += timedelta(seconds=LAPSE_S)
            chain.increase_time(LAPSE_S)
            chain.mine(FINAL_BLOCKS)
    await agent.store.close()
    return Ended(run.status, sweeps, clock.ahead, tuple(watching.broken))


def _is_over(run: Run) -> bool:
    return run.status in RUN_ENDS and run.next_tick_at is None


async def prepare(agent: Agent, endpoint: str) -> list[Vendor]:
    """Make the store ready and register the vendors at `endpoint`; return them."""
    await agent.store.migrate()
    await seed_vendors(agent.store, agent.policy.asset, endpoint, replace=True)
    vendors = await agent.store.list_vendors()
    await agent.store.close()
    return vendors
