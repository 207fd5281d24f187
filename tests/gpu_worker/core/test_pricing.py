"""What was used and what is paid back are the price, whatever the end."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core import pricing
from gpu_worker.core.model import Job
from wire.vendor import ResumeFrom

HASH = "a" * 64


def job(**fields: object) -> Job:
    known = {
        "job_id": "job_1",
        "vendor_id": "worker",
        "payment_id": "pay_1",
        "gpu_type": "CPU",
        "hours": Decimal(1),
        "price_atomic": 1_000_000,
        "started_at_s": 1_000,
        "kind": "fine_tune",
    }
    return Job(**{**known, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("used_s", "used"), [("0", 0), ("0.001", 1), ("36", 10_000), ("36.0001", 10_001), ("3600", 10**6), ("9999", 10**6)]
)
def test_what_was_used_is_by_the_second_rounded_up_and_never_above_the_price(used_s: str, used: int) -> None:
    assert pricing.used_atomic(job(used_s=Decimal(used_s))) == used


@pytest.mark.parametrize(
    ("status", "fault", "step", "back"),
    [
        ("completed", None, 20, 990_000),
        ("cancelled", None, 5, 990_000),
        ("cancelled", None, 0, 990_000),
        ("failed", "buyer", 5, 990_000),
        ("failed", "world", 5, 990_000),
        # Nothing was done, or it was not the buyer's doing: all of it.
        ("failed", "buyer", 0, 1_000_000),
        ("failed", "owner", 5, 1_000_000),
    ],
)
def test_what_is_paid_back(status: str, fault: str | None, step: int, back: int) -> None:
    assert pricing.refund_atomic(job(status=status, fault=fault, step=step, used_s=Decimal(36))) == back


def test_a_container_that_fails_after_hours_of_work_has_worked() -> None:
    failed = job(kind="container", status="failed", fault="buyer", step=0, used_s=Decimal(1800))
    assert pricing.refund_atomic(failed) == 500_000
    assert pricing.refund_atomic(replace(failed, used_s=Decimal(0))) == 1_000_000
    assert pricing.refund_atomic(replace(failed, fault="owner")) == 1_000_000


def test_a_step_of_the_worker_before_is_none_of_this_one() -> None:
    resume = ResumeFrom(
        model_hash=HASH, spec_hash=HASH, step=10, steps=20, bytes=1, url="http://x", manifest_sha256=HASH
    )
    failed = job(status="failed", fault="buyer", resume=resume, used_s=Decimal(36))

    assert pricing.refund_atomic(replace(failed, step=10)) == 1_000_000
    assert pricing.refund_atomic(replace(failed, step=11)) == 990_000


@pytest.mark.parametrize(
    ("marks", "step", "begins_at", "kept"),
    [
        ({"10": "4.0"}, 15, 10, "4.0"),
        ({"5": "2.0", "10": "4.0"}, 15, 5, "2.0"),
        # It stopped with a checkpoint, or one was made after the last look: nothing is lost.
        ({"10": "4.0"}, 15, 15, "6.5"),
        ({}, 15, 17, "6.5"),
        # Nobody saw the one that it goes on from, or there is none: nobody knows what it cost, so nobody pays.
        ({"5": "2.0"}, 15, 10, "2.0"),
        ({}, 15, 10, "0"),
        ({"10": "4.0"}, 15, None, "0"),
        # It never goes up.
        ({"10": "9.0"}, 15, 10, "6.5"),
    ],
)
def test_what_is_done_again_is_paid_once(marks: dict, step: int, begins_at: int | None, kept: str) -> None:
    seen = {mark: Decimal(seconds) for mark, seconds in marks.items()}

    assert pricing.kept_s(seen, Decimal("6.5"), step, begins_at) == Decimal(kept)


@given(
    price=st.integers(1, 10**15),
    hours=st.decimals("0.0001", "10000", places=4),
    used_s=st.decimals(0, 10**8, places=3),
)
def test_the_buyer_s_part_and_the_refund_are_the_price(price: int, hours: Decimal, used_s: Decimal) -> None:
    done = job(price_atomic=price, hours=hours, used_s=used_s, status="completed", step=1)
    refund = pricing.refund_atomic(done)
    ended = job(price_atomic=price, hours=hours, used_s=used_s, ended_at_s=2_000, refund_atomic=refund)

    assert 0 <= refund <= price
    assert pricing.cost_atomic(ended) + refund == price
    assert pricing.cost_atomic(ended) == pricing.used_atomic(done)


def test_a_price_has_a_least_and_an_end_has_a_time() -> None:
    assert pricing.price_of(1_000_000, 0, Decimal("0.0000001")) == 1
    assert pricing.price_of(1_000_000, 250_000, Decimal("0.1")) == 250_000
    assert pricing.ends_by_s(1_000, Decimal(1), None) == 4_600
    assert pricing.ends_by_s(1_000, Decimal(1), Decimal("0.0001")) == 1_001
    assert pricing.ends_by_s(1_000, Decimal("0.5"), Decimal(1)) == 2_800
