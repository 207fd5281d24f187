"""The book of credit: accounts that payments fill, holds, keys, withdrawals."""

import asyncio
from dataclasses import replace

import pytest

from cashier.core import credit
from cashier.core.credit import Account, Deposit, Hold, Income, Key, withdrawal
from cashier.core.errors import CreditTooSmall
from cashier.edges.credit_sqlite import SqliteCredit
from cashier.edges.till_sqlite import SCHEMA
from storage.errors import Refused
from storage.sqlite import Sqlite
from wire.money import BASE_SEPOLIA_USDC, BASE_USDC

PAYERS = tuple(f"0x{digit * 40}" for digit in "ab")
SELLER = "0x" + "c" * 40


@pytest.fixture
async def db(tmp_path):
    made = Sqlite(tmp_path / "till.db", SCHEMA)
    yield made
    await made.close()


@pytest.fixture
def book(db):
    return SqliteCredit(db, BASE_SEPOLIA_USDC)


async def _filled(book, amount_atomic=100, payment_id="payment-1", **more):
    await book.deposit(Deposit(payment_id=payment_id, account=PAYERS[0], amount_atomic=amount_atomic), 5, **more)
    return await book.account(PAYERS[0])


async def test_a_payment_is_put_on_its_account_once(book):
    first = await _filled(book)
    assert await _filled(book) == first == Account(name=PAYERS[0], deposited=100, moved_s=5)

    assert (await _filled(book, payment_id="payment-2")).available == 200


async def test_a_request_is_set_aside_before_it_is_served_and_what_it_did_not_cost_is_available_again(book):
    await _filled(book)
    assert await book.reserve(Hold(id="one", account=PAYERS[0], amount_atomic=70), 6) is not None
    assert (await book.account(PAYERS[0])).available == 30
    assert await book.reserve(Hold(id="two", account=PAYERS[0], amount_atomic=31), 7) is None
    assert await book.reserve(Hold(id="two", account="nobody", amount_atomic=1), 7) is None

    assert await book.end("one", 20, 8) == 20

    account = await book.account(PAYERS[0])
    assert (account.available, account.held, account.spent, account.moved_s) == (80, 0, 20, 8)
    assert await book.end("one", 20, 9) == 0
    assert await book.account(PAYERS[0]) == account


@pytest.mark.parametrize(("asked", "charged"), [(-1, 0), (0, 0), (69, 69), (70, 70), (71, 70), (10**18, 70)])
async def test_never_more_is_charged_than_was_set_aside(book, asked, charged):
    await _filled(book)
    await book.reserve(Hold(id="one", account=PAYERS[0], amount_atomic=70), 6)

    assert await book.end("one", asked, 7) == charged
    assert (await book.account(PAYERS[0])).available == 100 - charged


async def test_the_hold_of_a_payment_is_begun_once_at_a_time_and_remembered(book):
    await _filled(book, holds=True)
    assert (await book.account(PAYERS[0])).available == 100

    assert (await book.begin("payment-1", 6)).amount_atomic == 100
    assert (await book.account(PAYERS[0])).available == 0
    assert await book.begin("payment-1", 6) == "busy"
    assert await book.end("payment-1", 0, 7) == 0
    # It cost nothing: the same payment may be served again, as long as its money is here.
    assert (await book.account(PAYERS[0])).available == 100
    assert (await book.begin("payment-1", 8)).state == "running"
    assert await book.end("payment-1", 40, 9) == 40
    assert await book.begin("payment-1", 9) == "spent"
    # The payment that comes again brings nothing new.
    assert (await _filled(book, holds=True)).available == 60
    assert await book.begin("payment-9", 9) == "short"


async def test_a_hold_whose_money_has_left_is_not_begun_again(book):
    await _filled(book, holds=True)
    await book.begin("payment-1", 6)
    await book.end("payment-1", 0, 7)
    await book.withdraw(withdrawal("back", PAYERS[0], SELLER, 1), 8)

    assert await book.begin("payment-1", 9) == "short"


async def test_no_two_holds_have_one_name(book):
    await _filled(book)
    await book.reserve(Hold(id="one", account=PAYERS[0], amount_atomic=70), 6)

    with pytest.raises(Refused):
        await book.reserve(Hold(id="one", account=PAYERS[0], amount_atomic=1), 6)
    assert (await book.account(PAYERS[0])).held == 70


async def test_a_start_ends_what_ran_when_the_last_one_died_at_no_cost(book, db):
    await _filled(book, holds=True)
    await _filled(book, payment_id="payment-2")
    await book.begin("payment-1", 6)
    await book.reserve(Hold(id="one", account=PAYERS[0], amount_atomic=60), 6)

    assert await SqliteCredit(db, BASE_SEPOLIA_USDC).release_all(10) == 2

    assert await book.account(PAYERS[0]) == Account(name=PAYERS[0], deposited=200, moved_s=10)
    assert await book.release_all(11) == 0
    assert await book.end("one", 50, 12) == 0


async def test_credit_in_one_asset_is_none_in_another(book, db):
    await _filled(book)
    await book.add_key(Key(id="key_1", sha256="aa", account=PAYERS[0], made_s=1))
    other = SqliteCredit(db, BASE_USDC)

    assert await other.account(PAYERS[0]) is None
    assert await other.find_key("aa") is None
    assert await other.keys() == await other.accounts() == await other.keyless(0, 99) == []
    assert not await other.revoke_key("key_1", 2)
    assert await other.reserve(Hold(id="one", account=PAYERS[0], amount_atomic=0), 6) is None


async def test_nothing_is_charged_to_an_account_of_the_owners_own(book):
    assert await book.open_account(Account(name="my-app", is_free=True, moved_s=3))
    assert not await book.open_account(Account(name="my-app"))

    assert (await book.reserve(Hold(id="one", account="my-app", amount_atomic=70), 6)).amount_atomic == 0
    assert await book.end("one", 70, 7) == 0
    assert await book.account("my-app") == Account(name="my-app", is_free=True, moved_s=7)


async def test_income_is_what_requests_cost_those_who_paid_hour_by_hour(book):
    await _filled(book)
    await book.deposit(Deposit(payment_id="gift:1", account="alice", amount_atomic=500), 5)
    for number, (account, cost, at_s) in enumerate(
        [(PAYERS[0], 10, 7_199), (PAYERS[0], 20, 7_200), (PAYERS[0], 5, 7_300), ("alice", 30, 7_300), (PAYERS[0], 0, 1)]
    ):
        await book.reserve(Hold(id=f"hold-{number}", account=account, amount_atomic=50), 6)
        await book.end(f"hold-{number}", cost, at_s)

    first, second = Income(hour_s=3_600, requests=1, spent_atomic=10), Income(hour_s=7_200, requests=2, spent_atomic=25)
    assert await book.income(0) == await book.income(7_199) == [first, second]
    assert await book.income(7_200) == [second]
    assert await book.income(10_800) == []


async def test_a_key_is_kept_as_its_digest_and_opens_nothing_once_it_is_revoked(book, db):
    secret = credit.KEY_PREFIX + "s" * 43
    key = Key(id="key_1", sha256=credit.digest_of(secret), account=PAYERS[0], made_s=1)
    await book.add_key(key)
    await book.add_key(replace(key, account=PAYERS[1]))

    assert await book.find_key(credit.digest_of(secret)) == key
    assert await book.find_key(credit.digest_of(secret + "x")) is None
    assert await book.revoke_key("key_1", 9)
    assert await book.revoke_key("key_1", 11)
    assert not await book.revoke_key("key_2", 9)
    assert await book.keys() == [replace(key, revoked_s=9)]
    await db.close()
    for part in db.path.parent.iterdir():
        assert secret.encode() not in part.read_bytes()


async def test_who_paid_and_has_no_key_is_found_once_enough_is_left(book):
    await _filled(book)
    await book.deposit(Deposit(payment_id="gift:1", account="alice", amount_atomic=500), 5)
    await book.deposit(Deposit(payment_id="gift:2", account="0xmarks", amount_atomic=500), 5)

    assert [account.name for account in await book.keyless(100, 5)] == [PAYERS[0]]
    assert await book.keyless(101, 5) == []
    assert await book.keyless(100, 4) == []
    await book.add_key(Key(id="key_1", sha256="aa", account=PAYERS[0], made_s=1))
    assert await book.keyless(100, 5) == []
    await book.revoke_key("key_1", 6)
    assert len(await book.keyless(100, 5)) == 1


async def test_a_withdrawal_and_the_refund_that_is_owed_for_it_are_one(book):
    await _filled(book)
    await book.reserve(Hold(id="one", account=PAYERS[0], amount_atomic=70), 6)

    with pytest.raises(CreditTooSmall, match="30 atomic units are available, 31 cannot be withdrawn"):
        await book.withdraw(withdrawal("back", PAYERS[0], SELLER, 31), 7)
    assert await book.owed() == []
    refund = await book.withdraw(withdrawal("back", PAYERS[0], SELLER.upper().replace("X", "x")), 7)

    assert (refund.amount_atomic, refund.payer, refund.pay_to, refund.state) == (30, PAYERS[0], SELLER, "asked")
    assert await book.withdraw(withdrawal("back", PAYERS[0], SELLER, None), 8) == refund
    assert await book.owed() == ["back"]
    assert (await book.account(PAYERS[0])).withdrawn == 30
    with pytest.raises(CreditTooSmall):
        await book.withdraw(withdrawal("again", PAYERS[0], SELLER, None), 9)


@pytest.mark.parametrize("name", ["alice", "0xmarks", "nobody", PAYERS[0].upper()])
async def test_what_nobodys_address_paid_is_sent_nowhere(book, name):
    await book.deposit(Deposit(payment_id="gift:1", account="alice", amount_atomic=500), 5)
    await book.deposit(Deposit(payment_id="gift:2", account="0xmarks", amount_atomic=500), 5)

    with pytest.raises(CreditTooSmall):
        await book.withdraw(withdrawal("back", name, SELLER, 1), 7)


async def test_two_processes_never_use_the_same_credit(book, db):
    await _filled(book)
    other = Sqlite(db.path, SCHEMA)
    books = [book, SqliteCredit(other, BASE_SEPOLIA_USDC)]
    holds = [Hold(id=f"hold-{number}", account=PAYERS[0], amount_atomic=30) for number in range(8)]

    got = await asyncio.gather(*(books[at % 2].reserve(hold, 6) for at, hold in enumerate(holds)))
    await other.close()

    assert sum(hold is not None for hold in got) == 3
    assert (await book.account(PAYERS[0])).held == 90


def test_an_account_that_does_not_add_up_cannot_be():
    with pytest.raises(ValueError, match="does not add up"):
        Account(name="a", deposited=10, held=5, spent=6)
    with pytest.raises(ValueError, match="does not add up"):
        Account(name="a", deposited=10, withdrawn=-1)
    with pytest.raises(ValueError, match="above zero"):
        credit.put_in(Account(name="a"), 0)
    with pytest.raises(ValueError, match="below zero"):
        credit.reserve(Account(name="a"), Hold(id="h", account="a", amount_atomic=-1))
