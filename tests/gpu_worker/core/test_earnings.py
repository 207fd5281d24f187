"""What was earned: by job, by hour, in all, and as a table that a spreadsheet reads."""

import csv
import io
from decimal import Decimal
from typing import Any

from gpu_worker.core import earnings
from gpu_worker.core.model import Job
from wire.money import BASE_SEPOLIA_USDC

HOUR = 3_600 * 490_000


def job(number: int, ended_at_s: int | None, **more: Any) -> Job:
    facts = {
        "job_id": f"job_{number}",
        "vendor_id": "worker",
        "payment_id": f"pay_{number}",
        "gpu_type": "CPU",
        "hours": Decimal(1),
        "price_atomic": 500_000,
        "started_at_s": 0,
        "ended_at_s": ended_at_s,
        "status": "running" if ended_at_s is None else "completed",
        "kind": "fine_tune",
        "payer": "0x01",
    }
    return Job(**{**facts, **more})


JOBS = (
    job(1, HOUR + 3_599, refund_atomic=400_000, refund_transaction="0xaa", used_s=Decimal(720)),
    job(2, HOUR, refund_atomic=0, used_s=Decimal(3_600)),
    job(3, None, used_s=Decimal(10)),
    job(4, HOUR + 3_600, refund_atomic=500_000, status="failed", payer="=cmd|' /C calc'!A0"),
)


def test_a_job_earns_its_price_less_its_refund_once_it_has_ended() -> None:
    found = earnings.rows(JOBS)
    assert [(one.job_id, one.kept_atomic, one.is_refund_sent) for one in found] == [
        ("job_2", 500_000, True),
        ("job_1", 100_000, True),
        ("job_4", 0, False),
    ]
    assert [one.job_id for one in earnings.rows(JOBS, since_s=HOUR + 3_600)] == ["job_4"]


def test_the_hours_add_up_to_the_total() -> None:
    found = earnings.rows(JOBS)
    hours, whole = earnings.per_hour(found), earnings.total(found)
    assert [(one.start_s, one.jobs, one.kept_atomic) for one in hours] == [(HOUR, 2, 600_000), (HOUR + 3_600, 1, 0)]
    assert sum(one.kept_atomic for one in hours) == whole.kept_atomic == whole.paid_atomic - whole.refunded_atomic
    # 600,000 in 4,320 seconds of work.
    assert (whole.jobs, whole.used_s, whole.per_hour_atomic) == (3, Decimal(4_320), 500_000)
    assert earnings.total(()).per_hour_atomic is None


def test_the_table_is_read_back_as_it_was_and_runs_nothing() -> None:
    read = list(csv.DictReader(io.StringIO(earnings.csv_text(earnings.rows(JOBS), BASE_SEPOLIA_USDC))))
    assert [(line["job"], line["paid"], line["refunded"], line["earned"]) for line in read] == [
        ("job_2", "0.5", "0", "0.5"),
        ("job_1", "0.5", "0.4", "0.1"),
        ("job_4", "0.5", "0.5", "0"),
    ]
    assert read[0]["ended"] == "2025-11-24T16:00:00Z"
    assert read[2]["payer"] == "'=cmd|' /C calc'!A0"
    assert {line["currency"] for line in read} == {"USDC"}
