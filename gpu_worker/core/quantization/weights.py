"""
What a model takes before anything is served: its weights layer by layer, and what a token leaves in each layer's cache.

From a file's header it is exact. Before a download it comes from the model's shape or its size, and the bits of a name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from gpu_worker.core.errors import BadInput
from gpu_worker.core.estimate import ModelShape
from gpu_worker.core.quantization.catalogue import BITS, CATALOGUE


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """
    One block. `read_bytes` of its weights are read for a token: all, but for experts that are not asked.

    `k` and `v` are the numbers that a token leaves in the cache, for the last `window` tokens alone where that is set;
    `state_bytes` is what a recurrent layer keeps of a session however long that is.
    """

    bytes: int
    read_bytes: int
    k: int
    v: int
    window: int | None = None
    state_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """
    A model as it would be loaded. `input_bytes` stay in the machine's own memory; `output_bytes` go to the GPU first.

    `is_tied`: the output is the input's own table, which a GPU gets a copy of. `inner` is the widest row between two
    layers, over all experts that are asked for a token. `context` is what it was trained for. `is_exact`: every byte
    was read in the header of its file.
    """

    name: str
    quant: str
    architecture: str
    context: int
    width: int
    inner: int
    vocabulary: int
    layers: tuple[Layer, ...]
    input_bytes: int
    output_bytes: int
    is_tied: bool = False
    is_exact: bool = False

    @property
    def bytes(self) -> int:
        """What its file has."""
        return self.input_bytes + (0 if self.is_tied else self.output_bytes) + sum(layer.bytes for layer in self.layers)


# What the output has at the least, whatever the rest is shrunk to: llama.cpp makes it Q6_K.
_OUTPUT_BITS = Decimal("6.5625")
# A model is called after fewer parameters than it has: Gemma 7B has 8.5.
_NAMED_SHORT = Decimal("1.1")
_EXPERTS_ASKED = ("num_experts_per_tok", "num_experts_per_token", "moe_topk")


def weights_of_config(config: Mapping[str, Any], name: str, quant: str) -> Weights:
    """Return what the model of a config.json would take as `quant`. Raises BadInput: it lacks a number."""
    config = config.get("text_config") or config
    shape = ModelShape.from_config(config)
    asked = next((config[key] for key in _EXPERTS_ASKED if type(config.get(key)) is int), shape.experts)
    share = Decimal(max(1, min(asked, shape.experts))) / shape.experts
    return weights_of_shape(shape, name, quant, share)


def weights_of_shape(shape: ModelShape, name: str, quant: str, experts_share: Decimal = Decimal(1)) -> Weights:
    """Return what a model of this shape would take; of its experts `experts_share` is asked for a token."""
    bits = BITS[quant]
    experts = (3 if shape.is_gated else 2) * shape.width * shape.inner * shape.experts
    unread = int(experts * (1 - experts_share)) if shape.experts > 1 else 0
    layer = Layer(
        bytes=_bytes(shape.layer_parameters, bits),
        read_bytes=_bytes(shape.layer_parameters - unread, bits),
        k=shape.kv_heads * shape.head_width,
        v=shape.kv_heads * shape.head_width,
    )
    table = shape.vocabulary * shape.width
    positions = shape.positions * shape.width if shape.has_positions else 0
    ends = max(bits, _OUTPUT_BITS)
    return Weights(
        name=name,
        quant=quant,
        architecture=shape.kind,
        context=shape.positions,
        width=shape.width,
        inner=max(1, int(shape.inner * shape.experts * experts_share)),
        vocabulary=shape.vocabulary,
        layers=(layer,) * shape.layers,
        input_bytes=_bytes(table, ends if shape.is_tied else bits) + _bytes(positions, Decimal(32)),
        output_bytes=_bytes(table, ends),
        is_tied=shape.is_tied,
    )


def _bytes(numbers: int, bits: Decimal) -> int:
    return int(numbers * bits / 8)


def _llama(layers: int, width: int, inner: int, kv_heads: int, head_width: int, vocabulary: int) -> ModelShape:
    return ModelShape(
        kind="", layers=layers, width=width, inner=inner, heads=width // head_width, kv_heads=kv_heads,
        head_width=head_width, vocabulary=vocabulary, positions=131_072, has_positions=False, is_gated=True,
        is_tied=False, has_biases=False,
    )  # fmt: skip


# What models of a size look like, smallest first: those of the Llama 3 and Qwen 2.5 families.
_USUAL = (
    _llama(24, 896, 4_864, 2, 64, 151_936),
    _llama(16, 2_048, 8_192, 8, 64, 128_256),
    _llama(28, 3_072, 8_192, 8, 128, 128_256),
    _llama(32, 4_096, 14_336, 8, 128, 128_256),
    _llama(48, 5_120, 13_824, 8, 128, 152_064),
    _llama(64, 5_120, 27_648, 8, 128, 152_064),
    _llama(80, 8_192, 28_672, 8, 128, 128_256),
    _llama(126, 16_384, 53_248, 8, 128, 128_256),
)


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters, as a name tells them: all, and those that a token is computed with."""

    parameters: int
    active: int


_SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d{1,3})x)?(\d{1,4}(?:\.\d{1,3})?)([bm])(?![a-z0-9])", re.IGNORECASE)
_ACTIVE = re.compile(r"(?<![a-z0-9.])a(\d{1,3}(?:\.\d{1,2})?)b(?![a-z0-9])", re.IGNORECASE)
_UNITS = {"b": 10**9, "m": 10**6}


def size_in(name: str) -> Size | None:
    """
    Return the size that a model's name tells, None: it tells none.

    Example: qwen3:30b-a3b-q4_k_m -> 30 billion parameters, 3 of them for a token; mixtral-8x7b -> 56 at most.
    """
    found = _SIZE.search(name)
    if found is None:
        return None
    experts, number, unit = found.groups()
    parameters = int(Decimal(number) * _UNITS[unit.lower()]) * int(experts or 1)
    if not 10**6 <= parameters <= 10**13:
        return None
    asked = _ACTIVE.search(name)
    active = int(Decimal(asked.group(1)) * 10**9) if asked else parameters
    return Size(parameters, min(parameters, active or parameters))


def weights_of_size(size: Size, name: str, quant: str) -> Weights:
    """Return about what a model of this size takes as `quant`, rather too much than too little."""
    wanted = size.parameters * _NAMED_SHORT
    usual = next((shape for shape in _USUAL if shape.parameters >= size.parameters * Decimal("0.9")), _USUAL[-1])
    whole = weights_of_shape(usual, name, quant)
    scale, share = wanted / usual.parameters, Decimal(size.active) / size.parameters
    layers = tuple(
        replace(layer, bytes=int(layer.bytes * scale), read_bytes=int(layer.bytes * scale * share))
        for layer in whole.layers
    )
    ends = min(scale, Decimal(2))
    return replace(
        whole, layers=layers, input_bytes=int(whole.input_bytes * ends), output_bytes=int(whole.output_bytes * ends)
    )


def weights_named(name: str, quant: str) -> Weights:
    """Return about what the model of this name takes. Raises BadInput: its name tells no size."""
    size = size_in(name)
    if size is None:
        raise BadInput("model_unknown", f"{name[:80]} tells no size: name its file, its folder, or its size (8B)")
    return weights_of_size(size, name, quant)


def smaller_quants(weights: Weights) -> tuple[str, ...]:
    """Return the quantisations of the catalogue that take less than the model's own, the best first."""
    bits = BITS.get(weights.quant)
    rows = sorted(CATALOGUE, key=lambda quant: quant.quality, reverse=True)
    return tuple(row.name for row in rows if not row.is_arm and bits is not None and BITS[row.name] < bits)


def shrunk(weights: Weights, quant: str) -> Weights:
    """Return about what the model would take in another quantisation. Raises KeyError: one of the two has no bits."""
    scale = BITS[quant] / BITS[weights.quant]
    layers = tuple(
        replace(layer, bytes=int(layer.bytes * scale), read_bytes=int(layer.read_bytes * scale))
        for layer in weights.layers
    )
    return replace(
        weights,
        quant=quant,
        layers=layers,
        input_bytes=int(weights.input_bytes * scale),
        output_bytes=int(weights.output_bytes * scale),
        is_exact=False,
    )
