"""
The quantisations by name: bits of a weight, quality, and the tiers of memory that they are offered in.

A name stands for a mixture: which block type each tensor has is known from a file's header alone (`header.py`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from itertools import pairwise


class Tier(Enum):
    """How much memory is free, in MB from `least_mb` upwards. EMERGENCY: less than all others ask for."""

    PREMIUM = "premium"
    HIGH = "high"
    GOOD = "good"
    EMERGENCY = "emergency"

    @property
    def least_mb(self) -> int:
        return _LEAST_MB[self]


_LEAST_MB: Mapping[Tier, int] = {Tier.PREMIUM: 8_192, Tier.HIGH: 6_144, Tier.GOOD: 4_096, Tier.EMERGENCY: 0}


@dataclass(frozen=True, slots=True)
class Quant:
    """
    A row of the catalogue. `quality` is of 1, the model as trained; `overhead_mb` is what was allowed for beside it.

    `today` is what its files are called now: llama.cpp packs Q4_0 anew for the processor as it loads it, files that
    were packed before are refused by it.
    """

    name: str
    overhead_mb: int
    quality: Decimal
    tiers: tuple[Tier, ...]
    is_arm: bool = False
    today: str = ""

    @property
    def now(self) -> str:
        return self.today or self.name


def _row(name: str, overhead_mb: int, quality: str, *tiers: Tier, arm: str = "") -> Quant:
    return Quant(name, overhead_mb, Decimal(quality), tiers, bool(arm), arm)


CATALOGUE: tuple[Quant, ...] = (
    _row("Q8_0", 512, "0.95", Tier.PREMIUM),
    _row("Q6_K_L", 384, "0.90", Tier.PREMIUM),
    _row("Q6_K", 320, "0.88", Tier.PREMIUM),
    _row("Q5_K_M", 256, "0.85", Tier.HIGH),
    _row("Q4_K_M", 192, "0.80", Tier.HIGH),
    _row("Q4_K_S", 160, "0.78", Tier.HIGH),
    _row("IQ4_XS", 128, "0.75", Tier.GOOD),
    _row("Q3_K_L", 112, "0.70", Tier.GOOD),
    _row("IQ3_M", 96, "0.68", Tier.GOOD),
    _row("Q2_K", 64, "0.60", Tier.EMERGENCY),
    _row("IQ2_M", 48, "0.55", Tier.EMERGENCY),
    _row("Q4_0_4_4", 144, "0.76", Tier.HIGH, Tier.GOOD, arm="Q4_0"),
    _row("Q4_0_8_8", 160, "0.78", Tier.HIGH, Tier.GOOD, arm="Q4_0"),
)

# Bits of a weight over a whole model, by what Llama 3.1 8B came out as; the legacy and *_L names were calculated.
# Source: llama.cpp tools/quantize/README.md.
BITS: Mapping[str, Decimal] = {
    name: Decimal(bits)
    for name, bits in {
        "F32": "32", "F16": "16", "BF16": "16", "Q8_0": "8.50", "Q6_K_L": "6.82", "Q6_K": "6.56", "Q5_K_L": "6.03",
        "Q5_K_M": "5.70", "Q5_K_S": "5.57", "Q5_1": "6.04", "Q5_0": "5.57", "Q4_K_L": "5.28", "Q4_1": "5.11",
        "Q4_K_M": "4.89", "Q3_K_XL": "4.76", "Q4_K_S": "4.67", "Q4_0": "4.64", "IQ4_NL": "4.68", "IQ4_XS": "4.46",
        "MXFP4": "4.25", "Q3_K_L": "4.30", "Q3_K_M": "4.00", "IQ3_M": "3.76", "Q3_K_S": "3.64", "IQ3_S": "3.66",
        "IQ3_XS": "3.50", "IQ3_XXS": "3.25", "Q2_K_L": "3.67", "Q2_K": "3.16", "Q2_K_S": "2.97", "IQ2_M": "2.93",
        "IQ2_S": "2.74", "IQ2_XS": "2.59", "IQ2_XXS": "2.38", "IQ1_M": "2.15", "IQ1_S": "2.00",
    }.items()
}  # fmt: skip
# Files of these names are refused by llama.cpp since the end of 2024.
REMOVED: Mapping[str, str] = {
    **{f"Q4_0_{shape}": "Q4_0" for shape in ("4_4", "4_8", "8_8")},
    **{f"IQ4_NL_{shape}": "IQ4_NL" for shape in ("4_4", "4_8", "8_8")},
}
_BY_NAME = {quant.name: quant for quant in CATALOGUE}
_NAMES = sorted((*BITS, *REMOVED), key=len, reverse=True)
# Between other words of a file's name or a tag: `llama-8b-instruct-Q4_K_M.gguf`, `8b-instruct-q4_k_m`.
_IN_A_NAME = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(_NAMES)})(?![A-Za-z0-9_])", re.IGNORECASE)


def tier_of(memory_mb: float) -> Tier:
    """Return the tier of this much free memory."""
    return next((tier for tier in Tier if memory_mb >= tier.least_mb), Tier.EMERGENCY)


def is_arm(machine: str) -> bool:
    """Return whether this is an ARM processor, by what `platform.machine()` calls it."""
    return machine.lower().startswith(("aarch64", "arm"))


def formats(tier: Tier, *, on_arm: bool = False) -> tuple[str, ...]:
    """Return the quantisations of a tier by today's names, the best first; on ARM with those that it packs anew."""
    rows = [quant for quant in CATALOGUE if tier in quant.tiers and (on_arm or not quant.is_arm)]
    ordered = sorted(rows, key=lambda quant: quant.quality, reverse=True)
    return tuple(dict.fromkeys(quant.now for quant in ordered))


def tiers_of(name: str) -> tuple[Tier, ...]:
    """Return the tiers that offer a quantisation, the highest first."""
    offering = {tier for quant in CATALOGUE if quant.now == name for tier in quant.tiers}
    return tuple(tier for tier in Tier if tier in offering)


def quant_called(name: str) -> str | None:
    """Return today's name of a quantisation, None: it is none that is known. `q4_0_4_4` is Q4_0."""
    upper = name.strip().upper()
    now = REMOVED.get(upper, upper)
    return now if now in BITS else None


def quant_in(text: str) -> str | None:
    """Return the last quantisation that a file's name or a tag names, by today's name; None: it names none."""
    found = _IN_A_NAME.findall(text)
    return quant_called(found[-1]) if found else None


def quality_of(name: str) -> Decimal:
    """
    Return the quality of a quantisation: the catalogue's, else what its bits are worth between the catalogue's rows.

    Raises KeyError: it is none.
    """
    now = quant_called(name)
    if now is None:
        raise KeyError(name)
    row = _BY_NAME.get(now)
    if row is not None:
        return row.quality
    known = sorted([(BITS[quant.name], quant.quality) for quant in CATALOGUE if not quant.is_arm])
    known = [(Decimal(0), Decimal(0)), *known, (Decimal(16), Decimal(1))]
    bits = min(BITS[now], Decimal(16))
    (low, worse), (high, better) = next(pair for pair in pairwise(known) if bits <= pair[1][0])
    return (worse + (better - worse) * (bits - low) / (high - low)).quantize(Decimal("0.001"))
