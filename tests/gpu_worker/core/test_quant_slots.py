"""How many answers at once and how long each: what fits, never above the cap, or what the owner set and fits."""

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.hardware import MIB
from gpu_worker.core.quantization.estimate import Memory
from gpu_worker.core.quantization.slots import CONTEXT_LEAST, Wanted, planned, settle, slots_most
from gpu_worker.core.quantization.weights import weights_named

GIB = 1024 * MIB


def memory(vram: float = 0, ram: float = 64) -> Memory:
    return Memory(vram_bytes=int(vram * GIB), ram_bytes=int(ram * GIB), total_bytes=int((vram or ram) * GIB))


@pytest.mark.parametrize(
    ("mib", "slots"),
    [
        (0, 1), (4 * 1024, 1), (6 * 1024, 1), (8 * 1024, 2), (8_188, 2), (12 * 1024, 2), (16 * 1024, 4),
        (16_376, 4), (24 * 1024, 4), (32 * 1024, 8), (32_607, 8), (48 * 1024, 16), (80 * 1024, 16), (140 * 1024, 16),
    ],
)  # fmt: skip
def test_a_device_is_never_given_more_answers_at_once_than_its_memory_is_good_for(mib: int, slots: int) -> None:
    assert slots_most(mib * MIB) == slots


@pytest.mark.parametrize(
    ("where", "context", "slots"),
    [
        (memory(vram=48), 8_192, 16),
        (memory(vram=24), 8_192, 4),
        (memory(vram=12), 8_192, 2),
        (memory(vram=8), 8_192, 1),
        (memory(ram=64), 8_192, 16),
        (memory(ram=32), 8_192, 8),
        (memory(ram=8.2), 8_192, 1),
        (memory(ram=7.3), 4_096, 1),
    ],
)
def test_unset_it_is_what_fits(where: Memory, context: int, slots: int) -> None:
    found = settle(weights_named("8b", "Q4_K_M"), where, Wanted())

    assert (found.serving.context, found.serving.slots) == (context, slots)
    assert found.fits


def test_another_slot_never_costs_a_layer_its_place_on_the_gpu() -> None:
    model = weights_named("8b", "Q4_K_M")
    one = settle(model, memory(vram=6), Wanted(slots=1))

    assert settle(model, memory(vram=6), Wanted()).gpu_layers == one.gpu_layers < one.layers_all


@pytest.mark.row(62)
@settings(max_examples=60, deadline=None)
@given(st.floats(0, 48), st.floats(1, 64), st.none() | st.integers(1, 16), st.sampled_from(["1b", "8b", "70b"]))
def test_each_slot_has_4096_tokens_or_the_model_is_not_served(
    vram: float, ram: float, slots: int | None, name: str
) -> None:
    where, model, wanted = memory(vram, ram), weights_named(name, "Q4_K_M"), Wanted(slots=slots)
    found = planned(model, where, wanted)
    if not found.fits:
        with pytest.raises(OwnersFault, match="missing"):
            settle(model, where, wanted)
        return
    assert settle(model, where, wanted) == found
    assert found.serving.context >= CONTEXT_LEAST
    assert found.serving.slots == slots if slots else found.serving.slots <= slots_most(where.total_bytes)


@pytest.mark.row(62)
def test_a_model_that_was_trained_for_less_has_that() -> None:
    short = replace(weights_named("1b", "Q8_0"), context=2_048)
    assert settle(short, memory(), Wanted()).serving.context == 2_048
    with pytest.raises(OwnersFault, match="was trained for 2,048"):
        settle(short, memory(), Wanted(context=4_096))


def test_a_set_number_is_that_number_or_a_refusal_that_says_which_would_fit() -> None:
    model = weights_named("8b", "Q4_K_M")

    assert settle(model, memory(ram=64), Wanted(slots=24)).serving.slots == 24
    with pytest.raises(OwnersFault, match=r"64 x 8,192 tokens .* MiB are missing; MAX_CONCURRENT_JOBS 7 would fit"):
        settle(model, memory(ram=14), Wanted(slots=64, context=8_192))


@pytest.mark.parametrize(
    ("name", "where", "wanted", "would"),
    [
        ("8b", memory(ram=9), Wanted(context=65_536), "; one answer at a time, a CONTEXT of 16,384 would fit"),
        ("8b", memory(ram=7), Wanted(context=65_536), "; one answer at a time, Q4_K_S of it with a CONTEXT of 4,096"),
        ("70b", memory(ram=40), Wanted(), "IQ3_M of it would fit"),
        ("70b", memory(ram=8), Wanted(), "no quantisation of it would fit"),
        ("8b", memory(vram=4), Wanted(gpu_layers=33), "fewer GPU_LAYERS"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_missing_and_what_would(
    name: str, where: Memory, wanted: Wanted, would: str
) -> None:
    with pytest.raises(OwnersFault, match="MiB are missing") as refused:
        settle(weights_named(name, "Q4_K_M"), where, wanted)

    assert re.search(would, str(refused.value)), str(refused.value)


def test_a_cache_in_fewer_bits_gives_room_for_more() -> None:
    model = weights_named("8b", "Q4_K_M")
    whole = settle(model, memory(vram=16), Wanted(context=32_768))
    shrunk = settle(model, memory(vram=16), Wanted(context=32_768, kv="q4_0"))

    assert shrunk.serving.slots > whole.serving.slots
