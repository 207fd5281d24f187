"""`livery keys`: made, listed and revoked by the owner, beside a worker that runs."""

import asyncio
import stat
from pathlib import Path
from typing import Any

import pytest

from cashier.core.credit import Deposit, Hold, Key, digest_of
from cashier.credit import give_key
from gpu_worker.config import WorkerSettings
from gpu_worker.inference.text.paying import Keys
from gpu_worker.wiring.paying import open_book
from tests.cli.conftest import Livery

PAYER = "0x" + "a" * 40


@pytest.fixture
def livery(tmp_path: Path) -> Livery:
    return Livery(tmp_path, {"LIVERY_WORKER_DATA": str(tmp_path / "worker")})


def _book(livery: Livery, work: Any) -> Any:
    """Return what `work` makes of the worker's book."""

    async def done() -> Any:
        cashier = open_book(WorkerSettings(data=livery.home / "worker"))
        try:
            return await work(cashier.credit)
        finally:
            await cashier.close()

    return asyncio.run(done())


def test_a_key_is_made_told_once_and_opens_its_account(livery: Livery) -> None:
    made = livery("keys", "create", "alice", "--credit", "5", "--json").json

    holder = _book(livery, lambda book: Keys(book).find(made["key"]))
    assert made["key"].startswith("lv_")
    assert (holder.account, holder.name) == ("alice", "alice")
    listed = livery("keys", "list", "--json")
    assert made["key"] not in listed.out + livery("keys", "list").out
    (row,) = listed.json["keys"]
    assert (row["keyId"], row["account"], row["available"], row["isFree"]) == (made["keyId"], "alice", 5, False)
    for part in (livery.home / "worker").iterdir():
        assert made["key"].encode() not in part.read_bytes()
        assert stat.S_IMODE(part.stat().st_mode) == 0o600


def test_a_name_has_several_keys_and_one_credit(livery: Livery) -> None:
    first = livery("keys", "create", "alice", "--credit", "5", "--json").json
    livery("keys", "create", "alice", "--json")
    more = livery("keys", "create", "alice", "--credit", "0.5", "--json").json

    rows = livery("keys", "list", "--json").json["keys"]
    assert len({row["keyId"] for row in rows} | {first["keyId"], more["keyId"]}) == 3
    assert {row["available"] for row in rows} == {5.5}


def test_a_key_without_credit_costs_nothing(livery: Livery) -> None:
    livery("keys", "create", "my-app")

    held = _book(livery, lambda book: book.reserve(Hold(id="one", account="my-app", amount_atomic=10**6), 1))
    assert held.amount_atomic == 0
    refused = livery("keys", "create", "my-app", "--credit", "1", "--json")
    assert (refused.code, refused.json["detail"]) == (1, "nothing is charged to my-app, it needs no credit")


def test_a_revoked_key_opens_nothing_and_is_listed_so(livery: Livery) -> None:
    made = livery("keys", "create", "alice", "--json").json

    assert livery("keys", "revoke", made["keyId"]).out.strip() == f"{made['keyId']} opens nothing any more"

    assert _book(livery, lambda book: Keys(book).find(made["key"])) is None
    assert livery("keys", "list", "--json").json["keys"][0]["revokedAt"] is not None


def test_a_key_that_there_is_none_of_is_not_revoked(livery: Livery) -> None:
    refused = livery("keys", "revoke", "key_none", "--json")

    assert (refused.code, refused.json["detail"]) == (1, "there is no key key_none")


def test_keys_that_were_bought_are_listed_too(livery: Livery) -> None:
    async def buy(book: Any) -> Key | None:
        await book.deposit(Deposit(payment_id="payment-1", account=PAYER, amount_atomic=1_400_000), 1)
        return (await give_key(book, PAYER, 1))[0]

    bought = _book(livery, buy)

    (row,) = livery("keys", "list", "--json").json["keys"]
    assert (row["keyId"], row["account"], row["available"]) == (bought.id, PAYER, 1.4)
    assert "1.4 USDC" in livery("keys", "list").out


@pytest.mark.parametrize("name", ["0xabc", "owner", "Alice", "", "a b", "x" * 65])
def test_a_name_is_no_address_and_no_words(livery: Livery, name: str) -> None:
    assert livery("keys", "create", name).code == 2


@pytest.mark.parametrize("credit", ["0", "-1", "0.0000001", "NaN", "1e10"])
def test_credit_is_an_amount(livery: Livery, credit: str) -> None:
    assert livery("keys", "create", "alice", "--credit", credit).code != 0
    assert livery("keys", "list").out.startswith("no keys")


def test_a_digest_is_of_the_whole_key() -> None:
    assert digest_of("lv_a") != digest_of("lv_b")
    assert len(digest_of("lv_a")) == 64


def test_what_answers_brought_is_among_the_earnings(livery: Livery) -> None:
    async def serve(book: Any) -> None:
        await book.deposit(Deposit(payment_id="payment-1", account=PAYER, amount_atomic=1_400_000), 1)
        for number in range(2):
            await book.reserve(Hold(id=f"one-{number}", account=PAYER, amount_atomic=10**5), 1)
            await book.end(f"one-{number}", 60_000, 7_300)

    _book(livery, serve)

    told = livery("worker", "earnings", "--json").json
    assert (told["jobs"], told["answers"], told["earned"]) == (0, 2, 0.12)
    assert told["hours"] == [{"hour": "1970-01-01T02:00:00Z", "jobs": 0, "answers": 2, "earned": 0.12}]
    assert "0.12" in livery("worker", "earnings").out
    assert livery("worker", "earnings", "--days", "1", "--json").json["answers"] == 0
