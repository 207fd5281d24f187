"""What is told of a run's events: which of them, in which words, and how often it is tried."""

from datetime import timedelta
from decimal import Decimal

from agent.core import log
from agent.core.model import Notice
from agent.core.notices import RETRIES_S, notices_of, retry_s
from tests.agent.core.values import EVENTS, REFUND, SETTLEMENT, STARTED, at
from wire import decimal_json


def told() -> list[Notice]:
    """Return what is told of a run in which every kind of event happens."""
    run, entries = log.record(STARTED, EVENTS[1:])
    return list(notices_of(run, zip(EVENTS[1:], entries, strict=True)))


def test_what_is_told_is_money_jobs_and_the_end_and_never_the_reasoning_or_a_log_line() -> None:
    assert [notice.kind for notice in told()] == [
        "payment.completed",
        "job.submitted",
        "job.failed",
        "refund.completed",
        "payment.failed",
        "job.cancelled",
        "payment.completed",
        "job.submitted",
        "job.completed",
        "run.completed",
    ]


def test_a_payload_says_what_happened_when_and_to_which_run_with_exact_money() -> None:
    payloads = [decimal_json.loads(notice.payload) for notice in told()]
    by_type = {payload["type"]: payload for payload in reversed(payloads)}
    payment = {
        **{"runId": "run_1", "paymentId": "run_1-payment-1", "jobId": "run_1-job-1", "vendorId": "gpu_vendor_1"},
        **{"amount": Decimal("1.4"), "currency": "USDC"},
    }
    assert by_type["payment.completed"] == {
        "type": "payment.completed",
        "timestamp": at(5).isoformat().replace("+00:00", "Z"),
        "data": {**payment, "transaction": SETTLEMENT},
    }
    assert by_type["refund.completed"]["data"] == {**payment, "amount": Decimal("0.7"), "transaction": REFUND}
    assert by_type["job.failed"]["data"] == {
        **{"runId": "run_1", "jobId": "run_1-job-1", "vendorId": "gpu_vendor_1", "currency": "USDC"},
        **{"actualCost": Decimal("0.7"), "errorMessage": "CUDA out of memory"},
    }
    assert by_type["run.completed"]["data"] == {"runId": "run_1", "budgetSpent": Decimal("2.1"), "currency": "USDC"}


def test_a_notice_is_named_by_the_entry_it_tells_so_that_it_is_the_same_each_time() -> None:
    assert told() == told()
    assert len({notice.notice_id for notice in told()}) == len(told())
    assert told()[0].notice_id == "msg_run_1_5"


def test_each_attempt_that_failed_is_followed_by_a_later_one_until_there_is_none() -> None:
    assert [retry_s(attempts) for attempts in range(1, 8)] == [5, 300, 1_800, 7_200, 18_000, 36_000, None]
    assert sum(RETRIES_S) < timedelta(days=1).total_seconds()
    assert retry_s(1_000) is None
