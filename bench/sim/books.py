"""What a simulated vendor keeps: orders, jobs and refunds. All of it follows from its clock and its lies."""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, Protocol

from agent.core.invariants import VendorJob
from agent.core.model import GpuPrice, Vendor
from bench.sim.chain import Transfer
from bench.sim.clock import at
from wire.money import BASE_SEPOLIA_USDC
from wire.vendor import JobFound, VendorJobStatus
from wire.x402 import Authorization

End = Literal["completed", "failed", "cancelled"]

START_S = 2.0
LINE_S = 4.0
# The longest that a job without a fault goes on.
WORK_S_MAX = 30.0
# How many steps the work of every job has, and how often one is kept.
STEPS = 20
CHECKPOINT_STEPS = 5
ENDS: dict[str | None, End] = {"job_failed": "failed", "job_cancelled_by_vendor": "cancelled"}


@dataclass
class Job:
    """
    One job in a vendor's books, by the world's clock. `fault` is what goes wrong with it.

    It goes on from step `begun`; `cost_atomic` is what it comes to when it is done.
    """

    vendor_job_id: str
    payment_id: str
    amount_atomic: int
    began_s: float
    ends_s: float
    fault: str | None = None
    stubborn: bool = False
    cancelled_s: float | None = None
    refund: "Promise | None" = None
    cancels_asked: int = 0
    has_shown: bool = False
    begun: int = 0
    cost_atomic: int = 0

    @property
    def end(self) -> End:
        return ENDS.get(self.fault, "completed")

    def status(self, now_s: float) -> VendorJobStatus:
        if self.cancelled_s is not None:
            return "cancelled"
        if now_s >= self.ends_s:
            return self.end
        return "submitted" if now_s < self.began_s + START_S else "running"

    def stop(self, fault: str | None, now_s: float) -> None:
        """End now, as asked; or go on all the same, or turn out to have been done already: `fault` says so."""
        self.stubborn = fault == "cancel_ignored"
        if fault == "cancel_too_late":
            self.ends_s, self.fault = now_s, None
        elif not self.stubborn:
            self.cancelled_s = now_s

    def ended_s(self) -> float:
        return self.ends_s if self.cancelled_s is None else self.cancelled_s

    def lines(self, now_s: float) -> int:
        """Return how many lines its log has."""
        return int((min(now_s, self.ended_s()) - self.began_s) / LINE_S) + 1

    def step(self, now_s: float) -> int:
        """Return how many steps of the work are done."""
        share = (min(now_s, self.ended_s()) - self.began_s) / max(self.ends_s - self.began_s, 1e-9)
        return self.begun + int(min(max(share, 0.0), 1.0) * (STEPS - self.begun))

    def is_live(self, now_s: float) -> bool:
        return self.status(now_s) in ("submitted", "running")

    def shows_fault(self, now_s: float) -> bool:
        """Return whether who asks now is the first to see `fault`: it ended by it, or goes on when no other would."""
        shown_s = self.began_s + WORK_S_MAX if self.fault == "job_without_end" else self.ends_s
        is_first = not self.has_shown and self.cancelled_s is None and now_s >= shown_s
        self.has_shown |= is_first
        return is_first

    def found(self, payment_id: str, now_s: float) -> JobFound:
        """Return what the vendor's list says of it, as bought by `payment_id`."""
        return JobFound(
            vendor_job_id=self.vendor_job_id,
            status=self.status(now_s),
            payment_id=payment_id,
            started_at=at(self.began_s),
        )


@dataclass
class Promise:
    """A refund as the vendor tells of it; `transfer` is what it really sent, if anything."""

    amount_atomic: int
    transaction: str
    transfer: Transfer | None


@dataclass
class Order:
    """
    One paid submission: the cheque and what the vendor does with it, a fault's name or None. `job` is what it does for
    the money; `sold` is the job of another purchase, which it names in its place.
    """

    payment_id: str
    request: str
    header: str
    cheque: Authorization
    plan: str | None
    transfer: Transfer | None = None
    job: Job | None = None
    sold: Job | None = None
    has_acted: bool = False


@dataclass
class Seller:
    """
    One vendor. `asked` are the amounts that its 402s asked for, by payment id; `by_use` gives back what was not used.
    """

    vendor_id: str
    pay_to: str
    per_hour_atomic: int
    dialect: Literal["x402-v2", "x402-v1"] = "x402-v2"
    by_use: bool = False
    is_slow: bool = False
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


class Looker(Protocol):
    """Is told when money moves and when work begins."""

    def settled(self, transfer: Transfer) -> None: ...
    def job_began(self, seller: Seller, job: Job) -> None: ...


def registered(seller: Seller) -> Vendor:
    """Return `seller` as the agent has it in its register."""
    return Vendor(
        vendor_id=seller.vendor_id,
        name=seller.vendor_id,
        endpoint="http://vendor.invalid",
        pay_to=seller.pay_to,
        asset=BASE_SEPOLIA_USDC.address,
        network=BASE_SEPOLIA_USDC.network,
        base_price_per_hour_atomic=seller.per_hour_atomic,
        reliability_score=Decimal("0.9"),
        supported_gpu_types=("A10",),
        created_at=at(0),
        updated_at=at(0),
        prices=(GpuPrice(gpu_type="A10", per_hour_atomic=seller.per_hour_atomic),),
    )
