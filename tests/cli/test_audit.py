"""`livery audit`, `run explain`, `run replay` and `run release`, as a user calls them."""

import sqlite3
from collections.abc import Iterator

import pytest

from chain.devchain import dev_account
from tests.cli.conftest import SECRET, Livery, Street, open_street
from tests.fixtures.chain import serving
from vendor_mock.app import create_app
from vendor_mock.config import VendorMockSettings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Street]:
    """A street of its own: its vendors have no job that other tests left."""
    with open_street(tmp_path_factory.mktemp("street")) as street:
        yield street


@pytest.fixture
def street_books(buyer: Livery, street: Street) -> Livery:
    """The buyer of a street, with a wallet of its own: the other tests' payments are not in these books."""
    payer = dev_account(6)
    street.chain.mint(payer.address, 10_000_000)
    return Livery(buyer.home, {**buyer.variables, "X402_PRIVATE_KEY": payer.key})


def a_run(buyer: Livery) -> str:
    started = buyer("run", "start", "Fine-tune tiny-llm", "--budget", "5", "--local", "--json")
    assert started.code == 0, started.err
    run_id = str(started.json["_id"])
    watched = buyer("run", "watch", run_id, "--interval", "0.2", "--local")
    assert watched.code == 0, watched.err
    return run_id


def test_books_are_audited_explained_and_replayed_and_what_was_changed_is_told(
    street_books: Livery, street: Street
) -> None:
    buyer = street_books
    assert buyer("audit").out.strip() == "0 runs, 0 payments, 0 USDC: books, chain and vendors agree"
    run_id = a_run(buyer)

    agreed = buyer("audit")
    assert (agreed.code, agreed.out.strip()) == (0, "1 run, 1 payment, 1.4 USDC: books, chain and vendors agree")
    alone = buyer("audit", "--run", run_id, "--json")
    assert (alone.code, alone.json["agrees"], alone.json["spent"]) == (0, True, 1.4)
    assert buyer("audit", "--run", "run_nobody", "--json").json["code"] == "run_not_found"

    told = buyer("run", "explain", run_id)
    assert told.code == 0
    flat = " ".join(told.out.split())
    for said in (
        "You asked: “Fine-tune tiny-llm”.",
        "2 vendors could have been chosen:",
        "· gpu_vendor_1 (FastGPU): A10 at 1.4 USDC an hour",
        "Its 402 asked 1.4 USDC, just what it had quoted, to 0x",
        "10 USDC a payment, 100 USDC a run",
        "The chain shows it cashed in 0x",
        "It measured loss 0.78, val_accuracy 0.87.",
        "The run completed: 1 of 1 wanted jobs are done. It spent 1.4 USDC of 5 USDC, in 1 attempt.",
    ):
        assert said in flat
    document = buyer("run", "explain", "--json").json
    assert document["runId"] == run_id
    assert [one["title"] for one in document["paragraphs"]] == [
        "The wish",
        "Choosing a vendor, attempt 1",
        "Paying for job 1 at gpu_vendor_1",
        "Job 1 at gpu_vendor_1",
        "The end",
    ]
    assert "nothing is reserved" in buyer("run", "release", run_id).out
    assert buyer("run", "release", run_id, "--json").json == []

    replayed = buyer("run", "replay", run_id)
    assert (replayed.code, "entries, all of them repeat" in replayed.out) == (0, True)

    # The node is away: what it says is not known, and not agreed with.
    away = buyer("audit", WEB3_PROVIDER_URL="http://127.0.0.1:9")
    assert away.code == 3
    assert "no difference, but 1 thing could not be checked" in away.out

    with sqlite3.connect(buyer.home / "livery.db") as connection:
        [(seq,)] = connection.execute("SELECT min(seq) FROM observations WHERE type = 'tick'")
        change = "UPDATE observations SET document = replace(document, 'gpu_vendor_1', 'gpu_vendor_2') WHERE seq = ?"
        connection.execute(change, (seq,))
    differs = buyer("audit")
    assert differs.code == 1
    assert "log_broken" in differs.out
    assert differs.out.strip().endswith("1 run, 1 payment, 1.4 USDC: 1 difference")
    blind = buyer("audit", WEB3_PROVIDER_URL="http://127.0.0.1:9")
    assert (blind.code, "1 difference, and 1 thing could not be checked" in blind.out) == (1, True)
    assert [one["code"] for one in buyer("audit", "--json").json["differences"]] == ["log_broken"]
    forged = buyer("run", "replay", run_id)
    assert (forged.code, f"entry {seq} was changed" in forged.out) == (1, True)


def test_a_cheque_in_a_vendors_hand_is_taken_back(street_books: Livery, street: Street) -> None:
    buyer = street_books
    run_id = str(buyer("run", "start", "x", "--budget", "5", "--local", "--json").json["_id"])
    mock = VendorMockSettings.model_validate(
        {
            "secret": SECRET,
            "rpc_url": street.chain.url,
            "facilitator_url": "http://127.0.0.1:9",
            "database": buyer.home / "silent.db",
        }
    )
    # Vendors that take the cheque and cannot cash it: nothing is known, and they might yet.
    with serving(create_app(mock)) as url:
        with sqlite3.connect(buyer.home / "livery.db") as connection:
            connection.execute("UPDATE vendors SET document = json_set(document, '$.endpoint', ?)", (url,))
        assert buyer("run", "tick", run_id, "--local").code == 0
        custody = {"X402_PRIVATE_KEY": "", "CDP_KEY": "id", "CDP_SECRET": "x", "CDP_WALLET_SECRET": "y"}
        refused = buyer("run", "release", run_id, "--json", X402_WALLET_ID="0x" + "11" * 20, **custody)
        [said] = refused.json
        assert (refused.code, said["outcome"]) == (1, "cannot")
        assert said["why"] == "a CDP wallet cannot cancel: wait for the cheque to lapse"
        asked = buyer("run", "release", run_id)
        assert asked.code == 0, asked.err
        assert "the cancellation is sent" in asked.out
        street.chain.mine(4)
        [said] = buyer("run", "release", run_id, "--json").json
        assert (said["outcome"], said["amount"]) == ("not_paid", 1.4)
    shown = buyer("run", "status", run_id, "--local", "--json").json
    assert (shown["run"]["budgetSpent"], shown["payments"][0]["status"]) == (0, "failed")
    told = " ".join(buyer("run", "explain", run_id).out.split())
    assert "You took the cheque back: the chain was asked to cancel it in 0x" in told
    assert "final blocks of the chain show that the cheque was cancelled" in told
    assert buyer("audit", "--run", run_id).code == 3  # the vendor is gone
