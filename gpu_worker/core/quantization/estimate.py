"""
Where each part of a model goes and what is missing: weights, the cache of all slots, what is computed with, a reserve.

llama.cpp puts the output on the GPU first, then layers from the last one down; the input's table stays with the host.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gpu_worker.core.hardware import MIB, Device, Machine
from gpu_worker.core.inference.room import free_bytes
from gpu_worker.core.quantization.weights import Layer, Weights

KvType = Literal["f16", "q8_0", "q4_0"]
_NO_MAX = 2**63
# Bytes of so many numbers of the cache.
_KV: Mapping[KvType, tuple[int, int]] = {"f16": (2, 1), "q8_0": (34, 32), "q4_0": (18, 32)}
# llama.cpp rounds every slot's cache up to these positions.
CELLS = 256
# Rows that are computed at once while a prompt is read.
UBATCH = 512
# What is kept free of any memory: for others on it, and on a GPU for its context. The larger one of the two rules.
RESERVE_BYTES = 1024 * MIB
RESERVE_SHARE = 20
# What the engine takes beside all that is counted: its tokenizer, its tasks, the prompts of its sessions.
RUNTIME_BYTES = 128 * MIB
# Beside a GPU the host holds the rows that travel between them.
HOST_COMPUTE_BYTES = 64 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How a model is served: `context` are the tokens of one slot, prompt and answer."""

    context: int
    slots: int = 1
    kv: KvType = "f16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """
    What is free, in bytes. `vram_bytes` 0: there is no GPU. `total_bytes` is all that the device has, free or not.
    """

    vram_bytes: int
    ram_bytes: int
    total_bytes: int

    @property
    def has_gpu(self) -> bool:
        return self.vram_bytes > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one memory holds, in bytes; `free_bytes` is what it has free, the reserve included."""

    weights: int = 0
    cache: int = 0
    compute: int = 0
    reserve: int = 0
    free_bytes: int = 0

    @property
    def bytes(self) -> int:
        return self.weights + self.cache + self.compute

    @property
    def missing_bytes(self) -> int:
        return max(0, self.bytes + self.reserve - self.free_bytes) if self.bytes else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """
    A model on a machine. `gpu_layers` of `layers_all`, the output among them, are on the GPU.

    `read_gpu` and `read_host` are the bytes that one token of one stream reads at half its context.
    """

    weights: Weights
    serving: Serving
    gpu_layers: int
    layers_all: int
    has_gpu: bool
    gpu: Part
    host: Part
    read_gpu: int
    read_host: int

    @property
    def fits(self) -> bool:
        return self.missing_bytes == 0

    @property
    def missing_bytes(self) -> int:
        return self.gpu.missing_bytes + self.host.missing_bytes

    @property
    def is_whole(self) -> bool:
        """Whether it all is on the GPU, or there is none."""
        return not self.has_gpu or self.gpu_layers == self.layers_all

    @property
    def bytes(self) -> int:
        return self.gpu.bytes + self.host.bytes


def memory_of(machine: Machine, device: Device, *, vram_max: int | None = None, ram_max: int | None = None) -> Memory:
    """
    Return the memory that a model may be put in: a GPU's beside the machine's, or the machine's alone.

    An Apple GPU has no memory of its own: it may take two thirds of the machine's. `vram_max` and `ram_max` are bytes
    that the owner allows.
    """
    free = free_bytes(machine, device)
    ram = min(machine.ram_free_bytes or free, ram_max or machine.ram_free_bytes or free)
    if device.kind == "cpu":
        return Memory(vram_bytes=0, ram_bytes=min(free, ram), total_bytes=min(device.memory_bytes, ram_max or _NO_MAX))
    if device.kind == "mps":
        return Memory(vram_bytes=ram * 2 // 3, ram_bytes=ram - ram * 2 // 3, total_bytes=device.memory_bytes)
    allowed = vram_max or _NO_MAX
    return Memory(vram_bytes=min(free, allowed), ram_bytes=ram, total_bytes=min(device.memory_bytes, allowed))


def reserve_of(free_bytes: int) -> int:
    """Return what is kept free of a memory that has `free_bytes` free."""
    return max(RESERVE_BYTES, free_bytes // RESERVE_SHARE)


def usable_of(free_bytes: int) -> int:
    """Return what a model may take of a memory that has `free_bytes` free."""
    return max(0, free_bytes - reserve_of(free_bytes))


def cells_of(context: int) -> int:
    """Return the positions that a slot's cache has for so many tokens."""
    return context + -context % CELLS


def cache_bytes(layer: Layer, serving: Serving) -> int:
    """Return what one layer keeps of all slots."""
    cells = cells_of(serving.context)
    if layer.window is not None:
        cells = min(cells, cells_of(layer.window + UBATCH))
    size, numbers = _KV[serving.kv]
    return serving.slots * (cells * -(-(layer.k + layer.v) * size // numbers) + layer.state_bytes)


def compute_bytes(weights: Weights, serving: Serving) -> int:
    """
    Return what the rows of a prompt take while they are computed, rather too much than too little.

    The scores of the vocabulary, or the widest rows between two layers if those are more, and who sees whom.
    """
    row = 4 * (max(weights.vocabulary, 4 * weights.inner) + 4 * weights.width)
    masks = 2 if any(layer.window is not None for layer in weights.layers) else 1
    scores = 4 * serving.slots * weights.vocabulary
    return UBATCH * (row + 2 * masks * cells_of(serving.context)) + scores


def plan(weights: Weights, serving: Serving, memory: Memory, gpu_layers: int | None = None) -> Plan:
    """
    Return where each part of the model goes: as many layers on the GPU as fit, or `gpu_layers` whether they fit or not.

    What is missing is told by the plan; nothing here refuses.
    """
    every = len(weights.layers) + 1
    if not memory.has_gpu:
        return _placed(weights, serving, memory, 0)
    if gpu_layers is not None:
        return _placed(weights, serving, memory, min(gpu_layers, every))
    room = usable_of(memory.vram_bytes)
    most = next((count for count in range(every, 0, -1) if _on_gpu(weights, serving, count).bytes <= room), 0)
    return _placed(weights, serving, memory, most)


def _on_gpu(weights: Weights, serving: Serving, count: int) -> Part:
    """Return what `count` layers, the output first, take on a GPU."""
    if count == 0:
        return Part()
    layers = weights.layers[len(weights.layers) - (count - 1) :]
    compute = compute_bytes(weights, serving)
    if count <= len(weights.layers):
        # A long prompt's work on the host's layers is lent to the GPU, a matrix at a time.
        compute += max(layer.bytes for layer in weights.layers) // 2
    return Part(
        weights=weights.output_bytes + sum(layer.bytes for layer in layers),
        cache=sum(cache_bytes(layer, serving) for layer in layers),
        compute=compute,
    )


def _placed(weights: Weights, serving: Serving, memory: Memory, count: int) -> Plan:
    gpu, own = _on_gpu(weights, serving, count), len(weights.layers) - max(0, count - 1)
    layers, others = weights.layers[:own], weights.layers[own:]
    output = 0 if count or weights.is_tied else weights.output_bytes
    is_all_away = count > len(weights.layers)
    host = Part(
        weights=weights.input_bytes + output + sum(layer.bytes for layer in layers),
        cache=sum(cache_bytes(layer, serving) for layer in layers),
        compute=RUNTIME_BYTES + (HOST_COMPUTE_BYTES if is_all_away else compute_bytes(weights, serving)),
        reserve=reserve_of(memory.ram_bytes),
        free_bytes=memory.ram_bytes,
    )
    if count:
        gpu = Part(
            weights=gpu.weights,
            cache=gpu.cache,
            compute=gpu.compute,
            reserve=reserve_of(memory.vram_bytes),
            free_bytes=memory.vram_bytes,
        )
    half = Serving(context=max(1, serving.context // 2), kv=serving.kv)
    reads = {True: 0, False: 0}
    for is_here, some in ((False, layers), (True, others)):
        reads[is_here] = sum(layer.read_bytes + cache_bytes(layer, half) for layer in some)
    reads[count > 0] += weights.output_bytes
    return Plan(
        weights=weights,
        serving=serving,
        gpu_layers=count,
        layers_all=len(weights.layers) + 1,
        has_gpu=memory.has_gpu,
        gpu=gpu,
        host=host,
        read_gpu=reads[True],
        read_host=reads[False],
    )
