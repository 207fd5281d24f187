"""
Faults on demand: what a vendor does wrong, scripted per vendor, so that a buyer can be tested against it.

A script is data; what is left of its counted faults lives in the `FaultBoard` of one process.
"""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import Annotated

from pydantic import Field

from cashier.core.model import Price
from vendor_mock.attacks import attacks
from wire.decimal_json import DecimalNumber
from wire.model import Body
from wire.money import Amount


class Faults(Body):
    """
    What one vendor does wrong. `routes` limits slowness, errors, HTML and headers to those paths; empty means all.

    `price_factor` and the four after it falsify the 402 alone, never the quote; with `honest_asks` not the first ones
    of each quote. `attacks` is the seed of what is said in place of all words (`vendor_mock.attacks`), `attacks_from`
    and `attacks_count` which of them; `error_share` draws with `seed`. A vendor whose job comes to `vanish_at_epoch`
    is heard of no more; nothing is sold to the payers in `refuses`.
    """

    fail_at_epoch: Annotated[int, Field(ge=1, le=3)] | None = None
    vanish_at_epoch: Annotated[int, Field(ge=1, le=3)] | None = None
    refuses: tuple[str, ...] = ()
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
    honest_asks: Annotated[int, Field(ge=0)] = 0
    reuse_job_ids: bool = False
    error_share: Annotated[DecimalNumber, Field(ge=0, le=1)] = Decimal(0)
    no_artifacts: bool = False
    false_refunds: bool = False
    attacks: int | None = None
    attacks_from: Annotated[int, Field(ge=0)] = 0
    attacks_count: Annotated[int, Field(ge=1, le=1_000)] = 50
    seed: int = 0
    routes: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """Return what is said in place of all words, nothing where the vendor speaks as it should."""
        if self.attacks is None:
            return ()
        return attacks(self.attacks)[self.attacks_from :][: self.attacks_count]

    def apply_to(self, path: str) -> bool:
        return not self.routes or path in self.routes

    def falsify(self, price: Price, asked_before: int = 0) -> Price:
        """Return the price that the 402 asks instead of `price`, which was `asked_before`, so many times."""
        if asked_before < self.honest_asks:
            return price
        atomic = self.amount_atomic or int(price.amount.atomic * self.price_factor)
        amount = Amount(atomic, self.asset or price.amount.asset, self.network or price.amount.network)
        return Price(amount=amount, pay_to=self.pay_to or price.pay_to, description=price.description)


NONE = Faults()


@dataclass(slots=True)
class FaultBoard:
    """
    The scripts in force and what is left of their counted faults; `script` replaces one while running.

    `done` is how many "errors" and "timeouts" each vendor really made, by its id, whatever was scripted since;
    `vanished` are those that are heard of no more until another script.
    """

    scripts: dict[str, Faults] = field(default_factory=dict)
    done: Counter[tuple[str, str]] = field(default_factory=Counter)
    vanished: set[str] = field(default_factory=set)
    _asked: dict[str, int] = field(default_factory=dict)
    _chances: dict[int, Random] = field(default_factory=dict)
    _used: dict[tuple[str, str], int] = field(default_factory=dict)

    def script(self, vendor_id: str, faults: Faults) -> None:
        self.scripts[vendor_id] = faults
        self.vanished.discard(vendor_id)
        self._used = {key: count for key, count in self._used.items() if key[0] != vendor_id}

    def of(self, vendor_id: str) -> Faults:
        return self.scripts.get(vendor_id, NONE)

    def take_error(self, vendor_id: str) -> bool:
        """Return whether this request is one of the vendor's `errors`, or of the share of all that fail."""
        faults = self.of(vendor_id)
        if faults.error_share:
            chance = self._chances.setdefault(faults.seed, Random(faults.seed))  # noqa: S311 - a simulation
            is_wrong = chance.random() < faults.error_share
            self.done[vendor_id, "errors"] += is_wrong
            return is_wrong
        return self._take(vendor_id, "errors", faults.errors)

    def asked_before(self, vendor_id: str, template_id: str) -> int:
        """Return how often the price of a quote was asked before, and count once more where that matters."""
        if not self.of(vendor_id).honest_asks:
            return 0
        self._asked[template_id] = self._asked.get(template_id, 0) + 1
        return self._asked[template_id] - 1

    def take_timeout(self, vendor_id: str) -> bool:
        """Return whether this settled request is one of those that are never answered."""
        return self._take(vendor_id, "timeouts", self.of(vendor_id).timeouts_after_settling)

    def _take(self, vendor_id: str, kind: str, limit: int) -> bool:
        used = self._used.get((vendor_id, kind), 0)
        if used >= limit:
            return False
        self._used[vendor_id, kind] = used + 1
        self.done[vendor_id, kind] += 1
        return True
