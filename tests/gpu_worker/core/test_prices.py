"""What tokens cost: exact, rounded up once for a whole request; what it comes to at most."""

import json
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.core.inference.prices import TEMPLATE_TOKENS, UNBOUNDED_TOKENS, Bound, Prices, bound
from wire.money import BASE_SEPOLIA_USDC, Asset

TOKENS = st.integers(0, 2**31)
PRICE = st.decimals(0, 1_000_000, places=18)


def prices(prompt: str, answer: str, asset: Asset = BASE_SEPOLIA_USDC) -> Prices:
    return Prices(prompt=Decimal(prompt), answer=Decimal(answer), asset=asset)


@pytest.mark.parametrize(
    ("prompt", "answer", "tokens", "cost"),
    [
        ("1", "2", (0, 0), 0),
        ("1", "2", (1, 0), 1),
        ("1", "2", (1_000_000, 1_000_000), 3_000_000),
        ("0.15", "0.6", (1, 0), 1),
        ("0.15", "0.6", (10, 10), 8),
        ("0.5", "0.5", (1, 1), 1),
        ("0.000001", "0", (1_000_000, 0), 1),
        ("0.000001", "0", (1_000_001, 0), 2),
    ],
)
def test_a_request_is_rounded_up_once(prompt: str, answer: str, tokens: tuple[int, int], cost: int) -> None:
    assert prices(prompt, answer).cost_atomic(*tokens) == cost


@given(PRICE, PRICE, TOKENS, TOKENS)
def test_a_cost_is_the_exact_one_rounded_up(prompt: Decimal, answer: Decimal, asked: int, made: int) -> None:
    cost = Prices(prompt=prompt, answer=answer, asset=BASE_SEPOLIA_USDC).cost_atomic(asked, made)

    exact = Fraction(prompt) * asked + Fraction(answer) * made
    assert 0 <= cost - exact < 1


@given(PRICE, PRICE, st.integers(0, 10_000), st.integers(0, 10_000), st.integers(0, 10_000))
def test_more_tokens_never_cost_less(prompt: Decimal, answer: Decimal, asked: int, made: int, more: int) -> None:
    told = Prices(prompt=prompt, answer=answer, asset=BASE_SEPOLIA_USDC)

    assert told.cost_atomic(asked, made) <= told.cost_atomic(asked + more, made)
    assert told.cost_atomic(asked, made) <= told.cost_atomic(asked, made + more)


def test_a_list_of_models_tells_of_a_million_tokens_and_of_one() -> None:
    told = prices("0.15", "0.60").document()

    assert (told["prompt"], told["completion"], told["currency"]) == ("0.00000015", "0.0000006", "USDC")
    assert (told["prompt_per_million"], told["completion_per_million"]) == (Decimal("0.15"), Decimal("0.6"))
    assert prices("0", "2").document()["prompt"] == "0"
    assert json.dumps(prices("1e3", "2").document()["prompt"]) == '"0.001"'


@pytest.mark.parametrize(
    ("known", "most"),
    [
        ({"prompt_tokens": 10, "named": 5, "context": 100}, (10, 5)),
        ({"prompt_tokens": 10, "named": 95, "context": 100}, (10, 90)),
        ({"prompt_tokens": 10, "context": 100}, (10, 90)),
        ({"prompt_tokens": 10, "usual": 16, "context": 100}, (10, 16)),
        ({"prompt_tokens": 90, "usual": 16, "context": 100}, (90, 10)),
        ({"prompt_tokens": 10, "named": 5, "usual": 16}, (10, 5)),
        ({"prompt_tokens": 10}, (10, UNBOUNDED_TOKENS)),
        ({"prompt_tokens": 10, "named": 0, "context": 100}, (10, 0)),
        ({}, (1_000 + TEMPLATE_TOKENS, UNBOUNDED_TOKENS)),
        ({"context": 100}, (100, 100)),
        ({"context": 100, "named": 7}, (100, 7)),
        ({"prompt_tokens": 200, "context": 100}, (100, 0)),
    ],
)
def test_what_a_request_comes_to_at_most(known: dict[str, int], most: tuple[int, int]) -> None:
    unknown = {"prompt_tokens": None, "named": None, "usual": None, "context": None}

    assert bound(body_bytes=1_000, **{**unknown, **known}) == Bound(prompt_tokens=most[0], tokens=most[1])
