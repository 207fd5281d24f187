"""What the machine earned: by job, by hour, and as a table for a spreadsheet."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from cashier.core.credit import HOUR_S, Income
from gpu_worker.core.model import Job
from wire.money import Asset, to_decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Earned:
    """
    One job that ended. `kept_atomic` is the price less the refund, whether that was sent already or is owed.

    `is_refund_sent` False: the refund still has to be paid. Amounts are atomic units.
    """

    job_id: str
    kind: str
    payer: str
    status: str
    ended_at_s: int
    used_s: Decimal
    price_atomic: int
    refund_atomic: int
    is_refund_sent: bool
    refund_transaction: str | None

    @property
    def kept_atomic(self) -> int:
        return self.price_atomic - self.refund_atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """An hour of UTC: what the jobs and the answers that ended in it brought, and how long the jobs worked."""

    start_s: int
    jobs: int
    kept_atomic: int
    used_s: Decimal
    answers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """`per_hour_atomic` is what an hour of work brought, rounded down; None while nothing has worked."""

    jobs: int
    paid_atomic: int
    refunded_atomic: int
    kept_atomic: int
    used_s: Decimal
    per_hour_atomic: int | None


def rows(jobs: Iterable[Job], since_s: int = 0) -> tuple[Earned, ...]:
    """Return the jobs that ended at `since_s` or later, the oldest end first."""
    ended = [
        Earned(
            job_id=job.job_id,
            kind=job.kind,
            payer=job.payer,
            status=job.status,
            ended_at_s=job.ended_at_s,
            used_s=job.used_s,
            price_atomic=job.price_atomic,
            refund_atomic=job.refund_atomic,
            is_refund_sent=job.refund_atomic == 0 or job.refund_transaction is not None,
            refund_transaction=job.refund_transaction,
        )
        for job in jobs
        if job.ended_at_s is not None and job.ended_at_s >= since_s
    ]
    return tuple(sorted(ended, key=lambda one: (one.ended_at_s, one.job_id)))


def per_hour(earned: Iterable[Earned], answers: Iterable[Income] = ()) -> tuple[Hour, ...]:
    """Return the hours in which jobs or answers ended, the oldest first."""
    found: dict[int, list[Earned]] = {}
    for one in earned:
        found.setdefault(one.ended_at_s - one.ended_at_s % HOUR_S, []).append(one)
    made = {income.hour_s: income for income in answers}
    hours = []
    for start_s in sorted({*found, *made}):
        of_hour, income = found.get(start_s, []), made.get(start_s)
        hours.append(
            Hour(
                start_s=start_s,
                jobs=len(of_hour),
                kept_atomic=sum(one.kept_atomic for one in of_hour) + (income.spent_atomic if income else 0),
                used_s=sum((one.used_s for one in of_hour), Decimal(0)),
                answers=income.requests if income else 0,
            )
        )
    return tuple(hours)


def total(earned: Iterable[Earned]) -> Total:
    every = tuple(earned)
    kept = sum(one.kept_atomic for one in every)
    used_s = sum((one.used_s for one in every), Decimal(0))
    return Total(
        jobs=len(every),
        paid_atomic=sum(one.price_atomic for one in every),
        refunded_atomic=sum(one.refund_atomic for one in every),
        kept_atomic=kept,
        used_s=used_s,
        per_hour_atomic=int(kept * 3_600 / used_s) if used_s else None,
    )


COLUMNS = ("ended", "job", "kind", "payer", "status", "worked_s", "paid", "refunded", "earned", "refund_transaction")


def csv_text(earned: Iterable[Earned], asset: Asset) -> str:
    """Return a line for each job under one of names; amounts are decimals of `asset`, times UTC."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*COLUMNS, "currency"))
    for one in earned:
        writer.writerow(
            (
                iso(one.ended_at_s),
                _plain(one.job_id),
                one.kind,
                _plain(one.payer),
                one.status,
                one.used_s,
                to_decimal(one.price_atomic, asset),
                to_decimal(one.refund_atomic, asset),
                to_decimal(one.kept_atomic, asset),
                one.refund_transaction or "",
                asset.symbol,
            )
        )
    return text.getvalue()


def iso(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _plain(text: str) -> str:
    # A spreadsheet runs what begins like a formula.
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
