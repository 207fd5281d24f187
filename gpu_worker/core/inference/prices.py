"""What tokens cost: a price a million of them, rounded up once for a whole request."""

from dataclasses import dataclass
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

from wire.money import Asset, to_decimal

PER_TOKENS = 1_000_000
# What a request may be answered with at most where neither it nor its model names a limit.
UNBOUNDED_TOKENS = 4_096
# What a template may write around messages, beyond the bytes that they have as JSON.
TEMPLATE_TOKENS = 256

# Digits enough for any count of tokens times any price: nothing is rounded before the end.
_EXACT = Context(prec=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """`prompt` and `answer` are the prices of a million tokens in `asset`, decimal units, not below zero."""

    prompt: Decimal
    answer: Decimal
    asset: Asset

    def cost_atomic(self, prompt_tokens: int, tokens: int) -> int:
        """Return what a request costs in atomic units, rounded up to one."""
        millionths = _EXACT.add(_EXACT.multiply(prompt_tokens, self.prompt), _EXACT.multiply(tokens, self.answer))
        exact = _EXACT.divide(_EXACT.scaleb(millionths, self.asset.decimals), PER_TOKENS)
        return int(exact.to_integral_value(ROUND_CEILING))

    def document(self) -> dict[str, Any]:
        """Return what a list of models tells: of a million tokens, and of one as text, as some clients read it."""
        one = {"prompt": self.prompt, "completion": self.answer}
        return {
            "currency": self.asset.symbol,
            "prompt_per_million": self.prompt,
            "completion_per_million": self.answer,
            **{name: f"{_EXACT.scaleb(price, -6).normalize(_EXACT):f}" for name, price in one.items()},
        }

    def decimal(self, atomic: int) -> Decimal:
        return to_decimal(atomic, self.asset)


@dataclass(frozen=True, slots=True)
class Bound:
    """What a request comes to at most: tokens of its prompt, tokens of its answer."""

    prompt_tokens: int
    tokens: int


def bound(
    *,
    prompt_tokens: int | None,
    body_bytes: int,
    named: int | None,
    usual: int | None,
    context: int | None,
) -> Bound:
    """
    Return what a request comes to at most.

    Args:
        prompt_tokens: its prompt's, None: only the engine's answer will tell. Then `body_bytes`, its length as JSON, is
            the bound: there is at least a byte to a token.
        named: the limit that the request itself names, None: none; then `usual` is, where there is one.
        context: the most that prompt and answer come to, None: not known.
    """
    counted = body_bytes + TEMPLATE_TOKENS if prompt_tokens is None else prompt_tokens
    if context is not None:
        counted = min(counted, context)
    room = None if context is None else context - (prompt_tokens or 0)
    limits = [limit for limit in ((usual, room) if named is None else (named, room)) if limit is not None]
    return Bound(prompt_tokens=counted, tokens=max(0, min(limits, default=UNBOUNDED_TOKENS)))
