"""The book of credit: whatever is asked of it, in whatever order and however often, it adds up."""

import asyncio
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cashier.core.credit import Account, Deposit, Hold, withdrawal
from cashier.core.errors import CreditTooSmall
from cashier.edges.credit_sqlite import SqliteCredit
from cashier.edges.till_sqlite import SCHEMA
from storage.sqlite import Sqlite
from wire.money import BASE_SEPOLIA_USDC

PAYERS = tuple(f"0x{digit * 40}" for digit in "ab")
SELLER = "0x" + "c" * 40
AMOUNTS = st.integers(1, 100)


class Book(RuleBasedStateMachine):
    """Beside the book stands what everybody brought, took and used; calls are repeated at will."""

    def __init__(self):
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self._folder = tempfile.TemporaryDirectory()
        self.db = Sqlite(Path(self._folder.name) / "till.db", SCHEMA)
        self.book = SqliteCredit(self.db, BASE_SEPOLIA_USDC)
        self.brought = {payer: {} for payer in PAYERS}
        self.taken = {payer: {} for payer in PAYERS}
        self.used = dict.fromkeys(PAYERS, 0)
        self.open = {}

    def teardown(self):
        self.run(self.db.close())
        self._loop.close()
        self._folder.cleanup()

    def run(self, work):
        return self._loop.run_until_complete(work)

    @initialize()
    def fill(self):
        for payer in PAYERS:
            self.deposit(payer, 50, 0, False)

    @rule(payer=st.sampled_from(PAYERS), amount=AMOUNTS, number=st.integers(0, 5), holds=st.booleans())
    def deposit(self, payer, amount, number, holds):
        payment_id = f"payment-{payer[2]}{number}"
        self.run(self.book.deposit(Deposit(payment_id=payment_id, account=payer, amount_atomic=amount), 1, holds=holds))
        self.brought[payer].setdefault(payment_id, amount)

    @rule(payer=st.sampled_from(PAYERS), amount=AMOUNTS, number=st.integers(0, 9))
    def reserve(self, payer, amount, number):
        if f"hold-{number}" in self.open:
            return
        got = self.run(self.book.reserve(Hold(id=f"hold-{number}", account=payer, amount_atomic=amount), 1))
        assert (got is not None) == (amount <= self.left(payer))
        if got is not None:
            self.open[f"hold-{number}"] = (payer, amount)

    @rule(payer=st.sampled_from(PAYERS), number=st.integers(0, 5))
    def begin(self, payer, number):
        payment_id, left = f"payment-{payer[2]}{number}", self.left(payer)
        begun = self.run(self.book.begin(payment_id, 1))
        if isinstance(begun, Hold):
            assert payment_id in self.open or begun.amount_atomic <= left
            self.open[payment_id] = (payer, begun.amount_atomic)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), cost=st.integers(0, 150))
    def end(self, data, cost):
        hold_id = data.draw(st.sampled_from(sorted(self.open)))
        payer, amount = self.open.pop(hold_id)
        assert self.run(self.book.end(hold_id, cost, 1)) == min(cost, amount)
        self.used[payer] += min(cost, amount)
        assert self.run(self.book.end(hold_id, cost, 1)) == 0

    @rule()
    def restart(self):
        assert self.run(self.book.release_all(1)) == len(self.open)
        self.open.clear()

    @rule(payer=st.sampled_from(PAYERS), amount=st.none() | AMOUNTS, number=st.integers(0, 5))
    def withdraw(self, payer, amount, number):
        key, left = f"back-{payer[2]}{number}", self.left(payer)
        try:
            refund = self.run(self.book.withdraw(withdrawal(key, payer, SELLER, amount), 1))
        except CreditTooSmall:
            assert key not in self.taken[payer]
            assert left < (amount or 1)
            return
        assert self.taken[payer].setdefault(key, refund.amount_atomic) == refund.amount_atomic

    def left(self, payer):
        held = sum(amount for who, amount in self.open.values() if who == payer)
        return sum(self.brought[payer].values()) - sum(self.taken[payer].values()) - self.used[payer] - held

    @invariant()
    def adds_up(self):
        for payer in PAYERS:
            account = self.run(self.book.account(payer)) or Account(name=payer)
            assert account.available == self.left(payer) >= 0
            assert account.deposited == sum(self.brought[payer].values())
            assert account.withdrawn == sum(self.taken[payer].values())
            assert account.spent == self.used[payer]
        assert set(self.run(self.book.owed())) == {key for taken in self.taken.values() for key in taken}


Book.TestCase.settings = settings(max_examples=30, stateful_step_count=40)
test_the_book_adds_up_whatever_happens = Book.TestCase
