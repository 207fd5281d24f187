"""Books against facts, purely: every kind of difference by its code, and by how much."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from agent.core.audit import Account, Answer, Report, Unchecked, Wallet, World, audit, books_of, next_nonces
from agent.core.audit_log import Difference
from agent.core.cheque import payment_nonce
from agent.core.log import record
from agent.core.model import Run
from chain.moves import History, Move
from tests.agent.core.values import (
    EVENTS,
    PAY_TO,
    PAYER,
    PRICE,
    REFUND,
    SETTLEMENT,
    STARTED,
    USDC,
    a_job,
    a_payment,
    at,
)
from wire.vendor import JobFound, JobStatus, Refund

OWN, VENDOR = PAYER.lower(), PAY_TO.lower()
LAST = "0x" + "ef" * 32
VALID_BEFORE_S = 1_800_000_000


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
    values["finalized_s"] = VALID_BEFORE_S + 1
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


def audited(books: Account, world: World, *, whole: bool = True) -> Report:
    return audit(books_of([books]), world, USDC, whole=whole)


def found(
    *, wallets: Wallet | None = None, answers: dict[str, Answer] | None = None, whole: bool = True, **more: Any
) -> list[tuple[str, int | None]]:
    world = World(wallets={OWN: wallets or wallet()}, answers=ANSWERS | (answers or {}), **more)
    report = audited(account(), world, whole=whole)
    assert {one.run_id for one in report.differences} <= {"run_1", ""}
    return [(one.code, one.by_atomic) for one in report.differences]


def test_books_that_the_world_bears_out_have_no_difference() -> None:
    assert found() == []
    report = audited(account(), World())
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
        # A transfer of nothing, which anybody can write into our account's log.
        ((*MOVES, move("0x5", 0, receiver="0xee")), []),
        # Money that comes from anybody else is the owner's own affair.
        ((*MOVES, move("0x5", 5, sender="0xee", receiver=OWN)), []),
    ],
)
def test_what_the_chain_shows_otherwise_is_told_in_money(moves: tuple[Move, ...], expected: Any) -> None:
    assert found(wallets=wallet(*moves)) == expected


def test_a_lost_payment_of_a_run_is_known_by_its_nonce() -> None:
    lost = replace(move("0x5", 5), nonce=payment_nonce("run_1", 5))
    world = World(wallets={OWN: wallet(*MOVES, lost)}, answers=ANSWERS)
    [one] = audited(account(), world).differences
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
        (
            1,
            replace(
                FAILED,
                status=status(
                    "vjob-1", "failed", "0.7", refund=BACK.model_copy(update={"amount": Decimal("0.70000001")})
                ),
            ),
            [("refund_amount", 700_000)],
        ),
        # It ended in our books and goes on: I3 tells it, and nothing else does.
        (
            1,
            Answer(JobFound(vendor_job_id="vjob-1", status="running"), status("vjob-1", "running", "0.9")),
            [("I3", None)],
        ),
        (4, Answer(JobFound(vendor_job_id="vjob-4", status="running")), [("I3", None)]),
    ],
)
def test_what_a_vendor_says_otherwise_is_told(payment: int, answer: Answer, expected: Any) -> None:
    assert found(answers={f"run_1-payment-{payment}": answer}) == expected


def test_a_job_that_we_gave_up_as_lost_and_that_the_sweep_cancelled_is_no_difference() -> None:
    swept = status("vjob-1", "cancelled", "0.7", refund=BACK)
    assert found(answers={"run_1-payment-1": replace(FAILED, status=swept)}) == []
    # What came back is compared all the same, and what we cancelled and the vendor calls failed is told.
    less = swept.model_copy(update={"refund": None})
    assert found(answers={"run_1-payment-1": replace(FAILED, status=less)}) == [("refund_amount", 700_000)]
    done = replace(DONE, status=status("vjob-4", "cancelled", "1.4", final_metrics=METRICS))
    assert found(answers={"run_1-payment-4": done}) == [("job_status", None)]


@pytest.mark.parametrize(
    ("payment", "next_tick_at", "refund", "expected"),
    [
        ({"status": "completed"}, None, None, [("job_unclaimed", PRICE)]),
        ({"status": "completed"}, at(9), None, [("job_unclaimed", PRICE)]),
        # Announced, and looked for: a tick will count it.
        ({"status": "completed"}, at(9), "1.4", []),
        ({"status": "completed", "refund": account().run.payments[0].refund}, at(9), None, []),
        ({"status": "completed"}, None, "1.4", [("job_unclaimed", PRICE)]),
        ({"status": "refunded", "refunded_atomic": 1_000_000}, None, "1.0", [("job_unclaimed", 400_000)]),
        ({"status": "refunded", "refunded_atomic": PRICE}, None, "1.4", []),
        ({"status": "refunded", "refunded_atomic": PRICE}, None, "1.3", [("refund_amount", 100_000)]),
    ],
)
def test_a_job_that_was_paid_and_never_heard_of_is_told_by_what_did_not_come_back(
    payment: dict[str, Any], next_tick_at: Any, refund: str | None, expected: Any
) -> None:
    paid = a_payment(1, transaction=SETTLEMENT, **payment)
    run = replace(STARTED, jobs=(a_job(1, status="failed"),), payments=(paid,), next_tick_at=next_tick_at)
    back = None if refund is None else BACK.model_copy(update={"amount": Decimal(refund)})
    answer = Answer(
        JobFound(vendor_job_id="vjob-1", status="cancelled"), status("vjob-1", "cancelled", "0", refund=back)
    )
    report = audit([(run, [])], World(answers={paid.payment_id: answer}), USDC, whole=True)
    assert [(one.code, one.by_atomic) for one in report.differences if one.code not in ("I1", "I6")] == expected


def test_a_payment_whose_job_is_in_no_book_is_held_against_the_chain_alone() -> None:
    run = replace(account().run, jobs=account().run.jobs[1:])
    world = World(wallets={OWN: wallet()}, answers=ANSWERS)
    assert audit([(run, [])], world, USDC, whole=True).differences == ()


def test_money_that_was_given_back_while_its_cheque_can_be_cashed_is_told() -> None:
    nonce = f"0x{3:064x}"
    early = wallet(finalized_s=VALID_BEFORE_S)
    assert found(wallets=early) == [("released_early", PRICE)]
    cancelled = replace(early, history=replace(early.history, cancelled=(nonce,)))
    assert found(wallets=cancelled) == []
    # Once: of one that was cashed besides nothing else is told.
    cashed = wallet(*MOVES, move("0x3", PRICE, 3), finalized_s=VALID_BEFORE_S)
    assert found(wallets=cashed) == [("paid_after_all", PRICE)]


def test_a_live_job_of_a_run_that_nobody_here_knows_is_not_ours_to_judge() -> None:
    stray = JobFound(vendor_job_id="stray", status="running", payment_id="run_9-payment-1")
    world = World(wallets={OWN: wallet()}, answers=ANSWERS, live=[("gpu_vendor_1", stray)])
    report = audited(account(), world)
    assert (report.differences, len(report.unchecked)) == ((), 1)
    why = "gpu_vendor_1 works on it; it was bought by a run that this store does not know"
    assert report.unchecked[0] == Unchecked("", "stray", why)
    assert found(live=[("gpu_vendor_1", stray.model_copy(update={"payment_id": None}))]) == []


@pytest.mark.parametrize(
    ("vendor_id", "payment_id", "run_id"),
    [("gpu_vendor_1", "run_1-payment-9", ""), ("gpu_vendor_2", "run_1-payment-4", "run_1")],
)
def test_a_live_job_that_no_payment_to_that_vendor_bought_is_told(vendor_id: str, payment_id: str, run_id: str) -> None:
    live = JobFound(vendor_job_id="stray", status="running", payment_id=payment_id)
    world = World(wallets={OWN: wallet()}, answers=ANSWERS, live=[(vendor_id, live)])
    assert [(one.code, one.run_id, one.subject) for one in audited(account(), world).differences] == [
        ("I6", run_id, "stray")
    ]


@pytest.mark.parametrize(
    ("doors", "vendor_job_id", "expected"),
    [
        # One seller under two names lists under both what it was paid for under one.
        (("http://a", "http://a"), "vjob-4", []),
        (("http://a", "http://a"), "vjob-5", ["I6"]),
        (("http://a", "http://b"), "vjob-4", ["I6"]),
    ],
)
def test_a_seller_under_two_names_may_list_a_job_twice(
    doors: tuple[str, str], vendor_job_id: str, expected: list[str]
) -> None:
    live = JobFound(vendor_job_id=vendor_job_id, status="running", payment_id="run_1-payment-4")
    running = replace(DONE, found=DONE.found and DONE.found.model_copy(update={"status": "running"}))
    world = World(
        wallets={OWN: wallet()},
        answers={"run_1-payment-4": running},
        live=[("gpu_vendor_2", live)],
        doors={"gpu_vendor_1": doors[0], "gpu_vendor_2": doors[1]},
    )
    run = account().run
    run = replace(run, status="running", jobs=(*run.jobs[:3], replace(run.jobs[3], status="running")))
    report = audit([(run, [])], world, USDC, whole=True)
    assert [one.code for one in report.differences] == expected


def test_one_cause_is_told_once_and_hides_nothing_of_another_job() -> None:
    unpaid = Answer(JobFound(vendor_job_id="vjob-3", status="running"))
    goes_on = replace(DONE, found=JobFound(vendor_job_id="vjob-4", status="running"), status=None)
    world = World(wallets={OWN: wallet()}, answers=ANSWERS | {"run_1-payment-3": unpaid, "run_1-payment-4": goes_on})
    assert [(one.code, one.subject) for one in audited(account(), world).differences] == [
        ("job_unpaid", "run_1-job-3"),
        ("I3", "run_1-job-4"),
    ]


@pytest.mark.parametrize("whole", [True, False])
def test_a_cheque_that_was_cashed_and_never_stored_is_known_by_the_nonce_that_comes_next(whole: bool) -> None:
    run = account().run
    next_one = payment_nonce("run_1", 4)
    assert next_one in next_nonces(run)
    seen = World(wallets={OWN: wallet()}, answers=ANSWERS, used=[(OWN, next_one), ("0xee", payment_nonce("run_1", 1))])
    [one, other] = audited(account(), seen, whole=whole).differences
    assert (one.code, one.run_id, one.subject, one.by_atomic) == ("payment_unknown", "run_1", next_one, None)
    assert (other.code, "a cheque of 0xee" in other.world) == ("payment_unknown", True)
    # Its amount is told where the transfer is among those that were read, and it is told once.
    cashed = wallet(*MOVES, replace(move("0x5", 5), nonce=next_one))
    [one] = audited(account(), replace(seen, wallets={OWN: cashed}, used=seen.used[:1]), whole=whole).differences
    assert (one.code, one.run_id, one.subject, one.by_atomic) == ("payment_unknown", "run_1", "0x5", 5)


def test_the_nonces_that_come_next_are_the_next_one_and_those_of_payments_that_were_dropped() -> None:
    paid = [a_payment(number, nonce=payment_nonce("run_1", number)) for number in (1, 2, 3)]
    run = replace(STARTED, payments=tuple(paid))
    assert next_nonces(run) == [payment_nonce("run_1", 4)]
    assert next_nonces(replace(run, payments=tuple(paid[1:]))) == [payment_nonce("run_1", 1)]


def ticked(**changes: Any) -> Run:
    return replace(account().run, **changes)


def test_what_no_tick_explains_is_told_of_books_that_never_stand_still() -> None:
    stray = JobFound(vendor_job_id="stray", status="running", payment_id="run_1-payment-9")
    moves = (*MOVES[1:], move("0x5", 5), move("0x6", 6, nonce=99))
    lost = wallet(*moves, replace(move("0x7", 7), nonce=payment_nonce("run_1", 5)), after_atomic=3)
    world = World(wallets={OWN: lost}, answers=ANSWERS, live=[("gpu_vendor_1", stray)], later=[ticked()])
    report = audited(account(), world)
    # The first payment is not on the chain either: that is of the run, which is read again.
    assert report.late == ("run_1",)
    assert [(one.code, one.run_id, one.subject) for one in report.differences] == [
        ("moved_out", "", "0x5"),
        ("payment_unknown", "", "0x6"),
        ("payment_unknown", "run_1", "0x7"),
        ("balance", "", OWN),
        ("I6", "", "stray"),
    ]


def test_what_a_tick_explains_is_not_told() -> None:
    more = a_payment(
        5, status="completed", nonce=payment_nonce("run_1", 4), payment_id="run_1-payment-5", from_block=20
    )
    new = replace(move("0x5", PRICE), nonce=more.nonce)
    live = JobFound(vendor_job_id="vjob-5", status="running", payment_id="run_1-payment-5")
    world = World(wallets={OWN: wallet(*MOVES, new)}, answers=ANSWERS, live=[("gpu_vendor_1", live)])
    world = replace(world, used=[(OWN, more.nonce)])
    assert [one.code for one in audited(account(), world).differences] == ["payment_unknown", "I6"]
    now = ticked(payments=(*account().run.payments, more), jobs=(*account().run.jobs, a_job(5)), status="running")
    report = audited(account(), replace(world, later=[now]))
    assert (report.differences, report.unchecked, report.late) == ((), (), ())


@pytest.mark.parametrize(
    ("payment", "expected"),
    [
        # It may be a refund that nobody has announced yet, one that was counted meanwhile, or neither.
        ({"status": "completed"}, ([], 1)),
        ({"status": "refunded", "refund": replace(account().run.payments[0].refund, transaction="0x5")}, ([], 0)),
        ({"status": "unknown"}, (["moved_in"], 0)),
        ({"status": "completed", "amount_atomic": 4}, (["moved_in"], 0)),
        ({"status": "completed", "from_block": 21}, (["moved_in"], 0)),
        ({"status": "completed", "pay_to": "0x" + "ee" * 20}, (["moved_in"], 0)),
    ],
)
def test_money_that_came_while_runs_were_ticked_is_judged_by_what_may_return(
    payment: dict[str, Any], expected: tuple[list[str], int]
) -> None:
    came = wallet(*MOVES, move("0x5", 5, sender=VENDOR, receiver=OWN))
    other = replace(a_payment(1, nonce="0x" + "77" * 32, payment_id="run_2-payment-1"), **payment)
    later = replace(STARTED, run_id="run_2", payments=(other,))
    report = audited(account(), World(wallets={OWN: came}, answers=ANSWERS, later=[later]))
    assert ([one.code for one in report.differences], len(report.unchecked)) == expected


def test_runs_of_another_asset_are_not_counted_in_this_one() -> None:
    other = replace(USDC, decimals=2, symbol="XYZ")
    world = World(wallets={OWN: wallet(*MOVES, move("0x5", 5))})
    first, *rest = account().run.payments
    elsewhere = replace(first, nonce="0x" + "77" * 32)
    foreign = replace(account().run, asset=other, run_id="run_0", payments=(elsewhere, *rest))
    dearer = Difference(code="payment_differs", run_id="run_0", subject="x", books="", world="", by_atomic=9)
    report = audit([(foreign, [dearer]), *books_of([account()])], world, USDC, whole=True)
    assert next(one for one in report.differences if one.code == "payment_differs").by_atomic is None
    assert (report.runs, report.payments, report.spent_atomic) == (2, 6, 2_100_000)
    [one] = [one for one in report.differences if one.code != "payment_differs"]
    assert one.code == "moved_out"
    assert one.world.startswith("0.000005 USDC went to")


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
    report = audited(account(**changes), World(wallets={OWN: wallet()}, answers=ANSWERS))
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
        assert [found.code for found in audited(one, world).differences] == expected
