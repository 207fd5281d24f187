"""
Faults on demand: what a vendor does wrong, scripted per vendor, so that a buyer can be tested against it.

A script is data; what is left of its counted faults lives in the `FaultBoard` of one process.
"""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated

from pydantic import Field

from cashier.core.model import Price
from wire.decimal_json import DecimalNumber
from wire.model import Body
from wire.money import Amount


class Faults(Body):
    """
    What one vendor does wrong. `routes` limits slowness, errors, HTML and headers to those paths; empty means all.

    `price_factor` and the four after it falsify the 402 alone, never the quote.
    """

    fail_at_epoch: Annotated[int, Field(ge=1, le=3)] | None = None
    timeouts_after_settling: Annotated[int, Field(ge=0)] = 0
    price_factor: Annotated[DecimalNumber, Field(gt=0)] = Decimal(1)
    amount_atomic: Annotated[int, Field(gt=0)] | None = None
    pay_to: str | None = None
    asset: str | None = None
    network: str | None = None
    errors: Annotated[int, Field(ge=0)] = 0
    slow_seconds: Annotated[DecimalNumber, Field(ge=0)] = Decimal(0)
    answer_html: bool = False
    lie_about_progress: bool = False
    header_bytes: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    routes: tuple[str, ...] = ()

    def apply_to(self, path: str) -> bool:
        return not self.routes or path in self.routes

    def falsify(self, price: Price) -> Price:
        """Return the price that the 402 asks instead of `price`."""
        atomic = self.amount_atomic or int(price.amount.atomic * self.price_factor)
        amount = Amount(atomic, self.asset or price.amount.asset, self.network or price.amount.network)
        return Price(amount=amount, pay_to=self.pay_to or price.pay_to, description=price.description)


NONE = Faults()


@dataclass(slots=True)
class FaultBoard:
    """The scripts in force and what is left of their counted faults; `script` replaces one while running."""

    scripts: dict[str, Faults] = field(default_factory=dict)
    _used: dict[tuple[str, str], int] = field(default_factory=dict)

    def script(self, vendor_id: str, faults: Faults) -> None:
        self.scripts[vendor_id] = faults
        self._used = {key: count for key, count in self._used.items() if key[0] != vendor_id}

    def of(self, vendor_id: str) -> Faults:
        return self.scripts.get(vendor_id, NONE)

    def take_error(self, vendor_id: str) -> bool:
        """Return whether this request is one of the vendor's `errors`."""
        return self._take(vendor_id, "errors", self.of(vendor_id).errors)

    def take_timeout(self, vendor_id: str) -> bool:
        """Return whether this settled request is one of those that are never answered."""
        return self._take(vendor_id, "timeouts", self.of(vendor_id).timeouts_after_settling)

    def _take(self, vendor_id: str, kind: str, limit: int) -> bool:
        used = self._used.get((vendor_id, kind), 0)
        if used >= limit:
            return False
        self._used[vendor_id, kind] = used + 1
        return True
