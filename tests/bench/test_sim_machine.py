"""A world in which nothing happens by itself: Hypothesis says what comes next, and after each step nothing broke."""

import asyncio
from collections.abc import Coroutine
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from agent.cancel import cancel
from agent.core.errors import AgentError, Bug
from agent.core.states import RUN_ENDS
from agent.ports import Agent
from agent.start import start
from agent.tick import tick
from bench.sim.clock import VirtualLoop
from bench.sim.faults import PER_MILLE, Faults
from bench.sim.planted import planted
from bench.sim.ports import Killed
from bench.sim.world import LIMITS, World
from wire.control import JobRequest, StartRequest

pytestmark = pytest.mark.slow

# What is not drawn by chance here, but by a rule.
RULED = [name for name in PER_MILLE if name.startswith(("crash", "frozen", "vendor", "store", "settled", "job"))]


class Told(Faults):
    """Faults that happen when a rule said so, once each, at the first opportunity."""

    def __init__(self, faults: Faults) -> None:
        super().__init__(faults.chance)
        self.next: set[str] = set()

    def draw(self, name: str) -> bool:
        if name not in self.next:
            return False
        self.next.discard(name)
        return True

    def one_of(self, names: tuple[str, ...]) -> str | None:
        return next((name for name in names if self.draw(name)), None)


class SimMachine(RuleBasedStateMachine):
    """Runs, ticks, deaths, frozen processes, vendors' lies and time, in any order."""

    @initialize(seed=st.integers(0, 1_000))
    def begin(self, seed: int) -> None:
        self.loop = VirtualLoop()
        self.world = self.run(self.born(f"machine:{seed}"))
        self.runs: list[str] = []
        self.frozen: list[asyncio.Task[None]] = []

    async def born(self, seed: str) -> World:
        world = World(seed)
        world.faults = world.vendors.faults = Told(world.faults)
        return world

    @property
    def faults(self) -> Told:
        assert isinstance(self.world.faults, Told)
        return self.world.faults

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    async def called(self, work: Any) -> None:
        """Call the agent in a process of its own, which may die of it."""
        _, agent = self.world.agent()
        try:
            await work(agent)
        except Bug:
            raise
        except (Killed, AgentError):
            pass

    @rule(budget=st.sampled_from(["0.05", "0.3", "3"]), count=st.integers(1, 2))
    def start(self, budget: str, count: int) -> None:
        run_id = f"run_{len(self.runs) + 1:032d}"
        request = StartRequest(
            goal="train", budget_total=Decimal(budget), job=JobRequest(max_hours=Decimal("0.01"), count=count)
        )

        async def begin(agent: Agent) -> None:
            await start(agent, request, run_id=run_id)

        self.run(self.called(begin))
        if run_id in self.world.store.rows:
            self.runs.append(run_id)

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), fault=st.sampled_from([None, None, *RULED]))
    def tick(self, data: st.DataObject, fault: str | None) -> None:
        run_id = data.draw(st.sampled_from(self.runs))
        self.faults.next = set() if fault is None else {fault}
        self.run(self.called(lambda agent: tick(agent, run_id)))

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def freeze_in_a_tick(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(self.runs))
        self.faults.next = {"frozen"}

        async def begin() -> None:
            self.frozen.append(asyncio.ensure_future(self.called(lambda agent: tick(agent, run_id))))
            await asyncio.sleep(0)

        self.run(begin())

    @precondition(lambda self: self.frozen)
    @rule()
    def wake_the_frozen(self) -> None:
        self.run(asyncio.wait_for(asyncio.gather(*self.frozen), 10 * LIMITS.lease_s))
        self.frozen.clear()

    @rule(seconds=st.sampled_from([1, 5, 40, 300]))
    def wait(self, seconds: int) -> None:
        self.run(asyncio.sleep(seconds))

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(self.runs))
        self.run(self.called(lambda agent: cancel(agent, run_id)))

    @rule(seconds=st.integers(-30, 90))
    def jump(self, seconds: int) -> None:
        self.world.skew_s += seconds

    @invariant()
    def nothing_is_broken(self) -> None:
        if hasattr(self, "world"):
            assert self.world.checks.broken == []

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        if self.frozen:
            self.wake_the_frozen()
        # Whatever was done to them, all runs come to an end, and the books to agree.
        self.faults.next = set()
        self.faults.quiet = True
        self.run(self.world.rest())
        self.world.checks.at_rest()
        self.world.look_behind()
        self.loop.close()
        assert self.world.checks.broken == []
        assert all(row.run.status in RUN_ENDS for row in self.world.store.rows.values())


SETTINGS = settings(
    max_examples=25, stateful_step_count=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
SimMachine.TestCase.settings = SETTINGS
test_no_order_of_things_breaks_the_world = SimMachine.TestCase


def test_an_order_of_things_is_found_that_shows_a_bug() -> None:
    with planted(4), pytest.raises(AssertionError, match=r"no (stored )?payment"):
        run_state_machine_as_test(SimMachine, settings=settings(SETTINGS, max_examples=200, phases=[Phase.generate]))
