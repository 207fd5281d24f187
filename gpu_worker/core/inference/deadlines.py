"""How long a step may take before somebody is suspected, from how long the last ones took."""

from bisect import bisect_left, insort
from collections import deque

_KEPT = 256
# Without a measured step a slow machine is not to be told from a stuck one: what is dead is found by asking it.
FIRST_S = 30.0
LONGEST_S = 120.0


class StepTimes:
    """The seconds and rows of a pipeline's last steps."""

    def __init__(self) -> None:
        self._times: deque[tuple[int, float]] = deque()
        # Kept in order: putting them in order for each step would be a good part of what a step costs beside computing.
        self._seconds: list[float] = []
        self._rows: list[int] = []

    def add(self, rows: int, seconds: float) -> None:
        self._times.append((rows, seconds))
        insort(self._rows, rows)
        insort(self._seconds, seconds)
        if len(self._times) > _KEPT:
            old_rows, old_s = self._times.popleft()
            del self._rows[bisect_left(self._rows, old_rows)]
            del self._seconds[bisect_left(self._seconds, old_s)]

    def percentile_s(self, part: float) -> float:
        """Return how long at most the fraction `part` of the steps took, 0 before the first."""
        if not self._times:
            return 0.0
        return self._seconds[min(len(self._seconds) - 1, int(part * len(self._seconds)))]

    def deadline_s(self, rows: int, least_s: float) -> float:
        """Return when a step of `rows` rows has taken too long: 4 x p99, more for more rows, `least_s` at least."""
        if not self._times:
            return max(FIRST_S, least_s)
        usual_s, usual_rows = self.percentile_s(0.99), self._rows[len(self._rows) // 2]
        return min(LONGEST_S, max(least_s, 4 * usual_s * max(1.0, rows / max(1, usual_rows))))

    def suspect_s(self, rows: int, least_s: float) -> float:
        """Return after how long the stages of a step are asked whether they live, half of its deadline at most."""
        return min(least_s / 2, self.deadline_s(rows, least_s) / 2)
