"""What a simulated vendor keeps: orders, jobs and refunds. All of it follows from its clock and its lies."""

from dataclasses import dataclass, field
from typing import Literal

from agent.core.invariants import VendorJob
from bench.sim.chain import Transfer
from wire.vendor import VendorJobStatus
from wire.x402 import Authorization

End = Literal["completed", "failed", "cancelled"]

START_S = 2.0
LINE_S = 4.0


@dataclass
class Job:
    """One job in a vendor's books, by the world's clock. `polls` and `misses` are what its buyer went through."""

    vendor_job_id: str
    payment_id: str
    amount_atomic: int
    began_s: float
    ends_s: float
    end: End
    stubborn: bool = False
    cancelled_s: float | None = None
    refund: "Promise | None" = None
    is_refund_due: bool = True
    cancels_asked: int = 0
    missed_s: list[float] = field(default_factory=list)

    def status(self, now_s: float) -> VendorJobStatus:
        if self.cancelled_s is not None:
            return "cancelled"
        if now_s >= self.ends_s:
            return self.end
        return "submitted" if now_s < self.began_s + START_S else "running"

    def ended_s(self) -> float:
        return self.ends_s if self.cancelled_s is None else self.cancelled_s

    def lines(self, now_s: float) -> int:
        """Return how many lines its log has."""
        return int((min(now_s, self.ended_s()) - self.began_s) / LINE_S) + 1

    def is_live(self, now_s: float) -> bool:
        return self.status(now_s) in ("submitted", "running")


@dataclass
class Promise:
    """A refund as the vendor tells of it; `transfer` is what it really sent, if anything."""

    amount_atomic: int
    transaction: str
    transfer: Transfer | None


@dataclass
class Order:
    """One paid submission: the cheque and what the vendor does with it, a fault's name or None."""

    payment_id: str
    request: str
    header: str
    cheque: Authorization
    plan: str | None
    transfer: Transfer | None = None
    job: Job | None = None


@dataclass
class Seller:
    """One vendor. `asked` are the amounts that its 402s asked for, by payment id."""

    vendor_id: str
    pay_to: str
    per_hour_atomic: int
    dialect: Literal["x402-v2", "x402-v1"] = "x402-v2"
    away_until_s: float = 0.0
    asked: dict[str, set[int]] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)

    def listing(self, now_s: float) -> list[VendorJob]:
        return [
            VendorJob(
                vendor_id=self.vendor_id,
                vendor_job_id=job.vendor_job_id,
                payment_id=job.payment_id,
                status=job.status(now_s),
            )
            for job in self.jobs.values()
        ]
