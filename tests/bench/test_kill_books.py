"""What a trial's check says of books that agree, and of each way in which they do not."""

from dataclasses import replace
from typing import Any

import pytest

from agent.core.invariants import Settlement, VendorJob
from agent.core.model import Budget
from bench.books import Moved
from bench.kill.books import WRONGS, Seen, wrongs
from bench.kill.points import POINTS, draw
from tests.agent.core.values import PAY_TO, PAYER, PRICE, a_job, a_payment, a_run

BUDGET = Budget(total_atomic=5_000_000, available_atomic=5_000_000 - PRICE, reserved_atomic=0, spent_atomic=PRICE)
PAID = a_payment(1, amount_atomic=PRICE, status="completed")
RUN = a_run(
    status="completed", budget=BUDGET, jobs=(a_job(1, status="completed", vendor_job_id="vjob-1"),), payments=(PAID,)
)
SETTLED = Settlement(payer=PAYER, nonce=PAID.nonce, pay_to=PAY_TO, amount_atomic=PRICE)
SENT_BACK = Moved(sender=PAY_TO.lower(), receiver=PAYER.lower(), amount_atomic=1, transaction="0x" + "ab" * 32, index=4)
UNKNOWN = replace(SETTLED, nonce="0x" + "77" * 32)
JOB = VendorJob(vendor_id="gpu_vendor_1", vendor_job_id="vjob-1", payment_id=PAID.payment_id, status="completed")
DAY = f"{PAID.network}:{PAID.asset.lower()}:{PAYER.lower()}:{PAID.created_at:%Y-%m-%d}"
HOLDS = {DAY: PRICE, f"{DAY}:{PAID.vendor_id}": PRICE, f"once:{PAID.vendor_id}:{RUN.jobs[0].vendor_job_id}": 1}
SEEN = Seen(
    run=RUN,
    payer=PAYER,
    settlements=(SETTLED,),
    transfers=(),
    jobs=(JOB,),
    holds=HOLDS,
    balances={PAYER: -PRICE, PAY_TO: PRICE},
)


def test_books_that_agree_have_nothing_wrong() -> None:
    assert wrongs(SEEN) == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"settlements": (SETTLED, UNKNOWN)}, "double_payments"),
        ({"settlements": (SETTLED, SETTLED)}, "double_payments"),
        ({"settlements": (UNKNOWN,)}, "lost_payments"),
        ({"settlements": ()}, "lost_payments"),
        ({"jobs": ()}, "lost_payments"),
        ({"balances": {PAYER: -5_000_001, PAY_TO: PRICE}}, "overspend"),
        ({"balances": {PAYER: -PRICE - 1, PAY_TO: PRICE}}, "books_differ"),
        ({"balances": {PAYER: -PRICE, PAY_TO: PRICE - 1}}, "books_differ"),
        ({"settlements": ()}, "jobs_unpaid"),
        ({"jobs": (JOB, replace(JOB, payment_id="another"))}, "jobs_unpaid"),
        ({"jobs": (replace(JOB, status="running"),)}, "jobs_left_running"),
        ({"transfers": (SENT_BACK,)}, "refunds_differ"),
        ({"run": replace(RUN, payments=(replace(PAID, status="refunded", refunded_atomic=1),))}, "refunds_differ"),
        ({"run": replace(RUN, budget=replace(BUDGET, available_atomic=0))}, "invariants_broken"),
        ({"jobs": (JOB, replace(JOB, vendor_job_id="vjob-2"))}, "invariants_broken"),
        ({"holds": {}}, "holds_differ"),
        ({"holds": {**HOLDS, DAY: PRICE + 1}}, "holds_differ"),
        ({"holds": {**HOLDS, "once:another": 1}}, "holds_differ"),
        ({"replay": ("the log is broken at 3",)}, "replays_differ"),
        ({"results": "run_1-job-1 has the lines []"}, "results_differ"),
        ({"run": replace(RUN, status="running")}, "stuck"),
    ],
)
def test_each_wrong_is_seen_and_told(changes: dict[str, Any], name: str) -> None:
    found = wrongs(replace(SEEN, **changes))
    assert all(detail for _, detail in found)
    names = {found_name for found_name, _ in found}
    assert name in names
    assert names <= set(WRONGS)


def test_a_cheque_of_ours_that_was_settled_twice_over_is_one_double_payment() -> None:
    again = a_payment(2, amount_atomic=PRICE, status="completed", job_id=PAID.job_id)
    twice = replace(RUN, payments=(PAID, again))
    found = wrongs(replace(SEEN, run=twice, settlements=(SETTLED, replace(SETTLED, nonce=again.nonce))))
    assert [name for name, _ in found].count("double_payments") == 1


def test_a_trial_is_drawn_again_from_its_seed() -> None:
    for point in POINTS.values():
        drawn = [draw(point, seed) for seed in range(60)]
        assert drawn == [draw(point, seed) for seed in range(60)]
        assert {one.scene for one in drawn} == set(point.scenes)
        assert {one.call for one in drawn} == set(range(1, point.calls_max + 1))
