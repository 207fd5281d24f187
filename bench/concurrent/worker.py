"""
What one process of the crowd does: it takes orders from a connection, one after the other, and answers each.

An order that begins together with those of other processes is answered twice: "ready", then after the word to go.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from typing import Any

from agent.config import AgentSettings
from agent.core.errors import AgentError, RunBusy
from agent.core.states import RUN_ENDS
from agent.ports import Agent
from agent.tick import tick
from agent.wiring import open_agent
from bench.concurrent.witness import Seen, Witness
from bench.ports import PORTS, Call, Look, Moment, Watched
from outbound.http import HttpClient, HttpReply

# How long a process waits before it looks again at a run that another holds, or whose payment is not mined.
AGAIN_S = 0.2
RUNS_AT_ONCE = 4
# How long every call is waited for, if not longer: a machine with too many processes is slow, its vendors are not away.
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to do, `verb` a key of `VERBS`, with which agent; `lease_s` None leaves the settings' lease."""

    verb: str
    settings: AgentSettings
    arguments: dict[str, Any] = field(default_factory=dict)
    lease_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How one tick ended: its message or its error, that error's code, what it was told to wait, how long it took."""

    said: str
    elapsed_s: float
    error: str | None = None
    retry_after_s: int | None = None


@dataclass(slots=True, kw_only=True)
class Answer:
    """
    What came of an order. `behind_s` is the store's clock less this process's own.

    `signed` are the nonces that it signed, `sent` the payment ids with the header that was sent for each.
    """

    process: int
    behind_s: float = 0.0
    exits: list[Exit] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)
    signed: list[str] = field(default_factory=list)
    sent: list[tuple[str, str]] = field(default_factory=list)
    moments: list[str] = field(default_factory=list)
    trouble: str | None = None


def serve(connection: Connection) -> None:
    """Say who this is, then obey until the other end is closed. An agent stays open, as a server's does."""
    connection.send(os.getpid())
    settings: AgentSettings | None = None
    agent: Agent | None = None
    with asyncio.Runner() as runner:
        while True:
            try:
                order: Order = connection.recv()
            except EOFError:
                return
            answer = Answer(process=os.getpid())
            try:
                if agent is None or order.settings != settings:
                    if agent is not None:
                        runner.run(agent.store.close())
                    settings, agent = order.settings, open_agent(order.settings, Patient())
                runner.run(_obey(agent, order, connection, answer))
            except Exception as error:
                answer.trouble = f"{type(error).__name__}: {error}"
            connection.send(answer)


async def _obey(agent: Agent, order: Order, connection: Connection, answer: Answer) -> None:
    if order.lease_s is not None:
        agent = replace(agent, limits=replace(agent.limits, lease_s=order.lease_s))
    # Its connections are open before it says that it is ready; that first answer may take long.
    await agent.store.list_vendors()
    answer.behind_s = ((await agent.store.now()) - datetime.now(UTC)).total_seconds()
    connection.send("ready")
    connection.recv()
    witness = Witness(agent.store, answer.process, answer.seen)
    agent = replace(_recorded(agent, answer), store=witness.store())
    await VERBS[order.verb](agent, connection, answer, **order.arguments)
    await witness.end()


class Patient(HttpClient):
    """A client that gives up on nobody before PATIENCE_S."""

    async def request(self, method: str, url: str, *, timeout_s: float, **more: Any) -> HttpReply:
        return await super().request(method, url, timeout_s=max(timeout_s, PATIENCE_S), **more)


def _recorded(agent: Agent, answer: Answer) -> Agent:
    """Return `agent` with what it signs and sends written down."""

    async def look(moment: Moment, method: str, call: Call) -> None:
        if (moment, method) == ("before", "sign"):
            answer.signed.append(call.args[0]["message"]["nonce"])
        elif (moment, method) == ("before", "submit"):
            _, _, payment_id, header, _ = call.args
            answer.sent.append((payment_id, header))

    wallet: Any = Watched(agent.wallet, look)
    vendors: Any = Watched(agent.vendors, look)
    return replace(agent, wallet=wallet, vendors=vendors)


async def _burst(agent: Agent, connection: Connection, answer: Answer, run_id: str, ticks: int) -> None:
    """Tick one run `ticks` times at once."""
    answer.exits += await asyncio.gather(*[_exit(agent, run_id) for _ in range(ticks)])


async def _drive(agent: Agent, connection: Connection, answer: Answer, run_ids: list[str]) -> None:
    """Tick each of the runs until it has ended, a few of them at once; a busy one is waited for."""
    waiting = iter(run_ids)

    async def drive() -> None:
        for run_id in waiting:
            while (await agent.store.read_run(run_id)).status not in RUN_ENDS:
                left = await _exit(agent, run_id)
                answer.exits.append(left)
                if left.error is not None or left.said in _WAITS:
                    await asyncio.sleep(AGAIN_S)

    await asyncio.gather(*[drive() for _ in range(RUNS_AT_ONCE)])


async def _stop_at(agent: Agent, connection: Connection, answer: Answer, run_id: str, moment: int | None) -> None:
    """
    Tick once; at `moment`, counted from 0, say so and stand still until there is word to go on.

    With None no moment is stopped at.
    """

    def looking(port: str) -> Look:
        async def look(when: Moment, method: str, _: Call) -> None:
            answer.moments.append(f"{when} {port}.{method}")
            if len(answer.moments) - 1 == moment:
                connection.send(answer.moments[-1])
                # The whole process waits here, not this task alone.
                connection.recv()

        return look

    watched: dict[str, Any] = {name: Watched(getattr(agent, name), looking(name)) for name in PORTS}
    answer.exits.append(await _exit(replace(agent, **watched), run_id))


async def _exit(agent: Agent, run_id: str) -> Exit:
    began_s = time.perf_counter()
    error = retry_after_s = None
    try:
        said = (await tick(agent, run_id)).message
    except AgentError as raised:
        said, error = str(raised), raised.code
        if isinstance(raised, RunBusy):
            retry_after_s = raised.retry_after_s
    return Exit(said=said, elapsed_s=time.perf_counter() - began_s, error=error, retry_after_s=retry_after_s)


_WAITS = ("Payment pending", "Waiting", "Fetching artifacts")

VERBS: Mapping[str, Callable[..., Awaitable[None]]] = {"burst": _burst, "drive": _drive, "stop_at": _stop_at}
