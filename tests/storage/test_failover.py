"""Three real servers as one replica set, whose primary goes at the worst moments of a payment."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pymongo import WriteConcern

from agent.core.errors import RunBusy, StoreUnavailable
from agent.core.model import Entry, Run
from agent.core.states import RUN_ENDS
from agent.ports import Claim, Hold
from agent.tick import tick
from agent.wiring import open_agent
from bench.chaos_books import Findings, check
from bench.replica_set import ReplicaSet
from chain.devchain import DevAccount, DevChain
from outbound.http import HttpClient
from tests.fixtures.world import Hosts, WatchedStore, World, agent_settings, balances, register_all, replace_agent

pytestmark = pytest.mark.slow

RUNS = 3
DEATH_S_MAX = 60.0
FailOver = Callable[[ReplicaSet, World], None]


@pytest.fixture(scope="module")
def servers() -> Iterator[ReplicaSet]:
    with ReplicaSet.started(in_memory=True) as servers:
        yield servers


class Meddling(WatchedStore):
    """
    Notes what was acknowledged. At the first save of its kind something happens, and never again: before and after the
    one that reserves money, and before the one that says what became of sending it.
    """

    def __init__(self, store: Any, database: str) -> None:
        super().__init__(store)
        self.database = database
        self.notes: list[dict[str, Any]] = []
        self.meddle: dict[str, Callable[[str], object]] = {}
        self.deaths: list[Future[None]] = []
        self._beside = ThreadPoolExecutor()

    def beside(self, death: Callable[[], None]) -> None:
        """Let something happen beside the save that is to begin; what it raises is in `deaths`."""
        self.deaths.append(self._beside.submit(death))

    async def claim(self, run_id: str, lease_s: int, **more: Any) -> Any:
        claim = await super().claim(run_id, lease_s, **more)
        if isinstance(claim, Claim):
            self._note("claim", claim.token, claim.run)
        return claim

    async def save(self, token: int, run: Run, entries: Sequence[Entry] = (), **more: Any) -> Hold | None:
        kind = "reserve" if more.get("holds") else "sent" if more.get("durable") else "other"
        self._happen(f"before {kind}", run.run_id)
        refused = await super().save(token, run, entries, **more)
        if refused is None:
            self._note("save", token, run)
        self._happen(f"after {kind}", run.run_id)
        return refused

    def _note(self, what: str, token: int, run: Run) -> None:
        self.notes.append({"what": what, "run": run.run_id, "token": token, "seq": run.log.seq, "hash": run.log.hash})

    def _happen(self, moment: str, run_id: str) -> None:
        if moment in self.meddle:
            self.meddle.pop(moment)(run_id)


@pytest.fixture
async def replicated(
    servers: ReplicaSet, chain: DevChain, payer: DevAccount, hosts: Hosts, vendor_app: FastAPI
) -> AsyncIterator[World]:
    """A world whose runs are in a database of the replica set."""
    servers.whole()
    hosts.serve("vendors", vendor_app)
    name = f"livery_{uuid.uuid4().hex[:12]}"
    # What happens is written down for an owner who is not there.
    owner = {"webhook_url": "http://owner", "webhook_secret": "whsec_" + "c2VjcmV0" * 4}
    settings = agent_settings(servers.url, chain, payer, database_name=name, lease_s=5, **owner)
    agent = open_agent(settings, HttpClient(hosts))
    await agent.store.migrate()
    store = Meddling(agent.store, name)
    vendors = await register_all(store, vendor_app, "http://vendors")
    world = World(agent, store, chain, payer, hosts, vendor_app, vendors, balances(chain, payer, vendors))
    replace_agent(world, store=store)
    yield world
    await store.close()


def killed(servers: ReplicaSet, world: World) -> None:
    """The reserve stands, nothing is sent yet, and the primary is gone."""
    world.store.meddle["after reserve"] = lambda run_id: servers.primary().kill()


def killed_before_anyone_knew(servers: ReplicaSet, world: World) -> None:
    """A cheque was sent. That it was, the primary alone has committed; it dies, and the next one never heard of it."""
    primary = servers.primary()
    others = servers.secondaries(primary)

    def die_with_it(run_id: str) -> None:
        for member in others:
            # From now on it throws away what it is sent.
            member.fail("stopReplProducer")
        runs = primary.client[world.store.database].runs

        def entries() -> int:
            return int(runs.distinct("log.seq", {"_id": run_id})[0])

        before = entries()

        def die() -> None:
            until_s = time.monotonic() + DEATH_S_MAX
            try:
                while entries() == before:
                    if time.monotonic() > until_s:
                        raise TimeoutError(f"nothing was stored of {run_id} in {DEATH_S_MAX:g} s")
                # What follows it into the journal has it there, too: the dead server will remember it.
                runs.database.marks.with_options(write_concern=WriteConcern(1, j=True)).insert_one({})
                primary.kill()
            finally:
                for member in others:
                    member.heal("stopReplProducer")

        world.store.beside(die)

    world.store.meddle["before sent"] = die_with_it


def answer_lost(servers: ReplicaSet, world: World) -> None:
    """The reserve is committed, the answer says that nobody knows, and then the primary is gone."""
    primary = servers.primary()

    def die_after_it(run_id: str) -> None:
        unknown = {"code": 91, "codeName": "ShutdownInProgress", "errmsg": "it is not known"}
        entered = primary.fail("failCommand", once=True, failCommands=["commitTransaction"], writeConcernError=unknown)

        def die() -> None:
            primary.await_failure("failCommand", entered + 1)
            primary.kill()

        world.store.beside(die)

    world.store.meddle["before reserve"] = die_after_it


def stepped_down(servers: ReplicaSet, world: World) -> None:
    """The primary hands over, as for maintenance, with the transaction on its way."""
    world.store.meddle["before reserve"] = lambda run_id: world.store.beside(servers.step_down)


async def through(servers: ReplicaSet, world: World, fail_over: FailOver, vendors_db: Path) -> None:
    """Bring runs to their end through a fail-over; assert that nothing is lost, doubled or broken."""
    primary = servers.primary()
    for _ in range(RUNS):
        await world.start()
    fail_over(servers, world)
    assert isinstance(world.store, Meddling)
    try:
        await asyncio.gather(*[ended(world, run_id) for run_id in world.run_ids])
    finally:
        for death in world.store.deaths:
            await asyncio.to_thread(death.result, DEATH_S_MAX)
    assert servers.primary() is not primary
    runs = await world.check_books()
    assert [run.status for run in runs] == ["completed"] * RUNS
    assert [len(run.payments) for run in runs] == [1] * RUNS
    paid_in = world.before["payer"]
    found = await checked(servers, world, paid_in, vendors_db)
    assert (found.lost, found.broken) == ((), ())
    assert found.ends == {("completed", None): RUNS}
    assert found.files == 2 * RUNS
    assert found.acknowledged > 6 * RUNS
    assert (found.double_payments, found.lost_payments, found.overspend) == (0, 0, 0)


async def checked(servers: ReplicaSet, world: World, paid_in: int, vendors_db: Path) -> Findings:
    where = {"jobs": vendors_db, "url": servers.url, "database": world.store.database}
    return await check(world.agent, world.store.notes, world.chain, world.payer.address, paid_in, **where)


@pytest.mark.parametrize("fail_over", [killed, answer_lost, stepped_down])
async def test_runs_go_on_through_a_fail_over_and_nothing_acknowledged_is_lost(
    servers: ReplicaSet, replicated: World, tmp_path: Path, fail_over: FailOver
) -> None:
    await through(servers, replicated, fail_over, tmp_path / "vendors.db")


async def test_a_commit_that_dies_with_the_one_server_that_had_it_is_made_again(
    servers: ReplicaSet, replicated: World, tmp_path: Path
) -> None:
    primary = servers.primary()
    await through(servers, replicated, killed_before_anyone_knew, tmp_path / "vendors.db")
    servers.whole()
    # What it alone had it puts aside as it follows the others again: the commit did happen, and was taken back.
    primary.await_put_aside(len(("marks", "runs", "jobs", "observations")))


async def test_whatever_the_servers_lose_is_missed(servers: ReplicaSet, replicated: World, tmp_path: Path) -> None:
    world, paid_in = replicated, replicated.before["payer"]
    run_id, unwanted = await world.start(), await world.start()
    asked = (await world.store.request_cancel(unwanted)).cancel_requested_at
    for one in world.run_ids:
        await ended(world, one)
    late = (await world.store.request_cancel(run_id)).cancel_requested_at
    assert (late, asked is None) == (None, False)
    for one, at in ((unwanted, asked), (run_id, late)):
        world.store.notes.append({"what": "cancel", "run": one, "at": None if at is None else at.isoformat()})
    found = await checked(servers, world, paid_in, tmp_path / "vendors.db")
    assert (found.lost, found.broken) == ((), ())
    assert found.ends == {("completed", None): 1, ("cancelled", "cancelled"): 1}

    database = servers.primary().client[world.store.database]
    database.runs.update_one({"_id": unwanted}, {"$set": {"cancelRequestedAt": None}})
    for collection in ("wallets", "standings", "outbox", "artifacts.current"):
        database[collection].delete_one({"_id": {"$not": {"$regex": "^turn/"}}})
    found = await checked(servers, world, paid_in, tmp_path / "vendors.db")
    assert [line.partition(" of ")[0] for line in found.lost] == ["cancel"]
    assert sorted(line.partition(" ")[0] for line in found.broken) == ["0", "file", "outbox:", "standing"]


async def test_an_end_that_could_not_be_stored_leaves_its_run_due(world: World) -> None:
    class Away(WatchedStore):
        """A store that does not answer the first time a run is to end."""

        def __init__(self, store: Any) -> None:
            super().__init__(store)
            self.has_failed = False

        async def save(self, token: int, run: Run, entries: Sequence[Entry] = (), **more: Any) -> Hold | None:
            if run.status in RUN_ENDS and not self.has_failed:
                self.has_failed = True
                raise StoreUnavailable("no answer")
            return await super().save(token, run, entries, **more)

    store = Away(world.store.inner)
    replace_agent(world, store=store)
    run_id = await world.start()
    with pytest.raises(StoreUnavailable):
        await world.until_ended(run_id)
    stored = await store.read_run(run_id)
    assert stored.status == "running"
    assert stored.next_tick_at is not None
    assert (await world.until_ended(run_id)).status == "completed"
    await world.check_books()


async def ended(world: World, run_id: str) -> None:
    """Tick the run to its end; what is busy or away is asked again, as every caller does."""
    async with asyncio.timeout(60):
        while True:
            try:
                if (await tick(world.agent, run_id)).run.status in RUN_ENDS:
                    return
            except RunBusy as refusal:
                await asyncio.sleep(refusal.retry_after_s)
            except StoreUnavailable:
                continue
