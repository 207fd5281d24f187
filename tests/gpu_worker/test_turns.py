"""Turns: whatever clients do, no slot is lost, none is had twice, and who comes first is answered first."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from gpu_worker.core.inference.codes import InferenceError
from gpu_worker.inference.text.turns import Turn, Turns
from tests.fixtures.virtual_time import VirtualLoop, run

QUEUE_MAX, WAIT_S = 5, 60.0
DRAINING = InferenceError("draining", "this worker is about to go")


class Client:
    """Somebody who wants a turn; `until_s` is when it stops waiting for one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, turns: Turns, is_priority: bool) -> None:
        self.is_priority = is_priority
        self.until_s = loop.time() + WAIT_S
        self.task = loop.create_task(turns.enter(is_priority))

    @property
    def turn(self) -> Turn:
        return self.task.result()

    @property
    def refusal(self) -> str:
        error = self.task.exception()
        assert isinstance(error, InferenceError)
        return error.code


class TurnsMachine(RuleBasedStateMachine):
    """Turns beside two plain lists: who has one, and who waits, in order."""

    clients = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.turns = Turns(2, QUEUE_MAX, WAIT_S)
        self.having: list[Client] = []
        self.waiting: list[Client] = []

    def settle(self) -> None:
        """Let everything happen that can happen now."""

        async def idle() -> None:
            for _ in range(8):
                await asyncio.sleep(0)

        self.loop.run_until_complete(idle())

    def give(self) -> None:
        """What is to happen wherever slots are free."""
        while self.waiting and len(self.having) < self.turns.slots:
            self.having.append(self.waiting.pop(0))

    @rule(target=clients, is_priority=st.booleans())
    def come(self, is_priority: bool) -> Client:
        client = Client(self.loop, self.turns, is_priority)
        self.settle()
        if len(self.having) < self.turns.slots:
            self.having.append(client)
        elif len(self.waiting) < QUEUE_MAX:
            first = sum(each.is_priority for each in self.waiting)
            self.waiting.insert(first if is_priority else len(self.waiting), client)
        else:
            assert client.refusal == "no_capacity"
        return client

    @rule(client=clients)
    def leave(self, client: Client) -> None:
        """Also one that has left already: that changes nothing."""
        if client.task.done() and not client.task.cancelled() and client.task.exception() is None:
            client.turn.leave()
            if client in self.having:
                self.having.remove(client)
            self.give()

    @rule(client=consumes(clients))
    def give_up(self, client: Client) -> None:
        if client in self.waiting:
            client.task.cancel()
            self.waiting.remove(client)

    @precondition(lambda self: self.waiting and self.having)
    @rule(leaves_first=st.booleans())
    def give_up_in_the_moment_the_turn_comes(self, leaves_first: bool) -> None:
        client, leaver = self.waiting.pop(0), self.having.pop(0)
        both = [leaver.turn.leave, client.task.cancel]
        for happens in both if leaves_first else reversed(both):
            happens()
        self.give()

    @rule(seconds=st.sampled_from([1.0, 30.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.stand_still(seconds)
        self.settle()
        late = [each for each in self.waiting if each.until_s <= self.loop.time()]
        self.waiting = [each for each in self.waiting if each not in late]
        assert [each.refusal for each in late] == ["no_capacity"] * len(late)

    @rule(slots=st.integers(1, 4))
    def resize(self, slots: int) -> None:
        self.turns.resize(slots)
        self.give()

    @rule()
    def dismiss(self) -> None:
        self.turns.dismiss(DRAINING)
        self.settle()
        assert [each.refusal for each in self.waiting] == ["draining"] * len(self.waiting)
        self.waiting = []

    @invariant()
    def all_is_as_in_the_lists(self) -> None:
        self.settle()
        assert [each.task.done() for each in (*self.having, *self.waiting)] == (
            [True] * len(self.having) + [False] * len(self.waiting)
        )
        assert (self.turns.running, self.turns.waiting) == (len(self.having), len(self.waiting))

    def teardown(self) -> None:
        while self.having:
            self.having.pop(0).turn.leave()
            self.give()
            self.settle()
        assert (self.turns.running, self.turns.waiting) == (0, 0)
        self.loop.run_until_complete(self.turns.emptied())
        self.loop.close()


TestTurns = TurnsMachine.TestCase
TestTurns.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def in_virtual_time(test: Callable[[], Awaitable[Any]]) -> Callable[[], None]:
    def timeless() -> None:
        run(test())

    timeless.__name__ = test.__name__
    return timeless


@pytest.mark.row(68)
@in_virtual_time
async def test_the_fifth_waits_until_one_of_four_has_left() -> None:
    turns = Turns(4, 8, WAIT_S)
    had = [await turns.enter() for _ in range(4)]
    fifth = asyncio.create_task(turns.enter())
    await asyncio.sleep(1)
    assert (turns.running, turns.waiting, fifth.done()) == (4, 1, False)
    had[2].leave()
    had[2].leave()
    await fifth
    assert (turns.running, turns.waiting) == (4, 0)


@pytest.mark.row(68)
@in_virtual_time
async def test_without_a_queue_the_fifth_is_refused_at_once() -> None:
    turns = Turns(4, 0, WAIT_S)
    for _ in range(4):
        await turns.enter()
    with pytest.raises(InferenceError, match="4 answers are being made and 0 requests wait") as raised:
        await turns.enter()
    assert raised.value.code == "no_capacity"
    assert raised.value.retryable


@in_virtual_time
async def test_who_waits_too_long_is_told_so_and_leaves_no_hole() -> None:
    turns = Turns(1, 8, WAIT_S)
    had, loop = await turns.enter(), asyncio.get_running_loop()
    began_s = loop.time()
    with pytest.raises(InferenceError, match="no turn came within 60 s"):
        await turns.enter()
    assert loop.time() - began_s == pytest.approx(WAIT_S)
    assert (turns.running, turns.waiting) == (1, 0)
    had.leave()
    await turns.enter()


@in_virtual_time
async def test_priority_comes_before_those_who_wait_already() -> None:
    turns, order = Turns(1, 8, WAIT_S), []
    had = await turns.enter()

    async def client(name: str, is_priority: bool) -> None:
        turn = await turns.enter(is_priority)
        order.append(name)
        turn.leave()

    clients = []
    for name in ("a", "B", "c", "D"):
        clients.append(asyncio.create_task(client(name, name.isupper())))
        await asyncio.sleep(0)
    had.leave()
    await asyncio.gather(*clients)
    assert order == ["B", "D", "a", "c"]


@in_virtual_time
async def test_it_is_empty_once_the_last_one_has_left_and_not_before() -> None:
    turns = Turns(2, 8, WAIT_S)
    await turns.emptied()
    had = [await turns.enter(), await turns.enter()]
    waits = asyncio.create_task(turns.enter())
    emptied = asyncio.create_task(turns.emptied())
    for turn in had:
        turn.leave()
        await asyncio.sleep(1)
        assert not emptied.done()
    (await waits).leave()
    await emptied
