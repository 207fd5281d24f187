"""The audit finds what was changed behind our back, names it rightly, and finds nothing where nothing was."""

import json
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo import MongoClient

from agent.audit import audit
from agent.cancel import cancel
from agent.core.audit import Report
from agent.core.cheque import payment_nonce
from agent.core.errors import WalletError
from agent.core.model import Run
from agent.edges.chain_evm import EvmChain
from agent.edges.store_mongo import MongoStore
from agent.sweep import sweep
from chain.abi import call_data
from chain.devchain import DevAccount, DevChain, dev_account
from chain.rpc import Rpc
from chain.token import TokenReader
from outbound.http import HttpClient
from tests.chain.signing import authorization_for, settle_data, signature_of
from tests.fixtures.hostile import HostileWorld, hostile_world
from tests.fixtures.world import WatchedStore, World, register_all, replace_agent
from wire import decimal_json
from wire.money import BASE_SEPOLIA_USDC

pytestmark = pytest.mark.slow

USDC = BASE_SEPOLIA_USDC.address


@dataclass
class Tampering:
    """A hand in the database and in the vendors' books, past the program."""

    world: World
    path: Path
    url: str
    database: str

    def rows(self, statement: str, *values: Any) -> list[Any]:
        with sqlite3.connect(self.path) as connection:
            return connection.execute(statement, values).fetchall()

    def collection(self, name: str, change: Callable[[Any], Any]) -> None:
        with MongoClient(self.url) as client:
            change(client[self.database][name])

    def delete_payment(self, payment_id: str) -> None:
        if self.url:
            self.collection("payments", lambda payments: payments.delete_one({"_id": payment_id}))
        else:
            self.rows("DELETE FROM payments WHERE id = ?", payment_id)

    def change_text(self, run_id: str, seq: int, text: str) -> None:
        if self.url:
            found = {"runId": run_id, "seq": seq}
            self.collection("observations", lambda lines: lines.update_one(found, {"$set": {"content": text}}))
        else:
            where = "WHERE run_id = ? AND seq = ?"
            change = f"UPDATE observations SET document = json_set(document, '$.content', ?) {where}"  # noqa: S608
            self.rows(change, text, run_id, seq)

    def cut_log(self, run_id: str, seq: int) -> None:
        if self.url:
            self.collection("observations", lambda lines: lines.delete_one({"runId": run_id, "seq": seq}))
        else:
            self.rows("DELETE FROM observations WHERE run_id = ? AND seq = ?", run_id, seq)

    def change_amount(self, payment_id: str, amount_atomic: int) -> None:
        if self.url:
            by = {"$set": {"amount": amount_atomic}}
            self.collection("payments", lambda payments: payments.update_one({"_id": payment_id}, by))
        else:
            change = "UPDATE payments SET document = json_set(document, '$.amount', ?) WHERE id = ?"
            self.rows(change, amount_atomic, payment_id)

    def move(self, sender: str, receiver: str, value_atomic: int) -> str:
        call = {"from": sender, "to": USDC, "data": call_data("transfer(address,uint256)", receiver, value_atomic)}
        return str(self.world.chain.receipt(self.world.chain.rpc("eth_sendTransaction", call))["transactionHash"])

    async def vendor_says(self, payment_id: str, **changes: Any) -> None:
        store = self.world.vendor_app.state.shop.store
        job = await store.find_paid(payment_id)
        await store.update_job(job.job_id, lambda job: replace(job, **changes))

    async def remember(self) -> Callable[[], Awaitable[None]]:
        """Return what puts the file, the vendors' books and the chain back to what they are now."""
        tables = {name: self.rows(f"SELECT * FROM {name}") for name in ("payments", "observations")}  # noqa: S608
        shop, fork = self.world.vendor_app.state.shop.store, self.world.chain.snapshot()
        jobs = [await shop.find_paid(json.loads(row[-1])["_id"]) for row in tables["payments"]]

        async def undo() -> None:
            self.world.chain.revert(fork)
            # A reader that saw the blocks which are gone now believes none of the node's older ones.
            reader = TokenReader(Rpc(self.world.chain.url, HttpClient()), BASE_SEPOLIA_USDC)
            replace_agent(self.world, chain=EvmChain(reader))
            for job in jobs:
                await shop.update_job(job.job_id, lambda _, job=job: job)
            for name, rows in tables.items():
                self.rows(f"DELETE FROM {name}")  # noqa: S608
                for row in rows:
                    self.rows(f"INSERT INTO {name} VALUES ({', '.join('?' * len(row))})", *row)  # noqa: S608

        return undo

    async def audit(self, run_id: str | None = None) -> Report:
        return await audit(self.world.agent, run_id)


@pytest.fixture(params=["sqlite", "mongo"])
async def hand(request: pytest.FixtureRequest, world: World, tmp_path: Path) -> Any:
    if request.param == "sqlite":
        yield Tampering(world, tmp_path / "agent.db", "", "")
        return
    place = request.getfixturevalue("mongo_place")
    store = WatchedStore(MongoStore(place.url, place.database))
    await register_all(store, world.vendor_app, "http://vendors")
    world.store = store
    replace_agent(world, store=store)
    yield Tampering(world, tmp_path / "none", place.url, place.database)
    await store.close()


async def three_runs(world: World) -> list[Run]:
    """Return a run that completed, one that failed over and got a refund, and one that was cancelled and refunded."""
    first = await world.until_ended(await world.start())
    world.script(fail_at_epoch=1)
    second = await world.until_ended(await world.start())
    world.script()
    third = await world.start()
    await world.tick(third)
    await cancel(world.agent, third)
    return [first, second, await world.until_ended(third)]


def codes(report: Report) -> list[tuple[str, str, int | None]]:
    return [(one.code, one.run_id, one.by_atomic) for one in report.differences]


async def test_books_that_nobody_touched_agree_with_the_chain_and_the_vendors(hand: Tampering) -> None:
    runs = await three_runs(hand.world)
    saved = len(hand.world.store.saved)
    report = await hand.audit()
    assert (report.differences, report.unchecked) == ((), ())
    assert (report.runs, report.payments) == (3, 4)
    assert report.spent_atomic == sum(run.budget.spent_atomic for run in runs)
    # It took no lease and wrote nothing.
    assert len(hand.world.store.saved) == saved
    for run in runs:
        alone = await hand.audit(run.run_id)
        assert (alone.runs, alone.differences, alone.unchecked) == (1, (), ())
    for run in runs:
        assert (await hand.world.store.claim(run.run_id, 1)).run.log == run.log


async def test_four_things_that_were_changed_are_four_differences(hand: Tampering) -> None:
    first, second, third = await three_runs(hand.world)
    moved = hand.move(hand.world.payer.address, dev_account(7).address, 1)
    await hand.vendor_says(third.payments[0].payment_id, price_atomic=1_500_000)
    hand.delete_payment(second.payments[0].payment_id)
    [line] = await hand.world.store.read_log(first.run_id, types=("job_log",), oldest=1)
    hand.change_text(first.run_id, line.seq, "all went well")
    report = await hand.audit()
    assert sorted(codes(report)) == sorted(
        [
            ("log_broken", first.run_id, None),
            ("payment_missing", second.run_id, second.payments[0].amount_atomic),
            ("job_cost", third.run_id, 100_000),
            ("moved_out", "", 1),
        ]
    )
    subjects = {one.code: one.subject for one in report.differences}
    assert subjects == {
        "log_broken": f"entry {line.seq}",
        "payment_missing": second.payments[0].payment_id,
        "job_cost": third.jobs[0].job_id,
        "moved_out": moved,
    }
    assert report.unchecked == ()


async def alone_moved_out(hand: Tampering, runs: list[Run]) -> list[tuple[str, str, int | None]]:
    hand.move(hand.world.payer.address, dev_account(7).address, 1)
    return [("moved_out", "", 1)]


async def alone_moved_in(hand: Tampering, runs: list[Run]) -> list[tuple[str, str, int | None]]:
    vendor = hand.world.vendors[0].pay_to
    hand.world.chain.rpc("anvil_impersonateAccount", vendor)
    hand.world.chain.fund(vendor, 10**18)
    hand.move(vendor, hand.world.payer.address, 2)
    return [("moved_in", "", 2)]


async def alone_cheque(hand: Tampering, runs: list[Run]) -> list[tuple[str, str, int | None]]:
    cheque = authorization_for(hand.world.payer, hand.world.vendors[0].pay_to, 7)
    hand.world.chain.transact(USDC, settle_data(cheque, signature_of(hand.world.payer, cheque)))
    return [("payment_unknown", "", 7)]


async def alone_balance(hand: Tampering, runs: list[Run]) -> list[tuple[str, str, int | None]]:
    # A token that moves money and says nothing: its code is changed under the wallet.
    chain = hand.world.chain
    held = chain.balance(hand.world.payer.address)
    slot = next(slot for slot in _slots(hand.world.payer.address) if _word(chain, slot) == held)
    chain.rpc("anvil_setStorageAt", USDC, slot, f"0x{held - 3:064x}")
    chain.mine()
    return [("balance", "", 3)]


async def alone_vendors_cost(hand: Tampering, runs: list[Run]) -> list[tuple[str, str, int | None]]:
    await hand.vendor_says(runs[0].payments[0].payment_id, price_atomic=1_400_001)
    return [("job_cost", runs[0].run_id, 1)]


async def alone_vendors_status(hand: Tampering, runs: list[Run]) -> list[tuple[str, str, int | None]]:
    await hand.vendor_says(runs[0].payments[0].payment_id, status="failed")
    return [("job_status", runs[0].run_id, None)]


async def alone_vendors_job_goes_on(hand: Tampering, runs: list[Run]) -> list[tuple[str, str, int | None]]:
    await hand.vendor_says(runs[2].payments[0].payment_id, status="running")
    return [("I3", runs[2].run_id, None)]


async def alone_vendors_refund(hand: Tampering, runs: list[Run]) -> list[tuple[str, str, int | None]]:
    paid = runs[1].payments[0]
    assert paid.status == "refunded"
    await hand.vendor_says(paid.payment_id, refund_atomic=paid.refunded_atomic - 5)
    return [("job_cost", runs[1].run_id, 5), ("refund_amount", runs[1].run_id, 5)]


async def alone_payment(hand: Tampering, runs: list[Run]) -> list[tuple[str, str, int | None]]:
    hand.delete_payment(runs[0].payments[0].payment_id)
    return [("payment_missing", runs[0].run_id, 1_400_000)]


async def alone_amount(hand: Tampering, runs: list[Run]) -> list[tuple[str, str, int | None]]:
    hand.change_amount(runs[0].payments[0].payment_id, 1_400_009)
    return [("payment_differs", runs[0].run_id, 9)]


async def alone_text(hand: Tampering, runs: list[Run]) -> list[tuple[str, str, int | None]]:
    hand.change_text(runs[1].run_id, 3, "no such thing was said")
    return [("log_broken", runs[1].run_id, None)]


async def alone_first_line(hand: Tampering, runs: list[Run]) -> list[tuple[str, str, int | None]]:
    hand.cut_log(runs[1].run_id, 1)
    return [("log_unreadable", runs[1].run_id, None)]


async def alone_last_line(hand: Tampering, runs: list[Run]) -> list[tuple[str, str, int | None]]:
    hand.cut_log(runs[0].run_id, runs[0].log.seq)
    return [("log_cut", runs[0].run_id, None)]


@pytest.fixture
def books(world: World, tmp_path: Path) -> Tampering:
    return Tampering(world, tmp_path / "agent.db", "", "")


async def test_each_change_alone_is_found_and_named_and_undone_it_is_gone(books: Tampering) -> None:
    runs = await three_runs(books.world)
    for change in [one for name, one in globals().items() if name.startswith("alone_")]:
        undo = await books.remember()
        expected = await change(books, runs)
        report = await books.audit()
        assert (codes(report), report.unchecked) == (expected, ()), change.__name__
        await undo()
    assert (await books.audit()).differences == ()


async def test_a_chain_or_a_vendor_that_is_away_is_unchecked_and_not_agreed_with(books: Tampering) -> None:
    world = books.world
    runs = await three_runs(world)
    there = world.agent.chain
    replace_agent(world, chain=EvmChain(TokenReader(Rpc("http://127.0.0.1:9", HttpClient()), BASE_SEPOLIA_USDC)))
    report = await books.audit()
    assert (report.differences, [one.subject for one in report.unchecked]) == ((), [world.payer.address.lower()])
    assert "the chain could not be asked" in report.unchecked[0].why
    replace_agent(world, chain=there)
    world.hosts.down.add("vendors")
    report = await books.audit(runs[0].run_id)
    assert (report.differences, [one.subject for one in report.unchecked]) == ((), [runs[0].payments[0].payment_id])
    world.hosts.down.clear()
    await world.store.remove_vendor("gpu_vendor_1")
    report = await books.audit(runs[0].run_id)
    assert [one.why for one in report.unchecked] == ["gpu_vendor_1 is no longer registered"]


async def test_what_is_still_open_is_no_difference(books: Tampering) -> None:
    world = books.world
    # Paid and unknown to us: the vendor's answer and the node's were lost.
    world.hosts.lose_replies("/submit-job")
    run_id = await world.start()
    held = world.agent.chain

    class Behind:
        def __getattr__(self, name: str) -> Any:
            return getattr(held, name)

        async def is_nonce_used(self, *_: Any) -> bool:
            return False

    replace_agent(world, chain=Behind())
    assert (await world.tick(run_id)).run.payments[0].status == "unknown"
    replace_agent(world, chain=held)
    assert (await books.audit()).differences == ()
    # It ran, ended and was refunded at the vendor's, and no tick has looked since.
    await world.until(run_id, lambda run: run.jobs[0].vendor_job_id is not None)
    [job] = (await world.store.read_run(run_id)).jobs
    vendor = world.vendors[0]
    await world.agent.vendors.cancel(vendor, str(job.vendor_job_id), None)
    report = await books.audit()
    assert (report.differences, report.unchecked) == ((), ())
    await world.until(run_id, lambda run: run.payments[0].status == "refunded")
    assert (await books.audit()).differences == ()


async def test_a_job_that_no_payment_of_ours_bought_is_found_in_the_vendors_list(books: Tampering) -> None:
    world = books.world
    run_id = await world.start()
    run = await world.until(run_id, lambda run: run.jobs[0].status == "submitted")
    found = {"vendorJobId": "stray", "status": "running", "paymentId": f"{run.run_id}-payment-9"}

    def adds(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        first = request.headers.get("x-vendor-id") == "gpu_vendor_1"
        if not (first and request.url.path == "/jobs" and b"key=" not in request.url.query):
            return response
        listed = decimal_json.loads(response.content)
        listed["jobs"].append(found)
        return httpx.Response(200, content=decimal_json.dumps(listed))

    world.hosts.meddle = adds
    report = await books.audit()
    assert [(one.code, one.books) for one in report.differences] == [
        ("I6", f"gpu_vendor_1 has stray under {run.run_id}-payment-9, no payment of ours")
    ]
    assert (await books.audit(run.run_id)).differences == ()
    # One that another control plane bought, under the same secret, is nothing that we could judge.
    found["paymentId"] = "run_x-payment-1"
    report = await books.audit()
    assert (report.differences, [one.subject for one in report.unchecked]) == ((), ["stray"])


async def test_a_run_that_is_ticked_while_it_is_audited_is_read_again(books: Tampering) -> None:
    world = books.world
    run_id = await world.start()
    await world.tick(run_id)
    inner = world.agent.store

    class Ticked:
        """A store whose run is ticked between the reads of its record and its log, `left` times."""

        def __init__(self, left: int) -> None:
            self.left = left

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        async def read_log(self, run_id: str, **more: Any) -> Any:
            if self.left:
                self.left -= 1
                await world.tick(run_id)
            return await inner.read_log(run_id, **more)

    world.hosts.down.add("facilitator")
    run_id = await world.start()
    await world.tick(run_id)
    report = await audit(replace(world.agent, store=Ticked(4)))
    assert (report.runs, report.differences, report.unchecked) == (2, (), ())


class Moving:
    """A store whose run is ticked whenever a log is read: its cheque is offered again, and the log grows."""

    def __init__(self, world: World, run_id: str) -> None:
        self.world, self.run_id, self.inner = world, run_id, world.agent.store

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def read_log(self, run_id: str, **more: Any) -> Any:
        await self.world.tick(self.run_id)
        return await self.inner.read_log(run_id, **more)


async def test_a_run_that_never_stands_still_is_unchecked_and_accused_of_nothing(books: Tampering) -> None:
    world = books.world
    world.hosts.down.add("facilitator")
    run_id = await world.start()
    await world.tick(run_id)
    moving = replace(world.agent, store=Moving(world, run_id))
    for named in (run_id, None):
        report = await audit(moving, named)
        assert (report.differences, report.late) == ((), ())
        assert [(one.run_id, "ticked while it was read" in one.why) for one in report.unchecked] == [(run_id, True)]


async def test_a_theft_is_found_in_books_that_never_stand_still(books: Tampering) -> None:
    world = books.world
    ended = await world.until_ended(await world.start())
    world.hosts.down.add("facilitator")
    run_id = await world.start()
    await world.tick(run_id)
    moving = replace(world.agent, store=Moving(world, run_id))
    stolen = books.move(world.payer.address, dev_account(7).address, 1)
    cheque = authorization_for(world.payer, world.vendors[0].pay_to, 7)
    cashed = world.chain.transact(USDC, settle_data(cheque, signature_of(world.payer, cheque)))
    await books.vendor_says(ended.payments[0].payment_id, price_atomic=1_400_001)
    report = await audit(moving)
    assert sorted((one.code, one.run_id, one.subject) for one in report.differences) == sorted(
        [
            ("moved_out", "", stolen),
            ("payment_unknown", "", cashed),
            ("job_cost", ended.run_id, ended.jobs[0].job_id),
        ]
    )


@pytest.mark.parametrize("before", [0, 1])
async def test_a_cheque_that_was_sent_and_never_stored_is_found(books: Tampering, before: int) -> None:
    world = books.world
    run_id = await world.start()
    if before:
        await world.until_ended(run_id)
    assert (await books.audit()).differences == ()
    # Two forgotten cheques under one number cannot be: the token settles a nonce once.
    nonce = payment_nonce(run_id, before + 1)
    cheque = authorization_for(world.payer, world.vendors[0].pay_to, 7).model_copy(update={"nonce": nonce})
    cashed = world.chain.transact(USDC, settle_data(cheque, signature_of(world.payer, cheque)))
    for named in (None, run_id):
        [one] = (await books.audit(named)).differences
        # Where the wallet had never paid there is no block to look from: that it was cashed is known, not for how much.
        expected = (cashed, 7) if before else (nonce, None)
        assert (one.code, one.run_id, one.subject, one.by_atomic) == ("payment_unknown", run_id, *expected)
    # By a wallet that is not configured any more nothing is known of one that never paid.
    replace_agent(world, wallet=None)
    assert len((await books.audit()).differences) == before


async def test_a_wallet_that_cannot_say_its_address_is_unchecked(books: Tampering) -> None:
    class Away:
        async def address(self) -> str:
            raise WalletError("nobody there")

    await books.world.start()
    replace_agent(books.world, wallet=Away())
    report = await books.audit()
    assert [(one.subject, one.why) for one in report.unchecked] == [
        ("wallet", "its address could not be asked: nobody there")
    ]


async def test_money_that_is_free_again_too_early_is_found(books: Tampering) -> None:
    world = books.world
    world.hosts.down.add("facilitator")
    run_id = await world.start()
    held = world.agent.chain

    class Ahead:
        """A node that is believed and whose clock is not the chain's."""

        def __getattr__(self, name: str) -> Any:
            return getattr(held, name)

        async def finalized_time_s(self) -> int:
            return 2**40

    await world.tick(run_id)
    replace_agent(world, chain=Ahead())
    run = await world.until(run_id, lambda run: run.payments[0].status == "failed")
    replace_agent(world, chain=held)
    for named in (None, run_id):
        [one] = (await books.audit(named)).differences
        assert (one.code, one.run_id, one.by_atomic) == ("released_early", run_id, run.payments[0].amount_atomic)
    # Its cheque has lapsed: what was wrong is past, and nothing can come of it.
    world.chain.increase_time(10_000)
    world.chain.mine(3)
    assert (await books.audit()).differences == ()


@pytest.fixture
async def hours(
    chain: DevChain, tmp_path: Path, payer: DevAccount, facilitator_account: DevAccount
) -> AsyncIterator[HostileWorld]:
    """Yield a world whose clocks are the test's, and whose jobs have used nothing of their money for 50 minutes."""
    async with hostile_world(tmp_path, chain, payer, facilitator_account, epoch_seconds=3_000, poll_s=60) as made:
        yield made


async def swept(world: HostileWorld, run_id: str) -> Run:
    """Return the run when the sweep has cancelled the one job that nobody wants, and what came back is counted."""
    await world.pass_time(world.agent.limits.orphans_interval_s)
    done = await sweep(world.agent)
    assert done.orphans is not None
    assert [one.why for one in done.orphans.cancelled] == ["job_failed"]
    # Between the vendor's refund and the tick that counts it there is nothing to tell either.
    assert (await audit(world.agent)).differences == ()
    return await world.watch(run_id)


@pytest.mark.row(6)
async def test_a_job_that_was_lost_came_back_and_was_swept_is_no_difference(hours: HostileWorld) -> None:
    run_id = await hours.start("1.4")
    await hours.until(run_id, lambda run: run.jobs[0].vendor_job_id is not None)
    hours.limit(attempts_max=1, misses_max=3)
    hours.hosts.down.add("vendors")
    for _ in range(4):
        await hours.tick(run_id)
        await hours.pass_time(201)
    hours.hosts.down.clear()
    run = await swept(hours, run_id)
    assert str(run.jobs[0].error_message).startswith("job_lost: ")
    assert run.payments[0].status == "refunded"
    report = await audit(hours.agent)
    assert (report.differences, report.unchecked) == ((), ())


@pytest.mark.row(6)
async def test_a_job_that_was_never_heard_of_and_was_swept_is_no_difference(hours: HostileWorld) -> None:
    hours.limit(unserved_sends_max=2, attempts_max=1)
    hours.script(errors=10_000, routes=("/jobs",))
    hours.hosts.lose_replies("/submit-job", 100)
    run_id = await hours.start("1.4")
    for _ in range(3):
        await hours.tick(run_id)
    # A vendor that cannot say what it has is waited for beyond the cheque's time.
    await hours.pass_time(601 + hours.agent.limits.missed_s_max)
    await hours.until_ended(run_id)
    hours.script()
    # While it goes on it is one, by the whole of what was paid.
    assert [(one.code, one.by_atomic) for one in (await audit(hours.agent)).differences] == [
        ("job_unclaimed", 1_400_000),
        ("I3", None),
    ]
    run = await swept(hours, run_id)
    assert str(run.jobs[0].error_message).startswith("paid_not_served: ")
    assert (run.payments[0].status, run.budget.spent_atomic) == ("refunded", 0)
    report = await audit(hours.agent)
    assert (report.differences, report.unchecked) == ((), ())


def _slots(holder: str) -> list[str]:
    from wire.eip712 import keccak256

    padded = bytes.fromhex(holder[2:]).rjust(32, b"\0")
    # Vyper hashes the slot before the key.
    return ["0x" + keccak256(slot.to_bytes(32, "big") + padded).hex() for slot in range(8)]


def _word(chain: Any, slot: str) -> int:
    return int(chain.rpc("eth_getStorageAt", USDC, slot, "latest"), 16)
