"""The process that buys: it starts a run, or goes on with one, and sweeps until nothing is left to do."""

import base64
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from pydantic import SecretStr

from agent.config import AgentSettings
from agent.core.invariants import of_run, of_step
from agent.core.model import Entry, Run, Vendor
from agent.core.states import OPEN_PAYMENTS, RUN_ENDS
from agent.ports import Agent, Hold, Limits, Store
from agent.start import start
from agent.sweep import sweep
from bench.books import told
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


# A stored state of the run, and the fencing token that wrote it.
Saved = tuple[Run, int]
Tell = Callable[..., None]


@dataclass
class Watching:
    """
    A store that asks of every saved state what must be true of it, and tells both at once: who saved it may be killed
    before anything else, and the next one's first step begins at the `last` that was told.
    """

    inner: Store
    tell: Tell
    last: Saved | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def save(self, token: int, run: Run, entries: Sequence[Entry] = (), **more: Any) -> Hold | None:
        refused = await self.inner.save(token, run, entries, **more)
        if refused is None:
            self.saw(run, token)
        return refused

    def saw(self, run: Run, token: int) -> None:
        broken = of_run(run)
        if self.last is not None:
            broken += of_step(self.last[0], run, self.last[1], token)
        self.last = (run, token)
        self.tell(saved=packed(self.last), broken=told(broken))


def packed(saved: Saved) -> str:
    return base64.b64encode(pickle.dumps(saved)).decode()


def unpacked(text: str) -> Saved:
    """Return what `packed` packed, in a process of this program."""
    saved: Saved = pickle.loads(base64.b64decode(text))  # noqa: S301 - from our own child
    return saved


@dataclass(frozen=True, slots=True)
class Ended:
    """How it went: the run's status, how many sweeps it took, how far time was moved."""

    status: str
    sweeps: int
    ahead: timedelta


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


def impatient(agent: Agent, tell: Tell, last: Saved | None) -> tuple[Agent, Hasty, Watching]:
    """Return `agent` with nothing to wait for, its clock, and the store that watches it."""
    watching = Watching(agent.store, tell, last)
    watched: Any = watching
    hasty: Any = Hasty(watched)
    return replace(agent, store=hasty, limits=LIMITS), hasty, watching


async def buy(
    agent: Agent,
    chain: DevNode,
    draw: Draw,
    trap: Trap | None,
    plant: Plant,
    tell: Tell,
    last: Saved | None = None,
) -> Ended:
    """
    Start a run and sweep until it is over; or take up what another process was the `last` to save.

    Tells `run`, its id; `saved`, each state as it is stored, with what is `broken` in it; `bugs` of every sweep.
    """
    agent, clock, watching = impatient(agent, tell, last)
    agent = plant.spoil_agent(agent)
    begun = last is None
    if last is None:
        document = {"goal": "Fine-tune tiny-llm", "budgetTotal": BUDGET}
        last = await start(agent, StartRequest.model_validate(document)), 0
        tell(run=last[0].run_id)
    run_id, token = last[0].run_id, last[1]
    run = await agent.store.read_run(run_id)
    watching.saw(run, token)
    if trap is not None and trap.point.at == "buyer":
        agent = trapped_agent(agent, trap)
    sweeps = 0
    while not _is_over(run) and sweeps < SWEEPS_MAX:
        if draw.scene == "cancels" and (not begun or sweeps >= draw.cancel_at) and run.cancel_requested_at is None:
            await agent.store.request_cancel(run_id)
        if bugs := (await sweep(agent)).bugs:
            tell(bugs=bugs)
        sweeps += 1
        run = await agent.store.read_run(run_id)
        if sweeps % PATIENCE == 0 and any(paid.status in OPEN_PAYMENTS for paid in run.payments):
            clock.ahead += timedelta(seconds=LAPSE_S)
            chain.increase_time(LAPSE_S)
            chain.mine(FINAL_BLOCKS)
    await agent.store.close()
    return Ended(run.status, sweeps, clock.ahead)


def _is_over(run: Run) -> bool:
    return run.status in RUN_ENDS and run.next_tick_at is None


async def prepare(agent: Agent, endpoint: str) -> list[Vendor]:
    """Make the store ready and register the vendors at `endpoint`; return them."""
    await agent.store.migrate()
    await seed_vendors(agent.store, agent.policy.asset, endpoint, replace=True)
    vendors = await agent.store.list_vendors()
    await agent.store.close()
    return vendors
