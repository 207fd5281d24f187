"""What the serving of inference counts, since the worker began. Seconds are of a clock that never goes back."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

TOKEN_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
FIRST_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
REQUEST_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TOKENS = tuple(scale * 10**power for power in range(6) for scale in (1, 2, 5))


class Histogram:
    """Values counted by the smallest of `bounds` that is not below them; those above all stand last."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)


@dataclass(slots=True)
class Figures:
    """Of requests. `ended` counts them by how: stop, length, abort (its client left), error."""

    prompt_tokens: int = 0
    tokens: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    first_s: Histogram = field(default_factory=lambda: Histogram(FIRST_S))
    between_s: Histogram = field(default_factory=lambda: Histogram(TOKEN_S))
    per_token_s: Histogram = field(default_factory=lambda: Histogram(TOKEN_S))
    request_s: Histogram = field(default_factory=lambda: Histogram(REQUEST_S))
    queue_s: Histogram = field(default_factory=lambda: Histogram(REQUEST_S))
    prefill_s: Histogram = field(default_factory=lambda: Histogram(REQUEST_S))
    decode_s: Histogram = field(default_factory=lambda: Histogram(REQUEST_S))
    inference_s: Histogram = field(default_factory=lambda: Histogram(REQUEST_S))
    prompt_lengths: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    lengths: Histogram = field(default_factory=lambda: Histogram(TOKENS))
    lengths_max: Histogram = field(default_factory=lambda: Histogram(TOKENS))
