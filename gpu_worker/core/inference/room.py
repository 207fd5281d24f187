"""How much memory a slice may take: its weights, and the caches of its sessions. What is left is for jobs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gpu_worker.core.errors import OwnersFault
from gpu_worker.core.estimate import ModelShape
from gpu_worker.core.hardware import Device, Machine
from gpu_worker.core.inference.layers import Layers

MIB = 1024 * 1024
CACHE_LEAST = 64 * MIB
_STORED = {"float32": 4.0, "float16": 2.0, "bfloat16": 2.0}
# Bytes of a weight as it is served, the scales of the shrunk ones among them.
_SERVED = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0, "int8": 1.1, "int4": 0.7}


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Bytes: `weights` are expected, `cache` is the most that sessions get, `free` is what loading may take."""

    weights: int
    cache: int
    free: int


def free_bytes(machine: Machine, device: Device) -> int:
    """Return how much of the device's memory is free now; an amount that its owner set is never passed."""
    if device.kind == "cuda":
        gpu = next((gpu for gpu in machine.gpus if gpu.uuid == device.visible), None)
        return device.memory_bytes if gpu is None else min(device.memory_bytes, gpu.vram_free_bytes)
    return min(device.memory_bytes, machine.ram_free_bytes or device.memory_bytes)


def weights_bytes(stored: int, config: Mapping[str, Any], layers: Layers, dtype: str, quant: str) -> int:
    """
    Return about how much these layers of a model of `stored` bytes take, served as `dtype` or shrunk: embedding and
    head where they belong, those that are tied twice where the slice has both.

    Raises BadInput: its config lacks a number.
    """
    shape = ModelShape.from_config(config.get("text_config") or config)
    was = _STORED.get(str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."), 4.0)
    whole = _SERVED.get(dtype, was)
    shrunk, end = _SERVED.get(quant, whole), shape.vocabulary * shape.width
    between = max(0.0, stored / was - end * (1 if shape.is_tied else 2))
    # The embedding is never shrunk, and the head to eight bits at most.
    ends = end * (layers.is_first * whole + layers.is_last * max(shrunk, min(whole, _SERVED["int8"])))
    return int(between * layers.count / layers.total * shrunk + ends)


def room_of(free: int, weights: int, cache_max: int | None) -> Room:
    """
    Return what a slice may take of `free` bytes; without `cache_max` its caches get half of what its weights leave.

    Raises OwnersFault: the caches that its owner wants leave nothing for the weights.
    """
    cache = max(CACHE_LEAST, (free - weights) // 2) if cache_max is None else cache_max
    if cache_max is not None and cache + weights > free:
        short = -(-(cache + weights - free) // MIB)
        raise OwnersFault(
            f"the layers need about {weights // MIB} MiB and their sessions' caches {cache // MIB} MiB, "
            f"{free // MIB} are free: {short} MiB are missing; serve fewer layers, or lower --kv-max-mb"
        )
    # Where the weights are more than was expected, the caches' least is still theirs.
    return Room(weights=weights, cache=cache, free=max(0, free - min(cache, CACHE_LEAST)))


def beside(room: Room | None, machine: Machine, device: Device) -> tuple[Machine, Device]:
    """
    Return the machine and its device as jobs have them beside a slice that has `room`.

    Its weights are loaded, so they are not free any more; its caches fill as sessions come.
    """
    if room is None:
        return machine, device
    total = max(0, device.memory_bytes - room.weights - room.cache)
    free = machine.ram_free_bytes if device.kind == "cuda" else max(0, machine.ram_free_bytes - room.cache)
    return replace(machine, ram_free_bytes=free), replace(device, memory_bytes=total)
