"""What a step costs on each stage, from what the stages say and how long answers take."""

from collections import deque
from collections.abc import Mapping, Sequence
from math import isfinite

from gpu_worker.core.inference.batch import Hop
from gpu_worker.core.inference.schedule import cost

# The weight of the newest step in what a stage is taken to cost.
_NEW = 0.1


class Shape:
    """
    The stages' cost curves: that of the head's own, which was measured, stretched by how long each has computed.

    `total_s` is what each endpoint has computed in all.
    """

    def __init__(self, own: Mapping[int, float]) -> None:
        self._own = dict(own)
        self._stretch: dict[str, float] = {}
        self._ways: deque[float] = deque(maxlen=64)
        self.total_s: dict[str, float] = {}

    def add(self, hops: Sequence[Hop], rows: int, compute_s: Sequence[float], step_s: float) -> None:
        """Take in a step of `rows` rows. What stages say is not trusted: a word that cannot be true is left out."""
        if len(compute_s) != len(hops) or not all(isfinite(each) and 0 <= each <= step_s for each in compute_s):
            return
        self._ways.append(step_s - sum(compute_s))
        expected = cost(self._own, rows)
        for hop, each in zip(hops, compute_s, strict=True):
            self.total_s[hop.endpoint] = self.total_s.get(hop.endpoint, 0.0) + each
            if expected > 0 and each > 0:
                old = self._stretch.get(hop.endpoint, each / expected)
                self._stretch[hop.endpoint] = old + _NEW * (each / expected - old)

    def curves(self, hops: Sequence[Hop]) -> tuple[list[dict[int, float]], float]:
        """Return the curve of each hop, and what the way costs where nobody waits: the least that a step has shown."""
        stretches = [self._stretch.get(hop.endpoint, 1.0) for hop in hops]
        curves = [{rows: each * stretch for rows, each in self._own.items()} for stretch in stretches]
        return curves, max(0.0, min(self._ways, default=0.0))
