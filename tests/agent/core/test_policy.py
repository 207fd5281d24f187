"""The spending policy: one changed field, one refusal; every cap holds to its last unit."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.core import ledger, policy
from agent.core.model import GpuPrice
from agent.core.policy import (
    Hold,
    Refusal,
    check_caps,
    check_quote,
    check_terms,
    choose_requirements,
    holds_for,
    refusal_of,
)
from tests.agent.core import values
from tests.agent.core.values import (
    PAY_TO,
    PAYER,
    PRICE,
    USDC,
    a_job,
    a_payment,
    a_run,
    a_vendor,
    challenge,
    required,
    requirements,
)
from wire.problems import REFUSALS

OTHER = "0x" + "99" * 20


def chosen(*accepts: Any, quote_atomic: int = PRICE) -> Any:
    return choose_requirements(values.policy(), a_vendor(), quote_atomic, required(*accepts))


@pytest.mark.row(19)
def test_a_402_that_asks_what_was_quoted_is_taken_as_it_is() -> None:
    asked = requirements()
    assert chosen(asked) is asked


@pytest.mark.parametrize(
    ("asks", "is_changed"),
    [
        ([], False),
        ([{}], False),
        ([{"pay_to": PAY_TO.lower()}], False),
        ([{"amount": "1"}, {}], False),
        ([{"amount": str(PRICE + 1)}], True),
        ([{"amount": str(PRICE - 1)}], True),
        ([{"pay_to": OTHER}], True),
        ([{"asset": OTHER}], True),
        ([{"network": "eip155:1"}], True),
    ],
    ids=str,
)
def test_a_seller_that_was_sent_what_it_asked_and_asks_for_something_else_is_told_apart(
    asks: list[dict[str, Any]], is_changed: bool
) -> None:
    offers = [requirements(**change) for change in asks]
    said = [challenge(required(*offers))] if offers else []
    changed = check_terms(a_payment(amount_atomic=PRICE, pay_to=PAY_TO), said)
    assert (changed is not None and changed.code == "terms_changed") == is_changed


@pytest.mark.row(19)
@pytest.mark.parametrize(
    ("change", "code", "detail"),
    [
        ({"network": "eip155:8453"}, "wrong_network", f"asked {PRICE} of {USDC.address} on eip155:8453 to {PAY_TO}"),
        ({"network": "eip155:1"}, "wrong_network", None),
        ({"asset": OTHER}, "wrong_asset", f"asked {PRICE} of {OTHER} on {USDC.network} to {PAY_TO}"),
        ({"asset": "0x" + "00" * 20}, "wrong_asset", None),
        ({"pay_to": OTHER}, "wrong_pay_to", f"asked {PRICE} of {USDC.address} on {USDC.network} to {OTHER}"),
        ({"pay_to": "0x" + "00" * 20}, "wrong_pay_to", None),
        ({"pay_to": "0X" + PAY_TO[2:]}, "wrong_pay_to", None),
        ({"extra": {}}, "wrong_domain", None),
        ({"extra": {"name": "USD Coin", "version": "2"}}, "wrong_domain", None),
        ({"extra": {"name": "USDC", "version": "1"}}, "wrong_domain", None),
        ({"extra": {"name": "USDC", "version": 2}}, "wrong_domain", None),
        ({"amount": "0"}, "price_mismatch", None),
        ({"amount": str(2 * PRICE)}, "price_mismatch", None),
        ({"amount": str(2**256 - 1)}, "price_mismatch", None),
        ({"max_timeout_seconds": 601}, "bad_timeout", None),
        ({"scheme": "upto"}, "unsupported_scheme", "no way to pay is `exact` by EIP-3009"),
        ({"scheme": "batch-settlement"}, "unsupported_scheme", None),
        (
            {"extra": {"name": "USDC", "version": "2", "assetTransferMethod": "permit2"}},
            "unsupported_scheme",
            "no way to pay is `exact` by EIP-3009",
        ),
        ({"extra": {"name": "USDC", "version": "2", "assetTransferMethod": None}}, "unsupported_scheme", None),
    ],
)
def test_one_changed_field_of_a_402_is_refused_by_its_name(
    change: dict[str, Any], code: str, detail: str | None
) -> None:
    refusal = chosen(requirements(**change))
    assert isinstance(refusal, Refusal)
    assert refusal.code == code
    assert detail is None or refusal.detail == detail


@pytest.mark.row(19)
@pytest.mark.parametrize(
    ("quote_atomic", "ask_atomic", "taken"),
    [
        (1_400_000, 1_414_000, True),
        (1_400_000, 1_414_001, False),
        (1_400_000, 1, True),
        (100, 101, True),
        (99, 100, False),
        (99, 99, True),
        (1, 1, True),
        (1, 2, False),
        (10**15, 10**15 + 10**13, True),
        (10**15, 10**15 + 10**13 + 1, False),
    ],
)
def test_a_price_is_at_most_one_percent_above_its_quote(quote_atomic: int, ask_atomic: int, taken: bool) -> None:
    answer = chosen(requirements(amount=str(ask_atomic)), quote_atomic=quote_atomic)
    assert (not isinstance(answer, Refusal)) is taken


@pytest.mark.row(19)
@given(st.integers(1, 10**15), st.integers(0, 2**256 - 1))
def test_no_price_beyond_one_percent_is_ever_taken(quote_atomic: int, ask_atomic: int) -> None:
    answer = chosen(requirements(amount=str(ask_atomic)), quote_atomic=quote_atomic)
    assert isinstance(answer, Refusal) == (ask_atomic == 0 or 100 * ask_atomic > 101 * quote_atomic)


def test_a_cheque_may_live_ten_minutes() -> None:
    assert policy.CHEQUE_S_MAX == 600
    assert not isinstance(chosen(requirements(max_timeout_seconds=600)), Refusal)


def test_letter_case_of_an_address_is_no_difference() -> None:
    asked = requirements(asset=USDC.address.lower(), pay_to="0x" + "AB" * 20)
    answer = choose_requirements(values.policy(), a_vendor(pay_to="0x" + "ab" * 20), PRICE, required(asked))
    assert answer is asked
    asked = requirements(pay_to="0x" + "ab" * 20, network="".join(list(USDC.network)))
    assert choose_requirements(values.policy(), a_vendor(pay_to="0x" + "AB" * 20), PRICE, required(asked)) is asked


def test_a_payee_that_is_no_address_is_refused_even_if_it_was_registered() -> None:
    for word in ("0x11", "0X" + "11" * 20, "0x" + "11" * 21, "0x" + "11" * 20 + "\n", "vitalik.eth"):
        asked = required(requirements(pay_to=word))
        answer = choose_requirements(values.policy(), a_vendor(pay_to=word), PRICE, asked)
        assert isinstance(answer, Refusal)
        assert answer.code == "wrong_pay_to"


def test_a_transfer_method_that_is_named_is_eip3009() -> None:
    asked = requirements(extra={"name": "USDC", "version": "2", "assetTransferMethod": "".join(["eip", "3009"])})
    assert chosen(asked) is asked


def test_the_first_of_several_ways_to_pay_that_is_allowed_is_chosen() -> None:
    best, other = requirements(amount="1399999"), requirements()
    assert chosen(requirements(scheme="upto"), requirements(network="eip155:1"), best, other) is best


def test_of_several_ways_to_pay_the_first_exact_one_says_why_none_is_taken() -> None:
    refusal = chosen(requirements(scheme="upto"), requirements(pay_to=OTHER), requirements(amount="0"))
    assert refusal == Refusal("wrong_pay_to", f"asked {PRICE} of {USDC.address} on {USDC.network} to {OTHER}")


def test_terms_are_checked_in_an_order_that_names_the_gravest_first() -> None:
    everything = {"network": "eip155:1", "asset": OTHER, "pay_to": OTHER, "extra": {}, "amount": "0"}
    healed: dict[str, Any] = {}
    codes = []
    for name in everything:
        refusal = chosen(requirements(**{**everything, "max_timeout_seconds": 601, **healed}))
        codes.append(refusal.code)
        healed[name] = getattr(requirements(), name)
    codes.append(chosen(requirements(max_timeout_seconds=601)).code)
    assert codes == ["wrong_network", "wrong_asset", "wrong_pay_to", "wrong_domain", "price_mismatch", "bad_timeout"]


def test_a_402_without_a_way_to_pay_is_refused() -> None:
    assert chosen() == Refusal("unsupported_scheme", "no way to pay is `exact` by EIP-3009")


@pytest.mark.row(19)
@pytest.mark.parametrize(
    ("cap", "code", "detail"),
    [
        ("payment_atomic_max", "over_payment_cap", "1000000 is above 999999"),
        ("run_atomic_max", "over_run_cap", "0 + 1000000 is above 999999"),
    ],
)
def test_a_cap_holds_to_its_last_unit(cap: str, code: str, detail: str) -> None:
    assert check_caps(values.policy(**{cap: 1_000_000}), a_run(), 1_000_000) is None
    assert check_caps(values.policy(**{cap: 999_999}), a_run(), 1_000_000) == Refusal(code, detail)


def test_the_budget_is_spent_to_its_last_unit() -> None:
    run = a_run(budget=ledger.opened(1_000_000))
    assert check_caps(values.policy(), run, 1_000_000) is None
    assert check_caps(values.policy(), run, 1_000_001) == Refusal("over_budget", "1000001 is above the 1000000 left")


def test_a_runs_cap_counts_every_payment_that_was_not_proven_unpaid() -> None:
    counted = [a_payment(n, status=state, amount_atomic=10**n) for n, state in enumerate(("pending", "unknown"))]
    counted += [
        a_payment(n + 2, status=state, amount_atomic=10 ** (n + 2)) for n, state in enumerate(("completed", "refunded"))
    ]
    run = a_run(payments=(*counted, a_payment(9, status="failed", amount_atomic=10**6)))
    assert check_caps(values.policy(run_atomic_max=2_111), run, 1_000) is None
    assert check_caps(values.policy(run_atomic_max=2_110), run, 1_000) == Refusal(
        "over_run_cap", "1111 + 1000 is above 2110"
    )


def test_caps_are_checked_from_the_payment_to_the_budget() -> None:
    run = a_run(budget=ledger.opened(1))
    tight = {"payment_atomic_max": 1, "run_atomic_max": 1}
    assert str(check_caps(values.policy(**tight), run, 2)) == "over_payment_cap: 2 is above 1"
    assert str(check_caps(values.policy(run_atomic_max=1), run, 2)) == "over_run_cap: 0 + 2 is above 1"


@pytest.mark.row(19)
def test_a_payment_counts_in_the_wallets_day_and_in_the_vendors_part_of_it() -> None:
    wallet = f"eip155:84532:{USDC.address.lower()}:{PAYER}:2026-01-31"
    holds = holds_for(values.policy(), PAYER.upper(), "gpu_vendor_1", 7, values.T0)
    assert holds == (
        Hold(scope=wallet, amount_atomic=7, cap_atomic=20_000_000),
        Hold(scope=f"{wallet}:gpu_vendor_1", amount_atomic=7, cap_atomic=10_000_000),
    )
    assert refusal_of(holds[0], holds) == Refusal("over_day_cap", "the cap is 20000000")
    assert refusal_of(holds[1], holds) == Refusal("over_vendor_cap", "the cap is 10000000")
    assert refusal_of(Hold(**{n: getattr(holds[0], n) for n in Hold.__slots__}), holds).code == "over_day_cap"


@pytest.mark.parametrize(
    ("change", "code", "detail"),
    [
        ({"asset": OTHER}, "vendor_other_asset", f"gpu_vendor_1 is paid in {OTHER} on {USDC.network}"),
        ({"network": "eip155:8453"}, "vendor_other_asset", f"gpu_vendor_1 is paid in {USDC.address} on eip155:8453"),
    ],
)
def test_a_vendor_that_is_paid_elsewhere_is_refused(change: dict[str, Any], code: str, detail: str) -> None:
    assert check_quote(a_run(), a_vendor(**change), a_job()) == Refusal(code, detail)


def test_a_quote_is_taken_up_to_the_last_unit_of_the_budget() -> None:
    run = a_run(budget=ledger.opened(PRICE))
    assert check_quote(run, a_vendor(asset=USDC.address.lower()), a_job()) is None
    assert check_quote(run, a_vendor(), a_job(expected_cost_atomic=PRICE + 1)) == Refusal(
        "over_budget", "Quote exceeds budget"
    )


def test_a_quote_is_held_against_the_runs_price_per_hour() -> None:
    run = a_run(price_per_hour_atomic_max=2_000_000)
    hours = Decimal("0.75")
    assert check_quote(run, a_vendor(), a_job(hours=hours, expected_cost_atomic=1_500_000)) is None
    assert check_quote(run, a_vendor(), a_job(hours=hours, expected_cost_atomic=1_500_001)) == Refusal(
        "over_hourly_price", "1500001 is above the run's maximum for 0.75 h"
    )
    assert check_quote(a_run(), a_vendor(), a_job(hours=hours, expected_cost_atomic=1_500_001)) is None


def test_a_quote_is_held_against_the_registered_price_where_there_is_one() -> None:
    vendor = a_vendor(prices=(GpuPrice(gpu_type="A10", per_hour_atomic=1_000_000),))
    hours = Decimal("0.75")
    assert check_quote(a_run(), vendor, a_job(hours=hours, expected_cost_atomic=757_500)) is None
    assert check_quote(a_run(), vendor, a_job(hours=hours, expected_cost_atomic=757_501)) == Refusal(
        "over_listed_price", "757501 is above 750000 for 0.75 h"
    )
    assert check_quote(a_run(), vendor, a_job(gpu_type="A100", hours=hours, expected_cost_atomic=757_501)) is None
    poor = a_run(budget=ledger.opened(9))
    assert str(check_quote(poor, vendor, a_job(hours=hours, expected_cost_atomic=757_501))).startswith("over_budget")


def test_a_refusal_has_a_code_that_the_table_explains() -> None:
    assert str(Refusal("over_budget", "too much")) == "over_budget: too much"
    with pytest.raises(AssertionError, match=r"nonsense is not in wire.problems.REFUSALS"):
        Refusal("nonsense", "")


def test_every_term_of_a_402_is_a_refusal_of_the_table() -> None:
    assert set(policy._TERMS) < set(REFUSALS)
    assert policy.OVERPRICE_PERCENT_MAX == 1
