"""What every back end of a slice gives to the engine above it."""

from collections.abc import Sequence
from typing import Any, Protocol

from gpu_worker.core.inference.step import CacheUse, SliceInfo


class Rows(Protocol):
    """Positions [position, position + count) of one session; `core.inference.step.Run` is one."""

    @property
    def session(self) -> str: ...
    @property
    def position(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def samples(self) -> bool: ...


class Stage(Protocol):
    """
    A loaded slice with its KV cache, on one device, called by one thread.

    Sampling, scheduling, transport and receipts stand above it and are written once.
    """

    @property
    def info(self) -> SliceInfo: ...

    @property
    def cache(self) -> CacheUse: ...

    def open(self, session: str, positions: int) -> None:
        """Reserve the cache of a session. Raises InferenceError no_capacity; nothing is reserved then."""

    def length(self, session: str) -> int | None:
        """Return how many positions of the session are in the cache, None where it is not open."""

    def forward(self, x: Any, runs: Sequence[Rows]) -> Any:
        """
        Return what the slice makes of the rows of `runs`, which lie one behind the other in `x`.

        `x` is an int64 tensor [N] of token ids on the first stage, else [N, H] hidden states in the slice's dtype. Each
        run begins at its session's length. The result is [N, H], un-normed, or on the last stage [n, V] in float32: the
        logits behind the last row of each of the n runs that sample, in order.

        A session's rows come out as if it were alone, whatever its neighbours are.
        """

    def rollback(self, session: str, length: int) -> None:
        """Forget the positions from `length` on."""

    def close(self, session: str) -> None:
        """Give the session's cache back. Idempotent."""


# Padding up to so many positions costs less than a call more.
_SLACK = 256


def longest_beside(positions: Sequence[int]) -> list[int]:
    """
    Return for each session's position the longest of those that it is read together with.

    These are padded to the longest: one is at least half as long, but for some hundred positions, or a long session
    would slow all short ones beside it.
    """
    found: dict[int, int] = {}
    longest = 0
    for each in sorted(set(positions), reverse=True):
        if not found or 2 * each + _SLACK < longest:
            longest = each
        found[each] = longest
    return [found[each] for each in positions]
