"""
Money is an integer of an asset's smallest unit; decimals exist only in JSON and on screens.

No float is ever made here. Prices round up (a seller is never short), hours that a
budget buys round down (a buyer never overspends).
"""

from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

# A budget above 10^15 atomic units (one thousand million USDC) is a typing error; it also keeps
# every sum far inside the signed 64 bits that MongoDB and SQLite store.
ATOMIC_MAX = 10**15
HOURS_STEP = Decimal("0.01")

# Digits enough for any uint256 times any number that JSON brings: nothing here is ever rounded unasked.
_EXACT = Context(prec=200)


class MoneyError(ValueError):
    """A decimal that is not an amount of this asset. `code` is a code of `wire.problems`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True, slots=True)
class Asset:
    """An EIP-3009 token: where it lives and the EIP-712 domain it signs under (`name`, `version`)."""

    network: str
    address: str
    symbol: str
    decimals: int
    name: str
    version: str

    @property
    def chain_id(self) -> int:
        """The EIP-155 chain id inside the CAIP-2 network name: `eip155:84532` -> 84532."""
        return int(self.network.removeprefix("eip155:"))


@dataclass(frozen=True, slots=True)
class Amount:
    """`atomic` smallest units of the token `asset` on `network` (CAIP-2)."""

    atomic: int
    asset: str
    network: str


BASE_SEPOLIA_USDC = Asset("eip155:84532", "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC", 6, "USDC", "2")
BASE_USDC = Asset("eip155:8453", "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", "USDC", 6, "USD Coin", "2")

# The names people type for the networks whose USDC we know.
ASSETS = {"base-sepolia": BASE_SEPOLIA_USDC, "base": BASE_USDC}


def to_atomic(value: Decimal, asset: Asset) -> int:
    """
    Return `value` of `asset` in atomic units.

    Raises:
        MoneyError: `amount_not_positive` (zero, negative, not finite), `too_many_decimals`, `amount_too_large`.

    Example: Decimal("1.4") USDC -> 1_400_000.
    """
    if not value.is_finite() or value <= 0:
        raise MoneyError("amount_not_positive", f"{value} is not an amount above zero")
    if value > ATOMIC_MAX:
        raise MoneyError("amount_too_large", f"an amount is at most {to_decimal(ATOMIC_MAX, asset)} {asset.symbol}")
    exponent = value.normalize(_EXACT).as_tuple().exponent
    if len(value.as_tuple().digits) > _EXACT.prec or (isinstance(exponent, int) and -exponent > asset.decimals):
        raise MoneyError("too_many_decimals", f"{asset.symbol} has {asset.decimals} decimals, this amount has more")
    atomic = int(value.scaleb(asset.decimals, _EXACT))
    if atomic > ATOMIC_MAX:
        raise MoneyError("amount_too_large", f"an amount is at most {to_decimal(ATOMIC_MAX, asset)} {asset.symbol}")
    return atomic


def to_atomic_up(value: Decimal, asset: Asset) -> int:
    """
    Return somebody else's price or cost in atomic units, rounded up; zero is allowed.

    Raises:
        MoneyError: `amount_not_positive` (negative, not finite), `amount_too_large`.
    """
    if not value.is_finite() or value < 0:
        raise MoneyError("amount_not_positive", f"{value} is not an amount")
    if value > to_decimal(ATOMIC_MAX, asset):
        raise MoneyError("amount_too_large", f"an amount is at most {to_decimal(ATOMIC_MAX, asset)} {asset.symbol}")
    return int(value.scaleb(asset.decimals, _EXACT).to_integral_value(ROUND_CEILING))


def to_decimal(atomic: int, asset: Asset) -> Decimal:
    """Return `atomic` units as the shortest plain decimal: 1_400_000 USDC -> Decimal("1.4"), never 1.4E+0."""
    value = Decimal(atomic).scaleb(-asset.decimals, _EXACT).normalize(_EXACT)
    return Decimal(int(value)) if value == int(value) else value


def price_atomic(per_hour_atomic: int, hours: Decimal) -> int:
    """Return the price of `hours` at `per_hour_atomic`, rounded up to the atomic unit."""
    return int(_EXACT.multiply(per_hour_atomic, hours).to_integral_value(ROUND_CEILING))


def hours_bought(budget_atomic: int, per_hour_atomic: int) -> Decimal:
    """Return the hours that `budget_atomic` buys at `per_hour_atomic`, rounded down to 0.01."""
    return (Decimal(budget_atomic) / per_hour_atomic).quantize(HOURS_STEP, ROUND_FLOOR)
