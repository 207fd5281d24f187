"""
One world, drawn from one number: its vendors, its clocks, its owners' wishes, three processes that sweep and others
that are called. It lives for a while, then everything goes well, and when nothing is due any more it is looked over.
"""

import asyncio
import gc
import hashlib
import random
import traceback
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, cast

from agent.callback import called_back
from agent.cancel import cancel
from agent.core.errors import AgentError, Bug, RunBusy
from agent.core.invariants import Broken
from agent.core.limits import Limits
from agent.core.policy import SpendingPolicy
from agent.core.states import RUN_ENDS
from agent.edges.planner_bandit import BanditPlanner
from agent.edges.planner_stub import StubPlanner
from agent.ports import Agent, ArtifactStore, Chain, Store, VendorGateway, Wallet
from agent.release import release
from agent.start import start
from agent.sweep import sweep
from agent.tick import Ticked, tick
from bench.sim.books import Seller, registered
from bench.sim.chain import MemoryChain
from bench.sim.checks import Checks
from bench.sim.clock import at
from bench.sim.errands import Astray, Believed, Shelf, Signer, Tokens
from bench.sim.faults import Faults
from bench.sim.ports import ChainPort, Killed, Process, RevokerPort, StorePort, VendorPort, WalletPort
from bench.sim.store import MemoryStore
from bench.sim.told import TOLD
from bench.sim.training import Files
from bench.sim.vendors import Vendors
from wire.control import JobRequest, StartRequest
from wire.money import BASE_SEPOLIA_USDC

PAYER = "0x" + "22" * 20
PROCESSES = 3
LIMITS = Limits(
    lease_s=30, misses_max=6, missed_s_max=60, overdue_s=60, refund_wait_s=30, artifacts_s=10, orphans_interval_s=60
)
ACTIVE_S = 900.0
# How often orphans are looked for after the last fault before the world is held to have none.
ORPHAN_ROUNDS = 4
SIGNED = dict.fromkeys(("webhook-id", "webhook-timestamp", "webhook-signature"), "")
# How long a world may take to come to rest after its last fault: refunds are watched for a week.
REST_S = 86_400.0 * 40


@dataclass(frozen=True)
class Lived:
    """What became of a world. `trace` is a hash of all that crossed a boundary, in order."""

    ticks: int
    broken: tuple[Broken, ...]
    happened: dict[str, int]
    trace: str


class World:
    """A world before it lives. `clock` is the virtual loop's."""

    def __init__(self, seed: str) -> None:
        self.chance = random.Random(seed)
        self.faults = Faults(random.Random(f"{seed}:faults"))
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(self._escaped)
        TOLD.take()
        chance, faults = self.chance, self.faults
        self._trace = hashlib.sha256(seed.encode())
        self.skew_s = chance.uniform(-600, 600) if faults.hit("clock_skewed") else 0.0
        self._born = 0
        self._to_start = chance.randint(4, 12)
        self.store = MemoryStore(self.now)
        self.chain = MemoryChain(lambda: at(self.loop.time()).timestamp())
        # In some worlds all is late and there is money: twins are started there.
        self._hurried = faults.calm = chance.random() < 0.4
        sellers = [_seller(number, chance, self._hurried) for number in range(chance.randint(2, 5))]
        self.files = Files()
        clock = self.loop.time, self.loop.call_later
        self.vendors = Vendors(sellers, self.chain, BASE_SEPOLIA_USDC, faults, self.files, *clock)
        for seller in sellers:
            self.store.put_vendor(registered(seller), replace=False)
        self.policy = SpendingPolicy(
            asset=BASE_SEPOLIA_USDC,
            payment_atomic_max=chance.choice((150_000, 1_000_000, 1_000_000)),
            run_atomic_max=chance.choice((300_000, 10_000_000, 10_000_000)),
            vendor_day_atomic_max=chance.choice((400_000, 100_000_000)),
            wallet_day_atomic_max=chance.choice((700_000, 100_000_000)),
        )
        self.checks = Checks(self.store, self.chain, self.vendors, self.policy, LIMITS, PAYER)
        self.store.watcher = self.vendors.looker = self.checks
        self._planner = BanditPlanner() if self._hurried or chance.random() < 0.3 else StubPlanner()
        self.runs: list[str] = []

    def now(self) -> datetime:
        """Return the store's time."""
        return at(self.loop.time() + self.skew_s)

    @property
    def ticks(self) -> int:
        """How many ticks have begun: runs claimed."""
        return sum(row.token for row in self.store.rows.values())

    @property
    def is_over(self) -> bool:
        if self.loop.time() > ACTIVE_S or self.checks.broken:
            return True
        rows = self.store.rows.values()
        return len(rows) == self._to_start and all(row.run.status in RUN_ENDS for row in rows)

    def agent(self) -> tuple[Process, Agent]:
        """Return a new process and the agent in it."""
        self._born += 1
        process = Process(f"p{self._born}", self.faults, self.note, LIMITS.lease_s)
        agent = Agent(
            store=cast(Store, StorePort(process, self.store)),
            artifacts=cast(ArtifactStore, Shelf(process, self.files)),
            vendors=cast(VendorGateway, VendorPort(process, self.vendors, self.checks)),
            chain=cast(Chain, ChainPort(process, self.chain)),
            planner=Astray(process, self._planner),
            policy=self.policy,
            wallet=cast(Wallet, WalletPort(process, Signer(PAYER))),
            limits=LIMITS,
            callbacks=Believed(),
            revoker=RevokerPort(process, self.chain),
            callback_base_url="http://plane.invalid",
            file_tokens=Tokens(),
        )
        return process, agent

    def note(self, line: str) -> None:
        self._trace.update(f"{self.loop.time()!r} {line}\n".encode())

    async def live(self) -> Lived:
        """Let the world live, come to rest and be looked over."""
        async with asyncio.TaskGroup() as group:
            for _ in range(PROCESSES):
                group.create_task(self._serve())
            group.create_task(self._wish())
        self.faults.quiet = True
        if not self.checks.broken:
            await self.rest()
            self.checks.at_rest()
        self.look_behind()
        for run_id, row in self.store.rows.items():
            self.note(f"{run_id} {row.run.status} {row.run.log.hash}")
        return Lived(self.ticks, tuple(self.checks.broken), dict(self.faults.happened), self._trace.hexdigest())

    async def _serve(self) -> None:
        """Sweep in a process, and in another one when that is dead."""
        while not self.is_over:
            _, agent = self.agent()
            await self._survived(self._sweep(agent))
            await asyncio.sleep(self.chance.uniform(0.5, 10))

    async def _sweep(self, agent: Agent) -> None:
        while not self.is_over:
            # What finds nothing due changes nothing: most of such sweeps are left out.
            served = await self.swept(agent) if self._is_due() or self.chance.random() < 0.05 else 0
            await asyncio.sleep(1.0 if served else self.chance.uniform(2, 6))

    def _is_due(self) -> bool:
        now = self.now()
        return any((at := row.run.next_tick_at) is not None and at <= now for row in self.store.rows.values())

    async def swept(self, agent: Agent) -> int:
        """Sweep once; return how many runs were served."""
        try:
            done = await sweep(agent)
        except Bug:
            self.bug("", traceback.format_exc(limit=-3))
            return 0
        except AgentError:
            return 0
        finally:
            for told in TOLD.take():
                self.bug("", told)
        for told in done.bugs:
            self.bug("", told)
        for _ in done.orphans.cancelled if done.orphans is not None else ():
            self.faults.count("orphan_cancelled")
        return sum(one.message != "Served by another" for one in done.swept)

    def bug(self, run_id: str, detail: str) -> None:
        self.checks.found([Broken("I5", run_id, f"a bug: {detail}")])

    def look_behind(self) -> None:
        """Keep what went wrong where nobody awaited it."""
        gc.collect()
        for told in TOLD.take():
            self.bug("", told)

    def _escaped(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A timer's function raised, or a task whose end nobody awaited: a bug, unless its process was killed."""
        error = context.get("exception")
        if isinstance(error, BaseExceptionGroup):
            error = error.split(Killed)[1]
        if error is not None and not isinstance(error, Killed):
            self.bug("", "".join(traceback.format_exception(error, limit=-3)))

    async def _survived(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Do `work` in its process; return whether that is still alive."""
        try:
            await work
        except Killed:
            return False
        except BaseExceptionGroup as group:
            if group.split(Killed)[1] is not None:
                raise
            return False
        return True

    async def _wish(self) -> None:
        """Be the owners: start runs, cancel some, call ticks, now and then two at once."""
        chance, faults = self.chance, self.faults
        while not self.is_over:
            if len(self.runs) < self._to_start and chance.random() < 0.3:
                await self._start()
            if faults.hit("clock_jumped"):
                self.skew_s += chance.uniform(-20, 60)
            if self.runs:
                await self._bother(chance.choice(self.runs))
            await asyncio.sleep(chance.uniform(1, 4))

    async def _bother(self, run_id: str) -> None:
        faults, row = self.faults, self.store.rows[run_id]
        if faults.draw("cancel_asked"):
            asked = row.run.cancel_requested_at
            await self._call(lambda agent: cancel(agent, run_id))
            if row.run.cancel_requested_at != asked:
                faults.count("cancel_asked")
        if faults.draw("cheque_revoked"):
            await self._call(lambda agent: release(agent, run_id))
        if faults.draw("called_back"):
            ticked = await self._call(lambda agent: called_back(agent, run_id, None, SIGNED, b"{}"))
            if isinstance(ticked, Ticked):
                faults.count("called_back")
        if faults.draw("ticks_meet"):
            goes_on = row.run.status not in RUN_ENDS
            met = await asyncio.gather(*[self._call(lambda agent: tick(agent, run_id)) for _ in range(3)])
            if goes_on and any(isinstance(one, RunBusy) for one in met):
                faults.count("ticks_meet")

    async def _start(self) -> None:
        chance = self.chance
        hurried = self._hurried
        budget, hours = chance.choice(("0.05", "0.3", "1", "3", "10")), chance.choice(("0.01", "0.02", "0.1"))
        late_s = chance.uniform(*((110, 260) if hurried else (20, 400)))
        has_deadline = hurried or chance.random() < 0.3
        counts = (1, 2, 3, 3) if hurried else (1, 1, 2, 3)
        request = StartRequest(
            goal="train",
            budget_total=Decimal("10" if hurried else budget),
            job=JobRequest(max_hours=Decimal("0.1" if hurried else hours), count=chance.choice(counts)),
            deadline=self.now() + timedelta(seconds=late_s) if has_deadline else None,
        )
        run_id = f"run_{len(self.runs) + 1:032d}"
        for _ in range(1 + self.faults.draw("start_repeated")):
            if run_id in self.store.rows:
                self.faults.count("start_repeated")
            await self._call(lambda agent: start(agent, request, f"key-{run_id}", run_id=run_id))
        if run_id in self.store.rows:
            self.runs.append(run_id)

    async def _call(self, work: Any) -> Any:
        """Call the agent once, in a process of its own; return its answer or refusal, None where nobody heard it."""
        _, agent = self.agent()
        heard: list[Any] = []

        async def hear() -> None:
            heard.append(await work(agent))

        try:
            await self._survived(hear())
        except Bug:
            self.bug("", traceback.format_exc(limit=-3))
        except AgentError as refusal:
            return refusal
        except Exception:
            self.bug("", traceback.format_exc(limit=-3))
        return heard[0] if heard else None

    async def rest(self) -> None:
        """Sweep in one process, without a fault, as long as anything is due."""
        until_s = self.loop.time() + REST_S
        _, agent = self.agent()
        for _ in range(ORPHAN_ROUNDS):
            await self.swept(agent)
            await asyncio.sleep(LIMITS.orphans_interval_s + 1)
        self.checks.without_orphans()
        while self.loop.time() < until_s and not self.checks.broken:
            due = [at for row in self.store.rows.values() if (at := row.run.next_tick_at) is not None]
            if not due:
                return
            await asyncio.sleep(max(1.0, (min(due) - self.now()).total_seconds()))
            await self.swept(agent)


def _seller(number: int, chance: random.Random, hurried: bool) -> Seller:
    per_hour = 500_000 if hurried else chance.choice((2_000_000, 4_000_000, 8_000_000))
    dialect: Any = "x402-v1" if chance.random() < 0.2 else "x402-v2"
    by_use, is_slow = chance.random() < 0.4, chance.random() < (0.6 if hurried else 0.1)
    return Seller(f"gpu_{number}", f"0x{number + 1:040x}", per_hour, dialect, by_use, is_slow)
