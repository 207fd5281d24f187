"""Books against facts, purely: every kind of difference by its code, and by how much."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from agent.core.audit import Account, Answer, Wallet, World, audit, books_of
from agent.core.cheque import payment_nonce
from agent.core.log import record
from agent.core.onchain import History, Move
from tests.agent.core.values import EVENTS, PAY_TO, PAYER, PRICE, REFUND, SETTLEMENT, STARTED, at
from wire.vendor import JobFound, JobStatus, Refund

OWN, VENDOR = PAYER.lower(), PAY_TO.lower()
LAST = "0x" + "ef" * 32


def move(transaction: str, value_atomic: int, nonce: int | None = None, **changes: Any) -> Move:
    values: dict[str, Any] = {"index": 1, "block": 20, "sender": OWN, "receiver": VENDOR}
    made = None if nonce is None else f"0x{nonce:064x}"
    return Move(**values | {"transaction": transaction, "value_atomic": value_atomic, "nonce": made} | changes)


# What the chain shows of EVENTS: two payments, a refund of one; the third's cheque was never cashed.
MOVES = (
    move(SETTLEMENT, PRICE, 1),
    move(REFUND, 700_000, sender=VENDOR, receiver=OWN),
    move(LAST, PRICE, 4),
)


def account(**changes: Any) -> Account:
    run, entries = record(STARTED, EVENTS)
    return Account(run=replace(run, **changes), entries=entries)


def wallet(*moves: Move, **changes: Any) -> Wallet:
    moves = moves or MOVES
    net = sum(one.value_atomic if one.receiver == OWN else -one.value_atomic for one in moves if one.block > 10)
    values = {"address": OWN, "since": 10, "before_atomic": 10**7, "after_atomic": 10**7 + net}
    return Wallet(**values | {"history": History(moves=moves)} | changes)


def status(vendor_job_id: str, state: Any, cost: str, **more: Any) -> JobStatus:
    return JobStatus(
        vendor_job_id=vendor_job_id, status=state, progress=Decimal(1), cursor="9", cost_so_far=Decimal(cost), **more
    )


BACK = Refund(amount=Decimal("0.7"), asset=STARTED.asset.address, network=STARTED.asset.network, transaction=REFUND)
METRICS = {"loss": Decimal("0.10"), "accuracy": Decimal("0.9")}
FAILED = Answer(JobFound(vendor_job_id="vjob-1", status="failed"), status("vjob-1", "failed", "0.7", refund=BACK))
DONE = Answer(
    JobFound(vendor_job_id="vjob-4", status="completed"), status("vjob-4", "completed", "1.4", final_metrics=METRICS)
)
ANSWERS = {"run_1-payment-1": FAILED, "run_1-payment-3": Answer(None), "run_1-payment-4": DONE}


def found(
    *, wallets: Wallet | None = None, answers: dict[str, Answer] | None = None, whole: bool = True, **more: Any
) -> list[tuple[str, int | None]]:
    world = World(wallets={OWN: wallets or wallet()}, answers=ANSWERS | (answers or {}), **more)
    report = audit(books_of([account()]), world, whole=whole)
    assert {one.run_id for one in report.differences} <= {"run_1", ""}
    return [(one.code, one.by_atomic) for one in report.differences]


def test_books_that_the_world_bears_out_have_no_difference() -> None:
    assert found() == []
    report = audit(books_of([account()]), World(), whole=True)
    assert (report.runs, report.payments, report.spent_atomic, report.differences) == (1, 3, 2_100_000, ())


@pytest.mark.parametrize(
    ("moves", "expected"),
    [
        (MOVES[1:], [("not_on_chain", PRICE)]),
        ((*MOVES, move("0x3", PRICE, 3)), [("paid_after_all", PRICE)]),
        ((move("0xbb", PRICE, 1), *MOVES[1:]), [("other_transaction", 0)]),
        ((move(SETTLEMENT, PRICE + 2, 1), *MOVES[1:]), [("other_amount", 2)]),
        ((move(SETTLEMENT, PRICE, 1, receiver="0xee"), *MOVES[1:]), [("other_amount", PRICE)]),
        ((MOVES[0], MOVES[2]), [("refund_not_on_chain", 700_000)]),
        ((*MOVES, move("0x5", 5)), [("moved_out", 5)]),
        ((*MOVES, move("0x5", 5, sender=VENDOR, receiver=OWN)), [("moved_in", 5)]),
        ((*MOVES, replace(MOVES[1], index=7)), [("moved_in", 700_000)]),
        ((*MOVES, move("0x5", 5, nonce=99)), [("payment_unknown", 5)]),
        # Money that comes from anybody else is the owner's own affair.
        ((*MOVES, move("0x5", 5, sender="0xee", receiver=OWN)), []),
    ],
)
def test_what_the_chain_shows_otherwise_is_told_in_money(moves: tuple[Move, ...], expected: Any) -> None:
    assert found(wallets=wallet(*moves)) == expected


def test_a_lost_payment_of_a_run_is_known_by_its_nonce() -> None:
    lost = replace(move("0x5", 5), nonce=payment_nonce("run_1", 5))
    world = World(wallets={OWN: wallet(*MOVES, lost)}, answers=ANSWERS)
    [one] = audit(books_of([account()]), world, whole=True).differences
    assert (one.code, one.run_id, one.by_atomic) == ("payment_unknown", "run_1", 5)


def test_a_balance_that_its_transfers_do_not_explain_is_a_difference_where_it_can_be_known() -> None:
    right = wallet()
    assert found(wallets=replace(right, after_atomic=right.after_atomic - 3)) == [("balance", 3)]
    assert found(wallets=replace(right, before_atomic=None, after_atomic=0)) == []
    # Of one run alone nothing is said about the wallet.
    moved = wallet(*MOVES, move("0x5", 5), after_atomic=0)
    assert found(wallets=moved, whole=False) == []


@pytest.mark.parametrize(
    ("payment", "answer", "expected"),
    [
        (4, Answer(None), [("job_gone", None)]),
        (4, Answer(JobFound(vendor_job_id="other", status="completed")), [("other_job", None)]),
        (3, Answer(JobFound(vendor_job_id="vjob-3", status="running")), [("job_unpaid", None)]),
        (4, replace(DONE, status=status("vjob-4", "failed", "1.4")), [("job_status", None)]),
        (4, replace(DONE, status=status("vjob-4", "completed", "1.5", final_metrics=METRICS)), [("job_cost", 100_000)]),
        (4, replace(DONE, status=status("vjob-4", "completed", "1e30", final_metrics=METRICS)), [("job_cost", None)]),
        (4, replace(DONE, status=status("vjob-4", "completed", "1.4")), [("job_metrics", None)]),
        (1, replace(FAILED, status=status("vjob-1", "failed", "0.7")), [("refund_amount", 700_000)]),
        (4, Answer(JobFound(vendor_job_id="vjob-4", status="running")), [("I3", None)]),
    ],
)
def test_what_a_vendor_says_otherwise_is_told(payment: int, answer: Answer, expected: Any) -> None:
    assert found(answers={f"run_1-payment-{payment}": answer}) == expected


def test_a_live_job_without_a_payment_of_ours_is_one_that_nobody_bought() -> None:
    stray = JobFound(vendor_job_id="stray", status="running", payment_id="run_9-payment-1")
    assert found(live=[("gpu_vendor_1", stray)]) == [("I6", None)]
    assert found(live=[("gpu_vendor_1", stray.model_copy(update={"payment_id": None}))]) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"payments": account().run.payments[1:]}, [("payment_missing", PRICE)]),
        ({"payments": (*account().run.payments, account().run.payments[0])[1:]}, []),
        ({"jobs": account().run.jobs[1:]}, [("job_missing", None)]),
        ({"goal": "another"}, [("run_differs", None)]),
        ({"next_tick_at": at(99), "cancel_requested_at": at(98)}, []),
    ],
)
def test_a_record_that_its_log_does_not_bear_out_is_told_once(changes: Any, expected: Any) -> None:
    books = books_of([account(**changes)])
    report = audit(books, World(wallets={OWN: wallet()}, answers=ANSWERS), whole=True)
    assert [(one.code, one.by_atomic) for one in report.differences] == expected


def test_a_payment_that_only_the_record_knows_and_one_that_differs_are_told() -> None:
    run = account().run
    more = replace(run.payments[1], payment_id="run_1-payment-9")
    [one] = books_of([account(payments=(*run.payments, more))])[0][1]
    assert (one.code, one.subject) == ("payment_unrecorded", "run_1-payment-9")
    dearer = replace(run.payments[0], amount_atomic=PRICE + 9)
    [one] = books_of([account(payments=(dearer, *run.payments[1:]))])[0][1]
    assert (one.code, one.by_atomic) == ("payment_differs", 9)


def test_a_log_that_is_harmed_is_one_difference_and_what_it_still_knows_counts() -> None:
    whole = account()
    text = replace(whole.entries[5], content="all is well")
    harmed = replace(whole, entries=(*whole.entries[:5], text, *whole.entries[6:]))
    without = replace(harmed, run=replace(harmed.run, payments=harmed.run.payments[1:]))
    cut = replace(whole, entries=whole.entries[:-1])
    headless = replace(whole, entries=whole.entries[1:])
    for one, expected in (
        (harmed, ["log_broken"]),
        (without, ["log_broken", "payment_missing"]),
        (cut, ["log_cut"]),
        (headless, ["log_unreadable"]),
        (replace(whole, entries=()), ["log_unreadable"]),
    ):
        world = World(wallets={OWN: wallet()}, answers=ANSWERS)
        assert [found.code for found in audit(books_of([one]), world, whole=True).differences] == expected
