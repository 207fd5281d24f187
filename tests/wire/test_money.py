"""Money is exact: decimals and atomic units are two spellings of one number."""

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.money import (
    ASSETS,
    ATOMIC_MAX,
    BASE_SEPOLIA_USDC,
    BASE_USDC,
    HOURS_STEP,
    MoneyError,
    hours_bought,
    price_atomic,
    to_atomic,
    to_atomic_up,
    to_decimal,
)

USDC = BASE_SEPOLIA_USDC
WHOLE = replace(USDC, decimals=0)

amounts = st.integers(1, ATOMIC_MAX)


@given(amounts)
def test_an_amount_survives_the_way_to_decimal_and_back(atomic: int) -> None:
    assert to_atomic(to_decimal(atomic, USDC), USDC) == atomic


@given(st.integers(-(10**20), 2**256 - 1))
def test_a_decimal_is_exact_plain_and_as_short_as_it_can_be(atomic: int) -> None:
    value = to_decimal(atomic, USDC)
    assert Fraction(value) == Fraction(atomic, 10**6)
    assert "E" not in str(value)
    assert "." not in str(value) or not str(value).endswith("0")


@pytest.mark.parametrize(
    ("atomic", "text"),
    [(1_400_000, "1.4"), (1, "0.000001"), (10_000_000, "10"), (0, "0"), (5_000_000, "5"), (2**256 - 1, None)],
)
def test_decimals_are_spelled_as_people_write_them(atomic: int, text: str | None) -> None:
    expected = text or f"{(2**256 - 1) // 10**6}.{(2**256 - 1) % 10**6:06}"
    assert str(to_decimal(atomic, USDC)) == expected


@pytest.mark.parametrize(
    ("text", "atomic"),
    [
        ("5", 5_000_000),
        ("1.4", 1_400_000),
        ("0.000001", 1),
        ("1.400000000000", 1_400_000),
        ("1E+3", 1_000_000_000),
        ("1000000000", ATOMIC_MAX),
        ("1." + "0" * 199, 1_000_000),
    ],
)
def test_a_decimal_becomes_atomic_units(text: str, atomic: int) -> None:
    assert to_atomic(Decimal(text), USDC) == atomic


@pytest.mark.parametrize(
    ("text", "code", "detail"),
    [
        ("0", "amount_not_positive", "0 is not an amount above zero"),
        ("-0.0", "amount_not_positive", "-0.0 is not an amount above zero"),
        ("-1", "amount_not_positive", "-1 is not an amount above zero"),
        ("NaN", "amount_not_positive", "NaN is not an amount above zero"),
        ("sNaN", "amount_not_positive", "sNaN is not an amount above zero"),
        ("Infinity", "amount_not_positive", "Infinity is not an amount above zero"),
        ("0.0000001", "too_many_decimals", "USDC has 6 decimals, this amount has more"),
        ("1.0000001", "too_many_decimals", "USDC has 6 decimals, this amount has more"),
        ("1e-999999", "too_many_decimals", "USDC has 6 decimals, this amount has more"),
        ("1." + "0" * 200, "too_many_decimals", "USDC has 6 decimals, this amount has more"),
        ("1000000000.000001", "amount_too_large", "an amount is at most 1000000000 USDC"),
        ("1e15", "amount_too_large", "an amount is at most 1000000000 USDC"),
        ("1e999999", "amount_too_large", "an amount is at most 1000000000 USDC"),
    ],
)
def test_what_is_no_amount_is_refused_with_its_code(text: str, code: str, detail: str) -> None:
    with pytest.raises(MoneyError) as refused:
        to_atomic(Decimal(text), USDC)
    assert (refused.value.code, str(refused.value)) == (code, detail)


def test_the_largest_amount_of_an_asset_without_decimals_is_still_an_amount() -> None:
    assert to_atomic(Decimal(ATOMIC_MAX), WHOLE) == ATOMIC_MAX
    with pytest.raises(MoneyError, match=f"at most {ATOMIC_MAX} USDC"):
        to_atomic(Decimal(ATOMIC_MAX + 1), WHOLE)


def test_the_largest_amount_is_a_thousand_million_usdc() -> None:
    assert ATOMIC_MAX == 10**9 * 10**6


@given(amounts, st.decimals(Decimal("0.000001"), 10_000, allow_nan=False, allow_infinity=False))
def test_a_price_is_the_least_whole_number_not_below_the_exact_one(per_hour_atomic: int, hours: Decimal) -> None:
    assert price_atomic(per_hour_atomic, hours) == ceil(per_hour_atomic * Fraction(hours))


def test_a_price_rounds_up_however_small_the_excess() -> None:
    assert price_atomic(ATOMIC_MAX, Decimal("1." + "0" * 60 + "1")) == ATOMIC_MAX + 1
    assert price_atomic(1_400_000, Decimal(1)) == 1_400_000
    assert price_atomic(1_000_001, Decimal("0.5")) == 500_001


@given(amounts, amounts)
def test_hours_bought_are_the_most_hundredths_the_budget_pays_for(budget_atomic: int, per_hour_atomic: int) -> None:
    hours = hours_bought(budget_atomic, per_hour_atomic)
    assert Fraction(hours) == Fraction(floor(Fraction(budget_atomic * 100, per_hour_atomic)), 100)
    assert price_atomic(per_hour_atomic, hours) <= budget_atomic


def test_hours_come_in_hundredths() -> None:
    assert HOURS_STEP == Decimal("0.01")
    assert str(hours_bought(5_000_000, 1_400_000)) == "3.57"
    assert str(hours_bought(13_999, 1_400_000)) == "0.00"


def test_the_known_assets_are_circles_usdc() -> None:
    assert ASSETS == {"base-sepolia": BASE_SEPOLIA_USDC, "base": BASE_USDC}
    assert (BASE_SEPOLIA_USDC.chain_id, BASE_USDC.chain_id) == (84_532, 8_453)
    assert [(asset.decimals, asset.version, asset.name) for asset in ASSETS.values()] == [
        (6, "2", "USDC"),
        (6, "2", "USD Coin"),
    ]


def test_the_assets_are_those_the_x402_package_knows() -> None:
    from x402.mechanisms.evm.utils import get_asset_info

    for asset in ASSETS.values():
        known = get_asset_info(asset.network, asset.address)
        assert (known["name"], known["version"], known["decimals"]) == (asset.name, asset.version, asset.decimals)


@pytest.mark.parametrize("field", ["atomic", "asset", "network"])
def test_values_of_money_are_frozen(field: str) -> None:
    from wire.money import Amount

    with pytest.raises(AttributeError):
        setattr(Amount(1, USDC.address, USDC.network), field, "other")
    with pytest.raises(AttributeError):
        USDC.symbol = "EURC"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "atomic"),
    [
        ("0", 0),
        ("1.4", 1_400_000),
        ("0.0000001", 1),
        ("1.0000001", 1_000_001),
        ("1e-400", 1),
        ("1000000000", ATOMIC_MAX),
    ],
)
def test_the_price_of_another_is_rounded_up(text: str, atomic: int) -> None:
    assert to_atomic_up(Decimal(text), USDC) == atomic


@pytest.mark.parametrize(
    ("text", "code", "detail"),
    [
        ("-0.0000001", "amount_not_positive", "-1E-7 is not an amount"),
        ("NaN", "amount_not_positive", "NaN is not an amount"),
        ("-Infinity", "amount_not_positive", "-Infinity is not an amount"),
        ("1000000000.0000001", "amount_too_large", "an amount is at most 1000000000 USDC"),
        ("1e400", "amount_too_large", "an amount is at most 1000000000 USDC"),
    ],
)
def test_the_price_of_another_has_limits_too(text: str, code: str, detail: str) -> None:
    with pytest.raises(MoneyError) as refused:
        to_atomic_up(Decimal(text), USDC)
    assert (refused.value.code, str(refused.value)) == (code, detail)
