"""Which quantisation: the best that really fits, and of what is installed the one that suits the memory."""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker.core.hardware import MIB
from gpu_worker.core.quantization.catalogue import quality_of
from gpu_worker.core.quantization.choice import choose_installed, offered, ranked, score, split_tag, tag_for
from gpu_worker.core.quantization.estimate import Memory, Plan, Serving, plan, usable_of
from gpu_worker.core.quantization.weights import Weights, weights_named

GIB = 1024 * MIB
MB = 10**6
LAST_RESORTS = ("Q2_K", "IQ2_M")


def plans(
    vram: float, ram: float = 64, *, context: int = 4_096, name: str = "8b", quants: Sequence[str] = ()
) -> tuple[Plan, ...]:
    where = Memory(vram_bytes=int(vram * GIB), ram_bytes=int(ram * GIB), total_bytes=int((vram or ram) * GIB))
    serving = Serving(context=context)
    return ranked([plan(weights_named(name, quant), serving, where) for quant in quants or offered()])


def chosen(vram: float, ram: float = 64, **more: int) -> tuple[str, bool]:
    best = plans(vram, ram, **more)[0]
    assert best.fits
    return best.weights.quant, best.is_whole


@pytest.mark.row(65)
@pytest.mark.parametrize(
    ("vram", "quant"),
    [(80, "Q8_0"), (12, "Q8_0"), (9, "Q6_K_L"), (8, "Q5_K_M"), (7, "Q4_K_M"), (6, "IQ3_M")],
)
def test_the_best_that_lies_whole_on_the_gpu_is_chosen(vram: float, quant: str) -> None:
    assert chosen(vram) == (quant, True)


@pytest.mark.row(65)
def test_without_a_gpu_the_machines_memory_decides() -> None:
    assert chosen(0, 64) == ("Q8_0", True)
    assert chosen(0, 8) == ("Q5_K_M", True)


@pytest.mark.row(65)
def test_where_none_lies_whole_on_the_gpu_one_that_the_processor_is_fast_with_is_split() -> None:
    assert chosen(3) == ("Q4_K_M", False)


@pytest.mark.row(65)
def test_two_bits_are_the_last_resort() -> None:
    ordered = [each.weights.quant for each in plans(4, 64)]
    assert set(ordered[-2:]) == set(LAST_RESORTS)
    assert chosen(0, 5.5) == ("Q2_K", True)


def test_where_nothing_fits_the_first_lacks_least() -> None:
    found = plans(0, 2)

    assert not any(each.fits for each in found)
    assert found[0].missing_bytes == min(each.missing_bytes for each in found)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 24), st.floats(2, 64), st.integers(256, 32_768))
def test_what_is_chosen_fits_and_nothing_that_fits_whole_is_better(vram: float, ram: float, context: int) -> None:
    found = plans(vram, ram, context=context)
    best = found[0]
    fitting = [each for each in found if each.fits]

    assert best.fits == bool(fitting)
    for each in fitting:
        if each.is_whole and each.weights.quant not in LAST_RESORTS:
            assert quality_of(best.weights.quant) >= quality_of(each.weights.quant)
            assert best.is_whole


TAGS = {
    "llama3.1:8b-instruct-q8_0": 8_540 * MB,
    "llama3.1:8b-instruct-q4_k_m": 4_920 * MB,
    "llama3.1:8b-instruct-q2_k": 3_180 * MB,
    "llama3.1:70b-instruct-q4_k_m": 42_500 * MB,
    "llama3.1:8b-text-q6_K": 6_600 * MB,
    "qwen2.5:latest": 4_700 * MB,
    "hf.co/bartowski/Phi-GGUF:Q5_K_M": 2_800 * MB,
}


@pytest.mark.row(66)
@pytest.mark.parametrize(
    ("wanted", "memory_gib", "tag"),
    [
        ("llama3.1:8b-instruct", 8, "llama3.1:8b-instruct-q4_k_m"),
        ("llama3.1:8b-instruct", 80, "llama3.1:8b-instruct-q8_0"),
        ("llama3.1:8b-instruct", 5, "llama3.1:8b-instruct-q2_k"),
        ("llama3.1:8b-instruct", 2, None),
        ("llama3.1:70b", 80, "llama3.1:70b-instruct-q4_k_m"),
        ("llama3.1:70b", 24, None),
        ("llama3.1:8b-instruct-q2_k", 80, "llama3.1:8b-instruct-q2_k"),
        ("llama3.1:8b-instruct-q5_k_m", 8, "llama3.1:8b-instruct-q4_k_m"),
        ("qwen2.5", 24, "qwen2.5:latest"),
        ("hf.co/bartowski/Phi-GGUF", 24, "hf.co/bartowski/Phi-GGUF:Q5_K_M"),
        ("llama3", 80, None),
        ("mistral", 80, None),
        ("", 80, None),
    ],
)
def test_of_the_installed_tags_the_one_with_the_best_score_answers(
    wanted: str, memory_gib: float, tag: str | None
) -> None:
    assert choose_installed(wanted, TAGS, int(memory_gib * GIB)) == tag


@pytest.mark.row(66)
def test_the_score_is_six_tenths_quality_and_four_tenths_memory_that_is_left() -> None:
    assert score("m:q4_k_m", 25, 100) == Decimal("0.6") * Decimal("0.80") + Decimal("0.4") * Decimal("0.75")
    assert score("m:q8_0", 100, 100) == Decimal("0.6") * Decimal("0.95")
    # A tag that names none is what Ollama makes of it.
    assert score("m:8b", 25, 100) == score("m:q4_k_m", 25, 100)


@given(st.dictionaries(st.sampled_from(sorted(TAGS)), st.integers(1, 90 * GIB)), st.integers(0, 90 * GIB))
def test_a_tag_that_is_chosen_is_there_and_fits(tags: dict[str, int], memory_bytes: int) -> None:
    found = choose_installed("llama3.1", tags, memory_bytes)

    if found is not None:
        assert found.startswith("llama3.1:")
        assert tags[found] <= usable_of(memory_bytes)
        usable = usable_of(memory_bytes)
        alike = [tag for tag, size in tags.items() if tag.startswith("llama3.1:") and size <= usable]
        assert score(found, tags[found], usable) == max(score(tag, tags[tag], usable) for tag in alike)


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("llama3.1:8b", "llama3.1:q4_k_m"),
        ("llama3.1", "llama3.1:q4_k_m"),
        ("hf.co/bartowski/Llama-GGUF", "hf.co/bartowski/Llama-GGUF:Q4_K_M"),
        ("localhost:5000/team/model", "localhost:5000/team/model:q4_k_m"),
    ],
)
def test_a_model_in_a_quantisation_is_named_as_ollama_does(name: str, tag: str) -> None:
    assert tag_for(name, "Q4_K_M") == tag
    assert split_tag(tag)[1].upper() == "Q4_K_M"


def test_of_two_files_that_are_as_good_the_smaller_is_chosen() -> None:
    where = Memory(vram_bytes=0, ram_bytes=64 * GIB, total_bytes=64 * GIB)
    model: Weights = weights_named("8b", "Q4_K_M")
    larger = replace(model, name="larger", input_bytes=model.input_bytes * 2)

    best = ranked([plan(each, Serving(context=4_096), where) for each in (larger, model)])[0]
    assert best.weights is model
