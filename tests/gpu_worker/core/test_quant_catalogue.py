"""The catalogue of quantisations: its rows, its tiers, and the names that its files had before."""

from decimal import Decimal
from itertools import pairwise

import pytest

from gpu_worker.core.quantization.catalogue import (
    BITS,
    CATALOGUE,
    REMOVED,
    Tier,
    formats,
    is_arm,
    quality_of,
    quant_called,
    quant_in,
    tier_of,
    tiers_of,
)

# Name, overhead in MB, quality.
TABLE = """
Q8_0 512 .95 | Q6_K_L 384 .90 | Q6_K 320 .88 | Q5_K_M 256 .85 | Q4_K_M 192 .80 | Q4_K_S 160 .78 | IQ4_XS 128 .75 |
Q3_K_L 112 .70 | IQ3_M 96 .68 | Q2_K 64 .60 | IQ2_M 48 .55 | Q4_0_4_4 144 .76 | Q4_0_8_8 160 .78
"""
TIERS = {
    Tier.PREMIUM: ("Q8_0", "Q6_K_L", "Q6_K"),
    Tier.HIGH: ("Q5_K_M", "Q4_K_M", "Q4_K_S"),
    Tier.GOOD: ("IQ4_XS", "Q3_K_L", "IQ3_M"),
    Tier.EMERGENCY: ("Q2_K", "IQ2_M"),
}


@pytest.mark.row(64)
def test_the_catalogue_is_the_table_row_by_row() -> None:
    told = [line.split() for line in TABLE.replace("\n", " ").split("|")]

    assert [(quant.name, quant.overhead_mb, quant.quality) for quant in CATALOGUE] == [
        (name, int(overhead), Decimal(quality)) for name, overhead, quality in told
    ]


@pytest.mark.row(64)
@pytest.mark.parametrize(
    ("memory_mb", "tier"),
    [
        (8_192, Tier.PREMIUM), (81_920, Tier.PREMIUM), (8_191.9, Tier.HIGH), (6_144, Tier.HIGH), (6_143, Tier.GOOD),
        (4_096, Tier.GOOD), (4_095, Tier.EMERGENCY), (0, Tier.EMERGENCY), (-1, Tier.EMERGENCY),
        (10_000, Tier.PREMIUM),
    ],
)  # fmt: skip
def test_the_tiers_begin_where_the_table_says(memory_mb: float, tier: Tier) -> None:
    assert tier_of(memory_mb) is tier


@pytest.mark.row(64)
@pytest.mark.parametrize("tier", Tier)
def test_a_tier_offers_its_formats_the_best_first(tier: Tier) -> None:
    assert formats(tier) == TIERS[tier]
    assert all(tier in tiers_of(name) for name in formats(tier))


@pytest.mark.row(67)
@pytest.mark.parametrize("machine", ["aarch64", "arm64", "x86_64", "AMD64"])
def test_an_arm_machine_has_the_format_that_it_packs_anew_by_its_name_of_today(machine: str) -> None:
    on_arm = is_arm(machine)
    assert on_arm is machine.startswith("a")

    assert [("Q4_0" in formats(tier, on_arm=on_arm)) for tier in Tier] == [False, on_arm, on_arm, False]
    assert not set(REMOVED) & {name for tier in Tier for name in formats(tier, on_arm=on_arm)}


@pytest.mark.row(67)
@pytest.mark.parametrize(
    ("old", "now"), [("Q4_0_4_4", "Q4_0"), ("q4_0_4_8", "Q4_0"), ("Q4_0_8_8", "Q4_0"), ("IQ4_NL_4_4", "IQ4_NL")]
)
def test_a_name_whose_files_are_refused_now_stands_for_the_one_that_is_read(old: str, now: str) -> None:
    assert quant_called(old) == now
    assert quant_in(f"Llama-3.2-1B-{old}.gguf") == now


def test_every_row_has_its_bits_and_better_ones_have_more() -> None:
    rows = sorted((quant for quant in CATALOGUE if not quant.is_arm), key=lambda quant: quant.quality, reverse=True)

    assert all(quant.now in BITS for quant in CATALOGUE)
    assert all(BITS[better.name] > BITS[worse.name] for better, worse in pairwise(rows))


def test_a_format_without_a_row_has_a_quality_between_its_neighbours() -> None:
    assert quality_of("Q4_K_M") < quality_of("Q5_K_S") < quality_of("Q5_K_M")
    assert quality_of("F16") == quality_of("F32") == quality_of("BF16") == 1
    assert 0 < quality_of("IQ1_S") < quality_of("IQ2_M")
    for nonsense in ("Q9_K", "", "../Q8_0"):
        with pytest.raises(KeyError):
            quality_of(nonsense)


@pytest.mark.parametrize(
    ("text", "quant"),
    [
        ("llama3.1:8b-instruct-q4_k_m", "Q4_K_M"),
        ("Meta-Llama-3.1-8B-Instruct-IQ4_XS.gguf", "IQ4_XS"),
        ("bartowski/Q8_0-lovers-GGUF:Q6_K_L", "Q6_K_L"),
        ("model.Q4_K_S.gguf", "Q4_K_S"),
        ("model-Q4_K_Mish.gguf", None),
        ("llama3.1:8b", None),
        ("", None),
    ],
)
def test_a_quantisation_is_found_in_a_name(text: str, quant: str | None) -> None:
    assert quant_in(text) == quant
