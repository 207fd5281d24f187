"""
What may be paid, to whom, for what: checked before anything is reserved or signed. Refusals are values.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from agent.core.dialects import Challenge
from agent.core.model import Job, Payment, Run, Vendor
from agent.core.planning import listed_price
from wire.money import Asset, price_atomic
from wire.problems import REFUSALS
from wire.x402 import PaymentRequired, PaymentRequirements

# A 402 may ask for at most 1 % more than the quote, and a quote for 1 % more than the registered price; less is fine.
OVERPRICE_PERCENT_MAX = 1

# A cheque is out of our hands until it lapses: none is signed that lives longer.
CHEQUE_S_MAX = 600

# What a cheque can be made out to: `0X` and shorter words compare equal to a payee and cannot be signed for.
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a thing is not done; `code` is a key of `wire.problems.REFUSALS`."""

    code: str
    detail: str

    def __post_init__(self) -> None:
        if self.code not in REFUSALS:
            raise AssertionError(f"{self.code} is not in wire.problems.REFUSALS")

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """
    `amount_atomic` more under the cap of `scope` (negative gives it back), e.g. a wallet's day.

    The counter of a scope starts at 0 and never exceeds `cap_atomic` through a positive hold.
    """

    scope: str
    amount_atomic: int
    cap_atomic: int


def once(key: str) -> Hold:
    """Return the hold that one payment of all gets: a transfer is the refund of one, a vendor's job is sold to one."""
    return Hold(scope=f"once:{key}", amount_atomic=1, cap_atomic=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendingPolicy:
    """Caps in atomic units of `asset`, the one token and network this wallet pays in."""

    asset: Asset
    payment_atomic_max: int
    run_atomic_max: int
    vendor_day_atomic_max: int
    wallet_day_atomic_max: int


def check_quote(run: Run, vendor: Vendor, job: Job) -> Refusal | None:
    """Return why `job`'s quote is not taken, None where it is."""
    if (vendor.asset.lower(), vendor.network) != (run.asset.address.lower(), run.asset.network):
        return Refusal("vendor_other_asset", f"{vendor.vendor_id} is paid in {vendor.asset} on {vendor.network}")
    if job.expected_cost_atomic > run.budget.available_atomic:
        return Refusal("over_budget", "Quote exceeds budget")
    return check_hourly(run, job, job.expected_cost_atomic) or _check_listed(vendor, job)


def _check_listed(vendor: Vendor, job: Job) -> Refusal | None:
    # The planner chose by the registered price: another one is the owner's to accept.
    listed = listed_price(vendor, job.gpu_type)
    if listed is None:
        return None
    limit = price_atomic(listed, job.hours)
    if job.expected_cost_atomic * 100 > limit * (100 + OVERPRICE_PERCENT_MAX):
        return Refusal("over_listed_price", f"{job.expected_cost_atomic} is above {limit} for {job.hours} h")
    return None


def check_hourly(run: Run, job: Job, amount_atomic: int) -> Refusal | None:
    """Return whether `amount_atomic` for the job's hours is above what the run pays per hour."""
    cap = run.price_per_hour_atomic_max
    if cap is not None and amount_atomic > cap * job.hours:
        return Refusal("over_hourly_price", f"{amount_atomic} is above the run's maximum for {job.hours} h")
    return None


def choose_requirements(
    policy: SpendingPolicy, vendor: Vendor, quote_atomic: int, required: PaymentRequired
) -> PaymentRequirements | Refusal:
    """Return the first way to pay that the policy allows, or why the first `exact` one is refused."""
    refusal = Refusal("unsupported_scheme", "no way to pay is `exact` by EIP-3009")
    for offered in required.accepts:
        if offered.scheme != "exact" or offered.extra.get("assetTransferMethod", "eip3009") != "eip3009":
            continue
        broken = next(
            (code for code, holds in _TERMS.items() if not holds(policy, vendor, quote_atomic, offered)), None
        )
        if broken is None:
            return offered
        if refusal.code == "unsupported_scheme":
            refusal = Refusal(broken, _ask(offered))
    return refusal


def choose_challenge(
    policy: SpendingPolicy, vendor: Vendor, quote_atomic: int, challenges: Sequence[Challenge]
) -> tuple[Challenge, PaymentRequirements] | Refusal:
    """Return the first challenge with an offer that the policy allows, and the offer, or why the first is refused."""
    refusals: list[Refusal] = []
    for challenge in challenges:
        chosen = choose_requirements(policy, vendor, quote_atomic, challenge.required)
        if not isinstance(chosen, Refusal):
            return challenge, chosen
        refusals.append(Refusal(chosen.code, f"{challenge.dialect}: {chosen.detail}"))
    return refusals[0]


def check_terms(payment: Payment, challenges: Sequence[Challenge]) -> Refusal | None:
    """Return how a seller that was sent `payment` asks for something else now, None where it asks that or nothing."""
    offers = [offered for challenge in challenges for offered in challenge.required.accepts]
    signed = (payment.amount_atomic, payment.pay_to.lower(), payment.asset.lower(), payment.network)
    asked = [(int(ask.amount), ask.pay_to.lower(), ask.asset.lower(), ask.network) for ask in offers]
    if not offers or signed in asked:
        return None
    return Refusal("terms_changed", f"it was given the {payment.amount_atomic} it asked for, and {_ask(offers[0])}")


def check_caps(policy: SpendingPolicy, run: Run, amount_atomic: int) -> Refusal | None:
    """Return which of the run's own caps `amount_atomic` breaks; days are counted by the store (`holds_for`)."""
    paid_atomic = sum(payment.amount_atomic for payment in run.payments if payment.status != "failed")
    if amount_atomic > policy.payment_atomic_max:
        return Refusal("over_payment_cap", f"{amount_atomic} is above {policy.payment_atomic_max}")
    if paid_atomic + amount_atomic > policy.run_atomic_max:
        return Refusal("over_run_cap", f"{paid_atomic} + {amount_atomic} is above {policy.run_atomic_max}")
    if amount_atomic > run.budget.available_atomic:
        return Refusal("over_budget", f"{amount_atomic} is above the {run.budget.available_atomic} left")
    return None


def holds_for(
    policy: SpendingPolicy, payer: str, vendor_id: str, amount_atomic: int, day: datetime
) -> tuple[Hold, Hold]:
    """Return what a payment takes of the wallet's day and of the vendor's part in it (UTC day of `day`)."""
    wallet = f"{policy.asset.network}:{policy.asset.address.lower()}:{payer.lower()}:{day:%Y-%m-%d}"
    return (
        Hold(scope=wallet, amount_atomic=amount_atomic, cap_atomic=policy.wallet_day_atomic_max),
        Hold(scope=f"{wallet}:{vendor_id}", amount_atomic=amount_atomic, cap_atomic=policy.vendor_day_atomic_max),
    )


def refusal_of(hold: Hold, holds: tuple[Hold, Hold]) -> Refusal:
    """Return the refusal that the store's refused `hold` (one of `holds`) means."""
    return Refusal("over_day_cap" if hold == holds[0] else "over_vendor_cap", f"the cap is {hold.cap_atomic}")


def _ask(offered: PaymentRequirements) -> str:
    return f"asked {offered.amount} of {offered.asset} on {offered.network} to {offered.pay_to}"


_Term = Callable[[SpendingPolicy, Vendor, int, PaymentRequirements], bool]

# What a 402 must be true to, by the refusal that names its breach.
_TERMS: Mapping[str, _Term] = {
    "wrong_network": lambda policy, vendor, quote, ask: ask.network == policy.asset.network,
    "wrong_asset": lambda policy, vendor, quote, ask: ask.asset.lower() == policy.asset.address.lower(),
    "wrong_pay_to": lambda policy, vendor, quote, ask: (
        _ADDRESS.fullmatch(ask.pay_to) is not None and ask.pay_to.lower() == vendor.pay_to.lower()
    ),
    "wrong_domain": lambda policy, vendor, quote, ask: (
        (ask.extra.get("name"), ask.extra.get("version")) == (policy.asset.name, policy.asset.version)
    ),
    "price_mismatch": lambda policy, vendor, quote, ask: (
        0 < int(ask.amount) and int(ask.amount) * 100 <= quote * (100 + OVERPRICE_PERCENT_MAX)
    ),
    "bad_timeout": lambda policy, vendor, quote, ask: ask.max_timeout_seconds <= CHEQUE_S_MAX,
}
