"""
Which sequences a step takes, and chance: functions of the seed and the step, so that a job that goes on elsewhere sees
what it would have seen.
"""

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def batch_of(step: int, *, seed: int, size: int, count: int) -> list[int]:
    """Return which `size` of `count` sequences step `step` takes: every epoch has each once, in an order of its own."""
    found = []
    for place in range(step * size, (step + 1) * size):
        epoch, offset = divmod(place, count)
        found.append(int(_order(seed, epoch, count)[offset]))
    return found


_orders: dict[tuple[int, int, int], Any] = {}


def _order(seed: int, epoch: int, count: int) -> Any:
    import torch

    key = (seed, epoch, count)
    if key not in _orders:
        _orders.clear()
        maker = torch.Generator().manual_seed(seed_of(seed, f"epoch {epoch}"))
        _orders[key] = torch.randperm(count, generator=maker, dtype=torch.int32)
    return _orders[key]


def seed_of(seed: int, what: str) -> int:
    """Return the seed of one thing, 63 bits."""
    return int.from_bytes(hashlib.sha256(f"{seed} {what}".encode()).digest()[:8]) >> 1


def sow(seed: int, what: str, device: "torch.device") -> None:
    """
    Let chance begin anew, from the seed of one thing.

    Not `torch.manual_seed`: without a GPU it keeps a traceback for the day that one appears, milliseconds a call.
    """
    import torch

    number = seed_of(seed, what)
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)


def groups(count: int, size: int) -> int:
    """Return how many batches of `size` the numbers below `count` make."""
    return -(-count // size)


def group(number: int, count: int, size: int) -> range:
    """Return batch `number` of the numbers below `count`, in order."""
    return range(number * size, min((number + 1) * size, count))
