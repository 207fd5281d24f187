"""What the suites' common books say of runs, transfers and counters that do and do not agree."""

from dataclasses import replace

from agent.core.log import record
from bench.books import Moved, overspend, unlike_holds, unlike_log, wanted_holds
from tests.agent.core.values import EVENTS, PAY_TO, PAYER, REFUND, STARTED, a_claim, a_job, a_payment, a_run

BACK = 700_000
FIRST = a_payment(1, status="refunded", refund=a_claim(BACK), refunded_atomic=BACK)
SECOND = a_payment(2, status="refunded", refund=a_claim(BACK), refunded_atomic=BACK)


def sent_back(index: int, amount_atomic: int = BACK) -> Moved:
    return Moved(
        sender=PAY_TO.lower(), receiver=PAYER.lower(), amount_atomic=amount_atomic, transaction=REFUND, index=index
    )


def test_each_counted_refund_holds_a_transfer_of_its_own() -> None:
    run = a_run(payments=(FIRST, SECOND), jobs=(a_job(1, vendor_job_id="vjob-1"),))
    held = wanted_holds([run], [sent_back(0, amount_atomic=1), sent_back(3), sent_back(7)])
    day = f"{FIRST.network}:{FIRST.asset.lower()}:{PAYER.lower()}:{FIRST.created_at:%Y-%m-%d}"
    assert held == {
        day: FIRST.amount_atomic + SECOND.amount_atomic,
        f"{day}:{FIRST.vendor_id}": FIRST.amount_atomic + SECOND.amount_atomic,
        f"once:{REFUND}:3": 1,
        f"once:{REFUND}:7": 1,
        "once:gpu_vendor_1:vjob-1": 1,
    }
    # One transfer cannot be the refund of two payments, whatever the store holds.
    assert unlike_holds(held, wanted_holds([run], [sent_back(3)])) != []


def test_a_failed_payment_counts_nowhere_and_an_empty_counter_is_none() -> None:
    wanted = wanted_holds([a_run(payments=(a_payment(1, status="failed"),))])
    assert wanted == {}
    assert unlike_holds({"given-back": 0}, wanted) == []
    assert unlike_holds({"left": 2}, wanted) == ["2 is held under left, payments and jobs are 0"]


def test_a_run_is_what_its_log_folds_to_to_the_bit() -> None:
    run, log = record(STARTED, EVENTS)
    assert unlike_log(run, log) == []
    assert unlike_log(replace(run, goal="another"), log) == [f"log {run.run_id}: it does not fold to the stored run"]
    assert unlike_log(run, log[:-1]) == [f"log {run.run_id}: it does not fold to the stored run"]
    broken = [*log[:4], *log[5:]]
    assert any("broken at" in line or "cannot be replayed" in line for line in unlike_log(run, broken))
    assert unlike_log(run, []) != []


def test_what_was_paid_over_a_budget_is_told() -> None:
    paid = a_payment(1, status="completed", amount_atomic=6_000_000)
    assert overspend([a_run(payments=(paid,)), a_run()]) == 1_000_000
    assert overspend([a_run(payments=(replace(paid, status="failed"),))]) == 0
