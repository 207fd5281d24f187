"""Where each part of a model goes, and what is missing: nothing is lost, nothing fits that does not."""

from dataclasses import replace
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_worker.core.hardware import MIB, Device, Gpu, Machine
from gpu_worker.core.quantization.catalogue import BITS
from gpu_worker.core.quantization.choice import offered
from gpu_worker.core.quantization.estimate import (
    CELLS,
    UBATCH,
    KvType,
    Memory,
    Plan,
    Serving,
    cache_bytes,
    cells_of,
    memory_of,
    plan,
    reserve_of,
    usable_of,
)
from gpu_worker.core.quantization.speed import Rates, tokens_per_s
from gpu_worker.core.quantization.weights import Layer, Weights, weights_named

GIB = 1024 * MIB
SERVING = Serving(context=8_192, slots=2)


def memory(vram: float = 0, ram: float = 64) -> Memory:
    return Memory(vram_bytes=int(vram * GIB), ram_bytes=int(ram * GIB), total_bytes=int((vram or ram) * GIB))


def estimate(quant: str, where: Memory) -> int:
    return plan(weights_named("8b", quant), SERVING, where).bytes


memories = st.builds(memory, st.one_of(st.just(0.0), st.floats(0.1, 80)), st.floats(0, 128))
servings = st.builds(
    Serving, context=st.integers(256, 65_536), slots=st.integers(1, 16), kv=st.sampled_from(("f16", "q8_0", "q4_0"))
)
layers = st.builds(
    Layer,
    bytes=st.integers(1, GIB),
    read_bytes=st.integers(1, GIB),
    k=st.integers(0, 4_096),
    v=st.integers(0, 4_096),
    window=st.one_of(st.none(), st.integers(1, 8_192)),
    state_bytes=st.integers(0, MIB),
)
models = st.builds(
    Weights, name=st.just("m"), quant=st.sampled_from(sorted(BITS)), architecture=st.just("llama"),
    context=st.just(65_536), width=st.integers(32, 8_192), inner=st.integers(32, 32_768),
    vocabulary=st.integers(1, 300_000), layers=st.lists(layers, min_size=1, max_size=12).map(tuple),
    input_bytes=st.integers(0, GIB), output_bytes=st.integers(0, GIB), is_tied=st.booleans(),
)  # fmt: skip


@pytest.mark.row(65)
@pytest.mark.parametrize("where", [memory(), memory(vram=6), memory(vram=80)])
def test_more_bits_need_more_memory(where: Memory) -> None:
    assert estimate("Q8_0", where) > estimate("Q4_K_M", where) > estimate("Q2_K", where)
    ordered = sorted(offered(on_arm=True), key=BITS.__getitem__)
    assert all(estimate(fewer, where) < estimate(more, where) for fewer, more in pairwise(ordered))


@pytest.mark.row(65)
@given(st.integers(0, 2**40))
def test_what_is_kept_free_is_the_larger_of_both_rules(free: int) -> None:
    """What may be used is the smaller of what they leave: 1024 MB stay free, and a twentieth."""
    assert reserve_of(free) >= 1024 * MIB
    assert usable_of(free) == max(0, min(free - 1024 * MIB, free - free // 20))


@pytest.mark.row(65)
def test_a_gpu_is_planned_for_by_its_own_memory_not_by_the_machines() -> None:
    assert not plan(weights_named("70b", "Q4_K_M"), SERVING, memory(vram=24, ram=8)).fits
    whole = plan(weights_named("8b", "Q4_K_M"), SERVING, memory(vram=12, ram=4))
    assert (whole.fits, whole.is_whole, whole.gpu_layers) == (True, True, 33)
    assert whole.host.bytes < 2 * GIB


@settings(max_examples=100, deadline=None)
@given(models, servings, memories)
def test_each_part_is_somewhere_once_and_what_fits_has_room(model: Weights, serving: Serving, where: Memory) -> None:
    found = plan(model, serving, where)
    output_on_gpu = found.gpu_layers > 0

    copied = model.output_bytes if model.is_tied and output_on_gpu else 0
    assert found.gpu.weights + found.host.weights == model.bytes + copied
    assert found.gpu.cache + found.host.cache == sum(cache_bytes(layer, serving) for layer in model.layers)
    assert 0 <= found.gpu_layers <= found.layers_all == len(model.layers) + 1
    assert found.gpu.bytes <= usable_of(where.vram_bytes)
    assert found.fits == (found.host.bytes <= where.ram_bytes - reserve_of(where.ram_bytes))
    assert found.fits or found.missing_bytes == found.host.bytes + reserve_of(where.ram_bytes) - where.ram_bytes


@settings(max_examples=100, deadline=None)
@given(models, servings, memories)
def test_no_layer_more_would_have_fitted(model: Weights, serving: Serving, where: Memory) -> None:
    found = plan(model, serving, where)
    for count in range(found.gpu_layers + 1, found.layers_all + 1 if where.has_gpu else 0):
        assert plan(model, serving, where, gpu_layers=count).gpu.missing_bytes > 0


@settings(max_examples=100, deadline=None)
@given(models, servings, memories, st.floats(1, 3))
def test_more_memory_never_takes_a_layer_away_and_more_slots_never_give_one(
    model: Weights, serving: Serving, where: Memory, more: float
) -> None:
    found = plan(model, serving, where)
    larger = replace(where, vram_bytes=int(where.vram_bytes * more), ram_bytes=int(where.ram_bytes * more))
    assert plan(model, serving, larger).gpu_layers >= found.gpu_layers
    busier = plan(model, replace(serving, slots=serving.slots * 2), where)
    assert busier.gpu_layers <= found.gpu_layers
    assert busier.bytes >= found.bytes or busier.gpu_layers < found.gpu_layers


def test_layers_that_the_owner_sets_are_there_whether_they_fit_or_not() -> None:
    model = weights_named("8b", "Q8_0")

    assert plan(model, SERVING, memory(vram=4), gpu_layers=5).gpu_layers == 5
    forced = plan(model, SERVING, memory(vram=4), gpu_layers=33)
    assert (forced.gpu_layers, forced.fits) == (33, False)
    assert forced.gpu.missing_bytes == forced.gpu.bytes + GIB - 4 * GIB
    assert plan(model, SERVING, memory(), gpu_layers=33).gpu_layers == 0


# A layer of 4 heads of 64 in both, as the model of 88 million parameters that llama.cpp tells 6.00 MiB of for 512.
def test_the_cache_is_counted_as_llama_cpp_makes_it() -> None:
    layer = Layer(bytes=1, read_bytes=1, k=256, v=256)

    def mib(context: int, slots: int = 1, kv: KvType = "f16", layer: Layer = layer) -> float:
        return 12 * cache_bytes(layer, Serving(context=context, slots=slots, kv=kv)) / MIB

    assert mib(512) == 6.0
    assert mib(4_096, 2) == 96.0
    assert mib(4_096, kv="q8_0") == 25.5
    assert mib(4_096, kv="q4_0") == 13.5
    assert mib(257) == mib(512)
    assert mib(8_192, layer=replace(layer, window=1_024)) == mib(1_024 + UBATCH)
    assert cells_of(1) == CELLS


@pytest.mark.parametrize(("kind", "vram", "ram"), [("cuda", 10, 30), ("cpu", 0, 30), ("mps", 20, 10)])
def test_the_memory_of_a_machine_is_where_its_models_go(kind: str, vram: int, ram: int) -> None:
    gpu = Gpu(index=0, uuid="GPU-1", name="x", driver="1", vram_total_bytes=12 * GIB, vram_free_bytes=10 * GIB)
    machine = Machine(
        ram_total_bytes=32 * GIB, ram_free_bytes=30 * GIB, cpu_count=8, cpu_percent=Decimal(0), disk_free_bytes=0,
        gpus=(gpu,) if kind == "cuda" else (),
    )  # fmt: skip
    total = (12 if kind == "cuda" else 32) * GIB
    visible = "GPU-1" if kind == "cuda" else None
    device = Device(kind=kind, name=kind, gpu_type="x", memory_bytes=total, visible=visible)
    found = memory_of(machine, device)

    assert (found.vram_bytes, found.ram_bytes, found.total_bytes) == (vram * GIB, ram * GIB, total)
    allowed = memory_of(machine, device, vram_max=2 * GIB, ram_max=3 * GIB)
    assert allowed.vram_bytes + allowed.ram_bytes <= 5 * GIB


def test_a_token_takes_as_long_as_reading_what_it_is_made_of() -> None:
    model = weights_named("8b", "Q4_K_M")
    whole, split, none = (plan(model, SERVING, where) for where in (memory(vram=24), memory(vram=4), memory()))
    rates = Rates(gpu=400 * 10**9, host=40 * 10**9)

    def speed(of: Plan) -> Decimal:
        found = tokens_per_s(of, rates)
        assert found is not None
        return found

    assert speed(whole) > speed(split) > speed(none)
    assert speed(none) == (Decimal(40 * 10**9) / none.read_host).quantize(Decimal("0.1"))
    # Weights without the input's table, and half of one slot's cache.
    assert none.read_host == model.bytes - model.input_bytes + 32 * 4_096 * 2_048 * 2
    assert whole.read_host == 0
    assert tokens_per_s(whole, Rates(gpu=1)) is not None
    assert tokens_per_s(split, Rates(gpu=1)) is None
    assert tokens_per_s(none, Rates()) is None


def test_experts_that_are_not_asked_make_a_token_faster_not_the_model_smaller() -> None:
    asked = plan(weights_named("30b-a3b", "Q4_K_M"), SERVING, memory())
    dense = plan(weights_named("30b", "Q4_K_M"), SERVING, memory())

    assert asked.bytes == dense.bytes
    assert asked.read_host < dense.read_host / 3
